"""检查环境、数据、分词器、数据集、检查点与显存，每一项给出结果和改法；什么也不改动。

python diagnose.py              全面检查，最后说下一步运行什么
python diagnose.py tokenizer    分词器报告：压缩率、切碎的字、真实的 token，自己的 BPE 对照 HF
python diagnose.py memory       预测的训练内存，对照本机 CPU 上真的更新两次
python diagnose.py curve [名字]  我的曲线正常吗：与 docs/curves/ 里量过的训练在同样的 token 数上比
"""

from __future__ import annotations

from support import console

if __name__ == "__main__":
    console.quiet_imports()

from pathlib import Path

import config
from checks import curve, files, finding, machine, memory, packages, tokens
from checks.finding import Settings
from support import artefacts
from support.console import UserError

SECTIONS = (
    ("环境", (*packages.CHECKS, *machine.CHECKS)),
    ("产物", files.CHECKS),
    ("训练的内存", memory.CHECKS),
)


def next_steps(settings: Settings) -> list[str]:
    """产物做到了哪一步 → 接下来的命令。"""
    folder = Path(settings.WORK_DIR)

    def there(*names: str) -> bool:
        return any((folder / name).exists() for name in names)

    if there(artefacts.BEST_MODEL, artefacts.CHECKPOINT):
        return [
            "python infere.py（对话）",
            "python evaluate.py（评测）",
            "python train_gpt.py（续训）",
        ]
    if there(artefacts.DATASET):
        return ["python train_gpt.py"]
    if files.tokenizer_files(settings) and there(artefacts.POEMS):
        return ["python train_dataset_one.py"]
    if there(artefacts.CLEAN_REPORT) and there(artefacts.POEMS):
        return ["python hug_face_tokenizer.py"]
    return ["python data_clean.py"]


def overview(settings: Settings) -> int:
    """全面检查；有 ✗ 时返回 1。"""
    worst = []
    for title, checks in SECTIONS:
        print(f"── {title} " + "─" * 40 if finding.can_print("─") else f"== {title}")
        for check in checks:
            for found in finding.run_check(check, settings):
                print(finding.render(found), flush=True)
                if found.level == finding.BAD:
                    worst.append(found)
    print()
    if worst:
        print(f"先解决 {finding.marks()[finding.BAD]} 的 {len(worst)} 项：")
        for found in worst:
            print(f"  {found.name}：" + (found.mend or found.text).replace("\n", "\n    "))
        return 1
    print("下一步：" + "；".join(next_steps(settings)))
    return 0


def main() -> int:
    projects = ("tokenizer", "memory", "curve")
    words = config.load(__doc__, positional=(("项目", projects), ("名字", ())))
    if words[:1] == ["curve"]:
        return curve.curve_report(Settings(**config.values()), *words[1:])
    if words[1:]:
        raise UserError(f"多余的参数 {words[1]!r}；配置请写成 --名字=值")
    reports = {"tokenizer": tokens.tokenizer_report, "memory": memory.memory_report}
    report = reports[words[0]] if words else overview
    return report(Settings(**config.values()))


if __name__ == "__main__":
    console.run(main)
