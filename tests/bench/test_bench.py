"""The plan of a run, and failures of the log; whole runs are in tests/cli/test_bench.py."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace

import pytest
from llm import user

from llmproxy.backends.replay import Recorded, ReplayRun
from llmproxy.bench.bench import Bench, Plan, Task, _wait_s, list_tasks, read_plan
from llmproxy.core import chat
from llmproxy.core.errors import (
    InvalidRequest,
    Overloaded,
    RateLimited,
    Unavailable,
    UpstreamError,
)
from llmproxy.recorder.database import StoreError
from llmproxy.recorder.exchange import begun
from tests.report.studies import BEGAN

PLAN = Plan(models=["a", "b"], ids=["1", "2"], repeat=2)


def test_models_take_turns_and_finished_tasks_are_left_out():
    order = [f"{task.model}{task.id}" for task in list_tasks(PLAN)]
    assert order == ["a1", "b1", "b2", "a2", "b1", "a1", "a2", "b2"]
    done = [Task("a", "1", 1), Task("b", "2", 2), Task("c", "9", 1)]
    assert set(list_tasks(PLAN)) - set(list_tasks(PLAN, done)) == set(done[:2])


def test_unknown_settings_of_another_version_are_ignored():
    plan = read_plan({"models": ["a"], "ids": ["1"], "colour": "red"})
    assert plan == Plan(models=["a"], ids=["1"], cache="as-is")
    assert read_plan({}) is None


@pytest.mark.parametrize(
    "change",
    [{"models": "a"}, {"models": []}, {"ids": None}, {"ids": [7]}, {"repeat": "x"}, {"cache": []}],
    ids=str,
)
def test_a_damaged_plan_is_none(change):
    """Reports of its run were tracebacks."""
    plan = {"models": ["a"], "ids": ["1"], "repeat": 2, "cache": "cold"}
    assert read_plan(plan) == Plan(models=["a"], ids=["1"], repeat=2, cache="cold")
    assert read_plan(plan | change) is None


class Log:
    """A log that accepts a number of exchanges, then fails."""

    def __init__(self, accepted, error):
        self.accepted, self.error, self.written = accepted, error, []

    def write(self, exchange):
        self.written.append(exchange)
        future = Future()
        if len(self.written) > self.accepted:
            future.set_exception(self.error)
        else:
            future.set_result(None)
        return future

    async def committed(self, written, wait_s):
        pass


def make_bench(log, backend=None, **changes):
    requested = []
    exchange = begun(
        "1",
        BEGAN,
        dialect="openai_chat",
        path="/",
        query="",
        client="tests",
        headers=[],
        body={"model": "x", "messages": [{"role": "user", "content": "hello"}]},
    )
    request = chat.ChatRequest("x", [user("hello")])
    recorded = {id: (replace(exchange, id=id), request) for id in PLAN.ids}

    plan = replace(PLAN, **changes)
    bench = Bench(
        "run",
        plan,
        recorded,
        (backend or Backend)(requested),
        log,
        on_exchange=lambda exchange, again_s: None,
    )
    return bench, plan, requested


class Backend:
    """A backend that responds with a Finish only, and adds the models to `requested`."""

    takes_recall = False

    def __init__(self, requested):
        self.requested = requested

    async def choose(self, request):
        self.requested.append(request.model)
        self.model_id = request.model
        return self

    def prepare(self, request):
        recorded = Recorded("1", request.model, [], chat.Finish(), None, 0.0)
        return ReplayRun(recorded, speed=0)


async def test_run_stops_if_a_response_can_not_be_logged():
    bench, plan, requested = make_bench(Log(5, StoreError("the disk is full")), warmup=0)
    await bench.measure(list_tasks(plan))
    assert requested == ["a", "b", "b"]


async def test_run_stops_if_a_warm_up_can_not_be_logged():
    bench, plan, requested = make_bench(Log(0, StoreError("the disk is full")))
    await bench.measure(list_tasks(plan))
    assert requested == ["a"]


@pytest.mark.parametrize(
    "headers, seconds",
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "7", "retry-after-ms": "6400"}, 6.4),
        ({"retry-after": "-1"}, 4),
        ({"retry-after": "soon"}, 4),
        ({"retry-after": "nan"}, 4),
        ({"retry-after": "inf", "retry-after-ms": ""}, 4),
        ({}, 4),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers, seconds):
    """Without a form that can be read, the third attempt waits four seconds."""
    assert _wait_s(RateLimited("", headers=headers), 2) == pytest.approx(seconds)


def test_waits_without_retry_after_grow_up_to_a_minute():
    waits = [_wait_s(RateLimited(""), refusals) for refusals in range(9)]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_only_rate_limits_are_waited_for():
    """An overload is a failure of the provider, and counts as one."""
    headers = {"retry-after": "1"}
    for kind in (Overloaded, Unavailable, UpstreamError, InvalidRequest):
        assert _wait_s(kind("", headers=headers), 0) is None


class Refusing(Backend):
    """A backend that refuses all requests to "a"."""

    async def choose(self, request):
        chosen = await super().choose(request)
        if request.model == "a":
            raise RateLimited("slow down")
        return chosen


async def test_a_model_that_refuses_for_too_long_is_not_waited_for_again(monkeypatch):
    monkeypatch.setattr("llmproxy.bench.bench.MAX_STEP_S", 0.02)
    monkeypatch.setattr("llmproxy.bench.bench.MAX_WAIT_S", 0.05)
    bench, plan, requested = make_bench(Log(99, None), Refusing, warmup=0)
    await bench.measure(list_tasks(plan))
    assert requested == [*"aaab", *"ba", *"ba", *"ab"]


async def test_run_goes_on_if_only_this_response_can_not_be_logged():
    bench, plan, requested = make_bench(Log(0, ValueError("strange")), warmup=0)
    await bench.measure(list_tasks(plan))
    assert len(requested) == 8
