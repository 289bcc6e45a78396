"""Load and render the pages about the log. Imported when one is asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from urllib.parse import parse_qs, unquote

from ..bench.runs import find_run
from ..conversations.threads import newest_id, threads
from ..core.errors import InvalidRequest, NotFound, ProxyError
from ..recorder.ids import EXCHANGES_AND_TURNS, find_id
from ..recorder.listing import Filter
from ..recorder.paging import Choices, Page, choices, page_of
from ..recorder.previews import previews
from ..recorder.reader import LogReader
from ..report.conversation import CACHE_TIME_S, cache_misses, load_conversation
from ..report.data import Study
from ..report.figures import figures
from ..report.html import document
from ..report.html.conversation_list import conversation_list
from ..report.html.conversation_page import conversation_page
from ..report.html.exchange_list import CHOICES, IN_ADDRESS, STATUSES, Query, exchange_list
from ..report.html.exchange_page import exchange_page
from ..report.html.page import study_body
from ..report.load import LOG_TITLE, study_of_log
from ..report.numbers import shortened

ROWS = 50  # of a list: a phone shows it at once
CONVERSATIONS = 30
STEPS = 30  # exchanges of a conversation that are shown completely
STUDIED = 100  # exchanges whose figures are computed
SEARCH_S = 0.15  # in which a list looks through the log


def log_page(database: Path, path: str, query: str, base_url: str, root: str) -> tuple[int, str]:
    """Return the status and the HTML of a page; the log need not exist yet.

    path: that of the page, below whatever is before it. query: of the address, as it was sent.
    base_url: this proxy's address, shown while nothing is recorded yet. root: the address of the
    list, relative to the one that the client has asked for.
    """
    given = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
    kind, _, id = path.strip("/").partition("/")
    try:
        return 200, _page(database, kind, unquote(id), given, base_url, root)
    except ProxyError as error:
        status = error.status if isinstance(error, NotFound) else 400
        title = "Not found" if status == 404 else "Error"
        return status, document.failure(title, f"{error}", root)


def _page(
    database: Path, kind: str, id: str, given: dict[str, str], base_url: str, root: str
) -> str:
    if not database.exists():
        return _without_log(kind, id, base_url, root)
    with LogReader(database, asks_models=False) as log:
        match kind:
            case "":
                return _exchanges(log, given, base_url, root)
            case "exchanges" if id:
                return _exchange(log, id, root)
            case "conversations" if id:
                return _conversation(log, id, given, root)
            case "conversations":
                return _conversations(log, given, base_url, root)
            case "figures":
                _check_address(given, ())
                return _figures(study_of_log(log, Filter(), last=STUDIED), root)
    raise NotFound("there is no such page")


def _without_log(kind: str, id: str, base_url: str, root: str) -> str:
    if id:
        raise NotFound("nothing is recorded yet")
    if kind == "figures":
        return _figures(Study(title=LOG_TITLE, is_run=False), root)
    if kind == "conversations":
        return conversation_list([], None, is_first=True, base_url=base_url, root=root)
    return exchange_list(Query(root=root), Page([]), {}, Choices((), ()), base_url=base_url)


def _exchanges(log: LogReader, given: dict[str, str], base_url: str, root: str) -> str:
    _check_address(given, IN_ADDRESS)
    query = Query(**{name: value.strip() for name, value in given.items()}, root=root)
    chosen = Filter(
        search=query.search or None,
        status=next((status for status in STATUSES if status == query.status), None),
        client=query.client or None,
        model=query.model or None,
        run=query.run or None,
        has_run=query.sent == "benchmark" if query.sent else None,
    )
    found = page_of(log, chosen, before=_before(log, query.before), count=ROWS, time_s=SEARCH_S)
    said = previews(log.rows, [entry.id for entry in found.entries])
    return exchange_list(query, found, said, choices(log), base_url=base_url)


def _before(log: LogReader, text: str) -> str | None:
    """Return the id before which a list goes on; any other text would show it from its start."""
    if not text:
        return None
    id = find_id(log.rows, EXCHANGES_AND_TURNS, text)
    if id is None:
        raise NotFound(f"the log has no exchange {shortened(text, 100)}")
    return id


def _check_address(given: Mapping[str, str], filters: Collection[str]) -> None:
    """Refuse a filter that a page doesn't have: it would show all as if that were filtered.

    filters: the names that this page takes from its address.

    Raises:
        InvalidRequest: there is no such filter, or one can't have such a value.
    """
    for name, value in given.items():
        if name not in filters:
            raise InvalidRequest(_no_such("filter", name, filters))
        allowed = CHOICES.get(name, {})
        if allowed and value.strip() not in {"", *allowed}:
            raise InvalidRequest(_no_such(name, value, allowed))


def _no_such(kind: str, name: str, known: Collection[str]) -> str:
    which = f"possible: {', '.join(known)}" if known else "this page has none"
    return f"there is no {kind} {shortened(name, 100)!r}; {which}"


def _exchange(log: LogReader, id: str, root: str) -> str:
    exchange = log.exchange(id)
    misses = cache_misses(log, [exchange.id], CACHE_TIME_S)
    linked = (exchange.previous_id, exchange.recorded_id, exchange.replay_of)
    named = tuple(id for id in linked if id is not None)
    run = None if exchange.run_id is None else find_run(log, exchange.run_id).name
    return exchange_page(
        exchange,
        previews(log.rows, [exchange.id]).get(exchange.id),
        misses.get(exchange.id),
        frozenset(log.ids(Filter(ids=named)) if named else ()),
        root,
        run=run,
    )


def _conversation(log: LogReader, id: str, given: dict[str, str], root: str) -> str:
    _check_address(given, ("from",))
    word = given.get("from", "0")
    first = int(word) if word.isascii() and word.isdigit() and len(word) < 10 else -1
    found = load_conversation(log, id, first=max(first, 0), count=STEPS, time_s=CACHE_TIME_S)
    if not 0 <= first < len(found.rows):
        raise InvalidRequest(
            f"from: expected a number below {len(found.rows):,}, not {word[:100]!r}"
        )
    return conversation_page(found, STEPS, root)


def _conversations(log: LogReader, given: dict[str, str], base_url: str, root: str) -> str:
    _check_address(given, ("before",))
    before = _before(log, given.get("before", ""))
    found = threads(log, Filter(), last=CONVERSATIONS, before=before)[::-1]
    is_full = len(found) == CONVERSATIONS
    oldest = newest_id(log, found[-1].id) if is_full else None
    return conversation_list(found, oldest, is_first=before is None, base_url=base_url, root=root)


def _figures(study: Study, root: str) -> str:
    body = study_body(study, figures(study), has_requests=False)
    return document.served("Figures", body, root=root, place="figures", styles=document.ALL_STYLES)
