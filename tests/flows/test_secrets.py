"""No API key leaks: with real plugins, providers that quote it, and all bytes of all files."""

import http.client
import json
import logging
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from llm.default_plugins.openai_models import AsyncChat

from llmproxy.backends.llm_keys import known_keys
from llmproxy.cli import main
from llmproxy.cli.exchange_text import exchange_page
from llmproxy.cli.summary_text import summary_line
from tests.cli.test_main import serving
from tests.models import AsyncScript, SyncScript
from tests.provider import begin_sse, chat_chunk, playing, say_event, say_json
from tests.proxies import running
from tests.raw_provider import playing_raw, response

STORED = "stored.with-llm.7c1f"  # matches no known pattern of keys
OF_ENVIRONMENT = "environs.4be2a9"
OF_HEADERS = "header.words.51d0"
OWN = "own.clients.key.93aa"
SHAPED = "sk-proj-Zm9vYmFyYmF6cXV4MTIz"
KEYS = [STORED, OF_ENVIRONMENT, OF_HEADERS, OWN, SHAPED]


def quoting(status):
    """Return an error like a provider's that quotes the request, and another key."""

    def answer(body, handler):
        sent = handler.headers.get("authorization") or handler.headers.get("x-api-key")
        message = (
            f"Incorrect API key provided: {sent}, {handler.headers.get('x-token')} or {SHAPED}."
        )
        error = {"message": message, "type": "authentication_error", "code": sent, "param": sent}
        if status == 200:
            begin_sse(handler)
            say_event(handler, chat_chunk({"content": "so far"}))
            say_event(handler, {"error": error})
        else:
            said = {"error": error} if "x-api-key" not in handler.headers else {
                "type": "error", "error": error,
            }  # fmt: skip
            say_json(handler, said, status, retry_after="0")

    return answer


def ask(url, path, model, stream=False, key=OWN):
    body = {"model": model, "max_tokens": 9, "stream": stream}
    body["messages"] = [{"role": "user", "content": "what I asked"}]
    request = Request(url + path, json.dumps(body).encode())
    request.add_header("authorization", f"Bearer {key}")
    try:
        with urlopen(request, timeout=20) as response:
            return response.status, str(response.headers).encode() + response.read()
    except http.client.IncompleteRead as cut:
        return 200, cut.partial
    except HTTPError as error:
        with error:
            return error.code, str(error.headers).encode() + error.read()


def kept(folder):
    """Return all bytes of all files except llm's own keys and settings."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = ("keys.json", "extra-openai-models.yaml")
    return b"".join(path.read_bytes() for path in files if path.name not in names)


def assert_clean(*texts):
    for text in texts:
        for key in KEYS:
            assert key.encode() not in text, text[:2000]


YAML = """
- model_id: local
  model_name: m
  api_base: {url}
  api_key_name: local
  headers:
    x-token: {header}
- model_id: of-environment
  model_name: m
  api_base: {url}
  api_key_name: nowhere
"""


@contextmanager
def served(llm_user_path, provider, monkeypatch):
    """Run the command, with llm's own settings for a provider on loopback."""
    yaml = YAML.format(url=provider.url, header=OF_HEADERS)
    (llm_user_path / "extra-openai-models.yaml").write_text(yaml)
    (llm_user_path / "keys.json").write_text(json.dumps({"local": STORED, "anthropic": STORED}))
    monkeypatch.setenv("OPENAI_API_KEY", OF_ENVIRONMENT)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", provider.url)
    with serving("--api-key", OWN) as (process, url, lines):
        yield process, url, lines


def output(process, lines):
    process.terminate()
    process.wait(20)
    said = []
    while not lines.empty():
        said.append(lines.get())
    return "".join(said).encode(), process.stderr.read().encode()


@pytest.mark.slow
def test_keys_quoted_by_providers_do_not_leak(every_plugin, llm_user_path, monkeypatch, tmp_path):
    models = ["local", "of-environment", "anthropic/claude-haiku-4-5-20251001"]
    answers, statuses = [], []
    with playing(quoting(401)) as provider:
        with served(llm_user_path, provider, monkeypatch) as (process, url, lines):
            for model in models:
                for path in ("/v1/chat/completions", "/v1/messages"):
                    for stream in (False, True):
                        status, said = ask(url, path, model, stream)
                        answers.append(said)
                        statuses.append(status)
            answers.append(ask(url, "/v1/messages", "local", key=SHAPED)[1])
            page = Request(url, headers={"accept": "text/html", "authorization": f"Bearer {OWN}"})
            answers.append(urlopen(page, timeout=20).read())
            alive = kept(llm_user_path)  # with the write-ahead log
            out, err = output(process, lines)
    sent = {word for headers in provider.headers for word in headers.values()}
    assert f"Bearer {STORED}" in sent and STORED in sent and OF_HEADERS in sent
    assert set(statuses) == {401}
    assert all(b"Incorrect API key provided: " in said for said in answers[: len(statuses)])
    assert b"what I asked" in alive and b"401" in out
    assert_clean(*answers, alive, kept(llm_user_path), out, err)
    exported = tmp_path / "out.jsonl"
    for arguments in (
        ["log"],
        ["export", str(exported)],
        ["report", "--html", str(tmp_path / "p")],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "llmproxy", *arguments], capture_output=True, timeout=30
        )
        assert done.returncode == 0
        assert_clean(done.stdout, done.stderr)
    assert b"Incorrect API key provided" in exported.read_bytes()
    assert_clean(exported.read_bytes(), (tmp_path / "p").read_bytes())


