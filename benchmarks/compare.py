"""The comparison: all servers in interleaved rounds, and the table of it."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from . import scenarios
from .machine import Disturbance
from .scenarios import SCENARIOS, Bench, Effort
from .servers import Kind, Server

Values = dict[str, dict[str, list[float]]]


def compare(
    kinds: Sequence[Kind],
    names: Sequence[str],
    rounds: int,
    effort: Effort,
    disturbance: Disturbance,
) -> Values:
    """Measure the scenarios of these names on all servers, so many rounds.

    In a round every server is fresh. Each scenario is put on one server after the other, in
    an order that changes with the rounds, while the others are stopped.
    """
    values: Values = {kind.name: {} for kind in kinds}
    os.sched_setaffinity(0, {disturbance.generator_core})
    for number in range(rounds):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            benches = []
            for kind in _rotated(kinds, number):
                _say(f"round {number + 1} of {rounds}: starting {kind.name}")
                place = folder / kind.name
                place.mkdir()
                cores = disturbance.server_core, disturbance.generator_core
                server = stack.enter_context(Server(kind, place, *cores))
                server.rest()
                server.pause()
                benches.append(Bench(server, effort))
            for name in names:
                for bench in benches:
                    _say(f"round {number + 1} of {rounds}: {name} of {bench.server.kind.name}")
                    disturbance.look()
                    bench.server.resume()
                    _add(values, bench, SCENARIOS[name](bench))
                    bench.server.pause()
            for bench in benches:
                if bench.totals.answered:
                    _add(values, bench, scenarios.shares(bench.totals))
    _say("")
    return values


def _rotated(kinds: Sequence[Kind], number: int) -> list[Kind]:
    first = number % len(kinds)
    return [*kinds[first:], *kinds[:first]]


def _add(values: Values, bench: Bench, figures: scenarios.Figures) -> None:
    kind = bench.server.kind
    if not kind.has_llm:
        figures.pop("logged", None)
    for name, value in figures.items():
        values[kind.name].setdefault(name, []).append(value)


def _say(words: str) -> None:
    """Show what is going on, on a line of a terminal."""
    if sys.stderr.isatty():
        print(
            f"\r\x1b[K{time.strftime('%H:%M:%S')} {words}" if words else "\r\x1b[K",
            end="",
            file=sys.stderr,
            flush=True,
        )
