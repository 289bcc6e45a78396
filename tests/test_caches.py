"""Whatever a proxy keeps from one request to the next is listed here, with its bound.

A cache that is bounded by a number of entries is not bounded: one entry may hold a hundred
megabytes. So content is kept in a `ByteCache`, or up to a number of bytes.
"""

from __future__ import annotations

import ast
import gc
import itertools
import json
import threading
import tracemalloc
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import llm
import openai
import pytest
from llm.parts import (
    AttachmentPart,
    Message,
    ReasoningPart,
    StreamEvent,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

import llmproxy
from llmproxy.app import dashboard
from llmproxy.backends.engine.prompt import build_prompt
from llmproxy.conversations import matching
from llmproxy.conversations.matching import Matcher
from llmproxy.core import chat, json_pieces, known_bodies, token_estimate
from llmproxy.core.byte_cache import ByteCache, message_bytes
from llmproxy.core.errors import InvalidRequest
from llmproxy.core.fingerprints import Histories, Reply, request_key
from llmproxy.core.known_bodies import KnownBodies
from llmproxy.core.limits import Limits
from llmproxy.core.message_facts import keep_beginning, keep_facts, stable_count, total
from llmproxy.dialects import DIALECTS
from llmproxy.recorder import reply_index, store, writer
from llmproxy.recorder.exchange import Exchange, Turn, begun
from llmproxy.recorder.listing import open_for_reading
from llmproxy.recorder.reader import ReadOnlyLog
from llmproxy.recorder.reply_index import Candidate, Replies
from llmproxy.recorder.store import Store
from tests.empty_log import put_empty_log
from tests.log_fixtures import RECEIVED, ended_as
from tests.models import AsyncScript, usage
from tests.proxies import running

PACKAGE = Path(llmproxy.__file__).parent

# Attributes with a dict, list, set or deque, of objects that live as long as a proxy.
KEPT = {
    # content of requests and responses
    "ByteCache._kept": "ByteCache.max_bytes",
    "Matcher._pending": "MAX_PENDING_BYTES, MAX_PENDING",
    "_Pending.messages": "Matcher._pending",
    "_Pending.reply": "Matcher._pending",
    "Writer._jobs": "while the log can't be written: MAX_PENDING_BYTES, MAX_PENDING; while it is"
    " slow: what comes in SLOW_S, and MAX_PENDING_BYTES",
    "Dashboard._being_made": "addresses that browsers wait for, at most limit connections",
    "Proxy._hooks": "MAX_HOOKS",
    # entries of a fixed size
    "Store._known": "MAX_KNOWN",
    "Store._begun": "running exchanges",
    "Writer._unbegun": "running exchanges",
    "Writer._unended": "while the log can't be written: exchanges whose beginning is in memory, in"
    " the spool (MAX_SPOOL_BYTES) or was running before",
    "TurnLog.seen": "the messages of one group of exchanges",
    "LlmRows._tool_hashes": "MAX_TOOL_HASHES",
    "HistoryHasher._said": "empty in those that are kept",
    "Replies._appeared": "MAX_APPEARED",
    "Replies._news": "MAX_NEWS, each with at most MAX_NEW exchanges' keys",
    "Replies._running": "running exchanges",
    "KnownKeys._values": "llm's keys",
    "KnownKeys.clean_texts": "MAX_REMEMBERED of MAX_REMEMBERED_CHARS",
    # the models, a set that the owner chooses
    "App._counts_tokens": "models",
    "Catalog._limiters": "models",
    "Catalog.ran": "models",
    "Engine._read_history": "models",
    "LargeWork._waiting": "requests that wait for their turn, at most queue_s",
    "Metrics._duration": "models × dialects",
    "Metrics._rate": "models × dialects × 2",
    "Metrics._refused": "that of Refusals.counts",
    "Refusals.counts": "statuses × kinds of error",
    "Refusals._reported": "MAX_REPORTED",
    "Refusals._skipped": "statuses",
    "Metrics._replays": "models of recordings × dialects × statuses",
    "Metrics._queue": "models × dialects",
    "Metrics._upstream_models": "MAX_UPSTREAM_MODELS",
    "Metrics._requests": "models × dialects × statuses",
    "Metrics._tokens": "models × dialects × 4",
    "Metrics._ttft": "models × dialects",
    "_Histogram.counts": "buckets",
    "UpstreamModels._kept": "MAX_KEPT lists, each of what MAX_LIST_BYTES can name",
    # fixed
    "Upstreams._maps": "the settings",
    "Upstreams.servers": "the settings",
    "Pool._idle": "MAX_IDLE",
    "Pool._timers": "MAX_IDLE",
    "App._handlers": "kinds of requests",
    "Server._connections": "limit connections",
    "_Connection._unsent": "a write buffer of what was sent without waiting",
    "Server._listeners": "addresses",
    # recordings that are replayed
    "HeldRecordings._held": "recordings of the files",
    "HeldRecordings._models": "recordings of the files",
    "RequestIndex._by_key": "recordings of the files",
    "Replay._served": "recordings that were played",
    "Replay._used": "recordings that were played",
}

CACHES = {
    "Dashboard._made": dashboard.MAX_PAGES_BYTES,
    "KnownBodies._known": known_bodies.MAX_KNOWN_BYTES,
    "Histories._hashers": matching.MAX_HISTORY_BYTES,
    "Histories._replies": matching.MAX_HISTORY_BYTES,
    "Replies._cached": reply_index.MAX_CACHED_BYTES,
    "Replies._judged": reply_index.MAX_JUDGED_BYTES,
    "Replies._originals": reply_index.MAX_CACHED_BYTES,
}
MAX_KEPT_BYTES = 80 * 2**20  # of all of them: a laptop has other things to do with its memory

# Functions and properties that remember their results.
REMEMBERED = {
    "core/field_types.py:_hints": "our dataclasses",
    "app/access.py:_is_loopback_address": "16 hosts of MAX_ADDRESS_CHARS",
    "app/routes.py:_match": "128 paths of MAX_REMEMBERED_PATH",
    "app/routes.py:_sorted_routes": "dialects with a header × their names",
    "core/known_keys.py:_is_secret_name": "1,024 names of MAX_REMEMBERED_CHARS",
    "recorder/user_files.py:_user_file": "16 paths",
    "core/payload.py:_compiled": "annotations of our dataclasses",
    "core/payload.py:_small_decoder": "8 limits",
    "conversations/matching.py:fingerprints": "a few hundred bytes of a turn in Matcher._pending",
    "recorder/capture.py:response": "as long as its exchange",
    "app/running_exchange.py:input_estimate": "as long as its exchange",
    "report/html/document.py:_style": "three",
    "transfer/anonymize.py:_replacement": "characters of Unicode",
    "backends/engine/model_events.py:is_known_llm": "one",
    "backends/engine/prompt.py:_explicit_messages": "as long as its exchange",
    "backends/engine/prompt.py:responses": "as long as its exchange",
    "transport/http11.py:_split_target": "as long as its request",
    "transport/server.py:_date": "one",
}


def kept(root: object) -> Iterator[tuple[str, Any]]:
    """Yield the containers, and caches, that are reachable from an object of the package.

    Those of frozen dataclasses are values, which never grow.
    """
    todo, seen = [root], set[int]()
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        match one:
            case types.MethodType():
                todo.append(one.__self__)
            case partial():
                todo += [one.func, *one.args, *one.keywords.values()]
            case types.FunctionType() if one.__module__.startswith("llmproxy"):
                todo += [cell.cell_contents for cell in one.__closure__ or ()]
            case dict():
                todo += [*one.keys(), *one.values()]
            case list() | tuple() | set() | frozenset() | deque():
                todo += list(one)
            case BaseException():
                pass
            case _ if type(one).__module__.startswith("llmproxy"):
                is_value = is_dataclass(one) and one.__dataclass_params__.frozen
                for name, value in getattr(one, "__dict__", {}).items():
                    if not is_value and isinstance(value, dict | list | set | deque | ByteCache):
                        yield f"{type(one).__name__}.{name}", value
                    todo.append(value)


def talk(url: str, requests: int = 2) -> None:
    """Send requests of every dialect, and of one a conversation."""
    chat_messages = {"messages": [{"role": "user", "content": "Hi"}]}
    for route, asked in (
        ("/v1/messages", chat_messages | {"max_tokens": 5}),
        ("/v1/responses", {"input": "Hi"}),
        ("/v1/completions", {"prompt": "Hi"}),
        ("/api/chat", chat_messages),
    ):
        with urlopen(f"{url}{route}", json.dumps({"model": "m"} | asked).encode()) as response:
            assert response.status == 200
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    messages: list[Any] = [{"role": "user", "content": "Hello"}]
    for _ in range(requests):
        reply = client.chat.completions.create(model="m", messages=messages)
        messages += [reply.choices[0].message, {"role": "user", "content": "And then?"}]


@pytest.fixture
def model():
    return AsyncScript("m", "An answer that nobody gives twice by chance", usage(3, 2))


def test_all_that_a_proxy_keeps_is_listed_with_its_bound(model, llm_user_path):
    recordings = Path(__file__).parent / "recordings"
    with running(model) as proxy:
        talk(proxy.url)
        found = dict(kept(proxy.proxy))
    for settings in ({"replay": "replay-or-live"}, {"recordings": recordings}):
        with running(model, **settings) as proxy:
            found |= kept(proxy.proxy)
    caches = {
        name: value.max_bytes for name, value in found.items() if isinstance(value, ByteCache)
    }
    assert caches == CACHES
    assert sum(caches.values()) + matching.MAX_PENDING_BYTES <= MAX_KEPT_BYTES
    assert found.keys() - caches == KEPT.keys()


def test_each_cache_of_the_package_is_listed():
    """Also those that a proxy makes only when they are needed."""
    found = {
        f"{owner.name}.{(node.targets[0] if isinstance(node, ast.Assign) else node.target).attr}"
        for path in PACKAGE.rglob("*.py")
        for owner in ast.walk(ast.parse(path.read_text()))
        if isinstance(owner, ast.ClassDef)
        for node in ast.walk(owner)
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and ast.unparse(node.value or node).startswith("ByteCache")
    }
    assert found == CACHES.keys()


def test_functions_that_remember_their_results_are_listed():
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and any(
                word in ast.unparse(decorator)
                for decorator in node.decorator_list
                for word in ("cache", "memo")
            ):
                found.add(f"{path.relative_to(PACKAGE).as_posix()}:{node.name}")
    assert found == REMEMBERED.keys()


def test_no_module_keeps_a_container_that_grows():
    """Constants are made complete; an empty one at the top of a module is filled later."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            value = getattr(node, "value", None)
            if not isinstance(node, ast.Assign | ast.AnnAssign) or value is None:
                continue
            text = ast.unparse(value)
            if text in ("{}", "[]", "set()", "dict()", "list()") or text.startswith(
                ("deque(", "OrderedDict(", "defaultdict(", "ByteCache", "Weak", "weakref.")
            ):
                found.append(f"{path.name}: {ast.unparse(node)}")
    assert found == []


# ---- the bound is that of real memory, also for what takes much memory for its text


BOUND = 100_000  # in place of some megabytes
SMALL_BYTES = 20_000  # of what differs from run to run
MORE = 1.15  # times the bound, with the containers around it
N = 20  # of tiny things in an item
KNOWN_BYTES = 300  # that Store takes for one message or blob


class Filled(NamedTuple):
    """hold: what is measured. size_bytes: by its own count."""

    hold: object
    size_bytes: int


def _function(name: str = "f", arguments: str = "{}") -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


# Items of a conversation, different for each i.
ITEMS: dict[str, Callable[[int], list[Any]]] = {
    "text": lambda i: [{"role": "user", "content": f"{i}" * 2_000}],
    "wide characters": lambda i: [
        {"role": "user", "content": f"\U0001f600{i}" + "x" * 2_000},
        {"role": "user", "content": "x" * 2_000},
    ],
    "messages": lambda i: [{"role": "user", "content": f"{i}"}] * N,
    "replies": lambda i: [{"role": "assistant", "content": "b"}, {"role": "user", "content": "a"}],
    "parts": lambda i: [{"role": "user", "content": [{"type": "text", "text": f"{i}"}] * N}],
    "marked parts": lambda i: [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
                for _ in range(N)
            ],
        }
    ],
    "empty objects": lambda i: [{"role": "user", "content": f"{i}", "x": [{}] * 9 * N}],
    "empty lists": lambda i: [{"role": "user", "content": f"{i}", "x": [[[[]]]] * 9 * N}],
    "members": lambda i: [
        {"role": "user", "content": f"{i}", "x": {f"{j}": j * i for j in range(N)}}
    ],
    "numbers": lambda i: [{"role": "user", "content": f"{i}", "x": [1000 * i + 1.5] * 9 * N}],
    "unknown members": lambda i: [{"role": "user", "content": f"{i}", "x": {"y": {}}}] * N,
    "calls": lambda i: [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": f"c{i}_{j}", "type": "function", "function": _function()} for j in range(N)
            ],
        },
        *[{"role": "tool", "tool_call_id": f"c{i}_{j}", "content": ""} for j in range(N)],
    ],
    "arguments": lambda i: [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": f"c{i}",
                    "type": "function",
                    "function": _function(arguments='{"x": [' + "{}," * 9 * N + "{}]}"),
                }
            ],
        },
        {"role": "tool", "tool_call_id": f"c{i}", "content": ""},
    ],
    "uses": lambda i: [
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": f"c{i}_{j}", "name": "f", "input": {"x": [{}] * 9}}
                for j in range(N)
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": f"c{i}_{j}", "content": ""} for j in range(N)
            ],
        },
    ],
    "thinking": lambda i: [
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": f"{i}", "signature": "b"}] * N,
        },
        {"role": "user", "content": "a"},
    ],
}


def _known_bodies(dialect: Any, items: Callable[[int], list[Any]]) -> Filled:
    known = KnownBodies(threading.Lock(), BOUND)
    numbers = itertools.count()
    for _ in range(20):
        messages = [{"role": "user", "content": f"{next(numbers)}"}]
        while len(json.dumps(messages)) < json_pieces.PIECE:
            messages += items(next(numbers))
        body = {"model": "m", "max_tokens": 5, "metadata": {"a": "b" * 2_000}}
        body[dialect.CONVERSATION] = messages
        text = json.dumps(body, ensure_ascii=False).encode()
        with suppress(InvalidRequest):
            _receive(known, text, dialect)
        if not known._known.size_bytes:
            break  # it remembers none of them
    return Filled(known, known._known.size_bytes)


def _receive(known: KnownBodies, text: bytes, dialect: Any) -> None:
    """Do with a body what the app does."""
    parsed = known.parse(text, Limits(), dialect.NAME, dialect.CONVERSATION)
    parsed.normalized(dialect.normalize_body)
    request = dialect.parse_request(parsed.value, {}, parsed.memory)
    request_key(request, parsed.memory.hashed if parsed.memory else None)
    keep_facts(request.messages)
    known.remember(parsed, dialect.NAME)
    # What is kept of its beginning.
    Histories(0).read(request.messages, matching.MAX_LOOKED_UP)
    total(request.messages, "all bytes", message_bytes)
    token_estimate.estimate(request)
    build_prompt(request, AsyncScript("m"), {})
    recalled = [replace(message, parts=[*message.parts]) for message in request.messages]
    keep_beginning(request.messages, stable_count(request.messages), "recalled", recalled)


# Replies of a model, different for each i.
REPLIES: dict[str, Callable[[int], list[Any]]] = {
    "text": lambda i: [TextPart(f"{i}" * 2_000)],
    "wide characters": lambda i: [TextPart(f"\U0001f600{i}" + "x" * 2_000)],
    "parts": lambda i: [TextPart(f"{i}") for _ in range(N)],
    "reasoning": lambda i: [ReasoningPart(f"{i}") for _ in range(N)],
    "calls": lambda i: [ToolCallPart(f"f{j}", {}, f"c{i}_{j}") for j in range(N)],
    "ids": lambda i: [ToolCallPart("f", {}, f"{i}" * 2_000)],
    "names": lambda i: [ToolCallPart(f"{i}" * 2_000)],
    "arguments": lambda i: [ToolCallPart("f", {f"{i}": [[{}] for _ in range(9 * N)]})],
    "metadata": lambda i: [TextPart(f"{i}", {"x": {f"{i}_{j}": [j] for j in range(9 * N)}})],
    "results": lambda i: [ToolResultPart("f", f"{i}", f"c{i}_{j}") for j in range(N)],
    "failures": lambda i: [ToolResultPart("f", "", "c", exception=f"{i}" * 2_000)],
    "attachments": lambda i: [
        AttachmentPart(llm.Attachment(type="image/png", content=b"%d" % i)) for _ in range(N)
    ],
    "attachments of results": lambda i: [
        ToolResultPart("f", "", attachments=[llm.Attachment(url=f"{i}") for _ in range(N)])
    ],
}


def _message(i: int, parts: list[Any]) -> Message:
    message = Message("assistant", parts, {"x": [f"{i}"]})
    keep_facts([message])
    return message


def _originals(parts: Callable[[int], list[Any]], folder: Path) -> Filled:
    replies = _replies(folder)
    for i in range(150):
        replies.remember(b"%d" % i, "m", [_message(i, parts(i))])
    return Filled(replies._originals, replies._originals.size_bytes)


def _replies(folder: Path) -> Replies:
    path = folder / "logs.db"
    if not path.exists():
        put_empty_log(path)
    connection, _, _ = open_for_reading(path)
    return Replies(connection, ReadOnlyLog(connection))


def _nothing_lost(folder: Path) -> Filled:
    replies = _replies(folder)
    for i in range(400):
        replies.remember(b"%032d" % i, "m", [])
    return Filled(replies._originals, replies._originals.size_bytes)


def _judged(folder: Path) -> Filled:
    replies = _replies(folder)
    for i in range(5):
        keys = [f"{100 * i + j:032}" for j in range(100)]
        replies.known([Reply(j, key, key, key, key, (), False) for j, key in enumerate(keys)])
    return Filled(replies._judged, replies._judged.size_bytes)


def _exchange(i: int, parts: list[Any], **answer: Any) -> Exchange:
    """Return an ended exchange with this reply."""
    asked = [llm.user(f"{i}")]
    begins = begun(
        f"01jd{i:022}", RECEIVED, dialect="openai_chat", path="/", query="", client="tests",
        headers=[], body={}, model="m", messages=asked,
    )  # fmt: skip
    turn = Turn(
        id=begins.id, thread_id=f"t{i}", model="m", messages=asked, reply=[_message(i, parts)],
        started=RECEIVED, duration_ms=1, **answer,
    )  # fmt: skip
    return ended_as(begins, "ok", turn=turn, finish=chat.Finish())


def _read_replies(parts: Callable[[int], list[Any]], folder: Path) -> Filled:
    replies = _replies(folder)
    with Store(folder / "logs.db") as written:
        exchanges = [_exchange(i, parts(i)) for i in range(40)]
        while exchanges:
            exchanges = exchanges[written.write(exchanges) :]
    rows = replies._connection.execute(
        "select id, 't', 'm', 'c', 1, 0, parent_message_hash, tip_message_hash from turns"
    )
    for row in rows.fetchall():
        assert replies.reply(Candidate(*row))
    return Filled(replies._cached, replies._cached.size_bytes)


def _pending(parts: Callable[[int], list[Any]], folder: Path) -> Filled:
    matcher = Matcher(folder / "logs.db")
    for i in range(matching.MAX_PENDING):
        tools = tuple(llm.Tool(f"t{j}", input_schema={"type": "object"}) for j in range(N))
        raw = {"x": [{} for _ in range(9 * N)]}
        exchange = _exchange(i, parts(i), tools=tools, response_json=raw)
        matcher.learn(exchange, message_bytes(exchange.turn.messages))
    pending = matcher._pending
    return Filled(pending, sum(turn.size_bytes for turn in pending))


def _queued(parts: Callable[[int], list[Any]]) -> Filled:
    """Return exchanges that would wait for a log that can't be written."""
    queued: list[Exchange] = []
    size = 0
    for i in itertools.count():
        raw = {"x": [{} for _ in range(N)]}
        exchange = _exchange(i, parts(i), response_json=raw)
        events = [(1.0, StreamEvent("text", f"{i}")) for _ in range(N)]
        events += [
            (1.0, StreamEvent("text", f"{j}" * 1_000, provider_metadata={"x": [{}]}))
            for j in range(N)
        ]
        exchange = replace(exchange, events=tuple(events))
        size += writer._size_bytes(exchange)
        if size > BOUND:
            return Filled(queued, size - writer._size_bytes(exchange))
        queued.append(exchange)
    raise AssertionError


def _histories(messages: Callable[[int], list[Message]]) -> Filled:
    histories = Histories(BOUND)
    for i in range(100):
        histories.read([llm.user(f"{i}"), *messages(i), llm.user("go on")], 1_000)
    caches = histories._replies, histories._hashers
    return Filled(histories, sum(cache.size_bytes for cache in caches))


def _known_messages(folder: Path) -> Filled:
    _replies(folder).close()
    with Store(folder / "logs.db") as written:
        for i in range(8):
            history = [llm.user(f"{i}, {j}") for j in range(BOUND // KNOWN_BYTES // 2)]
            exchange = _exchange(i, [TextPart("a")])
            turn = replace(exchange.turn, messages=history)
            assert written.write([replace(exchange, turn=turn)])
            assert len(written._known) <= store.MAX_KNOWN
    return Filled((written._known, written._log.seen), KNOWN_BYTES * len(written._known))


FILLED: dict[str, Callable[[Path], Filled]] = {
    **{
        f"KnownBodies._known: {dialect.NAME}: {name}": partial(
            lambda _, dialect, items: _known_bodies(dialect, items), dialect=dialect, items=items
        )
        for dialect in DIALECTS
        for name, items in ITEMS.items()
    },
    **{
        f"{cache}: {name}": partial(
            lambda folder, fill, parts: fill(parts, folder), fill=fill, parts=parts
        )
        for cache, fill in (
            ("Replies._originals", _originals),
            ("Matcher._pending", _pending),
        )
        for name, parts in REPLIES.items()
    },
    **{
        f"Replies._cached: {name}": partial(_read_replies, REPLIES[name])
        for name in ("text", "parts", "arguments", "metadata")
    },
    **{
        f"Writer._jobs: {name}": lambda _, parts=parts: _queued(parts)
        for name, parts in REPLIES.items()
    },
    "Replies._originals: nothing": _nothing_lost,
    "Replies._judged": _judged,
    "Histories._replies: ids": lambda _: _histories(lambda i: [_message(i, REPLIES["calls"](i))]),
    "Histories._hashers": lambda _: _histories(lambda i: [llm.assistant("b"), llm.user("a")]),
    "Store._known": _known_messages,
}


@pytest.fixture
def small_bounds(monkeypatch):
    monkeypatch.setattr(json_pieces, "PIECE", 1_000)
    for module, name in (
        (reply_index, "MAX_CACHED_BYTES"),
        (reply_index, "MAX_JUDGED_BYTES"),
        (matching, "MAX_PENDING_BYTES"),
    ):
        monkeypatch.setattr(module, name, BOUND)
    monkeypatch.setattr(store, "MAX_KNOWN", BOUND // KNOWN_BYTES)


def test_each_kind_of_content_is_put_into_its_cache():
    pages = {"Dashboard._made"}  # texts, which are counted by their length
    assert {name.partition(":")[0] for name in FILLED} == CACHES.keys() - pages | {
        name
        for name, bound in KEPT.items()
        if "MAX_PENDING_BYTES" in bound or name == "Store._known"
    }


def _traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@pytest.mark.parametrize("name", FILLED)
def test_a_full_cache_takes_no_more_memory_than_its_bound(name, small_bounds, tmp_path):
    fill = FILLED[name]
    folders = [tmp_path / f"{i}" for i in range(3)]
    for folder in folders:
        folder.mkdir()
    bound = BOUND * (2 if name.startswith("Histories") else 1)
    fill(folders[0])  # what is made at first use does not count
    gc.freeze()  # so that a collection has little to look through
    tracemalloc.start()
    try:
        fill(folders[1])
        before = _traced()  # Python itself keeps small objects to use them again
        filled = fill(folders[2])
        size = _traced()
        assert filled.size_bytes <= bound
        del filled
        after = _traced()
    finally:
        tracemalloc.stop()
    assert size - before <= MORE * bound
    assert after <= before + SMALL_BYTES  # nothing of it is kept elsewhere
