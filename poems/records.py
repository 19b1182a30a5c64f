"""流式读取 JSON 诗集：认编码，一次给出一条记录，出错时说清行、列和改法。

支持三种写法：JSON 列表、JSON Lines（每条之间只有空白）、单个 JSON 对象。
无论文件多大，内存里只有一小段文本和当前一条记录。
"""

from __future__ import annotations

import codecs
import io
import json
import re
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterable, Iterator, NoReturn, Union

CHUNK = 1 << 20  # 每次读入的字节数
_TAIL = 16  # 解析错误离缓冲区末尾这么近时，先当作“还没读完”
_BLANK = re.compile("[ \t\n\r\ufeff]*")  # 拼起来的文件里，记录之间会有 BOM
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
ENCODING_NAMES = {  # 值得告诉使用者的编码
    "utf-8-sig": "带 BOM 的 UTF-8",
    "utf-16": "UTF-16",
    "utf-16-le": "没有 BOM 的 UTF-16",
    "utf-16-be": "没有 BOM 的 UTF-16",
    "gb18030": "GBK/GB18030",
    "big5hkscs": "Big5",
}
_DECODER = json.JSONDecoder()

PathLike = Union[str, Path]


class BrokenJSON(ValueError):
    """文件不是合法的 JSON；消息写明文件、行、列、出错的文字和可能的改法。"""


# ── 编码 ──────────────────────────────────────────────────────────────


def decode(data: bytes) -> tuple[str, str]:
    """字节 → (文本, 编码名)。先试 UTF-8，再看 BOM、UTF-16、GB18030 与 Big5；坏字节变成 U+FFFD。"""
    if not data.startswith(tuple(bom for bom, _ in _BOMS)) and b"\0" not in data:
        try:
            return data.decode("utf-8"), "utf-8"
        except UnicodeDecodeError:
            pass
    encoding = _guess([data])
    return data.decode(encoding, "replace"), encoding


def detect_encoding(path: PathLike) -> str:
    """返回可以交给 open() 的编码名，见 ENCODING_NAMES；没有列出的是 utf-8。

    整个文件都过一遍（不占内存），所以末尾才出现的 GBK 字节也认得出来。
    """
    with open(path, "rb") as file:
        return _guess(iter(lambda: file.read(CHUNK), b""))


def _guess(chunks: Iterable[bytes]) -> str:
    """按 BOM 和坏字节的比例猜编码。UTF-8 里偶有坏字节仍算 UTF-8，GBK 则几乎满篇都是坏的。"""
    utf8 = codecs.getincrementaldecoder("utf-8")("strict")
    clean, broken, wide, sample = True, 0, 0, b""
    for number, chunk in enumerate(chunks):
        if not number:
            sample = chunk
            marked = next((name for bom, name in _BOMS if chunk.startswith(bom)), is_wide(chunk))
            if marked:
                return marked
        if clean:
            try:
                utf8.decode(chunk)
                continue
            except UnicodeDecodeError:
                clean, sample = False, chunk
        text = chunk.decode("utf-8", "replace")
        bad = text.count("\ufffd")
        broken += bad
        wide += sum(1 for char in text if char > "\x7f") - bad
        if broken + wide > CHUNK:
            break
    # 分块处可能切断一两个字，不足以影响比例
    return "utf-8" if clean or broken * 10 < wide else _gbk_or_big5(sample)


def is_wide(data: bytes) -> str:
    """没有 BOM 的 UTF-16 的编码名；不是时为空串。读出来要几乎全是汉字与 ASCII。"""
    sample = data[: _SAMPLE - len(data[:_SAMPLE]) % 2]
    zeros = sample.count(0)
    if len(sample) < 4 or not zeros or (zeros * 4 < len(sample) and _is_utf8(sample)):
        return ""  # 夹着个别 NUL 的 UTF-8 不算
    shares = {
        encoding: len(_USUAL.findall(sample.decode(encoding, "replace"))) * 2 / len(sample)
        for encoding in ("utf-16-le", "utf-16-be")
    }
    best = max(shares, key=lambda encoding: shares[encoding])
    return best if shares[best] > 0.95 else ""


