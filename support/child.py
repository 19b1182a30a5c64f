"""子进程的输出，边来边取。"""

from __future__ import annotations

import codecs
import queue
import threading
from typing import BinaryIO


class Output:
    """stream 里的文字（UTF-8），由另一个线程读；等的人可以隔一会儿做点别的。"""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._pieces: queue.Queue = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def get(self, seconds: float) -> str | None:
        """新来的文字；等了 seconds 秒还没有时是空的，全部读完以后是 None。"""
        try:
            return self._pieces.get(timeout=seconds)
        except queue.Empty:
            return ""

    def _read(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with self._stream as stream:
            while True:
                data = stream.read1(1 << 16)
                self._pieces.put(decoder.decode(data, final=not data))
                if not data:
                    self._pieces.put(None)
                    return