@pytest.mark.slow
def test_errors_in_a_stream_leak_no_key(llm_user_path, monkeypatch):
    with playing(quoting(200)) as provider:
        with served(llm_user_path, provider, monkeypatch) as (process, url, lines):
            answers = [
                ask(url, path, "local", stream=True)[1]
                for path in ("/v1/chat/completions", "/v1/messages")
            ]
            out, err = output(process, lines)
    assert all(b"so far" in said and b"Incorrect API key" in said for said in answers)
    assert_clean(*answers, kept(llm_user_path), out, err)


@pytest.mark.slow
def test_a_benchmark_of_another_server_leaks_no_key(llm_user_path):
    with running(AsyncScript("m", "well")) as proxy:
        assert ask(proxy.url, "/v1/chat/completions", "m")[0] == 200
    (llm_user_path / "keys.json").write_text(json.dumps({"remote": STORED}))
    with playing(quoting(401)) as provider, playing(quoting(200)) as broken:
        for url in (provider.url, broken.url):
            for dialect in ("openai_chat", "anthropic_messages"):
                arguments = ["--models", "x", "--base-url", url, "--key", "remote"]
                done = subprocess.run(
                    [*[sys.executable, "-m", "llmproxy", "bench"], *arguments, "--dialect", dialect,
                     "--name", f"{dialect}-{url}"],
                    capture_output=True,
                    timeout=30,
                )  # fmt: skip
                assert done.returncode == 1, done.stderr  # no request succeeds
                assert_clean(done.stdout, done.stderr, kept(llm_user_path))
    assert b"Incorrect API key provided" in kept(llm_user_path)
    assert STORED in str(provider.headers)


@pytest.mark.slow
def test_a_benchmark_of_a_model_leaks_no_key(llm_user_path, monkeypatch):
    with running(AsyncScript("m", "well")) as proxy:
        assert ask(proxy.url, "/v1/chat/completions", "m")[0] == 200
    with playing(quoting(401)) as provider:
        yaml = YAML.format(url=provider.url, header=OF_HEADERS)
        (llm_user_path / "extra-openai-models.yaml").write_text(yaml)
        (llm_user_path / "keys.json").write_text(json.dumps({"local": STORED}))
        done = subprocess.run(
            [sys.executable, "-m", "llmproxy", "bench", "--models", "local"],
            capture_output=True,
            timeout=30,
        )
    assert STORED in str(provider.headers)
    assert b"Incorrect API key provided" in kept(llm_user_path)
    assert_clean(done.stdout, done.stderr, kept(llm_user_path))


