"""`bench`: send recorded requests to other models, and measure how they answer."""

from __future__ import annotations

import argparse
import asyncio
import re
import shlex
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from statistics import fmean
from typing import Any, TextIO, get_args
from urllib.parse import urlsplit

import llm

from ..backends.engine import Engine
from ..backends.log_source import exchange_request
from ..backends.upstream import Upstream
from ..backends.upstreams import NamedUpstream, Upstreams
from ..bench.bench import Bench, Cache, Plan, Task, list_tasks, read_plan
from ..bench.runs import (
    LAST,
    Benchmark,
    claim_run,
    find_run,
    list_run_names,
    save_run,
    wait_for_leftovers,
)
from ..core import chat, token_estimate
from ..core.backend import Backend, chat_path
from ..core.errors import InvalidRequest, NoConnection, NotFound, ProxyError
from ..core.text import printable
from ..core.usage import Usage
from ..dialects import DIALECTS, by_name
from ..proxy import SettingsError, all_models, log_writer
from ..recorder.database import StoreError, Unusable
from ..recorder.exchange import Exchange, new_id
from ..recorder.listing import Filter
from ..recorder.reader import LogReader
from ..recorder.store import logs_on
from ..recorder.summary import ExchangeSummary
from ..report.data import Study
from ..report.load import study_of_run
from ..report.numbers import NO_BREAK, count_of, money
from ..report.prices import Price, cost, of_models
from ..serving import StopSignals
from ..transport.connections import Proxies, trust
from .arguments import (
    TIME_HELP,
    Parser,
    add_database,
    add_filters,
    add_parallel,
    add_prices,
    count,
    database_of,
    filter_of,
    prices_of,
    resolve_ids,
)
from .report_table import prices_for, print_table
from .run import FAILED, INTERRUPTED, run
from .signals import interruptible
from .summary_text import summary_line
from .terminal import has_cursor, print_line

NEWEST = 20  # recorded requests, by default
FLUSH_S = 10.0  # to write the log at the end
# Errors that the same request to the same model meets again.
FINAL = frozenset(("invalid_request", "context_length", "too_large"))

Recorded = dict[str, tuple[Exchange, chat.ChatRequest]]


def main(argv: Sequence[str], program: str) -> int:
    """Run `bench` with these arguments and return its exit code."""
    name = f"{program} bench"
    parser = _parser(name)
    arguments = parser.parse_args(argv)
    if arguments.resume is None and not arguments.models:
        parser.error("name the models to benchmark: --models A,B (llm models lists them)")
    if arguments.resume is not None and _is_new_run(arguments):
        parser.error("--resume continues a run as it began; it allows only --key and --base-url")
    with interruptible():
        return run(name, lambda: _bench(arguments), StoreError)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=program,
        description="Send recorded requests to models, measure how they answer, and record the "
        f"responses. Without filters, the newest {NEWEST} requests are sent.",
        epilog=TIME_HELP,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--models", type=_names, metavar="A,B,C", help="models to send the requests to")
    add_filters(
        parser,
        last="the newest N",
        dialect="sent to this API; with --base-url, the API of that server",
    )
    add("--repeat", type=count, metavar="N", help="send each request N times (1)")
    add("--concurrency", type=count, metavar="N", help="requests at a time, over all models (1)")
    add_parallel(parser)
    add(
        "--warmup",
        type=_count_or_zero,
        metavar="N",
        help="uncounted requests to each model first (1)",
    )
    add(
        "--cache",
        choices=get_args(Cache),
        help="send requests as recorded (as-is), or put a unique line first, so that no prompt is "
        "in the provider's cache (cold)",
    )
    add("--max-tokens", type=count, metavar="N", help="limit replies to N tokens")
    add(
        "--timeout",
        dest="timeout_s",
        type=_seconds,
        metavar="SECONDS",
        help="give up on a response after SECONDS (default: never)",
    )
    add(
        "--base-url",
        type=_server,
        metavar="URL",
        help="send to this server instead of llm's models; also an upstream, as --upstream of the "
        "server takes it: anthropic, NAME=DIALECT+URL",
    )
    add("--key", metavar="NAME", help="the server's key, or its name in `llm keys`")
    add("--name", type=_run_name, help="name of the run (default: the time)")
    add(
        "--resume",
        nargs="?",
        const=LAST,
        metavar="NAME",
        help="continue a run that was stopped, and send its failed requests again (default: the "
        "newest)",
    )
    add("--dry-run", action="store_true", help="print what would be sent, and send nothing")
    add_prices(parser)
    add_database(parser)
    parser.set_defaults(id=None, run=None)
    return parser


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise argparse.ArgumentTypeError("expected names, separated by commas")
    return names


