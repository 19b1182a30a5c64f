"""写好的诗在页面上：改一行、起题目、同一个种子、两个模型并排、做成图片、存成文字，鼠标与键盘都行。"""

from __future__ import annotations

import zipfile

import pytest

from tests import server
from tests.fake_engine import FakeEngine, poem
from tests.web.pages import PHONE, WIDTHS, ask, opened, until, verse, written
from web.service import Service

OTHER = ("另一个模型写{q}，", "种子{s}")


def says(page, words):
    until(page, f"document.querySelector('#status').textContent === '{words}'")


# ── 改这一行 ──────────────────────────────────────────────────────────


def test_one_line_is_rewritten_and_undone(page, site):
    page.click("#show-options")
    page.fill("#author", "海子")
    page.click("#options .close")
    ask(page, "雪")
    written(page)
    before = verse(page)
    page.hover(".line >> nth=1")
    page.click(".amend >> nth=1")
    says(page, "第 2 行改好了")
    lines = before.split("\n")
    assert verse(page) == "\n".join([lines[0], "新的第2行", *lines[2:]])
    question, asked = site[0].asked[-1]
    assert (question, asked["line"], asked["n"], asked["author"]) == ("雪", 2, 8, "海子")
    assert page.text_content("#spoken") == "新的第2行"
    assert "改过 1 次" in page.text_content(".facts")
    page.reload()  # 往日里的也改了
    page.click("#show-past")
    page.click("#past .open")
    assert verse(page).split("\n")[1] == "新的第2行"
    page.click(".amend >> nth=0")
    says(page, "第 1 行改好了")
    page.click("text=撤销")
    says(page, "改回去了")
    assert verse(page).split("\n")[:2] == [lines[0], "新的第2行"]
    assert page.locator("text=撤销").count() == 0


def test_a_line_is_rewritten_by_keyboard_alone(page):
    page.keyboard.type("雪")
    page.keyboard.press("Control+Enter")
    written(page)
    page.locator(".amend >> nth=0").focus()
    assert page.locator('.amend[tabindex="0"]').count() == 1  # 一首诗 Tab 只停一次
    for key, number in (
        ("ArrowDown", 2),
        ("End", 3),
        ("ArrowDown", 3),
        ("Home", 1),
        ("ArrowUp", 1),
    ):
        page.keyboard.press(key)
        label = page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert label.startswith(f"改第 {number} 行：")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    says(page, "第 2 行改好了")
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label == "改第 2 行：新的第2行"  # 焦点还在这一行，可以再改


def test_what_goes_wrong_leaves_the_poem_alone(page, site, monkeypatch):
    ask(page, "雪")
    written(page)
    before = verse(page)
    page.route("**/v1/poems/rewrite", lambda route: route.abort())
    page.click(".amend >> nth=0")
    page.wait_for_selector("#problem:not([hidden])")
    assert "连不上" in page.text_content("#problem-text") and verse(page) == before
    page.unroute("**/v1/poems/rewrite")
    page.route("**/v1/poems/rewrite", lambda route: None)  # 一直不答
    page.click(".amend >> nth=0")
    page.wait_for_selector(".line.thinking")
    page.keyboard.press("Escape")
    says(page, "停下了")
    assert page.locator(".thinking").count() == 0 and verse(page) == before
    assert page.get_attribute(".poem", "aria-busy") == "false"


# ── 题目 ──────────────────────────────────────────────────────────────


def test_an_untitled_poem_gets_a_title(page):
    page.click("#show-options")
    page.fill("#acrostic", "春夏")
    page.click("#options .close")
    page.click("#write")
    written(page)
    assert page.text_content("#title") == "无题"
    page.click("text=起个题目")
    says(page, "想了 3 个题目")
    assert page.locator(".names button").all_text_contents() == ["灯", "窗台", "一夜"]
    page.keyboard.press("Enter")  # 焦点已在第一个题目上
    assert page.text_content("#title") == "灯"
    page.click(".names >> text=窗台")
    assert page.text_content("#title") == "窗台"
    assert page.get_attribute(".names >> text=窗台", "aria-pressed") == "true"
    page.reload()
    page.click("#show-past")
    assert page.text_content("#past .open b") == "窗台"
    page.click("#past .open")
    assert page.text_content("#title") == "窗台"
    with page.expect_download() as download:
        page.click("text=做成图片")
        page.click("#save-card")
    assert download.value.suggested_filename == "窗台.png"


