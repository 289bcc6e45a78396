"""Misbehaving models: each may spoil its own response, and nothing else.

Each is used by both APIs, whole and streamed, on one server, which then serves the next
request normally. The log has each exchange with its status.
"""

import asyncio
import http.client
import json
import sqlite3

import pytest
from llm.parts import StreamEvent

from tests.models import AsyncScript, SyncScript, usage
from tests.proxies import running

QUESTION = [{"role": "user", "content": "hi"}]
PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}
KINDS = {"sync": SyncScript, "async": AsyncScript}


class Silent(Exception):
    """An exception whose str and repr fail."""

    def __str__(self):
        raise RuntimeError("no text")

    def __repr__(self):
        raise SystemExit("no form")


class NoText(Exception):
    def __str__(self):
        return 5


class StrangeStatus(Exception):
    """An exception like an SDK's, but with invalid attributes."""

    status_code = float("nan")
    body = {"error": {"message": {"a": object()}, "code": 5}}
    response = {"ResponseMetadata": {"HTTPStatusCode": "x"}}

    @property
    def code(self):
        raise KeyError("code")


def context_loop():
    """Return an exception that is the cause of its own cause."""
    first, second = RuntimeError("first"), RuntimeError("second")
    first.__cause__, second.__cause__ = second, first
    return first


RAISED = {
    "SystemExit": SystemExit(1),
    "SystemExit with status 400": SystemExit(400),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "GeneratorExit": GeneratorExit(),
    "StopIteration": StopIteration("a"),
    "StopAsyncIteration": StopAsyncIteration("a"),
    "RecursionError": RecursionError("too deep"),
    "MemoryError": MemoryError(),
    "CancelledError": asyncio.CancelledError(),
    "TimeoutError": TimeoutError(),
    "BaseException": BaseException("bare"),
    "group": ExceptionGroup("some", [ValueError("a"), ExceptionGroup("more", [OSError("b")])]),
    "base group": BaseExceptionGroup("some", [SystemExit(1), KeyboardInterrupt()]),
    "unprintable": Silent(),
    "text that is none": NoText(),
    "strange status": StrangeStatus("a"),
    "loop of causes": context_loop(),
    "surrogates": RuntimeError("a \ud800 b \x00 c \r\n\r\n d"),
    "huge": RuntimeError("x" * 5_000_000),
}


def too_deep(_response):
    def deeper():
        return deeper()

    deeper()


ESCAPES = "a\x00b\x1b[0m\r\n\r\ndata: x\n\n\u2028"

# name → steps, and the text of the response, or None for an error
STRANGE = {
    "None": ((None,), None),
    "int": ((5,), None),
    "bytes": ((b"a",), None),
    "dict": (({"a": 1},), None),
    "list": ((["a"],), None),
    "event without text": ((StreamEvent("text", None),), None),
    "event of no type": ((StreamEvent("nothing", "a"),), None),
    "int after text": (("a", 5), None),
    "real recursion": ((too_deep,), None),
    "nothing": ((), ""),
    "empty strings": (("", "", "a", ""), "a"),
    "NUL and escapes": ((ESCAPES,), ESCAPES),
    "lone surrogates": (("a\ud800", "b", "\udc00c"), "a\ufffdb\ufffdc"),
    "split pair": (("a\ud83d", "\ude00b"), "a\U0001f600b"),
    "2 MB of four bytes each": (("\U0001f600" * 500_000,), "\U0001f600" * 500_000),
    "many chunks": (("a",) * 5_000, "a" * 5_000),
    "subclass of str": ((type("Text", (str,), {})("a"),), "a"),
}  # fmt: skip


def leave(**attributes):
    def step(response):
        for name, value in attributes.items():
            setattr(response, name, value)

    return step


class Rude:
    """An object whose attributes and comparisons raise."""

    def __getattr__(self, name):
        raise RuntimeError(name)

    def __eq__(self, other):
        raise RuntimeError("eq")

    __hash__ = None


def circle():
    value = {}
    value["a"] = value
    return value


def deep(levels=100_000):
    value = []
    for _ in range(levels):
        value = [value]
    return value


LEFT = {
    "response_json a list": leave(response_json=[1, 2]),
    "response_json an object": leave(response_json=object()),
    "response_json rude": leave(response_json=Rude()),
    "response_json a circle": leave(response_json=circle()),
    "response_json deep": leave(response_json={"a": deep()}),
    "response_json with bytes": leave(response_json={"a": b"\xff", "b": {1, 2}, 3: 4}),
    "response_json with surrogates": leave(response_json={"a": "\ud800"}),
    "response_json with NaN": leave(response_json={"a": float("nan")}),
    "finish_reason a list": leave(response_json={"finish_reason": ["stop"]}),
    "stop_sequence a number": leave(
        response_json={"stop_reason": "stop_sequence", "stop_sequence": 5}
    ),
    "usage words": leave(input_tokens="many", output_tokens="few"),
    "usage negative": leave(input_tokens=-5, output_tokens=-1),
    "usage floats": leave(input_tokens=1.5, output_tokens=float("nan")),
    "usage huge": leave(input_tokens=10**400, output_tokens=2**80),
    "usage details rude": leave(input_tokens=1, output_tokens=1, token_details=Rude()),
    "usage details deep": usage(1, 1, a=[[{"b": None}]]),
    "resolved_model a number": leave(resolved_model=5),
    "resolved_model a list": leave(resolved_model=["a"]),
    "resolved_model surrogates": leave(resolved_model="\ud800"),
    "prompt gone": lambda response: setattr(response, "prompt", None),
    "messages changed": lambda response: response.prompt.messages.clear(),
    "messages rubbish": lambda response: setattr(response.prompt, "_explicit_messages", [5]),
    "options gone": lambda response: setattr(response.prompt, "options", None),
    "model gone": lambda response: setattr(response, "model", None),
    "tool calls rubbish": leave(_tool_calls=[5, None]),
    "events rubbish": leave(_stream_events=[5], _chunks=[5]),
}


