"""写诗页与训练页：在无界面的 Chromium 里问、看它写、停、出错、换窄屏。改诗见 test_page_poem。"""

from __future__ import annotations

import threading

import pytest

from poems import options
from tests import server
from tests.fake_engine import FakeEngine, poem
from tests.web.pages import ask, opened, until, verse, written
from training import runlog

LONG = tuple(f"第{k}行写着{{q}}\n" for k in range(1, 80))


def test_ask_and_read(page, site):
    ask(page, "雪")
    written(page)
    seed = site[0].asked[-1][1]["seed"]
    assert verse(page) == poem("雪", seed)
    assert page.text_content("#title") == "雪"
    assert f"种子 {seed}" in page.text_content(".facts")
    assert page.text_content("#status") == "写好了"
    assert page.get_attribute(".poem", "aria-busy") == "false"
    assert page.input_value("#question") == ""


def test_it_streams_line_by_line(page, site):
    engine = site[0]
    engine.step = threading.Semaphore(3)
    ask(page, "雪")
    until(page, "document.querySelector('.verse').textContent.includes('灯还亮着')")
    assert verse(page) == "雪，在窗台上坐了一夜\n灯还亮着，"
    assert page.is_visible("#stop") and not page.is_visible("#write")
    assert page.text_content("#spoken") == "雪，在窗台上坐了一夜"  # 读屏软件只听整行
    engine.step.release()
    until(page, "document.querySelector('.verse').textContent.includes('说完的话')")
    for _ in range(9):
        engine.step.release()
    written(page)


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop(page, site, how):
    engine = site[0]
    engine.step = threading.Semaphore(2)
    ask(page, "雪")
    until(page, "document.querySelector('.verse').textContent.includes('一夜')")
    page.click("#stop") if how == "button" else page.keyboard.press("Escape")
    written(page)
    assert "停笔于此" in page.text_content(".facts")
    assert server.wait_until(lambda: engine.handles[-1].cancelled.is_set())
    assert page.is_visible("#write") and page.is_hidden("#stop")


def test_several_candidates_with_controls(page, site):
    page.click("#show-options")
    page.check('[name="n"][value="3"]', force=True)
    page.check('[name="style"][value="恣意"]', force=True)
    page.fill("#author", "海子")
    page.fill("#lines", "4")
    page.fill("#acrostic", "春夏秋冬")
    page.fill("#seed", "11")
    page.select_option("#rhyme", "江阳")
    page.click("#options .close")
    ask(page, "雪")
    written(page, 3)
    assert [verse(page, k) for k in range(3)] == [poem("雪", seed) for seed in (11, 12, 13)]
    boxes = [page.locator(".poem").nth(k).bounding_box() for k in range(3)]
    assert boxes[0]["x"] < boxes[1]["x"] < boxes[2]["x"] and boxes[0]["y"] == boxes[2]["y"]
    options = site[0].asked[-1][1]
    assert (options["author"], options["lines"], options["acrostic"]) == ("海子", 4, "春夏秋冬")
    assert options["rhyme"] == "江阳" and options["temperature"] == 0.84  # 默认 0.7 的 1.2 倍
    page.reload()
    assert "藏头「春夏秋冬」 · 押江阳韵" in page.text_content("#summary")
    page.click("#write")  # 有藏头就可以没有题目
    written(page, 3)
    assert page.text_content("#title") == "无题" and site[0].asked[-1][0] == ""
    page.click("#show-options")
    page.click("#reset")
    assert page.text_content("#summary") == "平常"


def test_every_option_of_the_table_is_on_the_page(page, site):
    page.click("#show-options")
    page.locator("#author").wait_for()
    ids = page.evaluate("[...document.querySelectorAll('.rows [id]')].map((e) => e.id)")
    assert {option.name for option in (*options.SAMPLING, *options.CONTROLS)} <= set(ids)
    page.click("summary")
    page.fill("#top_k", "7")
    page.select_option("#context", "slide")
    page.fill("#min_p", "0.1")
    page.click("#options .close")
    assert page.text_content("#summary") == "平常 · 前k 7 · 最小p 0.10 · 写满 slide"
    ask(page, "雪")
    written(page)
    asked = site[0].asked[-1][1]
    assert (asked["top_k"], asked["context"], asked["min_p"]) == (7, "slide", 0.1)
    assert asked["max_new_tokens"] == server.DEFAULTS["max_new_tokens"]  # 没有动过的还是默认


