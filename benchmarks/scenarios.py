"""What is measured: each scenario puts a load on a running server and returns figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from . import load
from .servers import Server
from .stats import percentile

WARM_UP_S = 0.3


@dataclass(frozen=True)
class Effort:
    """How long a measurement takes.

    seconds: of a load. streams: at once, where many are.
    """

    seconds: float = 5.0
    streams: int = 200


QUICK = Effort(seconds=1.0)


@dataclass
class Totals:
    """All that a server was sent in a round."""

    answered: int = 0
    logged: int = 0
    failed: int = 0


@dataclass
class Measured:
    """A load on a server, with what it cost there."""

    outcome: load.Outcome
    cpu_ms: float
    logged: int


@dataclass
class Bench:
    """A server under measurement."""

    server: Server
    effort: Effort
    totals: Totals = field(default_factory=Totals)

    def put(
        self, requests: Iterator[bytes], connections: int, tokens: int, stamped: bool = False
    ) -> Measured:
        """Put a load on the server; wait until it has done all its work."""
        server = self.server
        server.rest()
        cpu_ms, logged = server.cpu_ms(), server.logged()
        outcome = load.run(server.port, requests, connections, tokens, stamped)
        server.rest()
        cpu_ms = server.cpu_ms() - cpu_ms
        logged = server.logged() - logged if server.kind.has_llm else outcome.answered
        self.totals.answered += outcome.answered
        self.totals.failed += outcome.failed
        self.totals.logged += logged
        return Measured(outcome, cpu_ms, logged)


Figures = dict[str, float]


def whole_answers(bench: Bench, connections: int) -> Figures:
    """Ask for whole answers of 20 chunks."""
    bench.put(_asking("scripted-20", False, WARM_UP_S), connections, 20)
    done = bench.put(_asking("scripted-20", False, bench.effort.seconds), connections, 20)
    outcome = done.outcome
    return {
        f"rate_{connections}": done.logged / outcome.seconds,
        f"cpu_{connections}": done.cpu_ms / max(outcome.answered, 1),
        f"p50_{connections}": percentile(outcome.latencies_ms, 50),
        f"p99_{connections}": percentile(outcome.latencies_ms, 99),
        f"generator_{connections}": 100 * outcome.generator_share,
        f"server_{connections}": done.cpu_ms / outcome.seconds / 10,
    }


def streams(bench: Bench, connections: int) -> Figures:
    """Ask for streams of 200 chunks."""
    bench.put(_asking("scripted-200", True, WARM_UP_S), connections, 200)
    done = bench.put(_asking("scripted-200", True, bench.effort.seconds), connections, 200)
    chunks = 200 * done.outcome.answered
    return {
        f"chunks_{connections}": chunks / done.outcome.seconds,
        f"chunk_cpu_{connections}": 1000 * done.cpu_ms / max(chunks, 1),
    }


def first_token(bench: Bench) -> Figures:
    """Ask for one stream after the other; the model itself takes no time."""
    bench.put(_asking("scripted-20", True, WARM_UP_S), 1, 20)
    outcome = bench.put(_asking("scripted-20", True, bench.effort.seconds), 1, 20).outcome
    return {
        "ttft_p50": percentile(outcome.first_ms, 50),
        "ttft_p99": percentile(outcome.first_ms, 99),
    }


def many_streams(bench: Bench) -> Figures:
    """Ask for many paced streams at once."""
    count = bench.effort.streams
    requests = load.questions("scripted-200-10ms", True)
    outcome = bench.put((next(requests) for _ in range(count)), count, 200, True).outcome
    return {
        "lag_p50": percentile(outcome.lags_ms, 50),
        "lag_p99": percentile(outcome.lags_ms, 99),
        "length": percentile(outcome.latencies_ms, 50) / (200 * 10),
        "peak_rss": bench.server.memory_mib("VmHWM"),
    }


def start(bench: Bench) -> Figures:
    """Tell what the start took, which was measured when it happened."""
    server = bench.server
    return {"start_cpu": server.start_cpu_ms, "start_rss": server.start_rss_mib}


SCENARIOS: dict[str, Callable[[Bench], Figures]] = {
    "start": start,
    "many-streams": many_streams,
    "whole-1": lambda bench: whole_answers(bench, 1),
    "whole-16": lambda bench: whole_answers(bench, 16),
    "stream-1": lambda bench: streams(bench, 1),
    "stream-16": lambda bench: streams(bench, 16),
    "first-token": first_token,
}


def shares(totals: Totals) -> Figures:
    """Return how much of all that a server was asked was answered, and of this logged."""
    asked = totals.answered + totals.failed
    return {
        "logged": 100 * totals.logged / max(totals.answered, 1),
        "answered": 100 * totals.answered / max(asked, 1),
    }


def _asking(model: str, stream: bool, seconds: float) -> Iterator[bytes]:
    return load.for_seconds(load.questions(model, stream), seconds)
