"""The benchmark's summaries and its table."""

import json
import math
from itertools import product

import pytest

from benchmarks import environments, table
from benchmarks.figures import L1, OURS, PEER, TABLES, Figure, Goal
from benchmarks.scenarios import QUICK, SCENARIOS, Effort
from benchmarks.stats import Summary, percentile, summarize

SIZES = vars(Effort())


@pytest.mark.parametrize(
    ("percent", "value"), [(0, 1.0), (50, 2.5), (75, 3.25), (99, 3.97), (100, 4.0)]
)
def test_percentiles_are_interpolated(percent, value):
    assert percentile([4.0, 1.0, 3.0, 2.0], percent) == pytest.approx(value)


def test_nothing_has_no_percentile_and_no_summary():
    assert math.isnan(percentile([], 50))
    assert summarize([]) is None
    assert summarize([math.nan]) is None


def test_a_summary_is_the_median_and_the_range():
    assert summarize([3.0, math.nan, 1.0, 2.0]) == Summary(2.0, 1.0, 3.0)
    assert Summary(2.0, 1.0, 3.0).spread_percent == 50
    assert Summary(0.0, 0.0, 0.0).spread_percent == 0


def test_the_table_has_medians_spread_goals_and_what_was_reached():
    values = {
        OURS: {"rate_1": [1000.0, 1200.0, 1100.0], "lag_p50": [0.4, 0.4, 0.4]},
        PEER: {"rate_1": [100.0, 100.0, 100.0]},
        L1: {"lag_p50": [0.06, 0.06, 0.06], "server_16": [99.0, 99.0, 99.0]},
    }
    assert table.markdown(values, [OURS, PEER, L1], SIZES) == [
        "| figure | ours | peer | L1 | goal | reached |",
        "| --- | ---: | ---: | ---: | --- | --- |",
        "| logged requests/s, 20-chunk response, 1 connection | 1,100 ±9 % | 100 ±0 % |  |"
        " ≥ 10 × peer | 11 × met |",
        "| lag of a chunk at 200 streams of 10 ms, p50, ms | 0.40 ±0 % |  | 0.06 ±0 % |"
        " ≤ 0.5 | met |",
        "",
        "Whether the load generator kept up (L1 is saturated if its CPU is near 100 %):",
        "",
        "| figure | ours | peer | L1 |",
        "| --- | ---: | ---: | ---: |",
        "| 16 connections: the server's CPU, % |  |  | 99 ±0 % |",
        "",
    ]


def test_two_checkouts_are_compared_within_rounds():
    values = {OURS: {"cpu_1": [2.0, 4.0]}, "ours 2": {"cpu_1": [1.0, 1.0]}}
    assert table.markdown(values, [OURS, "ours 2"], SIZES)[2] == (
        "| CPU ms a request, 1 connection | 3.000 ±33 % | 1.000 ±0 % | 0.375 (0.250–0.500) |"
        " ≤ 0.15 × peer | not measured |"
    )


@pytest.mark.parametrize(
    ("more_is_better", "goal", "is_met"),
    [
        (True, Goal(2, L1), True),
        (True, Goal(2.1, L1), False),
        (False, Goal(2, L1), True),
        (False, Goal(1.9, L1), False),
        (False, Goal(10, ""), True),
        (False, Goal(9, ""), False),
        (False, Goal(1, PEER), None),
    ],
)
def test_a_goal_is_a_ratio_or_a_number(more_is_better, goal, is_met):
    figure = Figure("f", "f", more_is_better=more_is_better)
    values = {OURS: {"f": [10.0]}, L1: {"f": [5.0]}}
    assert table.is_met(values, figure, goal, OURS) is is_met


def test_json_has_each_round_and_null_for_what_is_unknown():
    values = {OURS: {"cpu_1": [1.0, math.nan]}, PEER: {"cpu_1": [10.0, 10.0]}}
    figures = table.as_json(values, [OURS, PEER], SIZES)
    assert json.loads(json.dumps(figures, allow_nan=False)) == {
        "cpu_1": {
            "title": "CPU ms a request, 1 connection",
            "servers": {
                OURS: {"rounds": [1.0, None], "median": 1.0, "least": 1.0, "most": 1.0},
                PEER: {"rounds": [10.0, 10.0], "median": 10.0, "least": 10.0, "most": 10.0},
            },
            "goals": [{"goal": "≤ 0.15 × peer", "reached": 0.1, "met": True}],
        }
    }


def test_the_introduction_names_disturbance_and_failures():
    loop = {"least": 2.0, "median": 3.0, "most": 8.0}
    lines = table.introduction(
        {
            "date": "2026-11-27T05:00:00+00:00",
            "machine": "a machine",
            "rounds": 2,
            "seconds": 90,
            "disturbance": {
                "steal_percent": 1.25,
                "load_average_max": 3.0,
                "loop_wall_ms": loop,
            },
            "failures": {OURS: {}, PEER: {"500": 3}},
        }
    )
    assert lines == [
        "2026-11-27, a machine; 2 round(s) in 90 s.",
        "Disturbance: 1.2 % of the time stolen, load average up to 3.0; a calibrated loop took"
        " 1.50 times its least (median; at most 4.00).",
        "Failed requests of peer: 3 500.",
    ]


def test_a_page_keeps_what_is_around_the_table():
    page = f"# Title\n\n{table.BEGIN}\nold\n{table.END}\n\nMore.\n"
    new = f"# Title\n\n{table.BEGIN}\n\nnew\nlines\n\n{table.END}\n\nMore.\n"
    assert table.put_into(page, ["new", "lines", ""]) == new
    assert table.put_into(new, ["new", "lines", ""]) == new
    with pytest.raises(ValueError, match="has no"):
        table.put_into("# Title\n", [])


def test_the_page_about_performance_has_a_place_for_the_table():
    page = (environments.CHECKOUT / "docs" / "performance.md").read_text()
    assert "| a row |" in table.put_into(page, ["| a row |"])


def test_every_figure_has_a_name_of_its_own_in_its_table_and_a_title_for_every_effort():
    for figures in TABLES.values():
        assert len({figure.name for figure in figures}) == len(figures)
        for effort, figure in product((Effort(), QUICK), figures):
            assert "{" not in figure.title.format(**vars(effort))


def test_scenarios_name_known_servers():
    for scenario in SCENARIOS.values():
        assert {*scenario.servers} <= {PEER, "LiteLLM", "L2", L1}
