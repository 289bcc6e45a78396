"""`python -m benchmarks`: measure llmproxy beside its peers and the limits, and print a table."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

from . import environments, machine, servers, table
from .compare import Plan, compare
from .figures import L1, L2, LITELLM, LLM, OURS, PEER
from .scenarios import QUICK, SCENARIOS, Effort

DESCRIPTION = """
Measure llmproxy beside its closest peer (llm-chat-completions-server), LiteLLM's proxy, and the
limits: L1, an asyncio Protocol that writes ready bytes; L2, asyncio's streams with json.dumps for
each chunk; and llm itself without a server. Servers run on one core, each with a fresh log, the
load generator on another. Every server is measured in every round; the table has the medians
of the rounds and half their range (±), and ratios that are taken within a round. Linux only.
"""
PARTS = ("load", "log-cost", "relay", "soak", "stall")
OTHERS = (PEER, LITELLM, L2, L1, LLM)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=DESCRIPTION,
        epilog=f"Other benchmarks, each with its own --help: {', '.join(PARTS)}.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="one round of short loads, about two minutes")
    add("--rounds", type=int, metavar="N", help="rounds (5; 1 if quick)")
    add("--seconds", type=float, metavar="S", help="length of a load (5; 0.5 if quick)")
    add("--rows", type=_names(SCENARIOS), metavar="A,B", help=f"of {', '.join(SCENARIOS)} (all)")
    add(
        "--servers",
        type=_names(OTHERS),
        metavar="A,B",
        help=f"of {', '.join(OTHERS)} (all; without LiteLLM, the slowest, if quick)",
    )
    add(
        "--ours",
        action="append",
        type=Path,
        metavar="PATH",
        help="a checkout of llmproxy (this one); repeat it to compare two",
    )
    add("--json", type=Path, metavar="FILE", help="write all values to FILE")
    add("--page", type=Path, metavar="FILE", help="put the tables into docs/performance.md, too")
    add(
        "--cache",
        type=Path,
        default=environments.default_cache(),
        metavar="DIR",
        help="for environments, and for large logs, which take 4 GB (%(default)s)",
    )
    return parser.parse_args(arguments)


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    choices = list(known)

    def read(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        for name in names:
            if name not in choices:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(choices)}")
        return names

    return read


def main(arguments: list[str]) -> int:
    """Run the benchmark, or one of its parts; return the exit code."""
    if arguments and arguments[0] in PARTS:
        part, *rest = arguments
        sys.argv = [f"benchmarks {part}", *rest]
        return import_module(f"benchmarks.{part.replace('-', '_')}").main() or 0
    chosen = parse(arguments)
    plan = make_plan(chosen)
    disturbance = machine.Disturbance(*machine.cores())
    began = time.monotonic()
    comparison = compare(plan, disturbance)
    names = [kind.name for kind in plan.kinds] + ([LLM] if plan.llm_python else [])
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "rounds": plan.rounds,
        "seconds": round(time.monotonic() - began),
        "effort": vars(plan.effort),
        "servers": {kind.name: kind.title for kind in plan.kinds},
        "disturbance": disturbance.summary(),
        "figures": table.as_json(comparison.values, names, vars(plan.effort)),
        "failures": comparison.failures,
    }
    lines = [*table.introduction(result), ""]
    lines += table.markdown(comparison.values, names, vars(plan.effort))
    print(*lines, sep="\n")
    if chosen.page:
        chosen.page.write_text(table.put_into(chosen.page.read_text(), lines))
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def make_plan(chosen: argparse.Namespace) -> Plan:
    """Make the environments, and the plan that the command line asks for."""
    cache: Path = chosen.cache.absolute()
    checkouts = [path.resolve() for path in chosen.ours or [environments.CHECKOUT]]
    ours = [OURS] + [f"{OURS} {number}" for number in range(2, len(checkouts) + 1)]
    python = environments.python_for_ours(cache, checkouts[0])
    modules = [path / "llmproxy" for path in checkouts]
    environments.compile_modules(python, environments.SCRIPTED_MODEL, *modules)
    kinds = [servers.ours(n, python, path) for n, path in zip(ours, checkouts, strict=True)]
    others = {
        PEER: lambda: servers.peer(environments.python_for_peer(cache)),
        LITELLM: lambda: servers.litellm(environments.python_for_litellm(cache)),
        L2: lambda: servers.limit(L2, "streams", python),
        L1: lambda: servers.limit(L1, "raw", python),
    }
    wanted = chosen.servers
    if wanted is None:
        wanted = [name for name in OTHERS if not (chosen.quick and name == LITELLM)]
    kinds += [make() for name, make in others.items() if name in wanted]
    effort = QUICK if chosen.quick else Effort()
    if chosen.seconds is not None:
        effort = replace(effort, seconds=chosen.seconds)
    return Plan(
        kinds,
        chosen.rows or list(SCENARIOS),
        chosen.rounds or (1 if chosen.quick else 5),
        effort,
        cache,
        python if LLM in wanted else None,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
