"""What is measured: each scenario puts a load on a running server and returns figures."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from . import load, requests, seed
from .figures import L1, L2, LITELLM, PEER
from .servers import Server
from .stats import percentile

WARM_UP_S = 0.3
STREAMS_BESIDE = 8  # that a large request may stall
PACE_MS = 10  # between two chunks of the paced models


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    seconds: length of a load. streams: at once, where many are. turns: of a long conversation.
    images: of 5 MB. rows: exchanges in a large log, few_rows: in a small one, turns_before: in
    one whose next turn is measured. commands: runs of each command.
    """

    seconds: float = 5.0
    streams: int = 200
    turns: int = 20
    images: int = 10
    rows: int = 1_000_000
    few_rows: int = 10_000
    turns_before: int = 100_000
    commands: int = 5


QUICK = Effort(
    seconds=0.5, turns=5, images=3, rows=50_000, few_rows=1_000, turns_before=50_000, commands=1
)


@dataclass
class Measured:
    """A load on a server, with what it cost there."""

    outcome: load.Outcome
    cpu_ms: float
    logged: int

    @property
    def cpu_ms_each(self) -> float:
        return self.cpu_ms / max(self.outcome.answered, 1)


@dataclass
class Bench:
    """A server under measurement, and all that it was sent in this round.

    cores: the server's, and the load generator's. cache: for large logs.
    """

    server: Server
    effort: Effort
    cores: tuple[int, int]
    cache: Path
    answered: int = 0
    logged: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def put(
        self,
        load_: Iterator[bytes],
        connections: int = 1,
        tokens: int | None = 20,
        stamped: bool = False,
    ) -> Measured:
        """Put a load on the server; wait until it has done all its work."""
        server = self.server
        server.rest()
        cpu_ms, logged = server.cpu_ms(), server.logged()
        outcome = load.run(server.port, load_, connections, tokens, stamped)
        server.rest()
        cpu_ms = server.cpu_ms() - cpu_ms
        logged = server.logged() - logged if server.kind.has_llm else outcome.answered
        self.answered += outcome.answered
        self.logged += logged
        self.failures += outcome.failures
        return Measured(outcome, cpu_ms, logged)

    def shares(self) -> Figures:
        """Return how much of all that the server was asked was answered, and logged."""
        if not self.answered:
            return {}
        asked = self.answered + self.failures.total()
        figures = {"answered": 100 * self.answered / asked}
        if self.server.kind.has_llm:
            figures["logged"] = 100 * self.logged / asked
        return figures


Figures = dict[str, float]


@dataclass(frozen=True)
class Scenario:
    """What is measured together.

    servers: which servers besides ours; the others have nothing to compare.
    """

    run: Callable[[Bench], Figures]
    servers: Sequence[str] = (PEER, LITELLM, L2, L1)


def start(bench: Bench) -> Figures:
    """Tell what the start took, which was measured when it happened."""
    server = bench.server
    return {"start_cpu": server.start_cpu_ms, "start_rss": server.start_rss_mib}


def whole(bench: Bench, connections: int) -> Figures:
    """Ask for whole responses of 20 chunks."""
    bench.put(_asking("scripted-20", False, WARM_UP_S), connections)
    done = bench.put(_asking("scripted-20", False, bench.effort.seconds), connections)
    outcome = done.outcome
    return {
        f"rate_{connections}": done.logged / outcome.seconds,
        f"cpu_{connections}": done.cpu_ms_each,
        f"p50_{connections}": percentile(outcome.latencies_ms, 50),
        f"p99_{connections}": percentile(outcome.latencies_ms, 99),
        f"generator_{connections}": 100 * outcome.generator_share,
        f"server_{connections}": done.cpu_ms / outcome.seconds / 10,
    }


def overhead(bench: Bench) -> Figures:
    """Compare what a server adds, as seen from outside, with what its log says of itself.

    Models tell when they began and when they made their last chunk. Seen from outside are
    the kernel's share and the log's commit too, which a server's own figure may leave out.
    """
    questions = requests.questions("scripted-20-10ms", True)
    count = bench.effort.turns
    outcome = bench.put((next(questions) for _ in range(count)), 1, 20, True).outcome
    figures = {"overhead_seen": percentile(outcome.outside_ms, 50)}
    path = bench.server.user_path / "logs.db"
    with (
        closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database,
        suppress(
            sqlite3.OperationalError  # it is another server's log, or an older one
        ),
    ):
        told = database.execute(
            "select overhead_ms from proxy_exchanges order by number desc limit ?", (count,)
        ).fetchall()
        figures["overhead_told"] = percentile([row[0] for row in told], 50)
    return figures


