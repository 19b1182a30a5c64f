"""一条命令看到全貌：备好环境，用自带的诗走完清洗 → 分词器 → 数据集 → 训练 → 写诗。

产物都在 quickstart_out/；再次运行会接着用已有的。起步只用标准库。
    python quickstart.py --POEMS=我的诗 [--FROM=模型]
让一个练过的模型（默认是随附的 weights/poem.bin）学你自己的诗，前后并排给你看；产物在
quickstart_mine/。诗可以是文件夹或文件，data_clean.py 读得懂的写法都行。
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from support import artefacts, bootstrap, console, files, interpreter, presets
from support.console import UserError

ROOT = Path(__file__).resolve().parent
OUT = ROOT / "quickstart_out"
POEMS = ROOT / "sample_poems.json"
QUESTION = "写一首关于雨的诗"
INSIDE = "--inside"  # 已经在备好的环境里
MINE = ROOT / "quickstart_mine"
HELD_BACK = 0.2  # 自己的诗里留这么多不学，用来看学得怎样
COMPARED = 32  # 前后比较时各写几首
OTHERS, OTHERS_COUNT = "others", 120  # 看忘了多少用的别的诗：自带的这么多首，一半验证

PRESET = presets.PRESETS["own"].values  # 两核 CPU 上约两分钟的小模型
SAMPLING = {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.15, "max_new_tokens": 240}
STEPS = (
    ("清洗诗歌", "data_clean.py", artefacts.POEMS),
    ("训练分词器", "hug_face_tokenizer.py", artefacts.TOKENIZER_HUG),
    ("制作数据集", "train_dataset_all.py", artefacts.DATASET),
)


def words(chosen: dict) -> list[str]:
    """名字 → 值，写成命令行的样子。"""
    return [f"--{name}={value}" for name, value in chosen.items()]


def overrides() -> list[str]:
    """传给每个脚本的 --名字=值。"""
    return words({"WORK_DIR": OUT, "RAW_DATA": POEMS, **PRESET})


def prepare_folder() -> None:
    """诗或预设变了，旧的 quickstart_out 改名留着，重新开始。"""
    text = POEMS.read_bytes() + json.dumps(PRESET, sort_keys=True).encode()
    stamp = hashlib.sha256(text).hexdigest()
    file = OUT / "preset.sha256"
    if OUT.exists() and (not file.exists() or file.read_text(encoding="utf-8") != stamp):
        print(f"诗或预设变了，旧的产物改名为 {files.keep_aside(OUT).name}")
    OUT.mkdir(exist_ok=True)
    file.write_text(stamp, encoding="utf-8")


def run_script(name: str, options: list[str]) -> None:
    """用这个解释器运行一个脚本；失败就以它的退出码停下（原因它已经说了）。"""
    code = subprocess.call([sys.executable, str(ROOT / name), *options], cwd=str(ROOT))
    if code:
        raise UserError(f"{name} 没有成功（退出码 {code}），原因见上。")


def validation_at_start() -> float:
    """还没训练时的验证比特/字。"""
    import config
    from training import prepare, validation
    from training.distributed import Ranks

    config.load(__doc__, argv=[*overrides(), "--RESUME=off"])
    return validation.bits_per_char(prepare.open_run({**config.values(), "TEACHER": ""}, Ranks()))


def write_poem() -> tuple[str, bool]:
    """(诗, 是否自己收尾)：写几首，取第一首自己收尾、有几行、又不照抄提示的一首。"""
    from writing.poet import Poet

    poet = Poet.load(work_dir=str(OUT), device="cpu")
    best = ("", False)
    for seed in range(8):
        request = poet.request(QUESTION, seed=seed, **SAMPLING)
        row, pieces = None, []
        for _, text, current in poet.poems(request):
            pieces.append(text)
            row = current
        poem, ended = "".join(pieces).strip(), row.finish_reason == "stop"
        best = max(best, (poem, ended), key=lambda pair: (pair[1], bool(pair[0])))
        if ended and poem.count("\n") >= 3 and QUESTION not in poem:
            return poem, ended
    return best


def inside() -> None:
    """在备好的环境里走完全程。"""
    began = time.time()
    prepare_folder()
    for number, (title, script, product) in enumerate(STEPS, 1):
        print(f"\n【{number}/5】{title}（{script}）", flush=True)
        if (OUT / product).exists():
            print(f"已有 {product}，直接用。")
        else:
            run_script(script, overrides())
    start = validation_at_start()
    print("\n【4/5】训练模型（train_gpt.py）", flush=True)
    run_script("train_gpt.py", overrides())
    print("\n【5/5】写诗（infere.py）", flush=True)
    poem, ended = write_poem()
    end = _final_bpc()
    print(f"\n输入：{QUESTION}\n回答：\n{poem}\n")
    print(f"（{'自己收尾' if ended else '写满了长度上限'}；这是在这台机器上刚训练出来的小模型）")
    box = ROOT / artefacts.BOX
    if box.is_file():
        print(f"\n同一个问题，随附的 {artefacts.BOX}：\n{plain_poem(box, QUESTION)}\n")
    print(f"验证集：{start:.2f} → {end:.2f} 比特/字，下降 {1 - end / start:.0%}")
    picture = OUT / artefacts.LOSS_PICTURE
    print(f"损失曲线：{picture if picture.exists() else '（没有 matplotlib，未画图）'}")
    print(f"用时：{console.duration(time.time() - began)}（不含安装）")
    _next_commands()


def _final_bpc() -> float:
    import checkpoint

    return checkpoint.load(OUT / artefacts.BEST_MODEL)["best"]["val_bpc"]


def _next_commands() -> None:
    python = interpreter.typed(Path(sys.executable))
    print(
        f"""
