"""Studies to test with: responses, samples and whole runs with predictable times."""

from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta

from llm.parts import Message, TextPart

from llmproxy.core.usage import Usage
from llmproxy.recorder.summary import ExchangeSummary
from llmproxy.report.data import Measured, Sample, Study

BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TIMES = ("ttft_ms", "first_output_ms", "duration_ms")
OWN = {field.name for field in fields(Measured)}


def said(text):
    return (Message("assistant", [TextPart(text)]),)


def an_answer(**changes):
    """A good answer of 11 tokens: the first event after 100 ms, the last after 1.1 s, 10 tokens/s.

    Other times of its beginning and end are those of its events too.
    """
    whole = {
        "id": "01answer",
        "model": "a",
        "sample": "01sample",
        "received": BEGAN,
        "status": "ok",
        "finish_reason": "stop",
        "ttft_ms": 100.0,
        "first_output_ms": 150.0,
        "duration_ms": 1100.0,
        "usage": Usage(20, 11),
        "reply": said("It is four."),
    } | changes
    times = [whole[name] for name in TIMES]
    if "ticks" not in whole:
        known = sorted(time for time in times if time is not None)
        whole["ticks"] = tuple(zip(known, (3, 10, 7), strict=False))
    if "tokens_per_second" not in whole:
        is_timed = None not in (whole["ttft_ms"], whole["duration_ms"])
        span_ms = whole["duration_ms"] - whole["ttft_ms"] if is_timed else 0.0
        whole["tokens_per_second"] = 10_000 / span_ms if span_ms else None
    exchange = ExchangeSummary(
        id="01answer", received=BEGAN, dialect="openai_chat", path="/v1", client="tests"
    )
    return changed(Measured(exchange=exchange, model="a", sample="01sample"), **whole)


def changed(answer, **changes):
    """Change fields of a response and of its exchange; times are those of `Measured`."""
    times = {name: getattr(answer, name) for name in TIMES} | changes
    waited_ms = changes.get("queue_ms", answer.exchange.queue_ms) or 0.0
    times = {
        name: None if times[name] is None else times[name] + waited_ms
        for name in TIMES
        if name not in OWN
    }
    own = {name: value for name, value in changes.items() if name in OWN}
    rest = {name: value for name, value in changes.items() if name not in OWN}
    return replace(answer, exchange=replace(answer.exchange, **rest | times), **own)


def a_failure(**changes):
    """An answer that never began."""
    whole = {
        "status": "error",
        "error_kind": "rate_limit",
        "error": "slow down",
        "finish_reason": None,
        "ttft_ms": None,
        "first_output_ms": None,
        "duration_ms": 20.0,
        "ticks": (),
        "usage": Usage(),
        "reply": (),
    }
    return an_answer(**whole | changes)


def a_sample(**changes):
    """A request that stands alone, with no recorded answer."""
    whole = {
        "id": "01sample",
        "received": BEGAN - timedelta(days=1),
        "client": "aider",
        "prompt": [Message("user", [TextPart("What is 2 + 2?")])],
        "earlier": 0,
    }
    return Sample(**whole | changes)


def a_study(models=("a", "b"), n=8, *, repeat=1, recorded=True, **changes):
    """A run of n requests. All is ok.

    The first model answers request i (from 0) first after 100 + 10·i ms, each further one
    20 ms later than the one before it, each repeat 1 ms later. The rest of an answer takes
    1 s, of 11 tokens.
    """
    samples, answers = [], []
    for i in range(n):
        id = f"01sample{i:02}"
        reply = an_answer(id=id, model="original", sample=id, reply=said(f"It is {i}."))
        samples.append(a_sample(id=id, recorded=reply if recorded else None))
        for place, model in enumerate(models):
            answers += [
                _timed(100.0 + 10 * i + 20 * place + again, model, id, again + 1, f"It is {i}.")
                for again in range(repeat)
            ]
    whole = {
        "title": "a run",
        "is_run": True,
        "began": BEGAN,
        "ended": BEGAN + timedelta(minutes=2),
        "models": tuple(models),
        "samples": tuple(samples),
        "answers": tuple(answers),
        "settings": {"repeat": repeat, "concurrency": 1, "seed": 0},
        "planned": len(answers),
    }
    return Study(**whole | changes)


def _timed(ttft_ms, model, sample, repeat, text):
    return an_answer(
        id=f"01{model}{sample[2:]}r{repeat}",
        model=model,
        sample=sample,
        repeat=repeat,
        ttft_ms=ttft_ms,
        first_output_ms=ttft_ms + 50,
        duration_ms=ttft_ms + 1000,
        ticks=((ttft_ms, 3), (ttft_ms + 50, 10), (ttft_ms + 1000, 7)),
        reply=said(text),
    )