def streams(bench: Bench, connections: int) -> Figures:
    """Ask for streams of 200 chunks."""
    bench.put(_asking("scripted-200", True, WARM_UP_S), connections, 200)
    done = bench.put(_asking("scripted-200", True, bench.effort.seconds), connections, 200)
    chunks = 200 * done.outcome.answered
    return {
        f"chunks_{connections}": chunks / done.outcome.seconds,
        f"chunk_cpu_{connections}": 1000 * done.cpu_ms / max(chunks, 1),
        f"stream_generator_{connections}": 100 * done.outcome.generator_share,
        f"stream_server_{connections}": done.cpu_ms / done.outcome.seconds / 10,
    }


def apis(bench: Bench) -> Figures:
    """Ask for streams of 200 chunks by each of the APIs, 16 at a time."""
    figures: Figures = {}
    for path, name, times in (
        (requests.CHAT, "chat", 1),
        (requests.MESSAGES, "messages", 1),
        (requests.RESPONSES, "responses", 5),  # its last four events have the whole text
        (requests.OLLAMA, "ollama", 1),
    ):
        asked = requests.questions("scripted-200", True, path)
        load_ = requests.for_seconds(asked, bench.effort.seconds)
        done = bench.put(load_, 16, 200 * times)
        figures[f"chunk_cpu_{name}"] = 5 * done.cpu_ms_each
    return figures


def first_token(bench: Bench) -> Figures:
    """Ask for one stream after the other; the model itself takes no time."""
    bench.put(_asking("scripted-20", True, WARM_UP_S))
    outcome = bench.put(_asking("scripted-20", True, bench.effort.seconds)).outcome
    return {
        "ttft_p50": percentile(outcome.first_ms, 50),
        "ttft_p99": percentile(outcome.first_ms, 99),
    }


def many_streams(bench: Bench) -> Figures:
    """Ask for many paced streams at once."""
    count = bench.effort.streams
    questions = requests.questions("scripted-200-10ms", True)
    done = bench.put((next(questions) for _ in range(count)), count, 200, True)
    outcome = done.outcome
    return {
        "chunk_cpu_paced": 1000 * done.cpu_ms / max(200 * outcome.answered, 1),
        "lag_p50": percentile(outcome.lags_ms, 50),
        "lag_p99": percentile(outcome.lags_ms, 99),
        "length": percentile(outcome.latencies_ms, 50) / (200 * PACE_MS),
        "peak_rss": bench.server.memory_mib("VmHWM"),
    }


def resend(bench: Bench, messages: int) -> Figures:
    """Send a conversation of short messages again, with a turn more each time."""
    done = _known(bench, requests.chat_messages(messages), {})
    return {
        f"resend_cpu_{messages}": done.cpu_ms_each,
        f"resend_p50_{messages}": percentile(done.outcome.latencies_ms, 50),
    }


def agent(bench: Bench, size_bytes: int, name: str) -> Figures:
    """Send the session of a coding agent again, and look how long others wait meanwhile."""
    messages = requests.agent_messages(size_bytes)
    extra = {"stream": True, "tools": requests.agent_tools()}
    done = _known(bench, messages, extra)
    beside = requests.post({"model": "scripted-20", **extra, "messages": messages})
    return {f"agent_cpu_{name}": done.cpu_ms_each, f"agent_stall_{name}": _stall(bench, beside)}


def _known(bench: Bench, messages: list[object], extra: dict[str, object]) -> Measured:
    """Measure turns of a conversation whose beginning the server has seen."""
    turns = requests.resent(messages, 2 + bench.effort.turns, extra)
    bench.put(iter([next(turns), next(turns)]))
    return bench.put(turns)


def _stall(bench: Bench, request: bytes) -> float:
    """Return how much longer than the model's pace a stream waited beside a request, at most."""
    server, paced = bench.server, requests.questions("scripted-200-10ms", True)
    found: list[load.Outcome] = []

    def stream() -> None:
        asked = (next(paced) for _ in range(STREAMS_BESIDE))
        found.append(load.run(server.port, asked, STREAMS_BESIDE, 200, True))

    reader = threading.Thread(target=stream)
    reader.start()
    time.sleep(0.5)  # the streams are on their way; they last two seconds
    bench.failures += load.run(server.port, iter([request])).failures
    reader.join()
    bench.failures += found[0].failures
    return max(found[0].stalls_ms, default=float("nan")) - PACE_MS


def image(bench: Bench) -> Figures:
    """Send images of 5 MB."""
    images = [requests.image(5_000_000) for _ in range(bench.effort.images)]
    return {"image_cpu": bench.put(iter(images)).cpu_ms_each}


def members(bench: Bench) -> Figures:
    """Send a body of 4 MB with 200,000 members, beside streams."""
    return {"members_stall": _stall(bench, requests.many_members(200_000))}


def long_stream(bench: Bench) -> Figures:
    """Compare a stream of 100,000 chunks with streams of 10,000."""
    short = bench.put(_times("scripted-10000", 3), 1, 10_000)
    long = bench.put(_times("scripted-100000", 1), 1, 100_000)
    figures = {
        "chunk_cpu_10k": short.cpu_ms_each / 10,
        "chunk_cpu_100k": long.cpu_ms_each / 100,
    }
    return figures | {"long_stream": figures["chunk_cpu_100k"] / figures["chunk_cpu_10k"]}


