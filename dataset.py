"""dataset.bin：训练文档的文件，建它与打开它。

文件的样子见 support/container.py；先是全部训练文档，后是全部验证文档。
"""

from __future__ import annotations

import array
import contextlib
import time
from pathlib import Path
from typing import Any, Iterator

import numpy as np

from poems import build as building
from poems import collection, dedup
from support import artefacts, console, container, files
from support.columns import Column
from support.console import UserError
from tokenizer import HFTokenizer

FILE = container.Kind(b"POEMDATA", 1, "数据集")
_HEADER = {
    "tokenizer": str,
    "prompt_kinds": dict,
    "all_kinds": list,
    "n_train": int,
    "n_val": int,
    "max_seq_len": int,
}
_BUILD = "请运行：python train_dataset_one.py"


# ── 建 ────────────────────────────────────────────────────────────────


def build(
    poems_path: Path | str,
    tokenizer: Any,
    out: Path | str,
    *,
    shares: dict[str, float] | None = None,
    prompts_per_poem: int = 1,
    val_share: float = 0.02,
    seed: int = 42,
    max_seq_len: int = 512,
) -> dict[str, Any]:
    """诗集 → dataset.bin，返回一份统计（report）。

    shares 为 None 时只用题目作提示词；否则每首训练诗按比例配 prompts_per_poem 种。
    验证诗总是只用题目。同样的输入和种子写出同样的字节；中途出错时旧文件原样还在。
    out 已是同样 seed、val_share 的数据集时（诗集长大了），其中的诗留在原来那一边。
    tokenizer 需要 encode、encode_batch、token_bytes、to_json、vocab_size 和三个特殊编号。
    """
    started = time.monotonic()
    poems_path, out = Path(poems_path), Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    settings = building.Settings(
        seed=seed,
        val_share=val_share,
        max_seq_len=max_seq_len,
        prompts_per_poem=prompts_per_poem if shares else 1,
        shares=shares,
    )
    with contextlib.ExitStack() as stack:
        survey = stack.enter_context(contextlib.closing(building.Survey(out.parent)))
        building.survey(poems_path, survey)
        val, before = _split(survey, out, val_share, seed)
        encoder = building.Encoder(tokenizer, settings, out.parent)
        stack.enter_context(contextlib.closing(encoder))
        with console.progress(len(val), "编码") as bar:
            for count in encoder.add_all(collection.iter_poems(poems_path), val):
                bar.update(count)
        container.write(out, FILE, encoder.header(survey), encoder.pieces(survey))
    return {
        **encoder.report(),
        "kept_val": 0 if before is None else int((val & (before == building.VAL)).sum()),
        "seconds": time.monotonic() - started,
        "bytes": out.stat().st_size,
    }


def val_side(poems_path: Path, out: Path, *, val_share: float, seed: int) -> np.ndarray:
    """哪些诗是验证诗，bool (n,)：照同样的设置把诗集建到 out，就是这样分的。"""
    with contextlib.closing(building.Survey(out.parent)) as survey:
        building.survey(poems_path, survey)
        return _split(survey, out, val_share, seed)[0]


def _split(
    survey: building.Survey, out: Path, val_share: float, seed: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """(哪些诗是验证诗，bool (n,)；各诗在 out 原来的哪一边，见 _sides_before)。"""
    before = _sides_before(out, {"seed": seed, "val_share": val_share}, survey.digests)
    return building.choose_val(survey.groups(), val_share, seed, survey.chars, before), before


def _sides_before(path: Path, settings: dict, digests: Column) -> np.ndarray | None:
    """各诗在原来那份数据集的哪一边，uint8 (n,)；没有那份、读不了或划分的设置变了时是 None。"""
    with contextlib.suppress(UserError, ValueError), load(path) as old:
        same = all(old.header.get(key) == value for key, value in settings.items())
        if same and not old.val_is_train:
            known, sides = old.sides()
            return np.concatenate([_look_up(block, known, sides) for block in digests.blocks()])
    return None


def _look_up(digests: np.ndarray, known: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """digests (n,) 各在哪一边，uint8 (n,)；known (k,) 升序、没有重复，不在里面的是 0。"""
    place = np.searchsorted(known, digests).clip(max=len(known) - 1)
    return np.where(known[place] == digests, sides[place], 0).astype(np.uint8)


def find_tokenizer(work_dir: str, choice: str = "auto") -> Path:
    """TOKENIZER 配置（auto | hug | bpe | 路径）→ 分词器文件；没有时抛出 UserError。"""
    names = {"hug": (artefacts.TOKENIZER_HUG,), "bpe": (artefacts.TOKENIZER_BPE,)}
    names["auto"] = names["hug"] + names["bpe"]
    if choice not in names:
        found = files.find_input(choice, work_dir)
        if found is not None and found.is_file():
            return found
        raise UserError(f"没有找到分词器 TOKENIZER={choice}（可写 auto、hug、bpe 或路径）")
    for name in names[choice]:
        if (Path(work_dir) / name).is_file():
            return Path(work_dir) / name
    script = "train_BPEtokennizer.py" if choice == "bpe" else "hug_face_tokenizer.py"
    raise UserError(
        f"{work_dir} 里没有分词器（{' 或 '.join(names[choice])}）\n请运行：python {script}"
    )


# ── 读 ────────────────────────────────────────────────────────────────


def load(path: Path | str) -> PoemDataset:
    """内存映射打开 dataset.bin；没有、残缺、不是本项目的或版本太新时抛出 UserError。"""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"没有找到数据集 {path}\n{_BUILD}")
    try:
        opened = container.load(path, FILE)
        wrong = [k for k, kind in _HEADER.items() if not isinstance(opened.header.get(k), kind)]
        if wrong:
            raise container.Damaged(f"{path} 的头部已损坏：{'、'.join(wrong)} 没有或不对")
        return PoemDataset(opened)
    except OSError as error:
        raise UserError(f"读不了 {path}：{error}\n{_BUILD}") from error
    except container.Damaged as error:
        raise UserError(f"{error}\n{_BUILD}") from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} 的头部已损坏：{error!r}\n{_BUILD}") from error