def test_a_titled_poem_is_not_renamed(page):
    ask(page, "雪")
    written(page)
    assert page.locator("text=起个题目").count() == 0


# ── 种子 ──────────────────────────────────────────────────────────────


def test_the_same_seed_again_and_a_new_one(page, site):
    page.click("#show-options")
    page.fill("#seed", "5")
    page.click("#options .close")
    ask(page, "雪")
    written(page)
    first, seed = verse(page), site[0].asked[-1][1]["seed"]
    assert seed == 5 and "种子 5" in page.text_content(".facts")
    for label, same in (("同种子", True), ("再写一首", False)):
        count = len(site[0].asked)
        page.click(f".acts >> text={label}")
        assert server.wait_until(lambda: len(site[0].asked) > count)  # noqa: B023
        written(page)
        again = site[0].asked[-1][1]["seed"]
        assert (again == seed, verse(page) == first) == (same, same)


# ── 两个模型并排 ──────────────────────────────────────────────────────


@pytest.fixture()
def shelf(tmp_path):
    """WORK_DIR 里另有一个模型文件的服务：(网址, 两个引擎)。"""
    with zipfile.ZipFile(tmp_path / "checkpoint.bin", "w") as archive:
        archive.writestr("data", "")
    (tmp_path / "dataset.bin").write_bytes(b"not a model")
    engines = {"": FakeEngine(), "checkpoint.bin": FakeEngine(verse=OTHER)}
    service = Service(lambda name="": engines[name], str(tmp_path), dict(server.DEFAULTS), 8)
    with server.running(service) as url:
        yield url, engines


@pytest.mark.parametrize(("width", "height"), WIDTHS)
def test_two_models_side_by_side(browser, shelf, width, height):
    url, engines = shelf
    with opened(browser, url, width, height) as page:
        page.click("#show-options")
        page.locator("#rival").wait_for()
        assert page.locator("#rival option").all_text_contents() == [
            "不比",
            "默认的模型",
            "checkpoint.bin",
        ]
        page.select_option("#rival", "checkpoint.bin")
        assert page.is_disabled('[name="n"][value="2"]')
        page.fill("#seed", "7")
        page.click("#options .close")
        assert "默认的模型 比 checkpoint.bin" in page.text_content("#summary")
        ask(page, "雪")
        written(page, 2)
        assert [verse(page, k) for k in range(2)] == [poem("雪", 7), "另一个模型写雪，种子7"]
        assert page.locator(".poem h3").all_text_contents() == ["默认的模型", "checkpoint.bin"]
        boxes = [page.locator(".poem").nth(k).bounding_box() for k in range(2)]
        assert (boxes[0]["y"] == boxes[1]["y"]) == (width > 1000)
        page.locator(".poem").nth(1).locator(".amend").click()
        says(page, "第 1 行改好了")
        assert engines["checkpoint.bin"].asked[-1][1]["line"] == 1  # 谁写的谁来改
        page.reload()
        page.click("#show-past")
        page.click("#past .open")
        assert page.locator(".poem h3").all_text_contents() == ["默认的模型", "checkpoint.bin"]


def test_one_model_offers_no_choice(page):
    page.click("#show-options")
    page.locator("#author").wait_for()
    assert page.is_hidden("#models")


# ── 图片与文字 ────────────────────────────────────────────────────────


