"""Measure llmproxy where it passes a provider's traffic on, beside a plain TCP relay.

`python -m benchmarks relay [--rounds N] [--seconds S]`. The provider is an L1 server, whose CPU
is not counted; it runs on the load generator's core. Both relays, and L2 for comparison, are
measured in every round, and the medians of the rounds are printed with half their range. What a
relay adds to the time to the first byte is its own less that of asking the provider directly;
what L2 adds is its whole time, since its model takes none. A provider that takes none either is
asked for what is added at most: the log's copy of a request is read while the provider works.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from . import environments, load, machine, requests, scenarios, servers
from .figures import L2, OURS
from .scenarios import Bench, Effort, Figures
from .stats import percentile, summarize

RELAY = "TCP relay"
STREAMS = 50  # at once, of a chunk every 10 ms: each arrives alone
LONG = "scripted-400000"  # a response of 2.6 MB
UPLOAD_BYTES = 3_500_000

TITLES = {
    "first_p50": "time to first byte added, p50, ms",
    "first_p99": "p99, ms",
    "first_later": "the same where the provider takes 5 ms to its first byte, p50, ms",
    "chunk_cpu_16": "CPU ms per 1,000 chunks, 200-chunk responses, 16 connections",
    "chunk_cpu_paced": f"CPU ms per 1,000 chunks, {STREAMS} streams of a chunk every 10 ms",
    "download_cpu": "CPU ms per MB of a whole response",
    "upload_cpu": "a request of 3.5 MB, the next turn of a conversation, CPU ms",
    "upload_p50": "p50, ms",
    "answered": "answered without an error, %",
    "logged": "logged, %",
}


def kinds(python: Path, checkout: Path) -> list[servers.Kind]:
    """Return the servers that are compared; each relay has a provider of its own."""
    own, plain = servers.free_port(), servers.free_port()
    ours = servers.ours(OURS, python, checkout).with_arguments(
        *("--upstream", f"local=openai_chat+http://127.0.0.1:{own}/v1", "--map", "*=local:")
    )
    relay = servers.Kind(
        RELAY,
        "a plain TCP relay",
        lambda port, _: [python, servers.LIMIT_SERVERS, "relay", f"{port}", f"{plain}"],
        upstream=plain,
    )
    return [replace(ours, upstream=own), relay, servers.limit(L2, "streams", python)]


def measure(bench: Bench) -> Figures:
    """Measure one server."""
    upstream, seconds = bench.server.kind.upstream, bench.effort.seconds
    first = scenarios.first_token(bench)
    figures = {"first_p50": first["ttft_p50"], "first_p99": first["ttft_p99"]}
    if upstream:
        asked = requests.for_seconds(requests.questions("scripted-20", True), seconds)
        direct = load.run(upstream, asked, 1, 20).first_ms
        figures["first_p50"] -= percentile(direct, 50)
        figures["first_p99"] -= percentile(direct, 99)
        figures["first_later"] = _first_ms(bench.server.port, seconds) - _first_ms(
            upstream, seconds
        )
    figures["chunk_cpu_16"] = scenarios.streams(bench, 16)["chunk_cpu_16"]
    figures["chunk_cpu_paced"] = scenarios.many_streams(bench)["chunk_cpu_paced"]
    long = requests.questions(LONG, False)
    count = int(LONG.partition("-")[2])
    done = bench.put((next(long) for _ in range(5)), 1, count)
    figures["download_cpu"] = done.cpu_ms_each / (count * len("lorem, ") / 1e6)
    turns = requests.resent(
        requests.agent_messages(UPLOAD_BYTES), 2 + bench.effort.turns, {"stream": True}
    )
    bench.put(iter([next(turns), next(turns)]))
    done = bench.put(turns)
    figures["upload_cpu"] = done.cpu_ms_each
    figures["upload_p50"] = percentile(done.outcome.latencies_ms, 50)
    return figures | bench.shares()


def _first_ms(port: int, seconds: float) -> float:
    asked = requests.for_seconds(requests.questions("scripted-2-5ms", True), seconds)
    return percentile(load.run(port, asked, 1, 2).first_ms, 50)


def compare(
    compared: Sequence[servers.Kind], rounds: int, effort: Effort
) -> dict[str, dict[str, list[float]]]:
    """Return the values of all rounds, by server and figure. Every round has fresh servers."""
    values: dict[str, dict[str, list[float]]] = {kind.name: {} for kind in compared}
    cores = machine.cores()
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            benches = []
            for kind in compared:
                place = Path(folder) / kind.name
                place.mkdir()
                server = stack.enter_context(servers.Server(kind, place, *cores))
                server.rest()
                server.pause()
                benches.append(Bench(server, effort, cores, Path(folder)))
            for bench in benches:
                bench.server.resume()
                for name, value in measure(bench).items():
                    values[bench.server.kind.name].setdefault(name, []).append(value)
                bench.server.pause()
    return values


def table(values: dict[str, dict[str, list[float]]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    lines = [f"| | {' | '.join(values)} |", f"|---{'|--:' * len(values)}|"]
    for name, title in TITLES.items():
        cells = []
        for figures in values.values():
            found = summarize(figures.get(name, []))
            half = 0.0 if found is None else (found.most - found.least) / 2
            cells.append("" if found is None else f"{found.median:.2f} ± {half:.2f}")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="(%(default)s)")
    add("--seconds", type=float, default=2.0, help="length of a load (%(default)s)")
    add("--python", type=Path, default=Path(sys.executable), help="that has llm (this one)")
    chosen = parser.parse_args()
    effort = Effort(seconds=chosen.seconds, streams=STREAMS, turns=5)
    compared = kinds(chosen.python, environments.CHECKOUT)
    print(*table(compare(compared, chosen.rounds, effort)), sep="\n")
