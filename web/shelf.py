"""书架：服务可以用的模型。默认的一个，和 WORK_DIR 里别的模型文件；各自第一次用到时才载入。"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Callable, NamedTuple

from web import chat_api


class _Loaded(NamedTuple):
    """载入的引擎，与载入时它的文件。"""

    engine: Any
    stamp: Any


class Shelf:
    """模型名 → 引擎。默认的模型名是 chat_api.MODEL_ID，别的就是文件名；可以从几个线程来用。"""

    def __init__(self, load: Callable[..., Any], folder: str) -> None:
        """load() 载入默认的引擎，load(文件名) 载入 folder 里别的。"""
        self.load, self.folder = load, Path(folder)
        self._engines: dict[str, _Loaded] = {}
        self._loading = threading.Lock()

    def names(self) -> list[str]:
        """可用的模型，默认的在前。"""
        from checkpoint import all_models  # 连着 PyTorch，启动服务时不急着要

        others = [path for path in all_models(self.folder) if path.resolve() != self._default()]
        return [chat_api.MODEL_ID, *(path.name for path in others)]

    def engine(self, name: str, in_use: Callable[[Any], bool]) -> Any:
        """载入一次；文件变了（训练会换上新的）而引擎没有在用，就重新载入。默认的一直不换。"""
        with self._loading:
            kept, stamp = self._engines.get(name), self._stamp(name)
            if kept and (kept.stamp == stamp or in_use(kept.engine)):
                return kept.engine
            engine = self.load() if name == chat_api.MODEL_ID else self.load(name)
            self._engines[name] = _Loaded(engine, stamp)
            if kept:
                kept.engine.close()
            return engine

    def _stamp(self, name: str) -> Any:
        if name == chat_api.MODEL_ID:
            return None
        try:
            status = (self.folder / name).stat()
        except OSError:  # 刚被删去：载入时会说
            return None
        return status.st_mtime_ns, status.st_size

    def default_file(self) -> str:
        """默认的模型是哪个文件；还没有载入时为空。"""
        path = self._default()
        return path.name if path else ""

    def _default(self) -> Path | None:
        kept = self._engines.get(chat_api.MODEL_ID)
        return getattr(kept.engine, "path", None) if kept else None

    def close(self) -> None:
        """全部引擎都停下。"""
        for kept in self._engines.values():
            kept.engine.close()