@pytest.mark.parametrize("kind", [SyncScript, AsyncScript])
@pytest.mark.parametrize("stream", [False, True])
def test_an_exception_with_keys_in_its_text_leaks_none(kind, stream, llm_user_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", STORED)
    (llm_user_path / "keys.json").write_text(json.dumps({"x": OF_HEADERS}))
    text = f"GET /?key={STORED} {OF_HEADERS} {SHAPED} {OWN}"
    before, after = kind("before", RuntimeError(text)), kind("after", "a", ValueError(text))
    with running(before, after, keys=[OWN]) as proxy:
        answers = [
            ask(proxy.url, path, model, stream)[1]
            for model in ("before", "after")
            for path in ("/v1/chat/completions", "/v1/messages")
        ]
        proxy.wait_for_report(4)
        reports = repr(proxy.reports).encode()
        held = kept(llm_user_path)
    assert all(b"GET /?" in said for said in answers)
    assert_clean(*answers, held, reports)


def test_a_key_that_changes_during_a_response_does_not_leak(llm_user_path):
    """The key used for the request is still redacted."""
    file = llm_user_path / "keys.json"

    def answer(body, handler):
        file.write_text(json.dumps({"x": "another.key.0001"}))
        quoting(401)(body, handler)

    with playing(answer) as provider:
        model = AsyncChat("m", api_base=provider.url)
        model.needs_key = "x"
        with running(model) as proxy:
            file.write_text(json.dumps({"x": STORED}))
            status, said = ask(proxy.url, "/v1/chat/completions", "m")
    assert (status, STORED in str(provider.headers)) == (401, True)
    assert_clean(said, kept(llm_user_path))


def test_a_logged_traceback_has_no_key(llm_user_path, monkeypatch):
    (llm_user_path / "keys.json").write_text(json.dumps({"x": STORED}))
    monkeypatch.setenv("ANY_API_KEY", OF_ENVIRONMENT)
    formatter = main._Formatter("llmproxy", known_keys([OWN]))
    try:
        try:
            raise KeyError(f"{STORED} {SHAPED}")
        except KeyError as cause:
            raise RuntimeError(f"sent 'authorization: Bearer {OF_ENVIRONMENT}'") from cause
    except RuntimeError:
        record = logging.LogRecord("a", 40, "p", 1, "no %s", (OWN,), sys.exc_info())
    text = formatter.format(record)
    assert text.startswith("llmproxy: no [removed]\n")
    assert text.count("Traceback (most recent call last)") == 2
    assert_clean(text.encode())


def test_the_command_uses_the_redacting_formatter(llm_user_path):
    probe = (
        "import logging; from llmproxy.cli import main; main.main(['log']);"
        f"logging.getLogger('any').warning('no {STORED}')"
    )
    (llm_user_path / "keys.json").write_text(json.dumps({"x": STORED}))
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, timeout=30, env=dict(os.environ)
    )
    assert done.stderr.endswith(b"llmproxy: no [removed]\n")


def test_a_500_has_no_text_of_the_exception(llm_user_path, monkeypatch, caplog):
    """The operator alone sees an internal error, and without keys."""

    def bug(*_):
        raise RuntimeError(f"what broke: {STORED}")

    (llm_user_path / "keys.json").write_text(json.dumps({"x": STORED}))
    with running(AsyncScript("m", "x")) as proxy:
        monkeypatch.setattr(proxy.proxy.catalog, "models", bug)
        monkeypatch.setattr(proxy.proxy.catalog, "options", bug)
        with pytest.raises(HTTPError) as caught:
            urlopen(proxy.url + "/v1/models", timeout=10)
        with caught.value as error:
            assert (error.code, b"what broke" in error.read()) == (500, False)
        status, said = ask(proxy.url, "/v1/chat/completions", "m")
        assert (status, b"what broke" in said, b"RuntimeError" in said) == (500, False, False)
        assert proxy.wait_for_report().error == "RuntimeError: what broke: [removed]"
        assert_clean(said, kept(llm_user_path))
    assert "what broke" in caplog.text


def test_the_spool_contains_no_key(tmp_path, llm_user_path):
    """If the log can't be opened, exchanges are written to a file beside it."""
    (llm_user_path / "keys.json").write_text(json.dumps({"x": STORED}))
    database = tmp_path / "logs.db"
    database.symlink_to(tmp_path / "nowhere" / "logs.db")  # where it can't be made
    with running(
        AsyncScript("m", RuntimeError(f"no {STORED} {SHAPED}")), database=database
    ) as proxy:
        ask(proxy.url, "/v1/chat/completions", "m")
    held = kept(tmp_path)
    assert b"the model 'm' failed: RuntimeError: no [removed] [removed]" in held
    assert_clean(held)


