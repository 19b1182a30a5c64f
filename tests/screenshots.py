"""README 的几张页面图：用真的模型、真的 Chromium 拍，写到 docs/。

    python -m tests.screenshots [--seed 6] [--question 夜里有灯] [--CHECKPOINT=… --WORK_DIR=…]

得到 docs/page.png（宽屏）、docs/page-phone.png（手机宽度）、docs/card.png（竖排的图片）；
WORK_DIR 里有训练记录时还有 docs/train.png。页面用减少动态的样式，背景不用渐变，
颜色减到 96 种，图才小。没有自己的模型时由随附的那个写。
"""

from __future__ import annotations

import argparse
from pathlib import Path

from support import console
from tests.load_serve import Server
from tests.server import CHROMIUM, FLAGS

DOCS = Path(__file__).resolve().parent.parent / "docs"
PLAIN = "document.body.style.background = 'var(--paper)'"


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", default="6")
    parser.add_argument("--question", default="夜里有灯")
    parser.add_argument("--out", type=Path, default=DOCS)
    given, passed = parser.parse_known_args()
    given.out.mkdir(exist_ok=True)
    with Server(passed) as server, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for name, width, height, count in (("page", 1200, 820, 2), ("page-phone", 390, 844, 1)):
            page = browser.new_page(
                viewport={"width": width, "height": height}, reduced_motion="reduce"
            )
            page.goto(server.url)
            _write(page, given.question, given.seed, count)
            _shoot(page, given.out / f"{name}.png")
        page.set_viewport_size({"width": 1100, "height": 1000})
        page.click("text=做成图片")
        page.locator("#canvas").screenshot(path=given.out / "card.png")
        _few_colors(given.out / "card.png")
        page = browser.new_page(viewport={"width": 1100, "height": 1000}, reduced_motion="reduce")
        page.goto(server.url + "/train")
        page.wait_for_selector("#run:not([hidden]), #none:not([hidden])")
        if page.is_visible("#run"):
            _shoot(page, given.out / "train.png")
        browser.close()


def _write(page, question, seed, count):
    """按给定的种子写 count 首，等写完。"""
    page.click("#show-options")
    page.check(f'[name="n"][value="{count}"]', force=True)
    page.fill("#seed", seed)
    page.click("#options .close")
    page.fill("#question", question)
    page.press("#question", "Enter")
    page.locator(".poem:not(.writing) .acts").nth(count - 1).wait_for(timeout=300_000)


def _shoot(page, path):
    page.evaluate(PLAIN)
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    page.mouse.move(2, 400)
    page.screenshot(path=path)
    _few_colors(path)


def _few_colors(path: Path) -> None:
    from PIL import Image

    image = Image.open(path).convert("RGB")
    image = image.quantize(96, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    image.save(path, optimize=True)
    print(f"{path.name}：{path.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    console.run(main)
