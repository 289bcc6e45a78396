"""The dashboard, as a browser requests it."""

import asyncio
import base64
import re
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
    assert '<meta http-equiv="refresh"' in empty and 'http-equiv="refresh"' not in page
    assert "<script" not in page
    assert "Does &lt;script&gt;alert(1)&lt;/script&gt; run?" in page


def test_only_the_list_reloads_and_only_on_request(llm_user_path):
    with running(AsyncScript("m", "Yes.")) as proxy:
        ask(proxy, "hello")
        page = page_with(proxy, "hello")
        assert 'http-equiv="refresh"' not in page and 'href="/?live=1"' in page
        live = get(proxy, "/?live=1&client=nobody&status=ok")[2]
        assert '<meta http-equiv="refresh" content="5">' in live and "<form" not in live
        assert 'href="/?status=ok&amp;client=nobody">Stop following' in live
        (id,) = ids_in(page)
        for path in (f"/exchanges/{id}", f"/conversations/{id}", "/conversations", "/figures"):
            status, _, body = get(proxy, path)
            assert status == 200 and 'http-equiv="refresh"' not in body, path


def ids_in(page):
    return sorted(set(re.findall(r'href="/exchanges/(\w{26})"', page)))


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

    def render(database, path, query, base_url):
        rendered.append((path, query))
        return 200, f"at {base_url}"

    monkeypatch.setattr(log_page, "log_page", render)
    pages = dashboard.Dashboard(tmp_path / "logs.db")

    async def view() -> list[bytes]:
        at_once = [pages.page("/", "", f"http://r{number}.localhost") for number in range(60)]
        found = await asyncio.gather(*at_once)
        later = [await pages.page("/", "", "http://<b>"), await pages.page("/", "a=1", "http://x")]
        return [html for _, html in [*found, *later]]

    texts = asyncio.run(view())
    assert texts[:2] == [b"at http://r0.localhost", b"at http://r1.localhost"]
    assert texts[60:] == [b"at http://&lt;b&gt;", b"at http://x"]
    assert rendered == [("/", ""), ("/", "a=1")]


def test_pages_that_are_kept_are_bounded_and_few_are_made_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(dashboard, "MIN_AGE_S", 60)
    running_now, most = [], []

    def render(database, path, query, base_url):
        running_now.append(query)
        most.append(len(running_now))
        time.sleep(0.002)
        running_now.remove(query)
        return 200, "x" * 100_000

    monkeypatch.setattr(log_page, "log_page", render)
    monkeypatch.setattr(dashboard, "MAX_PAGES_BYTES", 1_000_000)
    pages = dashboard.Dashboard(tmp_path / "logs.db")

    async def view() -> None:
        await asyncio.gather(*[pages.page("/", f"a={number}", "") for number in range(40)])

    asyncio.run(view())
    assert max(most) <= dashboard.MAX_AT_ONCE
    assert pages._made.size_bytes <= 1_000_000 and pages._being_made == {}


def test_an_unreadable_log_is_not_tried_for_each_viewer(monkeypatch, tmp_path):
    monkeypatch.setattr(dashboard, "MIN_AGE_S", 60)
    tried = []
    pages = dashboard.Dashboard(tmp_path / "logs.db")
    monkeypatch.setattr(log_page, "log_page", lambda *_: tried.append(1) or 1 / 0)

    async def view() -> list[BaseException]:
        at_once = [pages.page("/", "", "http://x") for _ in range(5)]
        failed = await asyncio.gather(*at_once, return_exceptions=True)
        again = asyncio.gather(pages.page("/", "", "http://x"), return_exceptions=True)
        return [*failed, *await again]

    assert all(isinstance(failure, RuntimeError) for failure in asyncio.run(view()))
    assert tried == [1]


def test_unknown_ids_are_plain_pages_and_beginnings_are_found(llm_user_path):
    with running(AsyncScript("m", "Yes.")) as proxy:
        ask(proxy, "hello")
        (id,) = ids_in(page_with(proxy, "hello"))
        status, headers, body = get(proxy, "/exchanges/nosuch")
        assert (status, headers["content-type"]) == (404, "text/html; charset=utf-8")
        assert "the log has no exchange nosuch" in body and "<script" not in body
        assert get(proxy, "/conversations/nosuch")[0] == 404
        assert get(proxy, "/exchanges/")[0] == get(proxy, "/conversations/x/y")[0] == 404
        assert get(proxy, f"/exchanges/{id[:24]}")[0] == 200
        assert get(proxy, f"/conversations/chatcmpl-{id}")[0] == 200
        assert get(proxy, f"/exchanges/{id}", "POST")[0] == 405
        assert get(proxy, "/exchanges/%3Cscript%3E")[0] == 404
        # A form may be sent to the server itself, and nothing may be loaded.
        policy = get(proxy)[1]["content-security-policy"]
        assert "form-action 'self'" in policy and "default-src 'none'" in policy


def test_each_page_needs_key_and_host(llm_user_path):
    with running(keys=["word"]) as proxy:
        for path in ("/exchanges/x", "/conversations", "/conversations/x", "/figures", "/?a=b"):
            status, headers, body = get(proxy, path)
            assert status == 401 and "www-authenticate" in headers and "<html" not in body
            assert get(proxy, path, host="rebound.example")[0] == 403


def test_without_a_log_the_other_pages_are_missing():
    with running(log=False) as proxy:
        assert get(proxy, "/exchanges/x")[0] == get(proxy, "/figures")[0] == 404
