"""`bench`: ask other models what was recorded, and measure how they answer."""

from __future__ import annotations

import argparse
import asyncio
import shlex
import shutil
import ssl
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from statistics import fmean
from urllib.parse import urlsplit

import llm

from ..backends.engine import Engine
from ..backends.log_source import exchange_request
from ..bench.bench import Ask, Bench, Plan, Task, ask_models, ask_server, plan_of, tasks
from ..bench.runs import LAST, Benchmark, claimed, find_run, run_names, save_run, wait_for_leftovers
from ..core import chat, token_estimate
from ..core.errors import InvalidRequest, NotFound, ProxyError
from ..core.text import printable
from ..dialects import DIALECTS, by_name
from ..proxy import SettingsError, all_models, log_writer, new_id
from ..recorder.exchange import Exchange, ExchangeSummary
from ..recorder.reader import Filter, LogReader
from ..recorder.store import StoreError, Unusable, logs_on
from ..report.load import study_of_run
from ..report.prices import Price, cost
from .arguments import (
    TIME_HELP,
    add_database,
    add_filters,
    add_parallel,
    count,
    database_of,
    filter_of,
)
from .exchange_text import summary_line
from .report import add_prices, prices_of, print_table
from .run import run

__all__ = ["main"]

NEWEST = 20  # recorded requests, where nobody says which
FLUSH_S = 10.0  # for the log, at the end

Recorded = dict[str, tuple[Exchange, chat.ChatRequest]]


def main(words: Sequence[str], program: str) -> int:
    """Run `bench` with these words; give its exit code."""
    name = f"{program} bench"
    parser = _parser(name)
    arguments = parser.parse_args(words)
    if arguments.resume is None and not arguments.models:
        parser.error("say which models to ask: --models A,B (llm models lists them)")
    if arguments.resume is not None and _begins(arguments):
        parser.error("--resume goes on as the run began: it takes --key and --base-url alone")
    return run(name, lambda: _bench(arguments), StoreError, SettingsError)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Ask models what clients asked before, measure how they answer, and keep "
        f"that in the log. Without a filter the last {NEWEST} requests are taken.",
        epilog=TIME_HELP,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--models", type=_names, metavar="A,B,C", help="whom to ask, and nobody else")
    add_filters(
        parser,
        last="at most so many, the newest",
        thread="of one conversation, by its id or by that of an exchange in it",
        dialect="the wire it spoke; with --base-url, the one that this server speaks",
    )
    add("--repeat", type=count, metavar="N", help="ask each so often (1)")
    add("--concurrency", type=count, metavar="N", help="requests at one time, in all (1)")
    add_parallel(parser)
    add("--warmup", type=_count_or_none, metavar="N", help="requests before, not counted (1)")
    add("--max-tokens", type=count, metavar="N", help="of an answer, at most")
    add("--timeout", type=_seconds, metavar="SECONDS", help="for a whole answer (none)")
    add("--base-url", type=_url, metavar="URL", help="ask this server, not llm's models")
    add("--key", metavar="NAME", help="the server's key: a name in `llm keys`, or itself")
    add("--name", type=_run_name, help="of the run (the time)")
    add(
        "--resume",
        nargs="?",
        const=LAST,
        metavar="NAME",
        help="go on with a run that was stopped, the last one",
    )
    add("--dry-run", action="store_true", help="only say what would be sent")
    add_prices(parser)
    add_database(parser)
    parser.set_defaults(id=None, run=None)
    return parser


def _names(word: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in word.split(",") if name.strip()))
    if not names:
        raise argparse.ArgumentTypeError("expected names, with commas between them")
    return names


def _count_or_none(word: str) -> int:
    return 0 if word == "0" else count(word)


def _seconds(word: str) -> float:
    try:
        seconds = float(word)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError("expected seconds, more than 0")
    return seconds


def _url(word: str) -> str:
    try:
        parts = urlsplit(word)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        is_one = is_one and word.isascii() and word.isprintable() and " " not in word
    except ValueError:
        is_one = False
    if not is_one or parts.username is not None or parts.query or parts.fragment:
        raise argparse.ArgumentTypeError(
            "expected http(s)://host[:port][/path] and no more; a key goes into --key"
        )
    return word


def _run_name(word: str) -> str:
    if not word.strip() or word == LAST or not word.isprintable():
        raise argparse.ArgumentTypeError(f"expected a name, which {LAST!r} is not")
    return word


def _begins(arguments: argparse.Namespace) -> bool:
    """Whether anything is said that only a new run can be told."""
    words = "models last repeat concurrency warmup max_tokens timeout name".split()
    is_said = arguments.dry_run or any(vars(arguments)[word] is not None for word in words)
    return is_said or filter_of(arguments) != Filter()


