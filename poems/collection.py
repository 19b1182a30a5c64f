"""诗集 all_poems.json：在哪里，逐首读出，是不是一首诗的记录。"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Iterator

from poems import records
from support import artefacts, files
from support.console import UserError

_RUN = "请运行：python data_clean.py"


def find(work_dir: str) -> Path:
    """WORK_DIR 里的诗集；没有时抛出 UserError。"""
    path = Path(work_dir) / artefacts.POEMS
    if not path.is_file():
        raise UserError(f"没有找到诗集 {path}\n{_RUN}")
    return path


def find_cleaned(work_dir: str) -> Path:
    """同 find；诗集在清洗之后变过就说一声。"""
    path = find(work_dir)
    try:
        written = files.read_json(path.parent / artefacts.CLEAN_REPORT)
        changed = written["output"]["sha256"] != files.sha256(path)
    except (UserError, OSError, ValueError, LookupError, TypeError):
        return path  # 没有清洗的报告可以对照
    if changed:
        print(
            f"提醒：{path} 在清洗之后变过（与 {artefacts.CLEAN_REPORT} 记下的不同），"
            "照现在的内容用。不是自己改的，请重新清洗：python data_clean.py"
        )
    return path


def iter_poems(
    path: Path | str, on_read: Callable[[int], object] | None = None
) -> Iterator[dict[str, Any]]:
    """逐首给出诗集里的诗 {"title", "para", "author"}；on_read(字节数) 供进度条用。

    没有文件、不是合法的 JSON 或缺少字段时抛出 UserError。
    """
    if not Path(path).is_file():
        raise UserError(f"没有找到诗集 {path}\n{_RUN}")
    try:
        for number, record in enumerate(records.iter_records(path, on_read=on_read), 1):
            problem = _problem(record)
            if problem:
                raise UserError(f"{path} 的第 {number} 首诗{problem}\n原文件没有动\n{_RUN}")
            yield record
    except ValueError as error:
        raise UserError(f"{error}\n原文件没有动\n{_RUN}") from error


def _problem(record: Any) -> str | None:
    """记录哪里不是一首诗的样子。"""
    if not isinstance(record, dict):
        return f"不是 {{…}} 记录，而是 {type(record).__name__}"
    for name in ("title", "author"):
        if not isinstance(record.get(name), str):
            return f"的 {name} 应是字符串"
    stanzas = record.get("para")
    if not isinstance(stanzas, list) or not all(isinstance(text, str) for text in stanzas):
        return "的 para 应是字符串的列表（一节一项）"
    return None
