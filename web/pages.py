"""网页：由 site/ 里的几个文件拼成一个自足的 HTML，连同只许它自己的脚本运行的 CSP。

site/*.html 里的 <!-- 放进 名字 --> 换成那个文件：两张页面共用的只写一次，浏览器拿到的
仍是一个不用别的文件的页面。
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "site"
_INSERT = re.compile(r"^<!-- 放进 ([\w.-]+) -->$", flags=re.M)
_TAGS = {".css": "style", ".js": "script"}  # .html 原样放进去


def page(name: str) -> tuple:
    """(HTML, 它的头)。"""
    html = _INSERT.sub(lambda found: _piece(found.group(1)), _read(name))
    return html, {"Content-Security-Policy": content_policy(html)}


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")  # 换行一律成 \n，散列才与浏览器算的相同


def _piece(name: str) -> str:
    tag, text = _TAGS.get(Path(name).suffix), _read(name)
    return f"<{tag}>\n{text}</{tag}>" if tag else text.rstrip("\n")


def content_policy(html: str) -> str:
    """只许页面自己的那段脚本与样式（按内容的散列）和同源请求。"""

    def hashes(tag: str) -> str:
        found = re.findall(f"<{tag}>(.*?)</{tag}>", html, flags=re.S)
        digests = (hashlib.sha256(text.encode("utf-8")).digest() for text in found)
        return " ".join(f"'sha256-{base64.b64encode(d).decode('ascii')}'" for d in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
        "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