def _count_or_zero(text: str) -> int:
    return 0 if text == "0" else count(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError("expected a number of seconds above 0")
    return seconds


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        is_url = is_url and text.isascii() and text.isprintable() and " " not in text
    except ValueError:
        is_url = False
    if not is_url or parts.username is not None or parts.query or parts.fragment:
        raise argparse.ArgumentTypeError(
            "expected http(s)://host[:port][/path] and nothing else; give a key with --key"
        )
    return text


def _server(text: str) -> str | NamedUpstream:
    """Return a server's URL, or an upstream."""
    if re.match(r"[a-z]+://", text):
        return _url(text)
    try:
        (upstream,) = Upstreams([text]).servers.values()
    except SettingsError as exc:
        raise argparse.ArgumentTypeError(str(exc).removeprefix("upstreams: ")) from exc
    return upstream


def _at(plan: Plan, server: str | NamedUpstream, dialect: str | None) -> Plan:
    """Return a plan whose requests go to a server, in its dialect or that of the upstream."""
    if isinstance(server, str):
        return replace(plan, base_url=server, dialect=dialect, upstream=None)
    own = dialect if dialect in server.dialects else server.dialect
    url = server.url_for(chat_path(by_name(own).ROUTES))
    return replace(plan, base_url=url, dialect=own, upstream=server.name)


def _run_name(text: str) -> str:
    if not text.strip() or text == LAST or not text.isprintable():
        raise argparse.ArgumentTypeError(f"expected a printable name other than {LAST!r}")
    return text


def _is_new_run(arguments: argparse.Namespace) -> bool:
    """Whether any argument makes sense only for a new run."""
    names = "models last repeat concurrency warmup cache max_tokens timeout_s name".split()
    is_given = arguments.dry_run or any(vars(arguments)[name] is not None for name in names)
    return is_given or filter_of(arguments) != Filter()


# ---- what to send


def _bench(arguments: argparse.Namespace) -> int:
    database = database_of(arguments)
    prices = prices_of(arguments)
    with LogReader(database) as history:
        is_new = arguments.resume is None
        begun, plan = (_new if is_new else _resumed)(history, arguments)
        recorded = _recorded(history, plan.ids)
        if not recorded and is_new:
            raise NotFound("the log has no request that matches and could be sent again")
        if not recorded:
            raise NotFound("there is nothing to send: the log has no request of this run any more")
        plan = replace(plan, ids=[id for id in plan.ids if id in recorded])
        backend = _backend(plan, arguments.key, arguments.parallel)
        if arguments.dry_run:
            _print_plan(plan, recorded, of_models(prices, plan.models))
            return 0
        if not logs_on():
            raise SettingsError("can't record responses: llm's logs are off (llm logs on)")
        run = replace(begun, settings=asdict(plan)) if is_new else begun
        with claim_run(database, run):
            save_run(database, run)
            stopped, sent = _measure(history, run, plan, recorded, backend, is_new=is_new)
            answers = _answers(history, run)
            missing = len(sent - answers.keys())
            is_whole = not missing and not list_tasks(plan, {*map(_task_of, answers.values())})
            if is_whole and not stopped and (sent or run.ended is None):
                run = replace(run, ended=_end(answers.values()))
                save_run(database, run)
        study = study_of_run(history, run)
        print_table(study, prices_for(prices, study.models))
        _print_next_step(study, stopped=bool(stopped), missing=missing, is_whole=is_whole)
        has_answer = any(answer.status == "ok" for answer in answers.values())
        return stopped or (0 if is_whole and has_answer else FAILED)


def _answers(history: LogReader, run: Benchmark) -> dict[str, ExchangeSummary]:
    """Return what was measured, by id: without warm-ups and what a stop cut short."""
    entries = history.entries(Filter(run=run.id))
    return {each.id: each for each in entries if each.repeat and each.status in ("ok", "error")}


def _end(answers: Iterable[ExchangeSummary]) -> datetime:
    """Return when the last response ended."""
    return max(each.received + timedelta(milliseconds=each.duration_ms or 0) for each in answers)


def _new(history: LogReader, arguments: argparse.Namespace) -> tuple[Benchmark, Plan]:
    now = datetime.now(UTC)
    id, name, names = new_id(), arguments.name, list_run_names(history)
    if name is None:
        name = f"{now.astimezone():%Y-%m-%d-%H%M%S}"
        name = f"{name}-{id[-4:]}" if name in names else name
    elif name in names:
        raise InvalidRequest(f"the run {name!r} exists already: continue it with --resume")
    resolve_ids(history, arguments)
    chosen = replace(filter_of(arguments), is_traffic=True)
    if arguments.base_url:
        chosen = replace(chosen, dialect=None)
    last = arguments.last
    if chosen == Filter(is_traffic=True) and last is None:
        last = NEWEST
    if chosen.status is None and chosen.ids is None:
        chosen = replace(chosen, status="ok")
    plan = Plan(
        models=[*arguments.models],
        ids=history.ids(chosen, last=last),
        repeat=arguments.repeat or Plan.repeat,
        concurrency=arguments.concurrency or Plan.concurrency,
        warmup=Plan.warmup if arguments.warmup is None else arguments.warmup,
        cache=arguments.cache or Plan.cache,
        max_tokens=arguments.max_tokens,
        timeout_s=arguments.timeout_s,
    )
    if arguments.base_url:
        plan = _at(plan, arguments.base_url, arguments.dialect or DIALECTS[0].NAME)
    return Benchmark(id, name, now, None, {}), plan


def _resumed(history: LogReader, arguments: argparse.Namespace) -> tuple[Benchmark, Plan]:
    run = find_run(history, arguments.resume)
    plan = read_plan(run.settings)
    if plan is None:
        raise InvalidRequest("the log lacks this run's settings, so it can't be continued")
    if arguments.base_url and plan.base_url:
        plan = _at(plan, arguments.base_url, plan.dialect)
    return run, plan


def _task_of(entry: ExchangeSummary) -> Task:
    return Task(entry.model_asked or "", entry.recorded_id or "", entry.repeat or 0)


def _is_final(entry: ExchangeSummary) -> bool:
    """Whether a request failed because its model can't take it, so that it isn't sent again."""
    return entry.status == "error" and entry.error_kind in FINAL


def _recorded(history: LogReader, ids: Sequence[str]) -> Recorded:
    recorded: Recorded = {}
    for id in ids:
        try:
            exchange = history.exchange(id)
            recorded[id] = exchange, exchange_request(exchange)
        except ProxyError as exc:
            _print_progress(f"skipped: {printable(id)}: {printable(exc.full_message)}")
    return recorded


def _backend(plan: Plan, key: str | None, parallel: Sequence[tuple[str, int]]) -> Backend:
    """Return what sends requests. All models are looked up before the first request.

    Raises:
        ModelNotFound: llm does not have one of them.
    """
    if plan.base_url is not None and plan.dialect is not None:
        if parallel:
            _print_progress("warning: --parallel has no effect with --base-url")
        dialect = by_name(plan.dialect)
        tls = trust() if plan.base_url.startswith("https:") else None
        key = None if key is None else llm.get_key(input=key)
        if key is not None and not (key.isascii() and key.isprintable() and key == key.strip()):
            raise InvalidRequest("--key has characters that a key can't have")
        proxies = Proxies.of_environment()
        return Upstream(
            dialect, plan.base_url, key=key, tls=tls, proxies=proxies, name=plan.upstream
        )
    catalog = all_models(parallel=parallel)
    catalog.load()
    for name in plan.models:
        asyncio.run(catalog.choose(name))
    for pattern in catalog.unmatched_parallel():
        _print_progress(f"warning: --parallel {printable(pattern)} matches no model")
    return Engine(catalog)


def _print_plan(plan: Plan, recorded: Recorded, prices: Mapping[str, Price]) -> None:
    """Print what would be sent."""
    sizes = {id: token_estimate.estimate(request) for id, (_, request) in recorded.items()}
    for id, (exchange, _) in recorded.items():
        details = f"{exchange.client}  about {sizes[id]:,} tokens  {exchange.first_words}"
        print_line(f"{id}  {printable(details)}")
    warmups = sum(sizes[plan.ids[number % len(plan.ids)]] for number in range(plan.warmup))
    requests = len(plan.ids) * plan.repeat + plan.warmup
    input_tokens = sum(sizes.values()) * plan.repeat + warmups
    counts = [exchange.usage.output_tokens for exchange, _ in recorded.values()]
    output_tokens = sum(count or 0 for count in counts) * plan.repeat
    where = f" at {plan.base_url}" if plan.base_url else ""
    print_line(
        f"would send {requests} requests to each of {printable(', '.join(plan.models))}{where}"
        f" ({plan.warmup} of them to warm up), about {input_tokens:,} tokens;"
        f" the recorded replies to as many requests had {output_tokens:,}"
    )
    today = datetime.now(UTC).date()
    for model in plan.models if prices else ():
        price = prices.get(model)
        spent = cost(Usage(input_tokens, output_tokens), price, today) if price else None
        about = "no price"
        if price and spent is not None:
            amount = money(spent, price.currency).replace(NO_BREAK, " ")
            about = f"about {amount} by your prices"
        print_line(f"  {printable(model)}: {about}")


# ---- sending and measuring


def _measure(
    history: LogReader,
    run: Benchmark,
    plan: Plan,
    recorded: Recorded,
    backend: Backend,
    *,
    is_new: bool,
) -> tuple[int, set[str]]:
    """Measure what is left, and what failed before, and record it.

    Return 128 plus the signal's number if it was stopped, else 0, and the ids of the responses.
    """
    streams = sys.stdout, sys.stderr
    writer = log_writer(history.path, lambda line: _print_progress(f"warning: {line}", streams[1]))
    writer.start()
    try:
        # Responses may still wait in the spool beside the log: don't pay for them twice.
        if not is_new and not wait_for_leftovers(history.path, FLUSH_S):
            raise Unusable(f"{history.path}: can't take in the responses that wait in its spool")
        newest = {_task_of(each): each for each in _answers(history, run).values()}
        has_moved = plan.base_url != run.settings.get("base_url")
        final = set() if has_moved else {task for task, one in newest.items() if _is_final(one)}
        answered = {task for task, one in newest.items() if one.status == "ok"}
        todo = list_tasks(plan, answered | final)
        if not todo:
            all_of_it = f"all responses ({len(list_tasks(plan)):,})"
            if final:
                all_of_it = f"all responses that can be had ({len(answered):,})"
            _print_progress(f"nothing to send: the log has {all_of_it}", streams[1])
        progress = _Progress(todo, plan.concurrency)
        bench = Bench(run.id, plan, recorded, backend, writer, on_exchange=progress.show)
        try:
            stopped = asyncio.run(_until_stopped(bench.measure(todo)))
        except KeyboardInterrupt:  # before our own handlers were in place
            stopped = INTERRUPTED
        except NoConnection as exc:
            name = shlex.quote(run.name)
            raise NoConnection(
                f"{exc.message}; nothing was measured; to try again: bench --resume {name}"
            ) from exc
        finally:
            progress.close()
    finally:
        writer.close(FLUSH_S)
        # Plugins replace these while they load a model; two that do so at once may leave
        # closed streams behind.
        sys.stdout, sys.stderr = streams
    return stopped, progress.ended


async def _until_stopped(measuring: Coroutine[Any, Any, None]) -> int:
    """Run until the end or a signal; return the signal's exit code, or 0."""
    task = asyncio.ensure_future(measuring)
    signals = StopSignals(task.cancel)
    signals.install()
    try:
        await task
    except asyncio.CancelledError:
        if not signals.exit_code:
            raise
    return signals.exit_code


class _Progress:
    """Progress on stderr: one line that changes on a terminal, else a line per response."""

    def __init__(self, todo: Sequence[Task], concurrency: int) -> None:
        self.ended: set[str] = set()  # ids of responses that are measured
        self._left = Counter(task.model for task in todo)
        self._total = len(todo)
        self._concurrency = concurrency
        self._times_s: dict[str, list[float]] = defaultdict(list)
        self._failed = 0
        self._err = sys.stderr
        self._is_live = has_cursor(self._err)

    def show(self, answer: Exchange, again_s: float | None) -> None:
        """Count and show a response that has ended; again_s: when its request is sent again."""
        if answer.repeat and answer.status != "cancelled":
            self.ended.add(answer.id)
            if again_s is None:
                model = answer.model_asked or ""
                self._left[model] -= 1
                self._failed += answer.status == "error"
                self._times_s[model].append((answer.duration_ms or 0) / 1000)
        done = f"{self._total - self._left.total()}/{self._total}"
        again = "" if again_s is None else f", again in {_duration(again_s)}"
        if not self._is_live:
            warmup = "" if answer.repeat else "warm-up  "
            _print_progress(f"{done}  {warmup}{summary_line(answer)}{again}", self._err)
            return
        failed = f", {self._failed} failed" if self._failed else ""
        line = f"{done}{failed}, about {_duration(self._left_s())} left"
        now = f"  {printable(answer.model_asked or '')} {answer.status}{again}"
        room = max(0, shutil.get_terminal_size().columns - 1 - len(line))
        print(f"\r\x1b[K{line}{now[:room]}", end="", file=self._err, flush=True)

    def close(self) -> None:
        """Clear the line."""
        if self._is_live:
            print("\r\x1b[K", end="", file=self._err, flush=True)

    def _left_s(self) -> float:
        """Estimate the time left from the mean response time of each model so far."""
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


def _print_next_step(study: Study, *, stopped: bool, missing: int, is_whole: bool) -> None:
    name = shlex.quote(study.title)
    failures = [each for each in study.answers if each.counts and each.exchange.status == "error"]
    final = Counter((each.model, each.error_kind) for each in failures if _is_final(each.exchange))
    failed = len(failures) - final.total()
    if missing:
        responses = "1 response is" if missing == 1 else f"{missing} responses are"
        _print_progress(f"warning: {responses} missing from the log and from this report")
    if stopped or not is_whole:
        why = "stopped" if stopped else "the log is incomplete"
        _print_progress(f"{why}; to continue: bench --resume {name}")
        return
    for (model, kind), number in final.items():
        requests, them = count_of(number, "request"), "it is" if number == 1 else "they are"
        _print_progress(f"{printable(model)} can't take {requests} ({kind}); {them} not sent again")
    if failed:
        _print_progress(
            f"{count_of(failed, 'request')} failed; to send again: bench --resume {name}"
        )
    _print_progress(f"as a page: report {name} --html FILE")


def _print_progress(line: str, err: TextIO | None = None) -> None:
    print_line(line, err or sys.stderr)
