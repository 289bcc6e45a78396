"""Large requests are worked on in threads, within a budget of bytes."""

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from llmproxy.app import running_exchange
from llmproxy.app.large_work import MOST_THREADS, SMALL_BYTES, LargeWork
from llmproxy.core import token_estimate
from llmproxy.core.errors import InvalidRequest
from llmproxy.core.limits import Limits
from tests.app.test_app import request
from tests.models import AsyncScript
from tests.proxies import running

BUDGET = 4_000_000


class Held:
    """Pieces of work that end when they are told to."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.ends = [threading.Event() for _ in range(10)]

    def work(self, number: int):
        def work() -> int:
            self.begun.append(number)
            assert self.ends[number].wait(10)
            return number

        return work


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_small_request_is_worked_on_at_once_and_a_large_one_in_a_thread():
    work = LargeWork(BUDGET)
    assert await work.run(SMALL_BYTES, threading.get_ident, 0.0) == threading.get_ident()
    assert await work.run(SMALL_BYTES + 1, threading.get_ident, 10.0) != threading.get_ident()


@pytest.mark.parametrize("size", [1, SMALL_BYTES + 1, 10 * BUDGET])
async def test_what_work_raises_is_raised_and_gives_its_bytes_back(size):
    def refuse() -> None:
        raise InvalidRequest("no", param="x")

    work = LargeWork(BUDGET)
    for _ in range(10):
        with pytest.raises(InvalidRequest, match="no"):
            await work.run(size, refuse, 10.0)
    assert await work.run(10 * BUDGET, lambda: "all", 10.0) == "all"


async def test_all_share_the_budget_first_come_first_served():
    work, held = LargeWork(BUDGET), Held()
    sizes = [BUDGET // 2, BUDGET // 2, 2 * BUDGET, SMALL_BYTES + 1]
    runs = []
    for number, size in enumerate(sizes):
        runs.append(asyncio.create_task(work.run(size, held.work(number), 10.0)))
        await asyncio.sleep(0)
    await until(lambda: len(held.begun) == 2)
    held.ends[1].set()
    assert await runs[1] == 1
    assert sorted(held.begun) == [0, 1]  # the large one waits for all, the small one behind it
    held.ends[0].set()
    await until(lambda: len(held.begun) == 3)
    assert held.begun[2] == 2
    held.ends[2].set()
    held.ends[3].set()
    assert await asyncio.gather(*runs) == [0, 1, 2, 3]


async def test_only_so_many_threads_work_at_a_time():
    work, held = LargeWork(BUDGET), Held()
    runs = [
        asyncio.create_task(work.run(SMALL_BYTES + 1, held.work(number), 10.0))
        for number in range(MOST_THREADS + 2)
    ]
    await until(lambda: len(held.begun) == MOST_THREADS)
    await asyncio.sleep(0.01)
    assert len(held.begun) == MOST_THREADS
    for end in held.ends:
        end.set()
    assert await asyncio.gather(*runs) == list(range(MOST_THREADS + 2))


async def test_who_waits_too_long_is_refused_and_leaves_no_trace():
    work, held = LargeWork(BUDGET), Held()
    running_ = asyncio.create_task(work.run(BUDGET, held.work(0), 10.0))
    await until(lambda: held.begun == [0])
    with pytest.raises(TimeoutError):
        await work.run(BUDGET, held.work(1), 0.01)
    held.ends[0].set()
    assert await running_ == 0
    assert await work.run(BUDGET, lambda: "next", 10.0) == "next"
    assert held.begun == [0]


async def test_the_bytes_of_a_client_that_hung_up_count_until_its_thread_ends():
    work, held = LargeWork(BUDGET), Held()
    gone = asyncio.create_task(work.run(BUDGET, held.work(0), 10.0))
    await until(lambda: held.begun == [0])
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    waiting = asyncio.create_task(work.run(BUDGET, held.work(1), 10.0))
    await asyncio.sleep(0.01)
    assert held.begun == [0]
    held.ends[0].set()
    held.ends[1].set()
    assert await waiting == 1


def large(body: dict) -> dict:
    return body | {"metadata": {f"member-{i}": "x" for i in range(20_000)}}


def until_begun(held: Held) -> None:
    for _ in range(2_000):
        if held.begun:
            return
        time.sleep(0.005)
    raise AssertionError("the first request did not begin")


@pytest.mark.parametrize("hangs_up", [False, True], ids=["patient", "hangs up"])
def test_a_large_request_that_is_not_read_in_time_is_a_row(hangs_up):
    """A model's own checks run in the thread too, and may block it."""
    held = Held()

    class Model(AsyncScript):
        class Options(AsyncScript.Options):
            def __init__(self, **values):
                held.work(0)()
                super().__init__(**values)

    body = large({"model": "m", "messages": [{"role": "user", "content": "hi"}]})
    limits = Limits(body=10**6, queue_s=30 if hangs_up else 0.1, shutdown_s=5)
    path = "/v1/chat/completions"
    with running(Model("m", "yes"), limits=limits) as proxy:
        sent = json.dumps(body) + " " * 500_000  # more than half of the budget
        with ThreadPoolExecutor() as pool:
            first = pool.submit(request, proxy, "POST", path, sent)
            until_begun(held)
            if hangs_up:
                head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\n"
                head += f"content-length: {len(sent)}\r\n\r\n"
                with socket.create_connection(("127.0.0.1", proxy.port)) as client:
                    client.sendall((head + sent).encode())
            else:
                status, headers, answer = request(proxy, "POST", path, sent)
                assert (status, headers["retry-after"]) == (429, "1")
                assert "other large requests" in answer.decode()
            unread = proxy.wait_for_report()
            expected = ("cancelled", None) if hangs_up else ("error", 429)
            assert (unread.status, unread.http_status) == expected
            assert unread.request.body.startswith('{"model": "m"')
            held.ends[0].set()
            assert first.result()[0] == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_large_body_is_parsed_and_prepared_in_a_thread(path):
    """In the loop only what is small happens, so that other requests have their turn."""
    threads: dict[str, set[str]] = {"small": set(), "large": set()}

    class Model(AsyncScript):
        class Options(AsyncScript.Options):
            def __init__(self, **values):
                threads[size].add(threading.current_thread().name)
                super().__init__(**values)

    with running(Model("m", "yes")) as proxy:
        for count in (1, 20_000):
            size = "small" if count == 1 else "large"
            metadata = {f"member-{i}": "x" for i in range(count)}
            body = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
            status, _, answer = request(proxy, "POST", path, body | {"metadata": metadata})
            assert (status, "yes" in answer.decode()) == (200, True), answer
            status, _, answer = request(proxy, "POST", path, json.dumps(body)[:-1] + " " * 70_000)
            assert (status, "is not JSON" in answer.decode()) == (400, True)
    assert threads == {"small": {"llmproxy"}, "large": {"llmproxy-large-request"}}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_every_message_is_looked_at_in_the_thread_only(path, monkeypatch):
    """After the model's answer too, which needs an estimate if the model has counted nothing."""
    threads: dict[str, list[str]] = {}

    def watched(module, name):
        function = getattr(module, name)

        def watch(*arguments):
            threads.setdefault(name, []).append(threading.current_thread().name)
            return function(*arguments)

        monkeypatch.setattr(module, name, watch)

    watched(token_estimate, "estimate")
    watched(running_exchange, "total")
    messages = [{"role": "user", "content": f"{i}"} for i in range(3_000)]
    body = {"model": "m", "max_tokens": 5, "messages": messages}
    with running(AsyncScript("m", "yes")) as proxy:
        for stream in (False, True):
            extra = {"stream": stream, "stream_options": {"include_usage": True}}
            status, _, answer = request(proxy, "POST", path, body | (extra if stream else {}))
            assert (status, "yes" in answer.decode()) == (200, True), answer
    assert threads == {
        "estimate": 2 * ["llmproxy-large-request"],
        "total": 2 * ["llmproxy-large-request"],
    }