# ---- what is to be asked


def _bench(arguments: argparse.Namespace) -> int:
    database = database_of(arguments)
    prices = prices_of(arguments)
    history = LogReader(database)
    try:
        is_new = arguments.resume is None
        begun, plan = (_new if is_new else _resumed)(history, arguments)
        recorded = _recorded(history, plan.ids)
        if not recorded:
            raise NotFound("the log has no request that could be asked again as you say")
        plan = replace(plan, ids=[id for id in plan.ids if id in recorded])
        ask = _ask(plan, arguments.key, arguments.parallel)
        if arguments.dry_run:
            _print_plan(plan, recorded, prices)
            return 0
        if not logs_on():
            raise SettingsError("llm keeps no logs, where the answers belong: llm logs on")
        run = replace(begun, settings=asdict(plan)) if is_new else begun
        with claimed(database, run):
            save_run(database, run)
            code = _measure(history, run, plan, recorded, ask, is_new=is_new)
            if code == 0:
                run = replace(run, ended=datetime.now(UTC))
                save_run(database, run)
        print_table(study_of_run(history, run), prices)
        _say(_next(run, code))
        return code
    finally:
        history.close()


def _new(history: LogReader, arguments: argparse.Namespace) -> tuple[Benchmark, Plan]:
    now = datetime.now(UTC)
    id, name, names = new_id(), arguments.name, run_names(history)
    if name is None:
        name = f"{now.astimezone():%Y-%m-%d-%H%M%S}"
        name = f"{name}-{id[-4:]}" if name in names else name
    elif name in names:
        raise InvalidRequest(f"there is a run {name!r} already: --resume goes on with it")
    only = replace(filter_of(arguments), is_traffic=True)
    if arguments.base_url:
        only = replace(only, dialect=None)
    last = arguments.last
    if only == Filter(is_traffic=True) and last is None:
        last = NEWEST
    if only.status is None and only.ids is None:
        only = replace(only, status="ok")
    plan = Plan(
        models=arguments.models,
        ids=history.ids(only, last=last),
        repeat=arguments.repeat or Plan.repeat,
        concurrency=arguments.concurrency or Plan.concurrency,
        warmup=Plan.warmup if arguments.warmup is None else arguments.warmup,
        max_tokens=arguments.max_tokens,
        timeout_s=arguments.timeout,
        base_url=arguments.base_url,
        dialect=(arguments.dialect or DIALECTS[0].NAME) if arguments.base_url else None,
    )
    return Benchmark(id, name, now, None, {}), plan


def _resumed(history: LogReader, arguments: argparse.Namespace) -> tuple[Benchmark, Plan]:
    run = find_run(history, arguments.resume)
    plan = plan_of(run.settings)
    if plan is None:
        raise InvalidRequest("this run was imported: what it was to ask is not known here")
    if arguments.base_url and plan.base_url:
        plan = replace(plan, base_url=arguments.base_url)
    return run, plan


def _done(history: LogReader, run: Benchmark) -> set[Task]:
    """What was measured; what was cut short by a stop is asked again."""
    entries = history.entries(Filter(run=run.id))
    return {_task_of(entry) for entry in entries if entry.status in ("ok", "error")}


def _task_of(entry: ExchangeSummary) -> Task:
    return Task(entry.model_asked or "", entry.recorded_id or "", entry.repeat or 0)


def _recorded(history: LogReader, ids: Sequence[str]) -> Recorded:
    recorded: Recorded = {}
    for id in ids:
        try:
            exchange = history.exchange(id)
            recorded[id] = exchange, exchange_request(exchange)
        except ProxyError as exc:
            _say(f"left out: {printable(id)}: {printable(exc.words)}")
        except (KeyError, ValueError, TypeError):
            _say(f"left out: {printable(id)}: it is damaged; log --verify may say more")
    return recorded


def _ask(plan: Plan, key: str | None, parallel: Sequence[tuple[str, int]]) -> Ask:
    """Make what asks; llm's plugins are loaded, and its models looked up, before any is asked.

    Raises:
        ModelNotFound: llm has no model of a name.
    """
    if plan.base_url is not None and plan.dialect is not None:
        dialect = by_name(plan.dialect)
        tls = ssl.create_default_context() if plan.base_url.startswith("https:") else None
        key = None if key is None else llm.get_key(input=key)
        if key is not None and not (key.isascii() and key.isprintable() and key == key.strip()):
            raise InvalidRequest("the key of --key has characters that no key has")
        return ask_server(dialect, plan.base_url, key=key, tls=tls)
    catalog = all_models(parallel=parallel)
    catalog.load()
    for name in plan.models:
        asyncio.run(catalog.choose(name))
    return ask_models(Engine(catalog))


