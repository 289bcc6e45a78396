"""Whatever a proxy keeps from one request to the next is listed here, with its bound.

A cache that is bounded by a number of entries is not bounded: one entry may hold a hundred
megabytes. So content is kept in a `ByteCache`, or up to a number of bytes.
"""

from __future__ import annotations

import ast
import types
from collections import deque
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest

import llmproxy
from llmproxy.conversations import matching
from llmproxy.core import known_bodies
from llmproxy.core.byte_cache import ByteCache
from llmproxy.recorder import reply_index
from tests.models import AsyncScript, usage
from tests.proxies import running

PACKAGE = Path(llmproxy.__file__).parent

# Attributes with a dict, list, set or deque, of objects that live as long as a proxy.
KEPT = {
    # content of requests and responses
    "ByteCache._kept": "ByteCache.max_bytes",
    "Matcher._pending": "MAX_PENDING_BYTES, MAX_PENDING",
    "Writer._jobs": "while the log can't be written: MAX_PENDING_BYTES, MAX_PENDING",
    "Dashboard._pages": "two pages",
    # entries of a fixed size
    "Store._known": "MAX_KNOWN",
    "Store._begun": "running exchanges",
    "TurnLog.seen": "the messages of one group of exchanges",
    "LlmRows._tool_hashes": "MAX_TOOL_HASHES",
    "HistoryHasher._said": "empty in those that are kept",
    "Replies._appeared": "MAX_APPEARED",
    "Replies._news": "MAX_NEWS, each with at most MAX_NEW exchanges' keys",
    "Replies._running": "running exchanges",
    "KnownKeys._values": "llm's keys",
    # the models, a set that the owner chooses
    "App._counts_tokens": "models",
    "Catalog._limiters": "models",
    "Catalog.ran": "models",
    "Engine._read_history": "models",
    "LargeWork._waiting": "requests that wait for their turn, at most queue_s",
    "Metrics._duration": "models × dialects",
    "Metrics._rate": "models × dialects × 2",
    "Metrics._replays": "models of recordings × dialects × statuses",
    "Metrics._queue": "models × dialects",
    "Metrics._requests": "models × dialects × statuses",
    "Metrics._tokens": "models × dialects × 4",
    "Metrics._ttft": "models × dialects",
    "_Histogram.counts": "buckets",
    # fixed
    "Dashboard._ended_at": "as many as pages",
    "App._handlers": "kinds of requests",
    "Server._connections": "limit connections",
    "_Connection._unsent": "a write buffer of what was sent without waiting",
    "Server._listeners": "addresses",
    # recordings that are replayed
    "Folder._recordings": "files of the folder",
    "Folder._by_key": "files of the folder",
    "Folder._models": "files of the folder",
    "Replay._served": "recordings that were played",
}

# Functions and properties that remember their results.
REMEMBERED = {
    "core/field_types.py:_hints": "our dataclasses",
    "core/known_keys.py:_is_secret_name": "1,024 names of MAX_REMEMBERED_CHARS",
    "recorder/user_files.py:_user_file": "16 paths",
    "core/payload.py:_compiled": "annotations of our dataclasses",
    "conversations/matching.py:fingerprints": "a few hundred bytes of a turn in Matcher._pending",
    "recorder/capture.py:response": "as long as its exchange",
    "app/running_exchange.py:input_estimate": "as long as its exchange",
    "report/html/page.py:_style": "one",
    "transfer/anonymize.py:_replacement": "characters of Unicode",
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
    assert caches == {
        "KnownBodies._known": known_bodies.MAX_KNOWN_BYTES,
        "Histories._hashers": matching.MAX_HISTORY_BYTES,
        "Histories._replies": matching.MAX_HISTORY_BYTES,
        "Replies._cached": reply_index.MAX_CACHED_BYTES,
        "Replies._judged": reply_index.MAX_JUDGED_BYTES,
        "Replies._originals": reply_index.MAX_CACHED_BYTES,
    }
    assert found.keys() - caches == KEPT.keys()


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