class PoemDataset:
    """内存映射的 dataset.bin。文档编号从 0 起，训练在前、验证在后；取出的数组都是只读视图。

    Windows 上打开的映射会挡住替换文件，用完请 close()（也可以用 with）。
    """

    def __init__(self, opened: container.Container) -> None:
        self.header = opened.header
        self.fingerprint = opened.fingerprint
        self.tokenizer_json: str = self.header["tokenizer"]
        self.prompt_kinds: list[str] = list(self.header["prompt_kinds"])
        self.val_is_train: bool = self.header["n_val"] == 0
        self._file = opened
        arrays = opened.arrays
        self._tokens, self._mask = arrays["tokens"], arrays["mask"]
        self.offsets = arrays["offsets"]  # int64 (docs+1,)
        self.poem_ids = arrays["poem_ids"]  # int32 (docs,)
        self.chars = arrays["chars"]  # int32 (docs,)
        self.whole = arrays["whole"].view(bool)  # bool (docs,)

    def __len__(self) -> int:
        return len(self.poem_ids)

    def __enter__(self) -> PoemDataset:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """解除映射；外面还留着视图时，等它们消失后自动解除。"""
        self._tokens = self._mask = self.offsets = self.poem_ids = self.chars = self.whole = None
        self._file.close()

    def range(self, split: str) -> tuple[int, int]:
        """一边的文档编号 [first, last)；没有验证文档时 val 就是 train。"""
        n_train, n_val = self.header["n_train"], self.header["n_val"]
        if split not in ("train", "val"):
            raise ValueError(f"split={split!r} 应是 train 或 val")
        if split == "train" or self.val_is_train:
            return 0, n_train
        return n_train, n_train + n_val

    def document(self, index: int) -> tuple[np.ndarray, np.ndarray, int]:
        """第 index 篇 → (ids (T,), mask uint8 (T,)，1 为训练目标, 诗的序号)。"""
        first, last = self.offsets[index], self.offsets[index + 1]
        return self._tokens[first:last], self._mask[first:last], int(self.poem_ids[index])

    def documents(self, split: str) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """逐篇给出 (ids, mask, poem_id)。"""
        for index in range(*self.range(split)):
            yield self.document(index)

    def stream(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """一边的全部文档首尾相接 → (ids (N,), mask uint8 (N,))。"""
        first, last = (int(self.offsets[index]) for index in self.range(split))
        return self._tokens[first:last], self._mask[first:last]

    def lengths(self, split: str) -> np.ndarray:
        """各篇的 token 数，int64 (docs,)。"""
        first, last = self.range(split)
        return np.diff(self.offsets[first : last + 1])

    def trained(self, split: str) -> np.ndarray:
        """各篇里训练的 token 数，int32 (docs,)。"""
        first, last = self.range(split)
        return self._file.arrays["trained"][first:last]

    def kind(self, index: int) -> str:
        """第 index 篇的提示词种类。"""
        return self.header["all_kinds"][self._file.arrays["kinds"][index]]

    def body_text(self, index: int, tok: Any) -> str:
        """第 index 篇里训练到的正文。"""
        ids, mask, _ = self.document(index)
        return tok.decode([int(token) for token in ids[mask == 1] if token != tok.end_id])

    def bodies(self, split: str, tok: Any) -> Iterator[tuple[int, int, str]]:
        """(到第几篇为止, 诗的序号, 正文)：长诗的各篇接回一首；一首诗有几种提示词就给出几次。"""
        parts: list[str] = []
        for index in range(*self.range(split)):
            ids, _, poem_id = self.document(index)
            parts.append(self.body_text(index, tok))
            if ids[-1] == tok.end_id:
                yield index, poem_id, "".join(parts)
                parts = []

    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        """（正文的摘要 uint64 (n,)，升序；building.TRAIN 或 VAL uint8 (n,)）；没有文字的诗不算。"""
        tok = HFTokenizer.from_json(self.tokenizer_json)
        found, sides = array.array("Q", [0]), array.array("B", [0])  # 0：没有文字的
        for split, side in (("val", building.VAL), ("train", building.TRAIN)):
            for _, _, body in self.bodies(split, tok):
                normal = dedup.normal_form(body)
                if normal:
                    found.append(dedup.digest(normal))
                    sides.append(side)
        known, first = np.unique(np.frombuffer(found, np.uint64), return_index=True)
        return known, np.frombuffer(sides, np.uint8)[first]  # 两边都有的算验证诗

    def poem_info(self, poem_id: int) -> dict[str, str]:
        """诗的序号 → {"title", "author"}。"""
        first, middle, last = self._file.arrays["name_offsets"][2 * poem_id : 2 * poem_id + 3]
        names = self._file.arrays["names"]
        title, author = names[first:middle].tobytes(), names[middle:last].tobytes()
        return {"title": title.decode("utf-8"), "author": author.decode("utf-8")}

    def verify(self) -> list[str]:
        """重算各数组的校验和，返回对不上的数组名；没有损坏时为空。"""
        return self._file.verify()
