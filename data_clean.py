"""清洗诗歌数据：RAW_DATA → WORK_DIR/all_poems.json。

自己认出 .pt 诗文件、JSON、JSON Lines、.txt 和混放它们的文件夹，以及 GBK、带 BOM 的文件；
改好能放心改的，丢掉不能用的和重复的，并说明各是多少、为什么（clean_report.json、clean_lengths.png）。
没有 RAW_DATA 时清洗 WORK_DIR 里的 all_poems.json，原件留作 all_poems.raw.json。
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import unicodedata
from array import array
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Iterable, NamedTuple

import numpy as np

import config
from poems import dedup, mend, records, sources
from support import console, files, picture
from support.console import UserError

OUTPUT = "all_poems.json"
ORIGINAL = "all_poems.raw.json"
REPORT = "clean_report.json"
PICTURE = "clean_lengths.png"

EXACT_COPY = "与另一首完全相同"
NEAR_COPY = "与另一首近似，留较长的"

_EXAMPLES = 2  # 每种原因举几个例子
_BATCH = 2000  # 每多少首算一次签名
_CANDIDATE = 0.25  # 签名有这么像的才逐字核对
_EXCERPT = 0.02  # 同一作者同一题目的，这么像就核对（节选可能比全诗短得多）

_ENCODINGS = {
    "utf-8-sig": "带 BOM 的 UTF-8",
    "utf-16": "UTF-16",
    "gb18030": "GBK/GB18030",
}


# ── 报告 ──────────────────────────────────────────────────────────────


class Tally:
    """按原因计数，每种原因留两个例子。"""

    def __init__(self) -> None:
        self.counts: Counter = Counter()
        self.examples: dict[str, list] = {}

    def add(self, reason: str, **example: str) -> None:
        self.counts[reason] += 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < _EXAMPLES:
            shown.append({key: _shorten(value) for key, value in example.items()})

    def to_list(self) -> list[dict]:
        """多的在前。"""
        return [
            {"reason": reason, "count": count, "examples": self.examples[reason]}
            for reason, count in sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        ]


class Report:
    """一次清洗的全部计数。"""

    def __init__(self) -> None:
        self.read = 0  # 首
        self.files = 0
        self.dropped = Tally()
        self.mended = Tally()
        self.encodings = Tally()
        self.skipped = Tally()
        self.lengths = np.empty(0, dtype=np.int64)  # 留下的各首的字数

    def to_dict(self, source: str, sha256: str) -> dict:
        return {
            "version": 1,
            "input": source,
            "output": {"file": OUTPUT, "sha256": sha256},
            "files": self.files,
            "poems_read": self.read,
            "poems_kept": len(self.lengths),
            "chars_kept": int(self.lengths.sum()),
            "lengths": self._percentiles(),
            "dropped": self.dropped.to_list(),
            "mended": self.mended.to_list(),
            "encodings": self.encodings.to_list(),
            "skipped_files": self.skipped.to_list(),
        }

    def _percentiles(self) -> dict[str, int]:
        if not len(self.lengths):
            return {}
        points = np.percentile(self.lengths, [0, 5, 50, 95, 100])
        names = ("min", "p5", "median", "p95", "max")
        return {name: round(float(point)) for name, point in zip(names, points)}

    def text(self) -> str:
        """给人看的表。"""
        parts = [
            f"读了 {self.files} 个文件、{self.read} 首；留下 {len(self.lengths)} 首，"
            f"{int(self.lengths.sum())} 字。"
        ]
        for heading, tally, unit in (
            ("丢弃", self.dropped, "首"),
            ("改动", self.mended, "首"),
            ("编码", self.encodings, "个文件"),
            ("略过的文件", self.skipped, "个文件"),
        ):
            if tally.counts:
                total = sum(tally.counts.values())
                note = f"（{total} {unit}）" if heading != "改动" else "（一首可有多处）"
                parts.append(f"\n{heading}{note}")
                parts.extend(_table(tally.to_list()))
        return "\n".join(parts)


def _table(rows: list[dict]) -> Iterable[str]:
    width = max(_width(row["reason"]) for row in rows)
    for row in rows:
        padding = " " * (width - _width(row["reason"]))
        examples = "；".join(_example(example) for example in row["examples"])
        yield f"  {row['reason']}{padding}  {row['count']:>7}  {examples}"


def _example(example: dict) -> str:
    shown = f"《{example['title']}》" if example.get("title") else example["where"]
    return shown + (f"（同 {example['same_as']}）" if example.get("same_as") else "")


def _width(text: str) -> int:
    """终端里占几格。"""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def _shorten(text: str, limit: int = 60) -> str:
    """例子只留一行开头，写不进 UTF-8 的字符换掉。"""
    line = " / ".join(text.split("\n"))
    line = line[:limit] + "…" if len(line) > limit else line
    return _printable(line)


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


# ── 第一遍：读、改、挑 ────────────────────────────────────────────────


class Index:
    """留下的诗：文字在临时文件里，内存里每首只有约 170 字节。"""

    def __init__(self, spill: BinaryIO) -> None:
        self.spill = spill  # 每行：出处 \t 记录的 JSON
        self.offsets = array("Q")
        self.lengths = array("I")  # 正文字数，含换行
        self.anonymous = bytearray()
        self.digests = array("Q")
        self.title_keys = array("Q")
        self._position = 0
        self._normals: list[str] = []
        self._signatures: list[np.ndarray] = []

    def add(self, where: str, poem: mend.Poem) -> None:
        record = {"title": poem.title, "para": poem.para, "author": poem.author}
        where = where.replace("\t", " ").replace("\n", " ")  # 文件名里什么都可能有
        line = f"{where}\t{json.dumps(record, ensure_ascii=False)}\n".encode("utf-8", "replace")
        self.spill.write(line)
        self.offsets.append(self._position)
        self._position += len(line)
        self.lengths.append(len("\n\n".join(poem.para)))
        self.anonymous.append(poem.author == mend.UNKNOWN_AUTHOR)
        self.digests.append(dedup.digest(poem.normal))
        self.title_keys.append(dedup.title_key(dedup.base_title(poem.title), poem.author))
        self._normals.append(poem.normal)
        if len(self._normals) >= _BATCH:
            self._sign()

    def _sign(self) -> None:
        self._signatures.append(dedup.signature(self._normals))
        self._normals = []

    def take_signatures(self) -> np.ndarray:
        """uint16 (n, 64)，按加入的次序；只能取一次。"""
        self._sign()
        result = np.empty((len(self.offsets), dedup.HASHES), dtype=np.uint16)
        end = len(result)
        while self._signatures:
            part = self._signatures.pop()
            result[end - len(part) : end] = part
            end -= len(part)
        return result

    def read(self, number: int) -> tuple[str, dict]:
        """第 number 首的（出处，记录）。"""
        self.spill.seek(self.offsets[number])
        where, _, record = self.spill.readline().decode("utf-8").partition("\t")
        return where, json.loads(record)


def collect(files: list[sources.SourceFile], index: Index, report: Report, min_chars: int) -> None:
    """读入全部文件，把能用的诗放进 index，其余记入 report。"""
    report.files = len(files)

    def on_encoding(file: sources.SourceFile, encoding: str) -> None:
        if encoding in _ENCODINGS:
            report.encodings.add(_ENCODINGS[encoding], where=file.name)

    with console.progress(
        sum(file.size for file in files), "读取", unit="B", unit_scale=True
    ) as bar:
        for file in files:
            try:
                for raw in sources.read_poems(file, on_encoding, bar.update):
                    _take(raw, index, report, min_chars)
            except records.BrokenJSON as error:
                raise UserError(
                    f"{error}\n没有改动任何文件。改好这一处后请运行：python data_clean.py"
                ) from error


def _take(raw: sources.RawPoem, index: Index, report: Report, min_chars: int) -> None:
    """一首诗：清洗后放进 index，或记下丢弃的原因。"""
    report.read += 1
    if raw.reason:
        report.dropped.add(raw.reason, where=raw.where, title=raw.title, text=raw.body)
        return
    poem = mend.mend(raw.title, raw.body, raw.author, min_chars)
    if poem.fault:
        text = "\n".join(poem.para)
        report.dropped.add(poem.fault, where=raw.where, title=poem.title, text=text)
        return
    for note in (*raw.notes, *poem.mends):
        report.mended.add(note, where=raw.where, title=poem.title)
    index.add(raw.where, poem)


# ── 重复 ──────────────────────────────────────────────────────────────


def find_copies(index: Index, near_copy: float) -> tuple[np.ndarray, np.ndarray]:
    """返回 copy_of int64 (n,)：被哪一首取代，-1 为留下；exact bool (n,)：是否完全相同。

    留较长的；一样长时留作者已知的，再留排在前面的。
    """
    count = len(index.offsets)
    order = np.lexsort(
        (
            np.arange(count),
            np.frombuffer(index.anonymous, dtype=np.uint8),
            -np.array(index.lengths, dtype=np.int64),
        )
    )
    rank = np.empty(count, dtype=np.int64)
    rank[order] = np.arange(count)  # 0 最该留下
    copy_of = _exact_copies(np.array(index.digests, dtype=np.uint64), rank)
    exact = copy_of >= 0
    _near_copies(index, near_copy, rank, copy_of)
    return copy_of, exact


def _exact_copies(digests: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """规范形式相同的诗，指向其中最该留下的一首。"""
    copy_of = np.full(len(digests), -1, dtype=np.int64)
    order = np.lexsort((rank, digests))
    if not len(order):
        return copy_of
    first = np.ones(len(order), dtype=bool)
    first[1:] = digests[order][1:] != digests[order][:-1]
    kept = order[first][np.cumsum(first) - 1]  # 各首所在一组的第一名
    copy_of[order[~first]] = kept[~first]
    return copy_of


def _near_copies(index: Index, near_copy: float, rank: np.ndarray, copy_of: np.ndarray) -> None:
    """在还没有被取代的诗里找近似的，写进 copy_of。从最该留下的一首看起。"""
    signatures = index.take_signatures()
    keys = np.array(index.title_keys, dtype=np.uint64)
    signatures[copy_of >= 0] = dedup.NOTHING
    keys[copy_of >= 0] = 0
    pairs, _ = dedup.near_pairs(signatures, _CANDIDATE)
    pairs = np.concatenate([pairs, dedup.same_key_pairs(signatures, keys, _EXCERPT)])
    likeness = dedup.likeness(signatures, pairs)
    certain = (1 + near_copy) / 2  # 签名像到这个程度就不必逐字核对

    @lru_cache(maxsize=256)
    def shingles(number: int) -> Counter:
        record = index.read(number)[1]
        return dedup.shingles(dedup.normal_form("".join(record["para"])))

    better: dict[int, dict[int, float]] = {}  # 诗 → {比它更该留下的: 有多像}
    for (first, second), like in zip(pairs.tolist(), likeness.tolist()):
        if rank[first] > rank[second]:
            first, second = second, first
        better.setdefault(second, {})[first] = like
    for number in sorted(better, key=lambda item: rank[item]):
        for other, like in sorted(better[number].items()):
            target = other if copy_of[other] < 0 else int(copy_of[other])
            sure = target == other and like >= certain
            if sure or dedup.overlap(shingles(number), shingles(target)) >= near_copy:
                copy_of[number] = target
                break


# ── 第二遍：写出 ──────────────────────────────────────────────────────


def write_poems(index: Index, copy_of: np.ndarray, exact: np.ndarray, file, report: Report) -> str:
    """把留下的诗写成每行一条的 JSON 列表，返回内容的 sha256。"""
    checksum = hashlib.sha256()

    def write(text: bytes) -> None:
        checksum.update(text)
        file.write(text)

    kept = np.flatnonzero(copy_of < 0)
    report.lengths = np.array(index.lengths, dtype=np.int64)[kept]
    for number in np.flatnonzero(copy_of >= 0).tolist():
        _report_copy(index, number, int(copy_of[number]), bool(exact[number]), report)
    index.spill.seek(0)
    separator = b"[\n"
    with console.progress(len(copy_of), "写出") as bar:
        for target, line in zip(copy_of.tolist(), index.spill):
            bar.update()
            if target < 0:
                write(separator + line.partition(b"\t")[2].rstrip(b"\n"))
                separator = b",\n"
    write(b"\n]\n")
    return checksum.hexdigest()


def _report_copy(index: Index, number: int, target: int, exact: bool, report: Report) -> None:
    reason = EXACT_COPY if exact else NEAR_COPY
    if report.dropped.counts[reason] >= _EXAMPLES:
        report.dropped.counts[reason] += 1
        return
    where, record = index.read(number)
    same = index.read(target)[1]
    report.dropped.add(
        reason,
        where=where,
        title=record["title"],
        text="\n".join(record["para"]),
        same_as=f"{same['author']}《{same['title']}》",
    )


def draw_lengths(lengths: np.ndarray, path: Path) -> bool:
    """字数分布图；没有 matplotlib 时返回 False。"""
    pyplot = picture.setup_plot()
    if pyplot is None:
        return False
    text = picture.plot_text
    top = max(float(np.percentile(lengths, 99)), 20.0)
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    axes.hist(np.minimum(lengths, top), bins=60, color="#4c72b0")
    median = float(np.median(lengths))
    axes.axvline(median, color="#c44e52", label=f"{text('中位数', 'median')} {median:.0f}")
    axes.set_xlabel(
        text("正文字数（最长的 1% 并入最后一格）", "characters (top 1% in the last bin)")
    )
    axes.set_ylabel(text("首", "poems"))
    axes.set_title(text("清洗后的诗有多长", "Length of the cleaned poems"))
    axes.legend()
    figure.tight_layout()
    with files.atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)
    pyplot.close(figure)
    return True


# ── 从哪里读，怎样保住原件 ────────────────────────────────────────────


class Job(NamedTuple):
    """一次清洗：读什么，写出前怎样处置已有的 all_poems.json。"""

    source: Path
    keep: str  # "" 可以覆盖 | "original" 改名为 all_poems.raw.json | "aside" 改成没用过的名字
    note: str


def plan(raw_data: str, work_dir: str) -> Job:
    """决定读什么。RAW_DATA 优先；没有时读 WORK_DIR 里的 all_poems.json 或它的原件。"""
    output, original = (files.work_path(work_dir, name) for name in (OUTPUT, ORIGINAL))
    ours = output.exists() and _is_ours(output, files.work_path(work_dir, REPORT))
    found = files.find_input(raw_data, work_dir)
    if found and not (output.exists() and found.samefile(output)):
        if found.is_file() or sources.find_files(found, artefacts(work_dir))[0]:
            return Job(found, "aside" if output.exists() and not ours else "", f"读取 {found}")
        missing = f"RAW_DATA={raw_data} 里没有 .pt、.json、.jsonl、.txt 文件"
    else:
        missing = f"没有找到 RAW_DATA={raw_data}"
    if output.exists() and not (ours and original.exists()):
        return Job(output, "original", f"{missing}，清洗 {output}（原件留作 {ORIGINAL}）")
    if original.exists():
        return Job(original, "", f"{missing}，清洗 {original}")
    raise UserError(
        f"{missing}，{work_dir} 里也没有 {OUTPUT}。\n"
        "请把诗放进 RAW_DATA：例如下载公开的现代诗语料 https://github.com/sheepzh/poetry ，"
        "解压成 poetry/data/<作者>/*.pt，\n"
        "然后运行：python data_clean.py\n"
        "只想先看看效果：python quickstart.py（用自带的样例诗）"
    )


def _is_ours(output: Path, report: Path) -> bool:
    """all_poems.json 是否就是上次清洗写出的，没有人改过。"""
    try:
        with open(report, encoding="utf-8") as file:
            written = json.load(file)["output"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return written == _sha256(output)


def _sha256(path: Path) -> str:
    checksum = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            checksum.update(chunk)
    return checksum.hexdigest()


def artefacts(work_dir: str) -> tuple[Path, ...]:
    """WORK_DIR 里由本工具写出、不该当作诗来读的文件。"""
    folder = Path(work_dir)
    names = (OUTPUT, ORIGINAL, REPORT, "tokenizer_hug.json", "tokenizer_bpe.json")
    others = ("requirements*.txt", "all_poems.old*.json", "all_poems.raw.old*.json", "samples*.txt")
    found = [path for pattern in others for path in folder.glob(pattern)]
    return (*(folder / name for name in names), *found)


def _make_room(job: Job, work_dir: str) -> str:
    """写出之前给已有的 all_poems.json 改名；返回要告诉使用者的话。"""
    output, original = Path(work_dir) / OUTPUT, Path(work_dir) / ORIGINAL
    if job.keep == "aside":
        return f"原来的 {OUTPUT} 不是清洗写出的（或被改过），已留作 {files.keep_aside(output)}"
    if job.keep == "original":
        aside = files.keep_aside(original)
        files.replace(output, original)
        said = f"原件已留作 {original}"
        return said + (f"，更早的原件留作 {aside}" if aside else "")
    return ""


# ── 全程 ──────────────────────────────────────────────────────────────


def clean(raw_data: str, work_dir: str, min_chars: int, near_copy: float) -> Report:
    """清洗一次，写出 all_poems.json 与 clean_report.json，返回报告。

    出错（UserError）时已有的文件都不改动。
    """
    job = plan(raw_data, work_dir)
    print(job.note)
    found, skipped = sources.find_files(job.source, artefacts(work_dir))
    report = Report()
    for name in skipped:
        report.skipped.add(os.path.splitext(name)[1].lower() or "无后缀", where=name)
    with tempfile.TemporaryFile(dir=work_dir) as spill:
        index = Index(spill)
        collect(found, index, report, min_chars)
        if not index.offsets:
            raise UserError(_nothing_left(job.source, report))
        copy_of, exact = find_copies(index, near_copy)
        with files.atomic_write(Path(work_dir) / OUTPUT, "wb") as file:
            sha256 = write_poems(index, copy_of, exact, file, report)
            summary = report.to_dict(_printable(str(job.source)), sha256)
            with files.atomic_write(Path(work_dir) / REPORT) as report_file:
                json.dump(summary, report_file, ensure_ascii=False, indent=1)
            kept = _make_room(job, work_dir)
    print(report.text())
    if kept:
        print(f"\n{kept}")
    return report


def _nothing_left(source: Path, report: Report) -> str:
    reasons = "；".join(f"{row['reason']} {row['count']} 首" for row in report.dropped.to_list())
    return (
        f"{source} 里没有一首能用的诗：读到 {report.read} 首"
        + (f"（{reasons}）" if reasons else "")
        + "。\n没有改动任何文件。请检查数据的格式（见 README 的“数据格式”），"
        "然后运行：python data_clean.py"
    )


def main() -> None:
    config.load(__doc__)
    try:
        report = clean(config.RAW_DATA, config.WORK_DIR, config.MIN_CHARS, config.NEAR_COPY)
    except OSError as error:
        raise UserError(
            f"读写文件时出错：{error}\n"
            "已有的文件没有改动。请检查磁盘空间与权限，再运行：python data_clean.py"
        ) from error
    picture = Path(config.WORK_DIR) / PICTURE
    drawn = draw_lengths(report.lengths, picture)
    print(f"\n写出 {Path(config.WORK_DIR) / OUTPUT}、{REPORT}" + (f"、{PICTURE}" if drawn else ""))
    print("下一步：python hug_face_tokenizer.py")


if __name__ == "__main__":
    console.run(main)
