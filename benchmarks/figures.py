"""The figures of the table: their names, units and goals."""

from __future__ import annotations

from dataclasses import dataclass

OURS, PEER, LITELLM, L2, L1, LLM = "ours", "peer", "LiteLLM", "L2", "L1", "llm"


@dataclass(frozen=True)
class Goal:
    """At least (or, of costs, at most) this many times another server's figure.

    of: the other server; "" for a goal that is a number.
    """

    factor: float
    of: str = PEER


@dataclass(frozen=True)
class Figure:
    """A row of the table.

    digits: after the point. more_is_better: for the goals' direction.
    """

    name: str
    title: str
    digits: int = 1
    more_is_better: bool = False
    goals: tuple[Goal, ...] = ()


FIGURES = (
    Figure("rate_1", "logged requests/s, 1 connection", 0, True, (Goal(10),)),
    Figure("rate_16", "logged requests/s, 16 connections", 0, True, (Goal(18),)),
    Figure("cpu_1", "CPU ms a request, 1 connection", 2, False, (Goal(0.15),)),
    Figure("cpu_16", "CPU ms a request, 16 connections", 2),
    Figure("p50_1", "latency p50 of these, 1 connection, ms", 2),
    Figure("p99_16", "latency p99, 16 connections, ms", 1, False, (Goal(0.2),)),
    Figure("chunks_1", "streamed chunks/s, 1 connection", 0, True, (Goal(5),)),
    Figure("chunks_16", "streamed chunks/s, 16 connections", 0, True, (Goal(5), Goal(1.3, L2))),
    Figure(
        "chunk_cpu_16",
        "CPU ms per 1,000 chunks, 16 connections",
        1,
        False,
        (Goal(0.18), Goal(0.8, L2), Goal(2.2, L1)),
    ),
    Figure("ttft_p50", "time to first token added, p50, ms", 2, False, (Goal(0.15), Goal(2, L2))),
    Figure("ttft_p99", "time to first token added, p99, ms", 2, False, (Goal(0.15), Goal(2, L2))),
    Figure(
        "lag_p50", "lag of an event at 200 streams of 10 ms, p50, ms", 2, False, (Goal(0.5, ""),)
    ),
    Figure("lag_p99", "lag of an event at 200 streams of 10 ms, p99, ms", 1, False, (Goal(5, ""),)),
    Figure("length", "length of those streams over the schedule", 2, False, (Goal(0.65),)),
    Figure("start_cpu", "start to first answer, CPU ms", 0, False, (Goal(0.75),)),
    Figure("start_rss", "RSS after the first answer, MiB", 1, False, (Goal(0.95),)),
    Figure("peak_rss", "RSS peak with 200 streams, MiB", 1, False, (Goal(0.75),)),
    Figure("logged", "logged, of all answered, %", 1, True, (Goal(100, ""),)),
    Figure("answered", "answered without an error, %", 1, True),
    Figure("generator_1", "the load generator's own CPU, 1 connection, %", 0),
    Figure("generator_16", "the load generator's own CPU, 16 connections, %", 0),
    Figure("server_16", "the server's CPU, 16 connections, %", 0),
)