def growth(bench: Bench) -> Figures:
    """Vary what the cost may grow with: messages sent again, connections."""
    figures: Figures = {}
    for messages in (2, 10, 100):
        figures |= resend(bench, messages)
    for connections in (4, 64, 200):
        done = bench.put(_asking("scripted-20", False, bench.effort.seconds / 2), connections)
        figures[f"cpu_{connections}"] = done.cpu_ms_each
    return figures


def turns_before(bench: Bench) -> Figures:
    """Compare turns beside a large log with turns beside an empty one."""
    costs = []
    for count in (bench.effort.turns_before, 0):
        with _beside_log(bench, count) as other:
            other.put(_conversations(20))
            costs.append(other.put(_conversations(60)).cpu_ms_each)
    return {"turns_before": costs[0] / costs[1]}


@contextmanager
def _beside_log(bench: Bench, count: int) -> Iterator[Bench]:
    """Run another server of the same kind, whose log has so many exchanges."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        user_path = place / "server" / "llm"
        user_path.mkdir(parents=True)
        if count:
            path = _log(bench, count)
            shutil.copy(path, user_path / "logs.db")
        with Server(bench.server.kind, place / "server", *bench.cores) as server:
            yield Bench(server, bench.effort, bench.cores, bench.cache)


def _log(bench: Bench, count: int) -> Path:
    with tempfile.TemporaryDirectory() as folder:
        return seed.seeded(bench.server.kind, bench.cache, Path(folder), count, bench.cores)


def _conversations(count: int) -> Iterator[bytes]:
    """Yield turns of several conversations of ten messages."""
    for _ in range(count // 3):
        yield from requests.resent(requests.chat_messages(10), 3)


LOG_COMMANDS = {
    "log_list": ["log"],
    "log_search": ["log", "--search", seed.RARE_WORD],
    "log_search_all": ["log", "--search", seed.COMMON_WORD],
    "log_threads": ["log", "--threads"],
}


def log_commands(bench: Bench) -> Figures:
    """Time the commands that read the log, and the page, over a large log and a small one."""
    large = _command_times(bench, _log(bench, bench.effort.rows))
    small = _command_times(bench, _log(bench, bench.effort.few_rows))
    growths = {f"{name}_growth": large[name] / small[name] for name in large}
    return large | growths


def _command_times(bench: Bench, path: Path) -> Figures:
    """Return the wall time of each command, in ms: the median of some runs."""
    figures = {}
    for name, arguments in LOG_COMMANDS.items():
        times = [
            _run_ms(bench, [*arguments, "--database", f"{path}"])
            for _ in range(bench.effort.commands)
        ]
        figures[name] = percentile(times, 50)
    with tempfile.TemporaryDirectory() as folder:
        kind = bench.server.kind.with_arguments("--database", f"{path}")
        with Server(kind, Path(folder), *bench.cores) as server:
            page = load.run(server.port, iter([requests.get_page()]))
            figures["log_page"] = percentile(page.latencies_ms, 50)
            server.end()
    return figures


def _run_ms(bench: Bench, arguments: Sequence[str]) -> float:
    """Run a command of the server's program on the server's core."""
    began = time.monotonic()
    with bench.server.command(arguments) as process:
        process.communicate()
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, arguments)
    return (time.monotonic() - began) * 1000


def _asking(model: str, stream: bool, seconds: float) -> Iterator[bytes]:
    return requests.for_seconds(requests.questions(model, stream), seconds)


def _times(model: str, count: int) -> Iterator[bytes]:
    questions = requests.questions(model, True)
    return (next(questions) for _ in range(count))


SCENARIOS: dict[str, Scenario] = {
    "start": Scenario(start),
    "many-streams": Scenario(many_streams),  # before others raise the peak of memory
    "whole-1": Scenario(lambda bench: whole(bench, 1)),
    "whole-16": Scenario(lambda bench: whole(bench, 16)),
    "stream-1": Scenario(lambda bench: streams(bench, 1)),
    "stream-16": Scenario(lambda bench: streams(bench, 16)),
    "apis": Scenario(apis, ()),
    "first-token": Scenario(first_token),
    "overhead": Scenario(overhead, (PEER,)),
    "resend-1000": Scenario(lambda bench: resend(bench, 1000)),
    "resend-400": Scenario(lambda bench: resend(bench, 400)),
    "image": Scenario(image),
    "agent-560k": Scenario(lambda bench: agent(bench, 560_000, "560k")),
    "agent-3.5m": Scenario(lambda bench: agent(bench, 3_500_000, "3500k")),
    "members": Scenario(members),
    "long-stream": Scenario(long_stream, (PEER, L2, L1)),
    "growth": Scenario(growth, ()),
    "turns-before": Scenario(turns_before, ()),
    "log-commands": Scenario(log_commands, ()),
}
