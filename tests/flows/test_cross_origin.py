"""Pages in a real browser: other origins can't use the proxy, an allowed one can."""

import base64
import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.browser import open_browser
from tests.models import AsyncScript, usage
from tests.proxies import running

pytestmark = pytest.mark.slow

BODY = {"model": "m", "messages": [{"role": "user", "content": "spend a key"}]}


@contextmanager
def foreign_site() -> Iterator[str]:
    """Serve an empty page; yield its origin."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>foreign</title>")

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def fetch(browser, url, *, mode="cors", content_type="application/json", **headers):
    """Send a request from the page; return status and text, or the error's name."""
    options = {
        "method": "POST",
        "mode": mode,
        "headers": {"content-type": content_type, **headers},
        "body": json.dumps(BODY),
    }
    return browser.evaluate(
        f"fetch({json.dumps(url)}, {json.dumps(options)})"
        ".then(async answer => [answer.status, answer.type, await answer.text()],"
        " error => [error.name])"
    )


def exchanges(llm_user_path):
    with sqlite3.connect(llm_user_path / "logs.db") as db:
        return db.execute("select count(*) from proxy_exchanges").fetchone()[0]


def test_a_page_of_another_origin_can_not_use_the_proxy(tmp_path, llm_user_path):
    """Not by a preflighted, simple or no-cors request, a form or a frame."""
    model = AsyncScript("m", "an answer", usage(1, 1))
    with running(model) as proxy, foreign_site() as site, open_browser(tmp_path) as browser:
        url = f"{proxy.url}/v1/chat/completions"
        browser.navigate(site)
        assert fetch(browser, url) == ["TypeError"]
        assert fetch(browser, url, content_type="text/plain") == ["TypeError"]
        opaque = fetch(browser, url, mode="no-cors", content_type="text/plain")
        assert opaque == [0, "opaque", ""]
        assert browser.evaluate(f"navigator.sendBeacon({url!r}, {json.dumps(BODY)!r})") is True
        reading = f"fetch({proxy.url + '/v1/models'!r}).then(a => a.status, e => e.name)"
        assert browser.evaluate(reading) == "TypeError"
        framed = (
            "new Promise(done => { const frame = document.createElement('iframe');"
            f" frame.src = {proxy.url + '/'!r}; frame.onload = () => done("
            "(() => { try { return frame.contentDocument?.title ?? 'closed' }"
            " catch { return 'closed' } })()); document.body.append(frame) })"
        )
        assert browser.evaluate(framed) == "closed"
        assert model.prompts == []
    assert exchanges(llm_user_path) == 0


def test_dns_rebinding_is_refused(tmp_path, llm_user_path):
    """To the browser it is the page's own origin, so it may send any request."""
    model = AsyncScript("m", "an answer")
    rules = "--host-resolver-rules=MAP rebound.example 127.0.0.1"
    with running(model) as proxy, open_browser(tmp_path, rules) as browser:
        origin = f"http://rebound.example:{proxy.port}"
        browser.navigate(f"{origin}/")
        assert "is not this server's" in browser.evaluate("document.body.innerText")
        status, _, text = fetch(browser, f"{origin}/v1/chat/completions")
        assert status == 403 and "an answer" not in text
        assert model.prompts == []
    assert exchanges(llm_user_path) == 0


def test_an_allowed_page_can_read_the_response(tmp_path):
    model = AsyncScript("m", "an answer", usage(1, 1))
    with foreign_site() as site, running(model, origins=[site]) as proxy:
        with open_browser(tmp_path) as browser:
            browser.navigate(site)
            url = f"{proxy.url}/v1/chat/completions"
            status, kind, text = fetch(browser, url, authorization="Bearer any")
    assert (status, kind) == (200, "cors")
    assert json.loads(text)["choices"][0]["message"]["content"] == "an answer"


def test_an_allowed_page_needs_the_servers_key(tmp_path):
    """Its preflight does not, since it can't carry one."""
    model = AsyncScript("m", "an answer", usage(1, 1))
    with foreign_site() as site, running(model, origins=[site], keys=["word"]) as proxy:
        with open_browser(tmp_path) as browser:
            browser.navigate(site)
            url = f"{proxy.url}/v1/chat/completions"
            assert fetch(browser, url, authorization="Bearer wrong")[0] == 401
            assert fetch(browser, url, authorization="Bearer word")[0] == 200
    assert len(model.prompts) == 1


def test_a_browser_can_open_the_dashboard(tmp_path):
    """At the address that the proxy prints, with the key sent by Basic auth."""
    with running(AsyncScript("m", "an answer")) as proxy, open_browser(tmp_path) as browser:
        browser.navigate(f"{proxy.url}/")
        assert browser.evaluate("document.querySelector('h1').innerText") == "Exchanges"
        assert browser.messages == []
    with running(keys=["word"]) as proxy, open_browser(tmp_path / "other") as browser:
        basic = base64.b64encode(b"me:word").decode()
        browser.command("Network.setExtraHTTPHeaders", headers={"Authorization": f"Basic {basic}"})
        browser.navigate(f"{proxy.url}/")
        assert browser.evaluate("document.querySelector('h1').innerText") == "Exchanges"