def _is_utf8(data: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")("strict").decode(data)
    except UnicodeDecodeError:
        return False
    return True


_SAMPLE = 1 << 14
_USUAL = re.compile("[\t\n\r\x20-\x7e\u2010-\u2027\u3000-\u303f\u3400-\u9fff\uff01-\uff60]")


def _gbk_or_big5(data: bytes) -> str:
    """哪一种读出来常用字更多：GB2312 的字，或 Big5 第一级的字。"""
    shares = []
    for encoding, common in (("gb18030", _in_gb2312), ("big5hkscs", _in_big5)):
        chars = [char for char in data[:_SAMPLE].decode(encoding, "replace") if char > "\x7f"]
        shares.append(sum(map(common, chars)) / max(len(chars), 1))
    return "big5hkscs" if shares[1] > shares[0] and shares[1] > 0.8 else "gb18030"


def _in_gb2312(char: str) -> bool:
    try:
        return len(char.encode("gb2312")) == 2
    except UnicodeEncodeError:
        return False


def _in_big5(char: str) -> bool:
    try:
        return b"\xa1" <= char.encode("big5")[:1] < b"\xc7"
    except UnicodeEncodeError:
        return False


# ── 记录 ──────────────────────────────────────────────────────────────


def iter_records(
    path: PathLike,
    encoding: str | None = None,
    on_read: Callable[[int], None] | None = None,
) -> Iterator[Any]:
    """逐条给出 path 里的记录（JSON 列表的每一项，或 JSON Lines 的每一条）。

    encoding 为 None 时自动辨认；on_read(字节数) 在每读入一段后调用，供进度条用。
    文件不是合法的 JSON 时抛出 BrokenJSON（一种 ValueError）。
    空文件不给出任何记录。
    """
    encoding = encoding or detect_encoding(path)
    with open(path, "rb") as file:
        source = _Source(file, str(path), encoding, on_read)
        if source.peek() == "[":
            yield from _list_items(source)
        else:
            while source.peek():
                yield source.value()


def _list_items(source: _Source) -> Iterator[Any]:
    source.skip()
    if source.peek() == "]":
        source.skip()
    else:
        while True:
            yield source.value()
            mark = source.peek()
            if mark not in (",", "]") or not mark:
                source.fail(_between_items(mark))
            source.skip()
            if mark == "]":
                break
            following = source.peek()
            if following in ("]", "}") or not following:
                source.fail(_after_comma(following))
    if source.peek():
        source.fail("列表的 ] 之后还有内容：请删去多余的部分，或把它放进列表里。")


class _Source:
    """一个滑动的文本缓冲区，记得自己在文件里的行和列。"""

    def __init__(
        self, file: BinaryIO, name: str, encoding: str, on_read: Callable[[int], None] | None
    ) -> None:
        self.file = file
        self.name = name
        self.decoder = io.IncrementalNewlineDecoder(
            codecs.getincrementaldecoder(encoding)("replace"), translate=True
        )
        self.on_read = on_read
        self.text = ""
        self.pos = 0
        self.line = 1  # text[0] 所在的行
        self.column = 1  # text[0] 所在的列
        self.ended = False

    def peek(self) -> str:
        """跳过空白后的下一个字符；文件结束时为空串。"""
        while True:
            self.pos = _BLANK.match(self.text, self.pos).end()
            if self.pos < len(self.text):
                return self.text[self.pos]
            if not self._more():
                return ""

    def skip(self) -> None:
        """越过 peek() 看到的那个字符。"""
        self.pos += 1

    def value(self) -> Any:
        """读出当前位置上的一个 JSON 值。"""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.pos)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos + _TAIL > len(self.text)
                if cut and self._more():
                    continue
                self._fail_at(error.pos, _mend(error, self.text))
            except RecursionError:
                self.fail("嵌套太深：诗的记录只需要一层。")
            except ValueError:
                self.fail("数字太长：请检查这条记录。")
            # 数字停在缓冲区末尾附近时，后面可能还有数位
            done = not isinstance(value, (int, float)) or end + _TAIL < len(self.text)
            if done or not self._more():
                self.pos = end
                return value

    def fail(self, hint: str) -> NoReturn:
        """以当前位置为出错处。"""
        self._fail_at(self.pos, hint)

    def _more(self) -> bool:
        """丢掉用过的文本，再读一段；没有更多内容时什么也不变，返回 False。"""
        wanted = max(CHUNK, len(self.text) - self.pos)  # 一条记录很长时成倍地读
        added = ""
        while not added:
            if self.ended:
                return False
            chunk = self.file.read(wanted)
            self.ended = not chunk
            added = self.decoder.decode(chunk, final=self.ended)
            if self.on_read and chunk:
                self.on_read(len(chunk))
        self.line, self.column = self._place(self.pos)
        self.text = self.text[self.pos :] + added
        self.pos = 0
        return True

    def _place(self, pos: int) -> tuple[int, int]:
        """缓冲区里的位置 → 文件里的（行，列），都从 1 数起。"""
        lines = self.text.count("\n", 0, pos)
        if not lines:
            return self.line, self.column + pos
        return self.line + lines, pos - self.text.rfind("\n", 0, pos)

    def _fail_at(self, pos: int, hint: str) -> NoReturn:
        line, column = self._place(pos)
        before = self.text[max(0, pos - 60) : pos].split("\n")
        after = self.text[pos : pos + 40].split("\n")[0].rstrip() or "（到此为止）"
        shown = before[-1].strip() + ">>>" + after
        previous = [part.strip() for part in before if part.strip()]
        if not before[-1].strip() and previous:  # 出错处在行首：连上一行一起给出
            shown = previous[-1] + "\n    " + shown
        raise BrokenJSON(
            f"{self.name} 第 {line} 行第 {column} 列不是合法的 JSON：\n    {shown}\n{hint}"
        )


