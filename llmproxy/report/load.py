"""Load studies from a log: a benchmark run, or recorded traffic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace

from llm.parts import StreamEvent

from ..bench.bench import list_tasks, read_plan
from ..bench.runs import Benchmark
from ..core.errors import NotFound, class_of_status
from ..recorder.exchange import Exchange
from ..recorder.listing import Filter
from ..recorder.reader import LogReader
from ..recorder.summary import ExchangeSummary
from .data import NO_MODEL, Measured, Sample, Study

LOG_TITLE = "the log"


def study_of_run(history: LogReader, run: Benchmark) -> Study:
    """Load a run, with the recorded responses to its requests.

    Requests that were deleted from the log since are left out of the samples.

    Raises:
        Unusable: the file can't be read any more.
    """
    ids = history.ids(Filter(run=run.id))
    answers = _superseded(_measured_again(history.response(id)[0]) for id in ids if id)
    plan = read_plan(run.settings)
    asked = dict.fromkeys([*(plan.ids if plan else ()), *(answer.sample for answer in answers)])
    samples = []
    for id in asked:
        try:
            exchange, earlier = history.response(id)
        except NotFound:
            continue
        recorded = _measured(exchange)
        samples.append(_sample(exchange, earlier, recorded if exchange.status == "ok" else None))
    models = dict.fromkeys([*(plan.models if plan else ()), *(answer.model for answer in answers)])
    return Study(
        title=run.name,
        is_run=True,
        began=run.began,
        ended=run.ended,
        models=tuple(models),
        samples=samples,
        answers=answers,
        settings={
            name: value
            for name, value in run.settings.items()
            if value is not None and name not in ("models", "ids")
        },
        planned=None if plan is None else len(list_tasks(plan)),
        unnamed=ids.count(""),
    )


def study_of_log(history: LogReader, chosen: Filter, *, last: int | None = None) -> Study:
    """Load recorded traffic: finished exchanges with models, at most the `last` ones.

    Benchmarks and replays are left out.

    Raises:
        Unusable: the file can't be read any more.
    """
    samples: list[Sample] = []
    answers: list[Measured] = []
    # One more than wanted, to know whether there is more.
    ids = history.ids(replace(chosen, is_traffic=True), last=last and last + 1)
    is_partial = last is not None and len(ids) > last
    ids = ids[1:] if is_partial else ids
    for id in filter(None, ids):
        try:
            exchange, earlier = history.response(id)
        except NotFound:
            continue  # pruned meanwhile
        if exchange.status == "running":
            continue
        samples.append(_sample(exchange, earlier, None))
        answers.append(_measured(exchange))
    answers, no_model = _by_model(answers)
    times = [answer.exchange.received for answer in answers if answer.exchange.is_timed]
    return Study(
        title=LOG_TITLE,
        is_run=False,
        began=times[0] if times else None,
        ended=times[-1] if times else None,
        models=tuple(_by_frequency(answer.model for answer in answers if answer.model != NO_MODEL)),
        samples=samples,
        answers=answers,
        settings=_selection(chosen),
        no_model=no_model,
        is_partial=is_partial,
        unnamed=ids.count(""),
    )


def _by_model(answers: Sequence[Measured]) -> tuple[list[Measured], dict[str, int]]:
    """Give each answer its model: that which the name means in other requests, if it failed early.

    Returns the answers, and the names that no model has with the number of their requests.
    """
    known: dict[str, str] = {}
    for answer in answers:
        asked, used = answer.exchange.model_asked, answer.exchange.model_used
        if used is not None:
            known |= {used: used} | ({asked: used} if asked is not None else {})
    named: list[Measured] = []
    no_model: dict[str, int] = {}
    for answer in answers:
        if answer.exchange.model_used is None:
            asked = answer.exchange.model_asked or ""
            model = known.get(asked, NO_MODEL)
            if model == NO_MODEL:
                no_model[asked or "no name"] = no_model.get(asked or "no name", 0) + 1
            answer = replace(answer, model=model)
        named.append(answer)
    return named, {name: no_model[name] for name in sorted(no_model, key=lambda n: -no_model[n])}


def _selection(chosen: Filter) -> dict[str, object]:
    """Return what a filter selects by, under the names of the command's flags."""
    given = {
        "since": chosen.since,
        "until": chosen.until,
        "model": chosen.model,
        "client": chosen.client,
        "host": chosen.host,
        "upstream": chosen.upstream,
        "dialect": chosen.dialect,
        "status": chosen.status,
        "thread": chosen.thread_id,
        "search": chosen.search,
        "ids": None if chosen.ids is None else f"{len(chosen.ids):,}",
    }
    return {name: value for name, value in given.items() if value is not None}


def _by_frequency(names: Iterable[str]) -> list[str]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return sorted(counts, key=lambda name: -counts[name])


def _sample(exchange: Exchange, earlier: int, recorded: Measured | None) -> Sample:
    turn = exchange.turn
    messages = turn.messages if turn else []
    return Sample(
        id=exchange.id,
        received=exchange.received if exchange.is_timed else None,
        client=exchange.client,
        prompt=[message for message in messages if message.role != "system"],
        earlier=earlier,
        schema=turn.schema if turn else None,
        recorded=recorded,
    )


def _measured_again(exchange: Exchange) -> Measured:
    return replace(
        _measured(exchange),
        model=exchange.model_asked or "",
        sample=exchange.recorded_id or exchange.id,
        repeat=exchange.repeat or 0,
    )


def _superseded(answers: Iterable[Measured]) -> list[Measured]:
    """Mark the responses whose requests were sent again later; the answers are in order."""
    newest: dict[tuple[str, str, int], Measured] = {}
    marked = []
    for answer in reversed([*answers]):
        task = answer.model, answer.sample, answer.repeat
        is_superseded = answer.repeat > 0 and newest.setdefault(task, answer) is not answer
        marked.append(replace(answer, was_sent_again=is_superseded))
    return marked[::-1]


def _measured(exchange: Exchange) -> Measured:
    waited_ms = exchange.queue_ms or 0.0
    return Measured(
        exchange=_summary(exchange),
        model=exchange.model_used or exchange.model_asked or "?",
        sample=exchange.id,
        error_kind=_error_kind(exchange),
        first_output_ms=_first_output_ms(exchange),
        ticks=[(max(at - waited_ms, 0.0), len(event.chunk)) for at, event in exchange.events]
        if exchange.is_timed
        else [],
        reply=exchange.turn.reply if exchange.turn else (),
    )


def _first_output_ms(exchange: Exchange) -> float | None:
    first_ms = exchange.ttft_ms
    if first_ms is None:  # its times were not taken
        return None
    # Only the times of events are rounded: no output comes before the first event.
    outputs = (max(at, first_ms) for at, event in exchange.events if _is_output(event))
    return next((max(at - (exchange.queue_ms or 0.0), 0.0) for at in outputs), None)


def _is_output(event: StreamEvent) -> bool:
    if event.type == "text":
        return bool(event.chunk.strip())
    return event.type.startswith("tool_call") and not event.server_executed


def _summary(exchange: Exchange) -> ExchangeSummary:
    """Drop the body and the events, which take too much memory for many exchanges."""
    names = (field.name for field in fields(ExchangeSummary))
    return ExchangeSummary(**{name: getattr(exchange, name) for name in names})


def _error_kind(exchange: Exchange) -> str | None:
    if exchange.status != "error":
        return None
    if exchange.http_status is None or exchange.http_status < 400:
        return "cut"  # the stream had begun with a good status
    return class_of_status(exchange.http_status).kind
