"""清洗诗歌数据：RAW_DATA → WORK_DIR/all_poems.json。

自己认出 .pt 诗文件、JSON、JSON Lines、CSV、.txt、Markdown 和混放它们的文件夹，以及 GBK、Big5、
UTF-16、带 BOM 的文件（全部写法见 poems/sources.py 的表），说明每个文件是怎样读的；
改好能放心改的，丢掉不能用的和重复的，并说明各是多少、为什么（clean_report.json、clean_lengths.png）。
没有 RAW_DATA 时清洗 WORK_DIR 里的 all_poems.json，原件留作 all_poems.raw.json。
"""

from __future__ import annotations

from support import console, interpreter

if __name__ == "__main__":
    interpreter.begin(("numpy", "tqdm"))

import contextlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import config
from poems import copies, mend, records, sources
from poems.report import Report, draw_lengths, printable
from support import artefacts, files, lock
from support.console import UserError

_UNTOUCHED = "没有改动任何文件。改好这一处后请运行：python data_clean.py"

# ── 读、改、挑 ────────────────────────────────────────────────────────


def collect(
    found: list[sources.SourceFile], index: copies.Index, report: Report, min_chars: int
) -> None:
    """读入全部文件，把能用的诗放进 index，其余记入 report；读不下去的文件整个不用，记下名字。

    只有一个文件、它又读不下去时抛出 UserError。
    """
    report.files = len(found)
    total = sum(file.size for file in found)
    with console.progress(total, "读取", unit="B", unit_scale=True) as bar:
        for file in found:
            count, mark = len(index), None
            try:
                reading = sources.open_file(file, bar.update)
                mark = report.mark() if reading.many else None
                for raw in reading.poems:
                    _take(raw, index, report, min_chars)
            except sources.Unreadable as error:
                if len(found) == 1:
                    raise UserError(f"{error}\n{_UNTOUCHED}") from error
                index.forget(count)
                if mark is not None:
                    report.back_to(mark)
                report.broken.add("；".join(str(error).split("\n")), where=file.name)
            else:
                _tell(reading, file, report)


def _tell(reading: sources.Reading, file: sources.SourceFile, report: Report) -> None:
    """记下一个文件是怎样读的。"""
    report.layouts.add(reading.layout, where=file.name)
    if reading.encoding in records.ENCODING_NAMES:
        report.encodings.add(records.ENCODING_NAMES[reading.encoding], where=file.name)
    if reading.warning:
        report.doubts.add(reading.warning, where=file.name)


def _take(raw: sources.RawPoem, index: copies.Index, report: Report, min_chars: int) -> None:
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


# ── 从哪里读，怎样保住原件 ────────────────────────────────────────────


class Job(NamedTuple):
    """一次清洗：读什么，写出前怎样处置已有的 all_poems.json。"""

    source: Path
    keep: str  # "" 可以覆盖 | "original" 改名为 all_poems.raw.json | "aside" 改成没用过的名字
    note: str


def plan(raw_data: str, work_dir: str) -> Job:
    """决定读什么。RAW_DATA 优先；没有时读 WORK_DIR 里的 all_poems.json 或它的原件。"""
    output, original = (
        files.work_path(work_dir, name) for name in (artefacts.POEMS, artefacts.POEMS_ORIGINAL)
    )
    ours = output.exists() and _is_ours(output, files.work_path(work_dir, artefacts.CLEAN_REPORT))
    found = files.find_input(raw_data, work_dir)
    if found and not (output.exists() and found.samefile(output)):
        if found.is_file() or sources.find_files(found, own_files(work_dir))[0]:
            return Job(found, "aside" if output.exists() and not ours else "", f"读取 {found}")
        missing = f"RAW_DATA={raw_data} 里没有 {'、'.join(sources.SUFFIXES)} 文件"
    else:
        missing = f"没有找到 RAW_DATA={raw_data}"
    if output.exists() and not (ours and original.exists()):
        return Job(
            output, "original", f"{missing}，清洗 {output}（原件留作 {artefacts.POEMS_ORIGINAL}）"
        )
    if original.exists():
        return Job(original, "", f"{missing}，清洗 {original}")
    raise UserError(
        f"{missing}，{work_dir} 里也没有 {artefacts.POEMS}。\n"
        "请把诗放进 RAW_DATA：例如下载公开的现代诗语料 https://github.com/sheepzh/poetry ，"
        "解压成 poetry/data/<作者>/*.pt\n"
        "（Windows 上有几个文件名不合法，怎样取见 README 的“数据准备”），\n"
        "然后运行：python data_clean.py\n"
        "只想先看看效果：python quickstart.py（用自带的样例诗）"
    )


