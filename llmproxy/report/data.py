"""Answers as they were measured, with the requests that they answer: what a report is made of.

Plain data, the same for a benchmark's run and for the log's own traffic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from llm.parts import Message

from ..core import chat
from ..recorder.exchange import Status


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One answer, or how it failed.

    id: the exchange's. model: as it is called in the study. sample: whose request it answers.
    repeat: 1 for the first time that the model was asked this, and so on; 0 is a warm-up,
        which counts in no figure.
    status: "ok", or "error" with `error_kind`, a word of errors.py ("rate_limit", "timeout" …;
        "cut" where an answer failed after it had begun), and `error` in words.
    setup_ms: the time it took to connect, known of servers that our own client asks;
        queue_ms: how long the request waited for other answers to end, None where it did not.
        Both are in none of the other times, which are in milliseconds from the sending on.
    is_first_run: the model's first in its process, as far as can be told: it may have been
        loaded within the time to the first event.
    ticks: of each event when it came, in milliseconds, and how many characters it brought,
        reasoning and tool arguments included.
    shows_reasoning: reasoning was streamed, not only counted.
    output_tokens_estimate: ours, where nobody has counted.
    reply: what was answered.
    """

    id: str
    model: str
    sample: str
    repeat: int = 1
    received: datetime
    status: Status
    error_kind: str | None = None
    error: str | None = None
    finish_reason: chat.FinishReason | None = None
    setup_ms: float | None = None
    queue_ms: float | None = None
    is_first_run: bool = False
    ttft_ms: float | None = None
    first_text_ms: float | None = None
    duration_ms: float | None = None
    ticks: Sequence[tuple[float, int]] = ()
    shows_reasoning: bool = False
    usage: chat.Usage = chat.Usage()
    output_tokens_estimate: int | None = None
    reply: Sequence[Message] = ()


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A recorded request.

    id: the exchange's that recorded it. client: the program that asked.
    prompt: the messages since the last answer, system prompts apart; earlier: how many are
        before them.
    schema: what it asked answers to fit, None for no schema.
    recorded: the answer that it had then, None where it had none, or where the study is of
        recorded answers themselves.
    """

    id: str
    received: datetime
    client: str
    prompt: Sequence[Message]
    earlier: int
    schema: dict[str, Any] | None = None
    recorded: Measured | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a report tells of.

    title: the run's name, or what of the log it is. is_run: a benchmark's, whose models were
        all asked the same; in the log's own traffic each sample has one answer.
    began, ended: UTC; None where there is nothing, or a run is not over.
    models: in the order in which they are to be shown.
    settings: a run's, by the names of the command's flags (`repeat`, `concurrency` …), but
        for models and requests, which are here themselves.
    planned: how many answers a run is to have, warm-ups apart; None for traffic.
    """

    title: str
    is_run: bool
    began: datetime | None = None
    ended: datetime | None = None
    models: Sequence[str] = ()
    samples: Sequence[Sample] = ()
    answers: Sequence[Measured] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    planned: int | None = None