def _print_plan(plan: Plan, recorded: Recorded, prices: Mapping[str, Price]) -> None:
    """Say what would be sent, without sending it."""
    sizes = {id: token_estimate.estimate(request) for id, (_, request) in recorded.items()}
    for id, (exchange, _) in recorded.items():
        words = f"{exchange.client}  about {sizes[id]:,} tokens  {exchange.first_words}"
        print(f"{id}  {printable(words)}")
    warmups = sum(sizes[plan.ids[number % len(plan.ids)]] for number in range(plan.warmup))
    requests = len(plan.ids) * plan.repeat + plan.warmup
    asked = sum(sizes.values()) * plan.repeat + warmups
    said = [exchange.usage.output_tokens for exchange, _ in recorded.values()]
    answered = sum(count or 0 for count in said) * plan.repeat
    where = f" at {plan.base_url}" if plan.base_url else ""
    print(
        f"would ask {printable(', '.join(plan.models))}{where}: {requests} requests each"
        f" ({plan.warmup} of them to warm up), about {asked:,} tokens;"
        f" the recorded answers had {answered:,} for as many"
    )
    for model in plan.models:
        if model in prices:
            sum_of = cost(chat.Usage(asked, answered), prices[model])
            print(f"  {printable(model)}: about {sum_of:,.4f} by your prices")


# ---- asking


def _measure(
    history: LogReader, run: Benchmark, plan: Plan, recorded: Recorded, ask: Ask, *, is_new: bool
) -> int:
    """Measure what is left, and keep it; give the exit code.

    130 where Ctrl-C has stopped it, 1 where the log has not taken all answers.
    """
    writer = log_writer(history.path, lambda line: _say(f"warning: {line}"))
    writer.start()
    try:
        # Answers may wait beside the log since it could not be written: nobody pays for them twice.
        if not is_new and not wait_for_leftovers(history.path, FLUSH_S):
            raise Unusable(f"{history.path}: what waits beside it can't be taken in")
        todo = tasks(plan, _done(history, run))
        progress = _Progress(todo, plan.concurrency)
        bench = Bench(run.id, plan, recorded, ask, writer, new_id=new_id, tell=progress.tell)
        code = 0
        try:
            asyncio.run(bench.measure(todo))
        except KeyboardInterrupt:
            code = 130
        finally:
            progress.close()
    finally:
        writer.close(FLUSH_S)
    missing = set(todo) - progress.left - _done(history, run)
    if missing:
        answers = "1 answer is" if len(missing) == 1 else f"{len(missing)} answers are"
        _say(f"warning: {answers} not in the log, and not in what follows")
    return code or int(bool(missing))


class _Progress:
    """What a person is told while they wait: one line that changes, or a line for each answer."""

    def __init__(self, todo: Sequence[Task], concurrency: int) -> None:
        self.left = set(todo)
        self._left = Counter(task.model for task in todo)
        self._total = len(todo)
        self._concurrency = concurrency
        self._times_s: dict[str, list[float]] = defaultdict(list)
        self._failed = 0
        self._is_live = sys.stderr.isatty()

    def tell(self, answer: Exchange) -> None:
        """Say that an answer is over."""
        if answer.repeat and answer.status != "cancelled":
            model = answer.model_asked or ""
            self.left.discard(_task_of(answer))
            self._left[model] -= 1
            self._failed += answer.status == "error"
            self._times_s[model].append((answer.duration_ms or 0) / 1000)
        done = f"{self._total - self._left.total()}/{self._total}"
        if not self._is_live:
            warmup = "" if answer.repeat else "warm-up  "
            _say(f"{done}  {warmup}{summary_line(answer)}")
            return
        failed = f", {self._failed} failed" if self._failed else ""
        line = f"{done}{failed}, about {_duration(self._left_s())} left"
        now = f"  {printable(answer.model_asked or '')} {answer.status}"
        room = max(0, shutil.get_terminal_size().columns - 1 - len(line))
        print(f"\r\x1b[K{line}{now[:room]}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the line."""
        if self._is_live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _left_s(self) -> float:
        """How long the rest takes if each model goes on as it has answered so far."""
        every = [fmean(times) for times in self._times_s.values()]
        overall = fmean(every) if every else 0.0
        seconds = sum(
            count * (fmean(self._times_s[model]) if self._times_s[model] else overall)
            for model, count in self._left.items()
        )
        return seconds / self._concurrency


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _next(run: Benchmark, code: int) -> str:
    if code:
        why = "stopped" if code == 130 else "the log has not all of it"
        return f"{why}; to go on: bench --resume {shlex.quote(run.name)}"
    return f"as a page: report {shlex.quote(run.name)} --html FILE"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
