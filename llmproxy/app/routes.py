"""Routing: from a request's path and method to a dialect and one of its routes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from functools import cache, lru_cache

from ..core.backend import CHAT_KINDS, Kind, Route
from ..core.errors import MethodNotAllowed, NotFound, Unsupported, UpgradeRequired
from ..dialects import DIALECTS, Dialect
from ..transport.http11 import Request

# What clients put before a route's path: an API's version, the prefixes under which providers
# serve the API, and Azure's deployments, whose name is the model's. The last two come from a base
# URL that is a route already.
_PREFIX = re.compile(
    r"/+(?:v1(?:beta)?|api|openai|anthropic|deployments/+(?P<model>[^/]+)|chat/+completions|messages)"
    r"\s*(?=/|$)"
)

MAX_PREFIXES = 8  # more are no base URL
MAX_REMEMBERED_PATH = 200


def bare_path(path: str) -> str:
    """Strip `/v1`, once or repeated, and slashes at the end: clients differ in these."""
    return re.sub(r"^(?:/+v1(?=/|$))+", "", path).rstrip("/")


_ROUTES = [
    (
        dialect,
        route,
        re.compile(
            route.path.removeprefix("/v1")
            .rstrip("/")
            .replace("/", "/+")
            .replace("{id}", "(?P<argument>[^/]+)")
            + (r"/+(?P<argument>.+)" if route.path.endswith("/") else ""),
            re.DOTALL,
        ),
    )
    for dialect in DIALECTS
    for route in dialect.ROUTES
]


# So that whoever reads the error knows which setting of the client to look for.
_OTHER_APIS = {
    "OpenAI's images": re.compile(r"/images(/|$)"),
    "OpenAI's audio": re.compile(r"/audio(/|$)"),
    "OpenAI's Realtime": re.compile(r"/realtime(/|$)"),
    "OpenAI's Assistants": re.compile(r"/(assistants|threads)(/|$)"),
    "OpenAI's moderations": re.compile(r"/moderations$"),
    "batches and files": re.compile(r"/(batches|files|uploads|vector_stores|fine_tuning)(/|$)"),
    "Gemini's API": re.compile(r":(stream)?generate_?content$|:(embed|count)\w+$", re.IGNORECASE),
    "Bedrock's API": re.compile(r"/model/[^/]+/(invoke|converse)"),
    "Cohere's API": re.compile(r"^/+v2/(chat|embed|rerank)$"),
}


def find_route(request: Request) -> tuple[Dialect, Kind, str]:
    """Return the dialect, the kind of the route, and its argument if it takes one, else "".

    Known prefixes before a route's path are skipped as long as no route fits. The argument of a
    chat in one of Azure's deployments is the name of the model.

    Raises:
        NotFound: no route has this path.
        Unsupported: the route is one that this server refuses, and says why.
        MethodNotAllowed: the path has no route for this method.
        UpgradeRequired: the client asks for WebSocket, on whatever path.
    """
    if request.method == "GET" and request.headers.get("upgrade", "").lower() == "websocket":
        # At this status Codex goes on over HTTP at once; at 405 it tries for 7 s (0.171). A
        # tunnel would hide from the log what is said: each message of Codex's refers to what
        # the connection has heard before, so that no request in it is complete.
        raise UpgradeRequired(
            "this server speaks no WebSocket: send the request by HTTP POST",
            headers={"upgrade": "HTTP/1.1", "connection": "upgrade"},
        )
    path = request.path.rstrip("/")
    method = "GET" if request.method == "HEAD" else request.method
    match = _match if len(path) <= MAX_REMEMBERED_PATH else _match.__wrapped__
    found, allowed = match(path, method, _version_headers(request))
    if found is not None:
        dialect, route, argument = found
        if route.kind == "refused":
            raise Unsupported(route.refusal)
        return dialect, route.kind, argument
    if allowed:
        raise method_not_allowed(request, allowed)
    *others, last = _paths_to_set(dialect_of(request))
    known = f"{', '.join(others)} or {last}" if others else last
    api = next((name for name, words in _OTHER_APIS.items() if words.search(path)), None)
    of = f" ({api})" if api else ""
    raise NotFound(f"{request.path[:200]} is not supported{of}; set the client to {known}")


@lru_cache(maxsize=128)  # programs ask for few paths, most of which all routes are tried on
def _match(
    path: str, method: str, sent: frozenset[str]
) -> tuple[tuple[Dialect, Route, str] | None, frozenset[str]]:
    """Return the route of a path and its argument, or the methods that the path takes.

    sent: the headers among the request's that only one dialect's clients send.
    """
    for start, prefixes, model in _starts(path):
        allowed: set[str] = set()
        for dialect, route, pattern in _routes_for(sent, prefixes):
            found = pattern.fullmatch(path, start)
            if found is None:
                continue
            if route.method == method:
                argument = found.groupdict().get("argument") or model
                return (dialect, route, argument), frozenset()
            allowed |= {route.method} | ({"HEAD"} if route.method == "GET" else set())
        if allowed:
            return None, frozenset(allowed)
    return None, frozenset()


def _starts(path: str) -> Iterator[tuple[int, set[str], str]]:
    """Yield where a route's path may begin, with the prefixes before it and Azure's model."""
    start, prefixes, model = 0, set[str](), ""
    for _ in range(MAX_PREFIXES):
        yield start, prefixes, model
        prefix = _PREFIX.match(path, start)
        if prefix is None:
            return
        start, model = prefix.end(), prefix["model"] or model
        prefixes.add(prefix[0].strip("/ "))


def is_below_api(request: Request) -> bool:
    """Return whether a path without a route is one of an API, by its prefix or first part."""
    path = request.path.rstrip("/")
    firsts = {_first_part(route.path.removeprefix("/v1")) for _, route, _ in _ROUTES}
    return any(start or _first_part(path[start:]) in firsts for start, *_ in _starts(path))


def without_vendor(request: Request, dialect: Dialect) -> str:
    """Return a request's path as it was sent, without a vendor's name that clients put before."""
    path = request.target_path
    vendor, slash, rest = path.lstrip("/").partition("/")
    return slash + rest if slash and vendor == dialect.NAME.partition("_")[0] else path


def dialect_of(request: Request) -> Dialect:
    """Return the dialect in whose format an error of any request is rendered.

    It is the one that has the route, else one with a route below the same first part of the path
    (`/v1/messages/batches`, `/api/tokenize`), else the client's own, else the first.
    """
    path = request.path.rstrip("/")
    found: Dialect | None = None
    sent = _version_headers(request)
    routes, prefixes = _routes_for(sent, set()), set[str]()
    for start, prefixes, _ in _starts(path):
        first = _first_part(path[start:])
        routes = _routes_for(sent, prefixes)
        for dialect, _, pattern in routes:
            if pattern.fullmatch(path, start):
                return dialect
        below = (d for d, r, _ in routes if first == _first_part(r.path.removeprefix("/v1")))
        found = next(below, found)
    if found is not None and ("v1" not in prefixes or _has_version(found)):
        return found
    return routes[0][0]


def _has_version(dialect: Dialect) -> bool:
    return any(route.path.startswith("/v1") for route in dialect.ROUTES)


def _first_part(path: str) -> str:
    return path.lstrip("/").partition("/")[0]


def _paths_to_set(dialect: Dialect) -> list[str]:
    """Return the paths of models in the APIs of this dialect's vendor."""
    vendor = dialect.NAME.partition("_")[0]
    return [
        route.path
        for other in DIALECTS
        if other.NAME.partition("_")[0] == vendor
        for route in other.ROUTES
        if route.kind in CHAT_KINDS or route.kind in ("chat_batch", "embeddings")
    ]


