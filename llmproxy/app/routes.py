"""Routing: from a request's path and method to a dialect and one of its routes."""

from __future__ import annotations

from ..core.backend import Kind, Route
from ..core.errors import MethodNotAllowed, NotFound
from ..dialects import DIALECTS, Dialect
from ..transport.http11 import Request


def bare_path(path: str) -> str:
    """Strip `/v1`, once or repeated, and a trailing slash: clients differ in these."""
    while path.startswith("/v1/"):
        path = path[3:]
    return path.rstrip("/")


_ROUTES = [(dialect, route) for dialect in DIALECTS for route in dialect.ROUTES]


def find_route(request: Request) -> tuple[Dialect, Kind, str]:
    """Return the dialect, the kind of the route, and its argument if it takes one, else "".

    Raises:
        NotFound: no route has this path.
        MethodNotAllowed: the path has no route for this method.
    """
    path = bare_path(request.path)
    method = "GET" if request.method == "HEAD" else request.method
    allowed: set[str] = set()
    for dialect, route in _routes_for(request):
        bare, rest = bare_path(route.path), ""
        if route.path.endswith("/") and path.startswith(bare + "/"):
            rest = path.removeprefix(bare + "/")
        elif path != bare or route.path.endswith("/"):
            continue
        if route.method == method:
            return dialect, route.kind, rest
        allowed |= {route.method} | ({"HEAD"} if route.method == "GET" else set())
    if allowed:
        raise method_not_allowed(request, allowed)
    known = ", ".join(dict.fromkeys(_shown(route) for _, route in _ROUTES))
    raise NotFound(f"no route {request.path[:200]}; the routes are {known}")


def dialect_of(request: Request) -> Dialect:
    """Return the dialect in whose format an error of any request is rendered.

    It is the one with a route below the same first part of the path (`/v1/messages/batches`),
    else the client's own, else the first.
    """
    first = _first_part(request.path)
    found = [dialect for dialect, route in _routes_for(request) if _first_part(route.path) == first]
    return (found or [dialect for dialect, _ in _routes_for(request)])[0]


def _first_part(path: str) -> str:
    return bare_path(path).removeprefix("/").partition("/")[0]


def _shown(route: Route) -> str:
    return f"{route.method} {route.path}{'{id}' if route.path.endswith('/') else ''}"


def method_not_allowed(request: Request, allowed: set[str]) -> MethodNotAllowed:
    """Return the error for a method, with those that are allowed."""
    allow = ", ".join(sorted(allowed))
    return MethodNotAllowed(
        f"{request.method[:20]} is not allowed on {request.path[:200]}: use {allow}",
        headers={"allow": allow},
    )


def _routes_for(request: Request) -> list[tuple[Dialect, Route]]:
    """Sort the routes: those of the client's own dialect first, since some paths are shared."""
    return sorted(_ROUTES, key=lambda pair: not _is_client_of(pair[0], request))


def _is_client_of(dialect: Dialect, request: Request) -> bool:
    return bool(dialect.VERSION_HEADER) and dialect.VERSION_HEADER in dict(request.headers)