def picture_size(page, path):
    with page.expect_download() as download:
        page.click("#save-card")
    download.value.save_as(path)
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def test_picture_cards(page, site, tmp_path):
    site[0].verse = tuple(f"第{k}行写着{{q}}，“长”一些——x\n" for k in range(24))
    ask(page, "雪/夜")
    written(page)
    page.click("text=做成图片")
    wide = picture_size(page, tmp_path / "down.png")
    assert page.get_attribute("#canvas", "aria-label") == "《雪/夜》的图片，竖排"
    page.check('[name="layout"][value="across"]', force=True)
    page.check('[name="palette"][value="red"]', force=True)
    tall = picture_size(page, tmp_path / "across.png")
    assert wide[0] > wide[1] >= 1350 and tall[0] == 1080 and tall[1] > 1350
    corner = page.evaluate(
        "[...document.querySelector('#canvas').getContext('2d').getImageData(9, 1200, 1, 1).data]"
    )
    assert corner[0] > 120 and corner[1] < 90  # 朱
    page.keyboard.press("Escape")
    page.reload()
    page.click("#show-past")
    page.click("#past .open")
    page.click("text=做成图片")
    assert page.is_checked('[name="layout"][value="across"]')  # 记得上次的样子
    assert page.is_checked('[name="palette"][value="red"]')


def test_the_past_becomes_a_text_file(page, tmp_path):
    for question in ("雪", "雨"):
        ask(page, question)
        until(page, f"document.querySelector('#title').textContent === '{question}'")
        written(page)
    page.click("#show-past")
    with page.expect_download() as download:
        page.click("#export")
    assert download.value.suggested_filename == "小诗.txt"
    download.value.save_as(tmp_path / "out.txt")
    text = (tmp_path / "out.txt").read_text(encoding="utf-8")
    assert text.index("《雨》") < text.index("《雪》") and "雪，在窗台上坐了一夜" in text
    assert text.count("种子") == 2


# ── 宽窄、明暗 ────────────────────────────────────────────────────────


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), WIDTHS)
def test_everything_fits_and_can_be_read(browser, site, width, height, scheme):
    phone = PHONE if width < 500 else {}
    looks = {"color_scheme": scheme, "reduced_motion": "reduce", **phone}
    with opened(browser, site[2], width, height, **looks) as page:
        ask(page, "雪")
        written(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for front, back in (
            ("ink", "paper"),
            ("soft", "paper"),
            ("seal", "raised"),
            ("on-seal", "seal"),
        ):
            assert contrast(page, front, back) >= 4.5, (front, back)
        page.click("text=做成图片")
        for dialog in ("card", "options", "history"):
            if dialog != "card":
                page.click({"options": "#show-options", "history": "#show-past"}[dialog])
            box = page.locator(f"#{dialog}").bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width
            assert box["y"] >= 0 and box["y"] + box["height"] <= height + 1
            inner = f"document.querySelector('#{dialog}')"
            assert page.evaluate(f"{inner}.scrollWidth <= {inner}.clientWidth")
            page.keyboard.press("Escape")
        save = page.locator(".amend").first
        assert not phone or save.evaluate("e => getComputedStyle(e).opacity") != "0"  # 手指没有悬停


def contrast(page, front, back):
    """两种颜色的对比度（WCAG）。"""

    def light(name):
        color = page.evaluate(
            f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()"
        )
        parts = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(front), light(back)))
    return (high + 0.05) / (low + 0.05)


def test_every_control_has_a_name_and_sliders_come_from_the_table(page):
    ask(page, "雪")
    written(page)
    page.click("#show-options")
    page.locator("#temperature").wait_for()
    unnamed = page.evaluate(
        """[...document.querySelectorAll('button, input, select, textarea, dialog, a, canvas')]
        .filter((e) => !(e.textContent.trim() || e.ariaLabel || e.labels?.length
          || e.getAttribute('aria-labelledby') || e.id === 'canvas')).map((e) => e.outerHTML)"""
    )
    assert unnamed == []
    sliders = page.evaluate("info.options.filter((o) => o.slider.length).map((o) => o.name)")
    shown = page.evaluate("[...document.querySelectorAll('[type=range]')].map((e) => e.id)")
    assert sorted(sliders) == sorted(shown) and "temperature" in shown
    described = page.get_attribute("#temperature", "aria-describedby")
    assert "奔放" in page.text_content(f"#{described}")
