"""The page of the live log, as a browser asks for it."""

import base64
import time
from http.client import HTTPConnection

import pytest

from llmproxy.app import dashboard
from tests.cli.test_log import ask
from tests.models import AsyncScript, usage
from tests.proxies import running

BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def always_anew(monkeypatch):
    monkeypatch.setattr(dashboard, "MIN_AGE_S", 0)


def get(proxy, path="/", method="GET", **headers):
    connection = HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    try:
        connection.request(method, path, headers={**BROWSER, **headers})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    finally:
        connection.close()


def shown(proxy, words):
    """Look until the page has these words: what is shown is what is committed."""
    until = time.monotonic() + 10
    while words not in (page := get(proxy)[2]):
        assert time.monotonic() < until, page
    return page


def test_a_browser_is_shown_what_was_recorded(llm_user_path):
    with running(AsyncScript("m", f"No. {HOSTILE}", usage(3, 5))) as proxy:
        status, headers, empty = get(proxy)
        assert f"http://127.0.0.1:{proxy.port}" in empty
        ask(proxy, f"Does {HOSTILE} run?")
        page = shown(proxy, "&lt;script&gt;")
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["cache-control"] == "no-store" and headers["vary"] == "accept"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert '<meta http-equiv="refresh" content="10">' in empty and 'http-equiv="refresh"' in page
    assert "<script" not in page
    assert "Does &lt;script&gt;alert(1)&lt;/script&gt; run?" in page


def test_it_can_stand_still():
    with running() as proxy:
        assert '<a href="/?still">keep still</a>' in get(proxy)[2]
        still = get(proxy, "/?still")[2]
        assert 'http-equiv="refresh"' not in still and '<a href="/">follow the log</a>' in still


def test_who_is_no_browser_is_told_a_line():
    with running() as proxy:
        status, headers, text = get(proxy, accept="*/*")
        assert (status, headers["content-type"]) == (200, "text/plain; charset=utf-8")
        assert "is running" in text and "\n" not in text[:-1]
        assert get(proxy, "/api/hello")[2] == "ok\n"


def test_head_is_answered_without_the_page():
    with running() as proxy:
        status, headers, body = get(proxy, method="HEAD")
        assert (status, headers["content-type"], body) == (200, "text/html; charset=utf-8", "")


def test_the_page_is_behind_the_same_rules_as_all_else():
    with running(keys=["word"]) as proxy:
        status, headers, body = get(proxy)
        assert status == 401 and headers["www-authenticate"].startswith("Basic ")
        assert "<html" not in body
        password = base64.b64encode(b"anybody:word").decode()
        assert get(proxy, authorization=f"Basic {password}")[0] == 200
    with running() as proxy:
        assert get(proxy, host="rebound.example")[0] == 403
        assert get(proxy, origin="https://evil.example")[0] == 403


def test_without_a_log_there_is_a_line():
    with running(log=False) as proxy:
        assert get(proxy)[1]["content-type"] == "text/plain; charset=utf-8"


def test_a_log_that_can_not_be_read_is_told(llm_user_path):
    with running(AsyncScript("m", "a")) as proxy:
        ask(proxy, "hello")
        (llm_user_path / "logs.db").rename(llm_user_path / "away.db")
        (llm_user_path / "logs.db").mkdir()
        status, _, body = get(proxy)
        assert status == 503 and "the log can't be read now" in body
        (llm_user_path / "logs.db").rmdir()
        (llm_user_path / "away.db").rename(llm_user_path / "logs.db")
        assert get(proxy)[0] == 200


def test_many_who_look_at_once_are_shown_one_making(monkeypatch, tmp_path):
    monkeypatch.setattr(dashboard, "MIN_AGE_S", 60)
    made = []
    monkeypatch.setattr(dashboard, "page", lambda *_, **settings: made.append(settings) or "page")
    live = dashboard.Dashboard(tmp_path / "logs.db")
    assert [live.render("http://here", True) for _ in range(3)] == ["page"] * 3
    live.render("http://here", False)
    assert [settings["refresh_s"] for settings in made] == [10, None]