HIDDEN = "0a1B2c3D.4e5F"
BODIES = {
    "JSON that was cut": b'{"model": "m", "api_key": "%s", "mess' % HIDDEN.encode(),
    "a form": b"model=m&client_secret=%s" % HIDDEN.encode(),
    "several parts": b'--x\r\nContent-Disposition: form-data; name="token"\r\n\r\n%s\r\n--x--'
    % HIDDEN.encode(),
    "a list": b'[{"api_key": "%s"}]' % HIDDEN.encode(),
    "UTF-16": f"api_key={HIDDEN}".encode("utf-16"),
    "a bearer": b"Authorization: Bearer %s\r\n\r\n" % HIDDEN.encode(),
    "a good request": json.dumps(
        {
            "model": "m",
            "max_tokens": 9,
            "messages": [{"role": "user", "content": "hi"}],
            "user": "me",
        }
    ).encode(),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize(
    "path, is_log_broken", [("/v1/chat/completions", False), ("/v1/messages", True)]
)
def test_secrets_of_a_request_reach_no_file_and_no_line(
    body, path, is_log_broken, tmp_path, llm_user_path, caplog
):
    """In the query, in a Referer, in a body that is not JSON: whether rows or the spool take it."""
    database, access = tmp_path / "logs.db", []
    if is_log_broken:
        database.symlink_to(tmp_path / "nowhere" / "logs.db")  # where it can't be made
    headers = {
        "referer": f"https://app/cb?code={HIDDEN}&v=1#access_token={HIDDEN}",
        "x-original-uri": f"{path}?sig={HIDDEN}",
        "x-title": f"a program with token={HIDDEN}",
        "user-agent": f"tool/1 (https://me:{HIDDEN}@host/)",
    }
    model = AsyncScript("m", RuntimeError(f"GET https://host/a?sig={HIDDEN} failed"))
    with running(model, database=database, access_log=access.append) as proxy:
        target = f"{proxy.url}{path}?code={HIDDEN}&a=1;token={HIDDEN}"
        with pytest.raises(HTTPError) as refused:
            urlopen(Request(target, body, headers), timeout=20)
        refused.value.close()
        exchange = proxy.wait_for_report()
        shown = exchange_page(exchange) + summary_line(exchange) + "\n".join(proxy.warnings)
        while not access:
            time.sleep(0.001)
    held = kept(tmp_path)
    assert b"removed" in held and b"tool/1" in held
    for text in (held, shown.encode(), access[0].encode(), caplog.text.encode()):
        assert HIDDEN.encode() not in text
    assert "tool/1" in access[0] and "%5Bremoved%5D" in access[0]


SOURCES = {"client": OF_HEADERS, "llm:far": STORED, "env:FAR_VARIABLE": OF_ENVIRONMENT}
FRAME = b'event: %b\ndata: {"type":"%b"%b}\n\n'


def echoing(kind):
    """Return an answer of an upstream that says what it was sent, also in its header."""

    def answer(request):
        sent = [request.header(name) or "" for name in ("authorization", "x-api-key")]
        said = f"Incorrect API key provided: {' '.join(sent)} or {SHAPED}"
        fields = [("Content-Type", "application/json"), ("Request-Id", "".join(sent)[-30:])]
        error = {"type": "authentication_error", "message": said, "code": said, "param": said}
        whole = json.dumps({"type": "error", "error": error}).encode()
        if kind == "refused":
            return response(whole, 401, [*fields, ("X-Said", said)])
        if kind == "in a stream":
            fields[0] = ("Content-Type", "text/event-stream")
            return response(FRAME % (b"error", b"error", whole[len('{"type": "error"') : -1]),
                            headers=fields)  # fmt: skip
        return response(f"<p>{said}</p>".encode(), headers=[("Content-Type", "text/html")])

    return answer


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens", "/v1/files"])
@pytest.mark.parametrize("kind", ["refused", "in a stream", "of no kind"])
@pytest.mark.parametrize("source", SOURCES)
def test_no_key_for_an_upstream_stays_of_what_passes(
    source, kind, path, llm_user_path, monkeypatch, caplog
):
    """A client is told what the upstream says of its own key; nobody of the server's keys."""
    caplog.set_level(logging.DEBUG)
    (llm_user_path / "keys.json").write_text(json.dumps({"far": STORED}))
    monkeypatch.setenv("FAR_VARIABLE", OF_ENVIRONMENT)
    lines = []
    with (
        playing(lambda body, handler: say_json(handler, {})) as collector,
        playing_raw(echoing(kind)) as provider,
    ):
        with running(
            upstreams=[f"far=anthropic_messages+{provider.url}"],
            upstream_keys=[("far", source)],
            passthrough="far",
            keys=[OWN],
            access_log=lines.append,
            otlp=collector.url,
            otlp_content=True,
            debug=True,
        ) as proxy:
            body = {"model": "m", "max_tokens": 9, "stream": True}
            body["messages"] = [{"role": "user", "content": "what I asked"}]
            request = Request(proxy.url + path, json.dumps(body).encode())
            request.add_header("authorization", f"Bearer {OF_HEADERS}")
            request.add_header("x-api-key", OWN)
            try:
                with urlopen(request, timeout=20) as answered:
                    given = str(answered.headers).encode() + answered.read()
            except HTTPError as error:
                with error:
                    given = str(error.headers).encode() + error.read()
            exchange = proxy.wait_for_report()
            during = kept(llm_user_path)
            asked = Request(proxy.url + "/metrics", headers={"authorization": f"Bearer {OWN}"})
            with urlopen(asked, timeout=20) as answered:
                metrics = answered.read()
    assert SOURCES[source].encode() in provider.requests[0].raw
    assert OWN.encode() not in provider.requests[0].raw
    shown = f"{lines}{caplog.text}{proxy.warnings}{exchange!r}{exchange_page(exchange)}"
    spans = json.dumps(collector.bodies).encode()
    assert b"spanId" in spans and b"llmproxy" in metrics
    assert_clean(during, kept(llm_user_path), metrics, spans, shown.encode())
    assert OWN.encode() not in given
    assert (OF_HEADERS.encode() in given) == (source == "client")
    if kind == "refused":
        assert STORED.encode() not in given and OF_ENVIRONMENT.encode() not in given
