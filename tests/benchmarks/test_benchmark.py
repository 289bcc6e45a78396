"""The benchmark's command, its large logs, and a whole run on this checkout alone."""

import asyncio
import json
import sqlite3
import sys
import tomllib
from contextlib import closing
from pathlib import Path

import pytest
from ulid import ULID

from benchmarks import __main__ as command
from benchmarks import environments, limit_servers, seed, servers
from benchmarks.compare import Plan, compare
from benchmarks.figures import L1, L2, OURS
from benchmarks.machine import Disturbance, cores
from benchmarks.scenarios import SCENARIOS, Effort

SMALL = Effort(
    seconds=0.1, streams=5, turns=1, images=1, rows=2_000, few_rows=1_000, turns_before=1_000,
    commands=1,
)  # fmt: skip
ALIKE = ("long-stream", "agent-3.5m", "resend-1000", "whole-1", "stream-1")  # of others that run


def test_the_scripted_models_and_the_limits_say_the_same(monkeypatch):
    monkeypatch.syspath_prepend(str(environments.SCRIPTED_MODEL))
    import llm_scripted_model

    for name in ("scripted-20", "scripted-200"):

        async def texts(name=name):
            model = llm_scripted_model.AsyncScripted(name)
            ours = [text async for text in model.execute()]
            return ours, [text async for text in limit_servers.texts(name)]

        ours, theirs = asyncio.run(texts())
        assert ours == theirs == [*llm_scripted_model.Scripted(name).execute()]


def ready_cache(folder):
    """Make a cache of environments that are this test's own."""
    project = tomllib.loads((environments.CHECKOUT / "pyproject.toml").read_text())["project"]
    packages = {"llmproxy": project["dependencies"], "peer": [environments.PEER]}
    for name, wanted in packages.items():
        place = environments.folder_of(folder, name)
        (place / "bin").mkdir(parents=True)
        # Not a link, or it would be no virtual environment.
        python = place / "bin" / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        (place / environments.DONE).write_text("\n".join(wanted))
    return folder


def test_wrong_names_are_refused(capsys):
    with pytest.raises(SystemExit):
        command.parse(["--rows", "whole-1,nothing"])
    assert "'nothing' is none of start, " in capsys.readouterr().err


def test_the_command_line_makes_a_plan(tmp_path):
    cache = ["--cache", str(ready_cache(tmp_path))]
    other = ["--ours", ".", "--ours", str(environments.CHECKOUT)]
    plan = command.make_plan(command.parse(["--quick", "--rows", "whole-1", *other, *cache]))
    assert [kind.name for kind in plan.kinds] == [OURS, "ours 2", "peer", L2, L1]
    assert (plan.scenarios, plan.rounds, plan.effort.seconds) == (["whole-1"], 1, 0.5)
    plan = command.make_plan(command.parse(["--seconds", "3", "--servers", "L1", *cache]))
    assert [kind.name for kind in plan.kinds] == [OURS, L1]
    assert (plan.scenarios, plan.rounds, plan.effort.seconds) == (list(SCENARIOS), 5, 3.0)
    assert plan.llm_python is None


def test_copied_rows_are_others_and_earlier():
    id = "01m8dkcbje00000jkb4fp2yx1c"
    copies = [seed.copied_id(id, number) for number in (2, 1, 0)]
    assert copies == sorted({*copies}) and copies[-1] == id
    times_ms = [int(ULID.from_str(copy.upper()).milliseconds) for copy in copies]
    assert times_ms == [times_ms[2] - 1_800_000, times_ms[2] - 900_000, times_ms[2]]
    assert seed.copied_time("2026-11-27T04:14:25.354402+00:00", 2) == (
        "2026-11-27T03:44:25.354402+00:00"
    )
    hashes = {seed.copied_hash("0123456789abcdef", number) for number in range(100)}
    assert len(hashes) == 100
    assert all(len(hash) == 16 for hash in hashes)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_whole_run_has_every_figure_of_ours_and_logs_everything(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "llm-scripted-model")
    python = Path(sys.executable)
    ours = servers.ours(OURS, python, environments.CHECKOUT)
    kinds = [ours, servers.limit(L1, "raw", python)]
    names = [name for name in SCENARIOS if name not in ALIKE]
    plan = Plan(kinds, names, 1, SMALL, tmp_path, python)
    comparison = compare(plan, Disturbance(*cores()))
    figures = comparison.values[OURS]
    assert figures["logged"] == [100.0]
    assert figures["answered"] == [100.0]
    assert all(value[0] >= 0 for name, value in figures.items() if "stall" not in name)
    assert not any(comparison.failures.values())
    assert comparison.values[L1]["rate_16"][0] > figures["rate_16"][0]
    (large,) = (tmp_path / "logs").glob("*-2000.db")
    with closing(sqlite3.connect(large)) as database:
        (count,) = database.execute("select count(*) from proxy_exchanges").fetchone()
    assert 2_000 <= count <= 2_010


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_results_can_be_written_as_json(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "llm-scripted-model")
    cache, result = ready_cache(tmp_path), tmp_path / "result.json"
    arguments = ["--servers", L2, "--rows", "start,stream-1", "--rounds", "1", "--seconds", "0.1"]
    assert command.main([*arguments, "--cache", str(cache), "--json", str(result)]) == 0
    assert "\n| start to first response, CPU ms | " in capsys.readouterr().out
    figures = json.loads(result.read_text())["figures"]
    assert figures["start_cpu"]["servers"][OURS]["median"] > 0
    assert figures["chunks_1"]["servers"][L2]["median"] > 0
