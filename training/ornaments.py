"""少了也不要紧的产物：记录、示例诗、曲线、图。写不成只说一声，坏了改名留着，训练继续。"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

from support import console, files


class Ornaments:
    """folder 里的这些产物；say：对人说一句。"""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self._silenced = set()  # 已经说过写不成的

    def attempt(self, name: str, work: Callable, *given: Any) -> Any:
        """做一件少了也不要紧的事：出错时同一样只说一次，返回 None。"""
        try:
            return work(*given)
        except Exception as error:
            if name not in self._silenced:
                self._silenced.add(name)
                known = isinstance(error, OSError)
                reason = console.explain(error) if known else f"{type(error).__name__}：{error}"
                self.say(f"警告：{name} 没有写成，训练继续。{reason}")
            return None

    def reopen(self, name: str, work: Callable[[Path], Any]) -> Any:
        """接着写一份记录；它损坏了、不是普通文件，就改名留着，另起一份。"""
        path = self.folder / name
        if path.exists() and not path.is_file():
            self.say(f"警告：{name} 不是普通文件，不能接着写；训练不受影响。")
            self.put_aside(name)
        try:
            return work(path)
        except ValueError as error:
            self.say(f"警告：{name} 已损坏，接不下去（{error}）；训练不受影响。")
            self.put_aside(name)
        except OSError:  # 再试一次，还是不成就由 attempt 说
            pass
        return self.attempt(name, work, path)

    def put_aside(self, name: str) -> None:
        """已有的改名留着。"""
        aside = self.attempt(name, files.keep_aside, self.folder / name)
        if aside is not None:
            self.say(f"已有的 {name} 改名为 {aside.name}")