def method_not_allowed(request: Request, allowed: Collection[str]) -> MethodNotAllowed:
    """Return the error for a method, with those that are allowed."""
    allow = ", ".join(sorted(allowed))
    return MethodNotAllowed(
        f"{request.path[:200]} takes {allow}, not {request.method[:20]}",
        headers={"allow": allow},
    )


def _routes_for(
    sent: frozenset[str], prefixes: set[str]
) -> list[tuple[Dialect, Route, re.Pattern[str]]]:
    """Sort the routes: those of the client's own dialect first, since some paths are shared.

    A header that only its clients send says more than a prefix, which people write.
    """
    return _sorted_routes(sent, _PREFIXES.intersection(prefixes))


def _version_headers(request: Request) -> frozenset[str]:
    return _VERSION_HEADERS.intersection([name for name, _ in request.headers])


_VERSION_HEADERS = frozenset(dialect.VERSION_HEADER for dialect in DIALECTS)
_PREFIXES = frozenset(dialect.NAME.partition("_")[0] for dialect in DIALECTS)


@cache  # 15 µs of each request
def _sorted_routes(
    sent: frozenset[str], prefixes: frozenset[str]
) -> list[tuple[Dialect, Route, re.Pattern[str]]]:
    return sorted(
        _ROUTES,
        key=lambda row: (
            row[0].VERSION_HEADER not in sent,
            row[0].NAME.partition("_")[0] not in prefixes,
        ),
    )