# ── 改法 ──────────────────────────────────────────────────────────────


def _between_items(mark: str) -> str:
    if not mark:
        return "文件在列表中间断了：请补上最后的 ]，或重新下载完整的文件。"
    if mark in "{[\"'":
        return "两条记录之间少了一个英文逗号。"
    if mark == "，":
        return "这里的逗号是中文的：请改成英文逗号 , 。"
    return f"这里应是逗号或列表结尾的 ]，却是 {mark} ：多半是多写了，请删去。"


def _after_comma(mark: str) -> str:
    if mark == "]":
        return "最后一条记录后面多了一个逗号：请删去这个 ] 前面的逗号。"
    if mark == "}":
        return "多了一个 } ：请删去它，并删去它前面多余的逗号。"
    return "文件在逗号之后断了：请补上剩下的记录和最后的 ]。"


def _mend(error: json.JSONDecodeError, text: str) -> str:
    """由 json 的报错猜出可能的改法。"""
    message, char = error.msg, text[error.pos : error.pos + 1]
    if message.startswith("Invalid control"):
        return "引号里有换行、制表符等字符：换行请写成 \\n；若是忘了收尾的引号，请补上。"
    if message.startswith("Invalid \\"):
        return "反斜杠的写法不对：换行写 \\n，反斜杠本身写 \\\\ 。"
    if message.startswith("Unterminated"):
        return "字符串没有收尾的英文双引号，或文件在这里断了。"
    if not char:
        return "文件在一条记录中间断了：请补全，或重新下载完整的文件。"
    if char in "“”‘’'":
        return '请用英文双引号 " 把字段和文字括起来。'
    if char in "，：":
        return "标点是中文的：请改成英文的逗号 , 或冒号 : 。"
    if char in "}]":
        return f"{char} 前面多了一个逗号或少了一个值，也可能这个 {char} 是多余的。"
    if char == "," and message.startswith("Expecting value"):
        return "多了一个逗号；若整个文件是一串记录，请用 [ ] 括起来。"
    if message.startswith("Expecting ','"):
        return '少了一个英文逗号；若文字里有英文双引号，请写成 \\" 或换成中文引号。'
    if message.startswith("Expecting ':'"):
        return "字段名后面少了英文冒号。"
    if message.startswith("Expecting property"):
        return "字段名要用英文双引号括起来。"
    return "请检查这里的括号、引号和逗号（空值写 null，真假写 true、false）。"
