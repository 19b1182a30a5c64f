"""页面的测试共用：打开的页面、问、等写完、读出诗。没有 playwright 或 Chromium 就跳过整个文件。"""

from __future__ import annotations

import os

import pytest

pytest.importorskip("playwright.sync_api", reason="没有安装 playwright")
pytest.importorskip("starlette", reason="没有安装 starlette")
pytest.importorskip("uvicorn", reason="没有安装 uvicorn")

from tests import server

if not os.path.exists(server.CHROMIUM):
    pytest.skip("没有安装 Chromium", allow_module_level=True)

WIDTHS = [(1280, 860), (390, 844)]
PHONE = {"has_touch": True, "is_mobile": True}


class opened:
    """打开网址的页面（自己的 localStorage），离开时查有没有出过错。"""

    def __init__(self, browser, url, width, height, **options) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height}, **options)
        self.url, self.errors = url, []

    def __enter__(self):
        page = self.context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._console)
        page.goto(self.url)
        return page

    def __exit__(self, *_):
        self.context.close()
        assert not self.errors

    def _console(self, message):
        expected = "Failed to load resource"  # 测试故意引出的 4xx/5xx
        if message.type == "error" and expected not in message.text:
            self.errors.append(message.text)


def ask(page, question):
    page.fill("#question", question)
    page.press("#question", "Enter")


def written(page, count=1):
    until(page, f"document.querySelectorAll('.poem:not(.writing) .acts').length === {count}")


def until(page, expression):
    """等页面里的表达式为真；页面的 CSP 不许 eval，所以不用 wait_for_function。"""
    assert server.wait_until(lambda: page.evaluate(expression)), expression


def verse(page, index=0):
    """第几首的文字：节之间空一行。"""
    stanzas = page.locator(".poem").nth(index).locator(".stanza")
    lines = [stanzas.nth(k).locator(".line").all_text_contents() for k in range(stanzas.count())]
    return "\n\n".join("\n".join(stanza) for stanza in lines)