def test_html_in_a_question_stays_text(page):
    ask(page, "<img src=x onerror=document.title='坏'><b>雪</b>")
    written(page)
    assert page.locator("main img, main b").count() == 0
    assert page.title() == "小诗"
    page.click("#show-past")
    assert page.text_content("#past .open b").startswith("<img")


def test_errors_are_told_and_can_be_retried(page, site):
    ask(page, "太长")
    page.wait_for_selector("#problem:not([hidden])")
    assert "题目太长" in page.text_content("#problem-text")
    assert page.input_value("#question") == "太长"  # 题目还在
    ask(page, "雪")
    written(page)
    assert page.is_hidden("#problem")
    ask(page, "坏掉")
    page.wait_for_selector("#problem:not([hidden])")
    assert "secret" not in page.content()


def test_server_gone(page):
    page.route("**/v1/**", lambda route: route.abort())
    ask(page, "雪")
    page.wait_for_selector("#problem:not([hidden])")
    assert "连不上" in page.text_content("#problem-text")
    page.unroute("**/v1/**")
    page.click("#retry")
    written(page)


def test_key_is_asked_for(browser, tmp_path):
    service = server.service(FakeEngine(), tmp_path, key="sk-诗")
    with server.running(service) as url, opened(browser, url, 1280, 860) as page:
        ask(page, "雪")
        page.wait_for_selector("#key:visible")
        page.fill("#key", "sk-wrong")
        page.press("#key", "Enter")
        ask(page, "雪")
        page.wait_for_selector("#problem:not([hidden])")
        assert page.is_visible("#key")


def test_copy(browser, site):
    granted = {"permissions": ["clipboard-read", "clipboard-write"]}
    with opened(browser, site[2], 1280, 860, **granted) as page:
        ask(page, "雪/夜")
        written(page)
        page.click("text=复制")
        page.wait_for_selector("text=已复制")
        copied = page.evaluate("navigator.clipboard.readText()")
        seed = site[0].asked[-1][1]["seed"]
        assert copied == f"《雪/夜》\n\n{poem('雪/夜', seed)}\n"


def test_history_survives_a_reload(page):
    for question in ("雪", "雨"):
        ask(page, question)
        until(page, f"document.querySelector('#title').textContent === '{question}'")
        written(page)
    text = verse(page)
    page.reload()
    page.click("#show-past")
    assert page.locator("#past .open b").all_text_contents() == ["雨", "雪"]
    page.click("#past .open >> nth=0")
    assert verse(page) == text and page.is_hidden("#history")
    page.click("#show-past")
    page.click("#past .drop >> nth=0")
    assert page.locator("#past li").count() == 1
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#clear")
    assert page.locator("#past li").count() == 0 and page.is_visible("#no-past")


def test_keyboard_alone(page):
    page.keyboard.press("Tab")  # 题目框一开始就有焦点，空着时下一个是选项
    page.keyboard.press("Enter")
    assert page.is_visible("#options")
    page.keyboard.press("Escape")
    assert page.is_hidden("#options")
    assert page.evaluate("document.activeElement.id") == "show-options"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.type("雪")
    page.keyboard.press("Shift+Enter")
    assert page.is_visible("#welcome")  # 换行，不是发送
    page.keyboard.press("Enter")
    written(page)
    page.click("#show-options")
    page.keyboard.press("Control+Enter")  # 没有题目也没有要求：只是关上抽屉
    assert page.is_hidden("#options")
    page.fill("#question", "雨")
    page.keyboard.press("Control+Enter")
    until(page, "document.querySelector('#title').textContent === '雨'")
    written(page)


def test_enter_while_composing_does_not_send(page):
    page.fill("#question", "雪")
    page.evaluate(
        "document.querySelector('#question').dispatchEvent(new KeyboardEvent("
        "'keydown', {key: 'Enter', isComposing: true, bubbles: true, cancelable: true}))"
    )
    assert page.is_visible("#welcome")


def test_every_control_has_a_name(page):
    page.click("#show-options")
    unnamed = page.evaluate(
        """[...document.querySelectorAll('button, input, textarea, dialog, a')].filter((e) =>
        !(e.textContent.trim() || e.ariaLabel || e.labels?.length
          || e.getAttribute('aria-labelledby'))).map((e) => e.outerHTML)"""
    )
    assert unnamed == []


