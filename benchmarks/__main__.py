"""`python -m benchmarks`: measure llmproxy beside its peers and the limits, and print a table."""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import environments, machine, servers, table
from .compare import compare
from .figures import L1, L2, LITELLM, OURS, PEER
from .scenarios import QUICK, SCENARIOS, Effort

DESCRIPTION = """
Measure llmproxy beside its closest peer (llm-chat-completions-server), LiteLLM's proxy, and the
limits: L1, an asyncio Protocol that writes ready bytes, and L2, asyncio's streams with
json.dumps for each chunk. All are started on one core, each with a fresh log; the load
generator has the other core. Every server is measured in every round; the table has the medians
of the rounds and half their range (±). Linux only.
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=DESCRIPTION, allow_abbrev=False
    )
    add = parser.add_argument
    others = (PEER, LITELLM, L2, L1)
    add("--quick", action="store_true", help="short loads, two rounds: about two minutes")
    add("--rounds", type=int, metavar="N", help="rounds (5; 2 if quick)")
    add("--seconds", type=float, metavar="S", help="length of a load (5; 1 if quick)")
    add("--rows", type=_names(SCENARIOS), metavar="A,B", help=f"of {', '.join(SCENARIOS)} (all)")
    add("--servers", type=_names(others), metavar="A,B", help=f"of {', '.join(others)} (all)")
    add(
        "--ours",
        action="append",
        type=Path,
        metavar="PATH",
        help="a checkout of llmproxy (this one); repeat it to compare two",
    )
    add("--json", type=Path, metavar="FILE", help="write all values to FILE")
    cache = environments.default_cache()
    add("--cache", type=Path, default=cache, metavar="DIR", help="for environments (%(default)s)")
    return parser.parse_args(arguments)


def _names(known: object) -> object:
    choices = list(known)  # type: ignore[call-overload]

    def read(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        for name in names:
            if name not in choices:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(choices)}")
        return names

    return read


def main(arguments: list[str]) -> int:
    """Run the benchmark; return the exit code."""
    chosen = parse(arguments)
    cache: Path = chosen.cache.absolute()
    checkouts = [path.resolve() for path in chosen.ours or [environments.CHECKOUT]]
    names = [OURS] + [f"{OURS} {number}" for number in range(2, len(checkouts) + 1)]
    kinds = [servers.ours(n, cache, path) for n, path in zip(names, checkouts, strict=True)]
    make = {
        PEER: lambda: servers.peer(cache),
        LITELLM: lambda: servers.litellm(cache),
        L2: lambda: servers.limit(L2, "streams", cache),
        L1: lambda: servers.limit(L1, "raw", cache),
    }
    kinds += (
        [make[name]() for name in chosen.servers if name in make]
        if chosen.servers is not None
        else [m() for m in make.values()]
    )
    effort = QUICK if chosen.quick else Effort()
    if chosen.seconds:
        effort = Effort(seconds=chosen.seconds, streams=effort.streams)
    rounds = chosen.rounds or (2 if chosen.quick else 5)
    disturbance = machine.Disturbance(*machine.cores())
    began = time.monotonic()
    values = compare(kinds, chosen.rows or list(SCENARIOS), rounds, effort, disturbance)
    titles = [kind.name for kind in kinds]
    disturbed = disturbance.summary()
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine.describe()}; {rounds} rounds.")
    print(_disturbed(disturbed) + f" Took {time.monotonic() - began:.0f} s.\n")
    print(*table.markdown(values, titles), sep="\n")
    if chosen.json:
        result = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine.describe(),
            "rounds": rounds,
            "servers": {kind.name: kind.title for kind in kinds},
            "disturbance": disturbed,
            "figures": table.as_json(values, titles),
        }
        chosen.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def _disturbed(found: dict[str, Any]) -> str:
    wall = found["loop_wall_ms"]
    return (
        f"Disturbance: steal {found['steal_percent']:.1f} %, load average up to "
        f"{found['load_average_max']:.1f}, a calibrated loop took "
        f"{wall['median'] / wall['least']:.2f} (at most {wall['most'] / wall['least']:.2f}) "
        "times its least."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