def _is_ours(output: Path, report: Path) -> bool:
    """all_poems.json 是否就是上次清洗写出的，没有人改过。"""
    try:
        written = files.read_json(report)["output"]["sha256"]
    except (UserError, OSError, ValueError, LookupError, TypeError):
        return False
    return written == files.sha256(output)


def own_files(work_dir: str) -> tuple[Path, ...]:
    """WORK_DIR 里由本工具写出、不该当作诗来读的文件。"""
    folder = Path(work_dir)
    names = (
        artefacts.POEMS,
        artefacts.POEMS_ORIGINAL,
        artefacts.CLEAN_REPORT,
        artefacts.TOKENIZER_HUG,
        artefacts.TOKENIZER_BPE,
        artefacts.LOCK,
    )
    others = ("requirements*.txt", "all_poems.old*.json", "all_poems.raw.old*.json", "samples*.txt")
    found = [path for pattern in others for path in folder.glob(pattern)]
    return (*(folder / name for name in names), *found)


def _place_for_old(job: Job, work_dir: str) -> tuple[Path | None, str]:
    """已有的 all_poems.json 以什么名字留着（None 就是不留），与要告诉使用者的话。"""
    output, original = Path(work_dir) / artefacts.POEMS, Path(work_dir) / artefacts.POEMS_ORIGINAL
    if job.keep == "aside":
        aside = files.unused(output)
        return aside, f"原来的 {artefacts.POEMS} 不是清洗写出的（或被改过），已留作 {aside}"
    if job.keep == "original":
        aside = files.keep_aside(original)
        said = f"原件已留作 {original}"
        return original, said + (f"，更早的原件留作 {aside}" if aside else "")
    return None, ""


# ── 全程 ──────────────────────────────────────────────────────────────


def clean(raw_data: str, work_dir: str, min_chars: int, near_copy: float) -> Report:
    """清洗一次，写出 all_poems.json 与 clean_report.json，返回报告。

    出错（UserError）时已有的文件都不改动。
    """
    job = plan(raw_data, work_dir)
    print(job.note)
    found, skipped = sources.find_files(job.source, own_files(work_dir))
    report = Report()
    for name in skipped:
        report.skipped.add(os.path.splitext(name)[1].lower() or "无后缀", where=name)
    with contextlib.closing(copies.Index(work_dir)) as index:
        collect(found, index, report, min_chars)
        if not len(index):
            raise UserError(_nothing_left(job.source, report))
        alike = copies.find_copies(index, near_copy)
        previous, kept = _place_for_old(job, work_dir)
        with files.atomic_write(Path(work_dir) / artefacts.POEMS, "wb", previous) as file:
            sha256 = copies.write_poems(index, alike, file, report)
            summary = report.to_dict(printable(str(job.source)), sha256)
            with files.atomic_write(Path(work_dir) / artefacts.CLEAN_REPORT) as report_file:
                json.dump(summary, report_file, ensure_ascii=False, indent=1)
    print(report.text())
    if kept:
        print(f"\n{kept}")
    return report


def _nothing_left(source: Path, report: Report) -> str:
    reasons = "；".join(f"{row['reason']} {row['count']} 首" for row in report.dropped.to_list())
    broken = "\n".join(report.broken.counts)
    return (
        f"{source} 里没有一首能用的诗：读到 {report.read} 首"
        + (f"（{reasons}）" if reasons else "")
        + (f"；读不下去的文件：\n{broken}\n" if broken else "。\n")
        + "没有改动任何文件。请检查数据的格式（见 README 的“数据格式”），"
        "然后运行：python data_clean.py"
    )


def main() -> None:
    config.load(__doc__)
    try:
        with lock.writing(config.WORK_DIR):
            report = clean(config.RAW_DATA, config.WORK_DIR, config.MIN_CHARS, config.NEAR_COPY)
    except OSError as error:
        raise UserError(
            f"读写文件时出错：{error}\n"
            f"已有的 {artefacts.POEMS} 没有改动。请检查磁盘空间与权限，再运行：python data_clean.py"
        ) from error
    picture = Path(config.WORK_DIR) / artefacts.CLEAN_PICTURE
    drawn = draw_lengths(report.lengths, picture)
    print(
        f"\n写出 {Path(config.WORK_DIR) / artefacts.POEMS}、{artefacts.CLEAN_REPORT}"
        + (f"、{artefacts.CLEAN_PICTURE}" if drawn else "")
    )
    print("下一步：python hug_face_tokenizer.py")


if __name__ == "__main__":
    console.run(main)
