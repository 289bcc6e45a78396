"""The plan of a run, and failures of the log; whole runs are in tests/cli/test_bench.py."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace

from llm import user

from llmproxy.backends.replay import Recorded, ReplayRun
from llmproxy.bench.bench import Bench, Plan, Task, list_tasks, read_plan
from llmproxy.core import chat
from llmproxy.recorder.exchange import begun
from llmproxy.recorder.store import StoreError
from tests.report.studies import BEGAN

PLAN = Plan(models=["a", "b"], ids=["1", "2"], repeat=2)


def test_models_take_turns_and_finished_tasks_are_left_out():
    order = [f"{task.model}{task.id}" for task in list_tasks(PLAN)]
    assert order == ["a1", "b1", "b2", "a2", "b1", "a1", "a2", "b2"]
    done = [Task("a", "1", 1), Task("b", "2", 2), Task("c", "9", 1)]
    assert set(list_tasks(PLAN)) - set(list_tasks(PLAN, done)) == set(done[:2])


def test_unknown_settings_of_another_version_are_ignored():
    assert read_plan({"models": ["a"], "ids": ["1"], "colour": "red"}) == Plan(
        models=["a"], ids=["1"]
    )
    assert read_plan({}) is None


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


def make_bench(log, **changes):
    requested = []
    exchange = begun(
        "1",
        BEGAN,
        dialect="openai_chat",
        path="/",
        query="",
        client="tests",
        headers=[],
        body={"model": "x", "messages": []},
    )
    request = chat.ChatRequest("x", [user("hello")])
    recorded = {id: (replace(exchange, id=id), request) for id in PLAN.ids}

    plan = replace(PLAN, **changes)
    bench = Bench("run", plan, recorded, Backend(requested), log, on_exchange=lambda exchange: None)
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


async def test_run_goes_on_if_only_this_response_can_not_be_logged():
    bench, plan, requested = make_bench(Log(0, ValueError("strange")), warmup=0)
    await bench.measure(list_tasks(plan))
    assert len(requested) == 8
