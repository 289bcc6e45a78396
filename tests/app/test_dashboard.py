"""The dashboard, as a browser requests it."""

import asyncio
import base64
import time
from http.client import HTTPConnection

import pytest

from llmproxy.app import dashboard, log_page
from tests.cli.test_log import ask
from tests.models import AsyncScript, usage
from tests.proxies import running

BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setattr(dashboard, "MIN_AGE_S", 0)


def get(proxy, path="/", method="GET", **headers):
    connection = HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    try:
        connection.request(method, path, headers={**BROWSER, **headers})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read().decode()
    finally:
        connection.close()


def page_with(proxy, text):
    """Reload the page until it contains a text: it shows only committed exchanges."""
    until = time.monotonic() + 10
    while text not in (page := get(proxy)[2]):
        assert time.monotonic() < until, page
    return page


def test_a_browser_gets_the_recorded_exchanges_escaped(llm_user_path):
    with running(AsyncScript("m", f"No. {HOSTILE}", usage(3, 5))) as proxy:
        status, headers, empty = get(proxy)
        assert f"http://127.0.0.1:{proxy.port}" in empty
        ask(proxy, f"Does {HOSTILE} run?")
        page = page_with(proxy, "&lt;script&gt;")
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["cache-control"] == "no-store" and headers["vary"] == "accept"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert '<meta http-equiv="refresh" content="10">' in empty and 'http-equiv="refresh"' in page
    assert "<script" not in page
    assert "Does &lt;script&gt;alert(1)&lt;/script&gt; run?" in page


def test_a_page_can_be_kept_from_reloading():
    with running() as proxy:
        assert '<a href="/?still">keep still</a>' in get(proxy)[2]
        still = get(proxy, "/?still")[2]
        assert 'http-equiv="refresh"' not in still and '<a href="/">follow the log</a>' in still


def test_other_clients_get_a_line_of_text():
    with running() as proxy:
        status, headers, text = get(proxy, accept="*/*")
        assert (status, headers["content-type"]) == (200, "text/plain; charset=utf-8")
        assert "is running" in text and "\n" not in text[:-1]
        assert get(proxy, "/api/hello")[2] == "ok\n"


def test_head_gets_no_body():
    with running() as proxy:
        status, headers, body = get(proxy, method="HEAD")
        assert (status, headers["content-type"], body) == (200, "text/html; charset=utf-8", "")


def test_the_page_needs_key_host_and_origin_like_any_route():
    with running(keys=["word"]) as proxy:
        status, headers, body = get(proxy)
        assert status == 401 and headers["www-authenticate"].startswith("Basic ")
        assert "<html" not in body
        password = base64.b64encode(b"anybody:word").decode()
        assert get(proxy, authorization=f"Basic {password}")[0] == 200
    with running() as proxy:
        assert get(proxy, host="rebound.example")[0] == 403
        assert get(proxy, origin="https://evil.example")[0] == 403


def test_without_a_log_a_browser_gets_a_line_of_text():
    with running(log=False) as proxy:
        assert get(proxy)[1]["content-type"] == "text/plain; charset=utf-8"


def test_an_unreadable_log_is_a_503(llm_user_path):
    with running(AsyncScript("m", "a")) as proxy:
        ask(proxy, "hello")
        (llm_user_path / "logs.db").rename(llm_user_path / "away.db")
        (llm_user_path / "logs.db").mkdir()
        status, _, body = get(proxy)
        assert status == 503 and "the log can't be read" in body
        (llm_user_path / "logs.db").rmdir()
        (llm_user_path / "away.db").rename(llm_user_path / "logs.db")
        assert get(proxy)[0] == 200


def test_a_page_is_rendered_once_for_all_viewers(monkeypatch, tmp_path):
    """Whatever Host they name, at once or one after the other."""
    monkeypatch.setattr(dashboard, "MIN_AGE_S", 60)
    rendered = []
    monkeypatch.setattr(
        log_page,
        "page",
        lambda *_, refresh_s, base_url, **__: rendered.append(refresh_s) or f"at {base_url}",
    )
    pages = dashboard.Dashboard(tmp_path / "logs.db")

    async def view() -> list[str]:
        at_once = [pages.page(f"http://r{number}.localhost", True) for number in range(60)]
        texts = await asyncio.gather(*at_once)
        return [*texts, await pages.page("http://<b>", True), await pages.page("http://x", False)]

    texts = asyncio.run(view())
    assert texts[:2] == ["at http://r0.localhost", "at http://r1.localhost"]
    assert texts[60:] == ["at http://&lt;b&gt;", "at http://x"]
    assert rendered == [10, None]


def test_an_unreadable_log_is_not_tried_for_each_viewer(monkeypatch, tmp_path):
    monkeypatch.setattr(dashboard, "MIN_AGE_S", 60)
    tried = []
    pages = dashboard.Dashboard(tmp_path / "logs.db")
    monkeypatch.setattr(log_page, "_study", lambda database: tried.append(1) or 1 / 0)

    async def view() -> list[BaseException]:
        at_once = [pages.page("http://x", True) for _ in range(5)]
        failed = await asyncio.gather(*at_once, return_exceptions=True)
        return [
            *failed,
            *await asyncio.gather(pages.page("http://x", True), return_exceptions=True),
        ]

    assert all(isinstance(failure, RuntimeError) for failure in asyncio.run(view()))
    assert tried == [1]
