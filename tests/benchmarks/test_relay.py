"""What the comparison with a TCP relay starts, and its table."""

import math
import sys
from pathlib import Path

from benchmarks import limit_servers, relay
from benchmarks.environments import CHECKOUT
from benchmarks.figures import L2, OURS
from tests.commands import run_here


def test_each_relay_has_a_provider_of_its_own(llm_user_path):
    """The servers' command lines are ones that they take; L2 answers by itself."""
    python = Path(sys.executable)
    ours, plain, limit = relay.kinds(python, CHECKOUT)
    assert [ours.name, plain.name, limit.name] == [OURS, relay.RELAY, L2]
    assert len({ours.upstream, plain.upstream, 0}) == 3 and not limit.upstream
    module, *given = [str(word) for word in ours.command(7001, Path())[2:]]
    code, out, err = run_here("check", *given)
    lines = out.decode().splitlines()
    assert (module, code, err) == ("llmproxy", 0, "")
    assert {"port: 7001 (--port)", "map: *=local: (--map)"} <= {*lines}
    assert (
        f"ok: upstreams: local at http://127.0.0.1:{ours.upstream}/v1 with the key client" in lines
    )
    script = [python, limit_servers.__file__]
    assert [*map(str, plain.command(7002, Path()))] == [
        *map(str, script), "relay", "7002", f"{plain.upstream}"
    ]  # fmt: skip
    assert [*map(str, limit.command(7003, Path()))] == [*map(str, script), "streams", "7003"]


def test_the_table_has_the_medians_and_half_the_range():
    values = {
        OURS: {"first_p50": [0.3, 0.5, 0.4], "logged": [100.0, 100.0]},
        relay.RELAY: {"first_p50": [0.1, math.nan, 0.2]},
        L2: {},
    }
    head, line, *rows = relay.table(values)
    assert (head, line) == (f"| | {OURS} | {relay.RELAY} | {L2} |", "|---|--:|--:|--:|")
    assert rows[0] == "| time to first byte added, p50, ms | 0.40 ± 0.10 | 0.15 ± 0.05 |  |"
    assert rows[-1] == "| logged, % | 100.00 ± 0.00 |  |  |"
    assert rows[1:-1] == [f"| {title} |  |  |  |" for title in [*relay.TITLES.values()][1:-1]]