def named(kind, name):
    return f"{kind}:{name}"


def all_models():
    for kind, script in KINDS.items():
        yield script(named(kind, "well"), "well")
        for name, raised in RAISED.items():
            yield script(named(kind, f"{name} at once"), raised)
            yield script(named(kind, f"{name} later"), "so ", "far", raised)
        for name, (steps, _) in STRANGE.items():
            yield script(named(kind, name), *steps)
        for name, step in LEFT.items():
            yield script(named(kind, name), "so ", "far", step)


class ClientResponse:
    """A response as a client gets it."""

    def __init__(self, status, data, is_whole):
        self.status = status
        self.data = data
        self.is_whole = is_whole

    def events(self):
        frames = self.data.decode().split("\n\n")
        lines = [line for frame in frames for line in frame.split("\n")]
        datas = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        return [json.loads(data) for data in datas if data != "[DONE]"]


def ask(port, model, api="openai", stream=False):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=50)
    body = {"model": model, "messages": QUESTION, "stream": stream, "max_tokens": 100}
    try:
        connection.request("POST", PATHS[api], json.dumps(body))
        response = connection.getresponse()
        try:
            return ClientResponse(response.status, response.read(), True)
        except http.client.IncompleteRead as cut:
            return ClientResponse(response.status, cut.partial, False)
    finally:
        connection.close()


def text_of(api, response, stream):
    """Return the text of a response."""
    assert response.status == 200 and response.is_whole, response.data[-500:]
    if not stream:
        body = json.loads(response.data)
        if api == "openai":
            return body["choices"][0]["message"]["content"] or ""
        return "".join(block["text"] for block in body["content"])
    events = response.events()
    if api == "openai":
        assert response.data.endswith(b"data: [DONE]\n\n")
        deltas = (event["choices"][0]["delta"] for event in events if event["choices"])
        return "".join(delta.get("content") or "" for delta in deltas)
    assert events[-1] == {"type": "message_stop"}
    return "".join(
        event["delta"]["text"] for event in events if event["type"] == "content_block_delta"
    )


def error_of(api, response, *, is_late):
    """Return the error's message in its API's format, from the body or the stream."""
    if is_late:
        assert response.status == 200
        error = response.events()[-1]
        assert b"[DONE]" not in response.data and b"message_stop" not in response.data
    else:
        assert 400 <= response.status < 600 and response.is_whole
        error = json.loads(response.data)
    if api == "anthropic":
        assert error["type"] == "error"
    assert set(error["error"]) >= {"type", "message"}
    assert isinstance(error["error"]["message"], str)
    for inner in (b"Traceback", b"llmproxy/", b".py", b" object at 0x"):
        assert inner not in response.data
    return error["error"]["message"]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    database = tmp_path_factory.mktemp("strange") / "logs.db"
    with running(*all_models(), database=database) as proxy:
        yield proxy


def last_rows(proxy, count):
    """Return how the last exchanges ended, from the log."""
    with sqlite3.connect(proxy.proxy.database) as db:
        sql = "select model_asked, status, http_status, error from proxy_exchanges"
        return db.execute(f"{sql} order by id desc limit ?", [count]).fetchall()[::-1]


def ask_all_ways(proxy, model):
    """Send requests to a model by each API, whole and streamed, then one to a good model."""
    ways = [(api, stream) for api in PATHS for stream in (False, True)]
    answers = {way: ask(proxy.port, model, *way) for way in ways}
    well = model.partition(":")[0] + ":well"
    assert text_of("openai", ask(proxy.port, well), False) == "well"
    logged = last_rows(proxy, len(ways) + 1)
    assert logged[-1][:2] == (well, "ok")
    assert [row[0] for row in logged[:-1]] == [model] * len(ways)
    return answers, logged[:-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RAISED)
@pytest.mark.parametrize("when", ["at once", "later"])
def test_any_exception_is_a_clean_error(proxy, kind, name, when):
    answers, logged = ask_all_ways(proxy, named(kind, f"{name} {when}"))
    for (api, stream), answer in answers.items():
        message = error_of(api, answer, is_late=stream and when == "later")
        assert message and len(message) < 100_000
    assert [row[1] for row in logged] == ["error"] * 4
    assert all(row[3] for row in logged)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", STRANGE)
def test_any_yielded_value_is_text_or_a_clean_error(proxy, kind, name):
    answers, logged = ask_all_ways(proxy, named(kind, name))
    expected = STRANGE[name][1]
    for (api, stream), answer in answers.items():
        if expected is None:
            error_of(api, answer, is_late=stream and isinstance(STRANGE[name][0][0], str))
        else:
            assert text_of(api, answer, stream) == expected
    assert [row[1] for row in logged] == ["error" if expected is None else "ok"] * 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LEFT)
def test_invalid_data_left_by_a_plugin_spoils_its_own_response_at_most(proxy, kind, name):
    """Unreadable data is an error, other data a response; each is logged as the client got it."""
    answers, logged = ask_all_ways(proxy, named(kind, name))
    for ((api, stream), answer), row in zip(answers.items(), logged, strict=True):
        if row[1] == "ok":
            assert text_of(api, answer, stream) == "so far"
        else:
            assert row[1] == "error"
            error_of(api, answer, is_late=stream)
