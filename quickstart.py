"""一条命令看到全貌：备好环境，用自带的诗走完清洗 → 分词器 → 数据集 → 训练 → 写诗。

产物都在 quickstart_out/；再次运行会接着用已有的。起步只用标准库。
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from support import artefacts, bootstrap, console, files, presets
from support.console import UserError

ROOT = Path(__file__).resolve().parent
OUT = ROOT / "quickstart_out"
POEMS = ROOT / "sample_poems.json"
QUESTION = "写一首关于雨的诗"
INSIDE = "--inside"  # 已经在备好的环境里

PRESET = presets.PRESETS["own"].values  # 两核 CPU 上约两三分钟的小模型
SAMPLING = {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.15, "max_new_tokens": 240}
STEPS = (
    ("清洗诗歌", "data_clean.py", artefacts.POEMS),
    ("训练分词器", "hug_face_tokenizer.py", artefacts.TOKENIZER_HUG),
    ("制作数据集", "train_dataset_all.py", artefacts.DATASET),
)


def overrides() -> list[str]:
    """传给每个脚本的 --名字=值。"""
    chosen = {"WORK_DIR": OUT, "RAW_DATA": POEMS, **PRESET}
    return [f"--{name}={value}" for name, value in chosen.items()]


def prepare_folder() -> None:
    """诗或预设变了，旧的 quickstart_out 改名留着，重新开始。"""
    text = POEMS.read_bytes() + json.dumps(PRESET, sort_keys=True).encode()
    stamp = hashlib.sha256(text).hexdigest()
    file = OUT / "preset.sha256"
    if OUT.exists() and (not file.exists() or file.read_text(encoding="utf-8") != stamp):
        print(f"诗或预设变了，旧的产物改名为 {files.keep_aside(OUT).name}")
    OUT.mkdir(exist_ok=True)
    file.write_text(stamp, encoding="utf-8")


def run_script(name: str) -> None:
    """用这个解释器运行一个脚本；失败就以它的退出码停下（原因它已经说了）。"""
    code = subprocess.call([sys.executable, str(ROOT / name), *overrides()], cwd=str(ROOT))
    if code:
        raise UserError(f"{name} 没有成功（退出码 {code}），原因见上。")


def validation_at_start() -> float:
    """还没训练时的验证比特/字。"""
    import config
    from training import prepare, validation
    from training.distributed import Ranks

    config.load(__doc__, argv=[*overrides(), "--RESUME=off"])
    return validation.bits_per_char(prepare.open_run(config.values(), Ranks()))


def write_poem() -> tuple[str, bool]:
    """(诗, 是否自己收尾)：写几首，取第一首自己收尾、有几行、又不照抄提示的一首。"""
    import config
    from writing.poet import Poet

    config.load(__doc__, argv=overrides())
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
            run_script(script)
    start = validation_at_start()
    print("\n【4/5】训练模型（train_gpt.py）", flush=True)
    run_script("train_gpt.py")
    print("\n【5/5】写诗（infere.py）", flush=True)
    poem, ended = write_poem()
    end = _final_bpc()
    print(f"\n输入：{QUESTION}\n回答：\n{poem}\n")
    print(f"（{'自己收尾' if ended else '写满了长度上限'}；这是在这台机器上刚训练出来的小模型）")
    print(f"验证集：{start:.2f} → {end:.2f} 比特/字，下降 {1 - end / start:.0%}")
    picture = OUT / artefacts.LOSS_PICTURE
    print(f"损失曲线：{picture if picture.exists() else '（没有 matplotlib，未画图）'}")
    print(f"用时：{console.duration(time.time() - began)}（不含安装）")
    _next_commands()


def _final_bpc() -> float:
    import checkpoint

    return checkpoint.load(OUT / artefacts.BEST_MODEL)["best"]["val_bpc"]


def _next_commands() -> None:
    python = Path(sys.executable)
    print(
        f"""
接下来：
  {python} infere.py --WORK_DIR=quickstart_out          与这个模型对话
  {python} evaluate.py --WORK_DIR=quickstart_out        给它打分
  {python} diagnose.py                                  检查环境、数据与显存
用八万首真诗训练：把语料放到 poetry/data（见 README），再依次运行
  {python} data_clean.py
  {python} hug_face_tokenizer.py
  {python} train_dataset_all.py
  {python} train_gpt.py"""
    )


def main() -> int:
    if INSIDE in sys.argv:
        inside()
        return 0
    if len(sys.argv) > 1:
        print(__doc__)
        return 0 if sys.argv[1] in ("-h", "--help") else 2
    if shutil.disk_usage(ROOT).free < 200 << 20:
        raise UserError(f"{ROOT} 所在的磁盘不到 200 MB 空闲，请先腾出空间。")
    python = bootstrap.ensure_environment(
        [ROOT / "requirements.txt"], bootstrap.RUN_MODULES, optional=["matplotlib"]
    )
    return subprocess.call([str(python), str(ROOT / "quickstart.py"), INSIDE], cwd=str(ROOT))


if __name__ == "__main__":
    console.run(main)
