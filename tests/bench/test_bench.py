"""A run's plan, and what stops it; whole runs are in test_bench_command."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace

from llm import user

from llmproxy.backends.replay import Recorded, ReplayRun
from llmproxy.bench.bench import Bench, Plan, Task, plan_of, tasks
from llmproxy.core import chat
from llmproxy.recorder.exchange import begun
from llmproxy.recorder.store import StoreError
from tests.report.studies import BEGAN

PLAN = Plan(models=["a", "b"], ids=["1", "2"], repeat=2)


def test_models_take_turns_and_what_is_done_is_left_out():
    order = [f"{task.model}{task.id}" for task in tasks(PLAN)]
    assert order == ["a1", "b1", "b2", "a2", "b1", "a1", "a2", "b2"]
    done = [Task("a", "1", 1), Task("b", "2", 2), Task("c", "9", 1)]
    assert set(tasks(PLAN)) - set(tasks(PLAN, done)) == set(done[:2])


def test_settings_of_another_version_are_read_as_far_as_they_are_known():
    assert plan_of({"models": ["a"], "ids": ["1"], "colour": "red"}) == Plan(
        models=["a"], ids=["1"]
    )
    assert plan_of({}) is None


class Log:
    """Takes so many exchanges, and then none."""

    def __init__(self, room, error):
        self.room, self.error, self.written = room, error, []

    def write(self, exchange):
        self.written.append(exchange)
        future = Future()
        if len(self.written) > self.room:
            future.set_exception(self.error)
        else:
            future.set_result(None)
        return future

    async def committed(self, written, wait_s):
        pass


def a_bench(log, **changes):
    asked = []
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
    bench = Bench("run", plan, recorded, Backend(asked), log, on_exchange=lambda exchange: None)
    return bench, plan, asked


class Backend:
    """A recording of one Finish for every request; its models are noted in `asked`."""

    takes_recall = False

    def __init__(self, asked):
        self.asked = asked

    async def choose(self, request):
        self.asked.append(request.model)
        self.model_id = request.model
        return self

    def prepare(self, request):
        recorded = Recorded("1", request.model, [], chat.Finish(), None, 0.0)
        return ReplayRun(recorded, speed=0)


async def test_no_more_is_asked_where_an_answer_can_be_kept_nowhere():
    bench, plan, asked = a_bench(Log(5, StoreError("there is no room to keep it")), warmup=0)
    await bench.measure(tasks(plan))
    assert asked == ["a", "b", "b"]


async def test_a_warm_up_that_can_be_kept_nowhere_is_the_last():
    bench, plan, asked = a_bench(Log(0, StoreError("there is no room to keep it")))
    await bench.measure(tasks(plan))
    assert asked == ["a"]


async def test_an_answer_that_is_strange_itself_stops_nothing():
    bench, plan, asked = a_bench(Log(0, ValueError("strange")), warmup=0)
    await bench.measure(tasks(plan))
    assert len(asked) == 8
