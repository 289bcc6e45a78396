"""The comparison: all servers in interleaved rounds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from .environments import SCRIPTED_MODEL
from .figures import LLM, OURS
from .machine import Disturbance
from .scenarios import SCENARIOS, Bench, Effort, Figures
from .servers import Kind, Server

LLM_ALONE = Path(__file__).parent / "llm_alone.py"


@dataclass
class Comparison:
    """What was measured.

    values: of each server, of each figure, the values of all rounds. failures: of each server,
    how often which happened.
    """

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    failures: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, server: str, figures: Figures) -> None:
        for name, value in figures.items():
            self.values.setdefault(server, {}).setdefault(name, []).append(value)


@dataclass(frozen=True)
class Plan:
    """What is to be measured: scenarios by name, on servers, so many rounds.

    llm_python: a Python with llm, to measure llm alone too.
    """

    kinds: Sequence[Kind]
    scenarios: Sequence[str]
    rounds: int
    effort: Effort
    cache: Path
    llm_python: Path | None = None


def compare(plan: Plan, disturbance: Disturbance) -> Comparison:
    """Measure everything.

    In a round every server is fresh. Each scenario is put on one server after the other, in
    an order that changes with the rounds, while the others are stopped.
    """
    comparison = Comparison()
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {disturbance.generator_core})
    try:
        for number in range(plan.rounds):
            with tempfile.TemporaryDirectory() as folder:
                _round(plan, number, Path(folder), disturbance, comparison)
    finally:
        os.sched_setaffinity(0, allowed)
        _say("")
    return comparison


def _round(
    plan: Plan, number: int, folder: Path, disturbance: Disturbance, comparison: Comparison
) -> None:
    cores = disturbance.server_core, disturbance.generator_core
    where = f"round {number + 1} of {plan.rounds}"
    if plan.llm_python is not None:
        comparison.add(LLM, _llm_alone(plan.llm_python, folder, cores[0], plan.effort.seconds))
    with ExitStack() as stack:
        benches = []
        for kind in _rotated(plan.kinds, number):
            _say(f"{where}: {kind.name} starts")
            place = folder / kind.name
            place.mkdir()
            disturbance.look()
            server = stack.enter_context(Server(kind, place, *cores))
            server.rest()
            server.pause()
            benches.append(Bench(server, plan.effort, cores, plan.cache))
        for name in plan.scenarios:
            scenario = SCENARIOS[name]
            for bench in benches:
                server, kind = bench.server, bench.server.kind
                if not kind.name.startswith(OURS) and kind.name not in scenario.servers:
                    continue
                _say(f"{where}: {name} of {kind.name}")
                disturbance.look()
                server.resume()
                comparison.add(kind.name, scenario.run(bench))
                server.pause()
        for bench in benches:
            comparison.add(bench.server.kind.name, bench.shares())
            failures = comparison.failures.setdefault(bench.server.kind.name, Counter())
            failures.update(bench.failures)


def _llm_alone(python: Path, folder: Path, core: int, seconds: float) -> Figures:
    user_path = folder / LLM
    user_path.mkdir()
    output = subprocess.run(
        ["taskset", "-c", f"{core}", python, LLM_ALONE, f"{seconds}"],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "LLM_USER_PATH": f"{user_path}", "PYTHONPATH": f"{SCRIPTED_MODEL}"},
    ).stdout
    figures: Figures = json.loads(output)
    return figures


def _rotated(kinds: Sequence[Kind], number: int) -> list[Kind]:
    first = number % len(kinds)
    return [*kinds[first:], *kinds[:first]]


def _say(words: str) -> None:
    """Show what is going on, on a line of a terminal."""
    if sys.stderr.isatty():
        line = f"\r\x1b[K{time.strftime('%H:%M:%S')} {words}" if words else "\r\x1b[K"
        print(line, end="", file=sys.stderr, flush=True)
