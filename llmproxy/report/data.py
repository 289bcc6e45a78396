"""The data of a report: measured responses and the requests they answer.

Plain data, the same for a benchmark run and for recorded traffic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from llm.parts import Message

from ..recorder.summary import ExchangeSummary

NO_MODEL = "no model"
"""Stands for the model of requests that failed before any was asked."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One response, or how it failed.

    exchange: its row in the log; of its times, use those here, which leave out `queue_ms`.
    model: its name in the study. sample: the ID of the request that it answers.
    repeat: attempt number, 0 for a warm-up, which counts in no figure.
    was_sent_again: a failure, or a response cut short, whose request was sent again; the newest
        response alone counts.
    error_kind: of a failure, as in core/errors ("rate_limit", "timeout" …; "cut" if it failed
        after the response had begun).
    first_output_ms: time to the first output that a program can use: visible text, or a call of
        one of its tools.
    ticks: for each event, when it came (ms) and how many characters it brought, reasoning and
        tool arguments included; none if it was not timed.
    """

    exchange: ExchangeSummary
    model: str
    sample: str
    repeat: int = 1
    was_sent_again: bool = False
    error_kind: str | None = None
    first_output_ms: float | None = None
    ticks: Sequence[tuple[float, int]] = ()
    reply: Sequence[Message] = ()

    @property
    def has_reply(self) -> bool:
        """Whether `reply` is what the model said: not if that is damaged in the log."""
        return not {"turn", "reply"}.intersection(self.exchange.damage)

    @property
    def counts(self) -> bool:
        """Whether it counts in figures: warm-ups and superseded responses don't."""
        return self.repeat > 0 and not self.was_sent_again

    @property
    def ttft_ms(self) -> float | None:
        """Time to the first event of any kind."""
        return self._without_wait(self.exchange.ttft_ms)

    @property
    def duration_ms(self) -> float | None:
        """Time to the end."""
        return self._without_wait(self.exchange.duration_ms)

    def _without_wait(self, ms: float | None) -> float | None:
        return None if ms is None else max(ms - (self.exchange.queue_ms or 0.0), 0.0)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A recorded request.

    id: of the exchange that recorded it. client: the program that sent it.
    received: UTC; None if it is not known.
    prompt: the messages since the last reply, without system prompts; earlier: the number of
        messages before them.
    schema: the JSON schema of the reply, if requested.
    recorded: the recorded response, None if it failed or if the study is of recorded responses.
    """

    id: str
    received: datetime | None
    client: str
    prompt: Sequence[Message]
    earlier: int
    schema: dict[str, Any] | None = None
    recorded: Measured | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a report is about.

    title: the run's name, or a description of the traffic.
    is_run: a benchmark, whose models all had the same requests; in recorded traffic, each
        sample has one response.
    began, ended: UTC; None if there is no data, or if a run is not finished.
    models: in the order to show them. samples: of traffic, the oldest first.
    settings: of a run, by the names of the command's flags (`repeat`, `concurrency` …), without
        models and requests, which are here themselves; of traffic, what selected it.
    no_model: of traffic, the names that clients asked for and no model has, with the number of
        requests; they failed before any model was asked. Their answers are those of NO_MODEL,
        which is not among the models.
    planned: number of responses that a run should have, without warm-ups; None for traffic.
    is_partial: there was more traffic, and only the newest was read.
    unnamed: the number of responses that were left out, since their id can't be read.
    """

    title: str
    is_run: bool
    began: datetime | None = None
    ended: datetime | None = None
    models: Sequence[str] = ()
    samples: Sequence[Sample] = ()
    answers: Sequence[Measured] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    no_model: Mapping[str, int] = field(default_factory=dict)
    planned: int | None = None
    is_partial: bool = False
    unnamed: int = 0

    @property
    def damaged(self) -> dict[str, Sequence[str]]:
        """The ids of responses that can't be read completely, with the names of what can't be."""
        entries = [answer.exchange for answer in self.answers]
        return {entry.id: entry.damage for entry in entries if entry.damage}
