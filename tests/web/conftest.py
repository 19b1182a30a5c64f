"""页面的测试共用的浏览器、网站与页面。"""

from __future__ import annotations

import pytest

from tests import server
from tests.fake_engine import FakeEngine


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=server.CHROMIUM, args=server.FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """(引擎, 服务, 网址, WORK_DIR)；整个文件共用一个服务器。"""
    folder = tmp_path_factory.mktemp("work")
    engine = FakeEngine()
    service = server.service(engine, folder, limit=8)
    with server.running(service) as url:
        yield engine, service, url, folder


@pytest.fixture()
def page(browser, site):
    """一张新的宽屏页面；页面里的任何脚本错误、CSP 违规都算失败。"""
    from tests.web.pages import opened

    with opened(browser, site[2], width=1280, height=860) as page:
        yield page


@pytest.fixture(autouse=True)
def fresh(request):
    """用到网站的测试之间，引擎恢复原样。"""
    if "site" not in request.fixturenames:
        yield
        return
    engine, service = request.getfixturevalue("site")[:2]
    engine.step, engine.verse = None, FakeEngine().verse
    yield
    for handle in engine.handles:
        handle.cancel()
    assert server.wait_until(lambda: not service.running)
    engine.handles.clear()
    engine.asked.clear()