接下来：
  {python} infere.py --WORK_DIR=quickstart_out          与这个模型对话
  {python} evaluate.py --WORK_DIR=quickstart_out        给它打分
  {python} diagnose.py --WORK_DIR=quickstart_out        检查环境、数据与显存
用八万首真诗训练：把语料放到 poetry/data（见 README），再依次运行
  {python} data_clean.py
  {python} hug_face_tokenizer.py
  {python} train_dataset_all.py
  {python} train_gpt.py"""
    )


# ── 自己的诗 ──────────────────────────────────────────────────────────


def learn_mine(poems: Path, base: Path) -> None:
    """让 base 学 poems：清洗 → 数据集 → 接着练 → 前后并排。"""
    began = time.time()
    MINE.mkdir(exist_ok=True)
    where = {"WORK_DIR": MINE}
    learned = MINE / artefacts.BEST_MODEL
    print("\n【1/4】清洗你的诗（data_clean.py）", flush=True)
    run_script("data_clean.py", words({**where, "RAW_DATA": poems}))
    print("\n【2/4】制作数据集，用那个模型的分词器（train_dataset_one.py）", flush=True)
    run_script("train_dataset_one.py", words({**where, "FROM": base, "VAL_SHARE": HELD_BACK}))
    others = _other_poems(base)
    print("\n【3/4】接着练（train_gpt.py）；“旧诗”是自带的别的诗，看忘了多少", flush=True)
    resume = "on" if _same_lesson(base) else "off"  # 诗或模型换了：旧产物改名留着，另起一次
    run_script(
        "train_gpt.py", words({**where, "FROM": base, "RESUME": resume, "REPLAY_DATA": others})
    )
    print("\n【4/4】前后并排（evaluate.py）", flush=True)
    both = f"{base},{learned}"
    run_script("evaluate.py", words({**where, "CHECKPOINT": both, "SAMPLES": COMPARED}))
    title, before, after = side_by_side(base, learned)
    print(f"\n题目：{title}\n\n── 原来的模型 ──\n{before}\n\n── 学过你的诗 ──\n{after}\n")
    print(f"用时：{console.duration(time.time() - began)}（不含安装）")
    python = interpreter.typed(Path(sys.executable))
    print(
        f"""接下来：
  {python} infere.py --WORK_DIR={MINE.name}                 与它对话
  {python} -m pip install starlette uvicorn            写诗的网页要的两个包，装一次
  {python} serve.py --WORK_DIR={MINE.name}                  打开写诗的网页
  {python} quickstart.py --POEMS={poems}     添了诗以后再学一遍（旧的改名留着）"""
    )


def _other_poems(base: Path) -> Path:
    """自带的一些诗做成的数据集，用那个模型的分词器；只用来验证，不混进训练。"""
    folder = MINE / OTHERS
    folder.mkdir(exist_ok=True)
    files.write_json(folder / artefacts.POEMS, files.read_json(POEMS)[:OTHERS_COUNT])
    run_script("train_dataset_one.py", words({"WORK_DIR": folder, "FROM": base, "VAL_SHARE": 0.5}))
    return folder


def _same_lesson(base: Path) -> bool:
    """诗与起点都和上次一样：接着练（练完了就直接比较）。记下这一次的。"""
    data = (MINE / artefacts.DATASET).read_bytes() + base.read_bytes()
    stamp, file = hashlib.sha256(data).hexdigest(), MINE / "lesson.sha256"
    same = file.exists() and file.read_text(encoding="utf-8") == stamp
    file.write_text(stamp, encoding="utf-8")
    return same


def side_by_side(base: Path, learned: Path) -> tuple[str, str, str]:
    """没学过的一首诗的题目，和两个模型同一个种子各写的一首。"""
    import dataset

    data = dataset.load(MINE / artefacts.DATASET)
    held = [data.poem_info(int(number)) for number in data.poem_ids[slice(*data.range("val"))]]
    title = next((poem["title"] for poem in held if poem["title"].strip()), QUESTION)
    return title, plain_poem(base, title), plain_poem(learned, title)


def plain_poem(model: Path, question: str) -> str:
    """这个模型照默认的抽样写的一首，种子固定。"""
    import config
    from writing.poet import Poet

    poet = Poet.load(str(model), device="cpu")
    request = poet.request(question, **{**config.sampling(), "seed": config.SEED})
    return poet.write_all([request])[0].text.strip()


def given_poems(argv: list[str]) -> tuple[Path, Path] | None:
    """命令行里的 --POEMS 与 --FROM；没有写就是 None。都要存在。"""
    pairs = dict(word.partition("=")[::2] for word in argv if word != INSIDE)
    if not pairs:
        return None
    strangers = [name for name in pairs if name not in ("--POEMS", "--FROM")]
    if strangers or not pairs.get("--POEMS"):
        raise UserError(f"不认识 {' '.join(strangers or argv)}。用法：{__doc__}")
    poems = Path(pairs["--POEMS"]).expanduser().resolve()
    if not poems.exists():
        raise UserError(f"没有找到 --POEMS={pairs['--POEMS']}。它是放着你的诗的文件夹或文件。")
    base = Path(pairs.get("--FROM") or ROOT / artefacts.BOX).expanduser().resolve()
    if not base.is_file():
        raise UserError(
            f"没有找到起点的模型 {base}。\n"
            "请用 --FROM=模型文件 指定一个练过的，例如 --FROM=best_model.bin；"
            "或先跑 python quickstart.py，再 --FROM=quickstart_out/best_model.bin"
        )
    return poems, base


def main() -> int:
    arguments = sys.argv[1:]
    if "-h" in arguments or "--help" in arguments:
        print(__doc__)
        return 0
    chosen = given_poems(arguments)
    if INSIDE in arguments:
        learn_mine(*chosen) if chosen else inside()
        return 0
    if shutil.disk_usage(ROOT).free < 500 << 20:
        raise UserError(f"{ROOT} 所在的磁盘不到 500 MB 空闲，请先腾出空间。")
    python = bootstrap.ensure_environment(
        [ROOT / "requirements.txt"], bootstrap.RUN_MODULES, optional=["matplotlib"]
    )
    passed = words({"POEMS": chosen[0], "FROM": chosen[1]}) if chosen else []
    return subprocess.call(
        [str(python), str(ROOT / "quickstart.py"), INSIDE, *passed], cwd=str(ROOT)
    )


if __name__ == "__main__":
    console.run(main)