@pytest.mark.parametrize(("width", "path"), [(320, "/"), (390, "/"), (320, "/train")])
def test_phone_width_never_scrolls_sideways(browser, site, width, path):
    engine, _, url, folder = site
    engine.verse = (*LONG[:3], "长" * 90 + "\n", "x" * 200 + "\n", *LONG)
    write_training(folder)
    with opened(browser, url + path, width, 720) as page:
        if path == "/":
            page.click("#show-options")
            page.check('[name="n"][value="2"]', force=True)
            assert_fits(page, width)
            page.click("#options .close")
            ask(page, "很长的题目" * 20)
            written(page, 2)
            boxes = [page.locator(".poem").nth(k).bounding_box() for k in range(2)]
            assert boxes[1]["y"] > boxes[0]["y"] + boxes[0]["height"] - 1  # 上下排
        else:
            page.wait_for_selector("svg")
        assert_fits(page, width)


def assert_fits(page, width):
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_dark_mode_follows_the_system_and_the_button(browser, site):
    with opened(browser, site[2], 1280, 860, color_scheme="dark") as page:
        assert brightness(page) < 80
        page.click("#theme")
        assert brightness(page) > 200
        page.reload()
        assert brightness(page) > 200
    with opened(browser, site[2], 1280, 860, color_scheme="light") as page:
        page.emulate_media(color_scheme="dark")  # 没有选过，系统变了就跟着变
        until(page, "document.documentElement.dataset.theme === 'dark'")
        page.goto(site[2] + "/train")
        assert brightness(page) < 80
        page.click("#theme")
        page.goto(site[2])
        assert brightness(page) > 200  # 两张页面同一个选择


def brightness(page):
    color = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    return sum(int(part) for part in color[4:-1].split(",")) / 3


def test_reduced_motion(browser, site):
    with opened(browser, site[2], 1280, 860, reduced_motion="reduce") as page:
        ask(page, "雪")
        written(page)
        assert page.evaluate("document.getAnimations().length") == 0


def test_untrained_controls_are_marked(page, site, monkeypatch):
    page.click("#show-options")
    assert page.locator("[data-kind]:visible").count() == 0  # 假引擎样样练过
    monkeypatch.setattr(site[0], "prompt_kinds", ("title",), raising=False)
    page.reload()
    page.click("#show-options")
    page.locator("[data-kind=lines]:visible").wait_for()
    assert page.locator("[data-kind]:visible").count() == 5


# ── 训练页 ────────────────────────────────────────────────────────────


def write_training(folder):
    rows = [",".join(runlog.COLUMNS)]
    for update in range(1, 61):
        bpc = 9 - update / 20 if update % 10 == 0 else ""
        rows.append(
            f"{update * 8},{update},{9 - update / 20},{bpc},0.001,{update * 4096},2000,{update}"
        )
    (folder / "train_log.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    runlog.write_info(folder / "run_info.json", {"train_iter": 960})
    (folder / "samples.txt").unlink(missing_ok=True)
    runlog.add_sample(folder / "samples.txt", 400, "春天", "<i>树</i>醒了\n\n风也醒了")


def test_training_page(browser, site):
    _, _, url, folder = site
    for name in ("train_log.csv", "run_info.json", "samples.txt"):
        (folder / name).unlink(missing_ok=True)
    with opened(browser, url + "/train", 1280, 860) as page:
        page.wait_for_selector("#none:not([hidden])")
        assert "还没有开始训练" in page.text_content("#none")
        write_training(folder)
        page.evaluate("look()")  # 不等定时器
        page.wait_for_selector("#chart-val svg")
        assert page.text_content("#state") == "正在训练"
        assert "480 / 960" in page.text_content("#progress")
        assert page.get_attribute("#track", "aria-valuenow") == "50"
        assert "1 分" in page.text_content("#facts")  # 还要 60 秒
        assert page.locator("figure:visible svg").count() == 4
        assert "6.000" in page.get_attribute("#chart-val svg", "aria-label")
        assert page.text_content("#samples p") == "<i>树</i>醒了\n\n风也醒了"
        page.route("**/train.json", lambda route: route.abort())
        page.evaluate("look()")
        page.wait_for_selector("#trouble:not([hidden])")
        assert page.is_visible("#chart-val")  # 断了也还看得到上次的
