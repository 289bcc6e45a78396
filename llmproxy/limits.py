"""Every limit of the server in one table: name, default, unit and reason.

A room is given a `Limits` and reads the fields that are its own, so that one
flag (`--limit NAME=VALUE`) changes any of them and one list describes them all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Annotated, get_type_hints

__all__ = ["Limits", "describe", "limits_from"]


@dataclass(frozen=True)
class Limits:
    """What the server takes and how long it waits: sizes in bytes, times (`…_s`) in seconds."""

    body: Annotated[int, "bytes of a body, inflated: ten photos and a long chat"] = 64 * 2**20
    head: Annotated[int, "bytes of request line and headers: cookies can be long"] = 64 * 2**10
    headers: Annotated[int, "header fields: SDKs send about twenty"] = 128
    target: Annotated[int, "bytes of a request target: RFC 9112 3 asks for 8,000"] = 8 * 2**10
    json_depth: Annotated[int, "levels of JSON: schemas of tools nest about ten"] = 100
    int_digits: Annotated[int, "digits of a JSON number: json alone takes quadratic time"] = 400
    header_s: Annotated[float, "until a begun request head is whole"] = 10.0
    body_s: Annotated[float, "between two reads of a body: phones on bad lines stall"] = 60.0
    idle_s: Annotated[float, "a kept-alive connection without a request"] = 120.0
    stall_s: Annotated[float, "until a client that reads nothing is given up"] = 300.0
    first_event_s: Annotated[float, "the status waits so long for the model's first event"] = 10.0
    keepalive_s: Annotated[float, "silence before a keep-alive: proxies cut at 30"] = 10.0
    log_wait_s: Annotated[float, "an answer's end waits this long for its commit"] = 1.0
    shutdown_s: Annotated[float, "running answers may end for this long at shutdown"] = 30.0


def describe() -> list[str]:
    """Say every limit as a line `name=default  reason`, in their order."""
    reasons = get_type_hints(Limits, include_extras=True)
    return [f"{f.name}={f.default}  {reasons[f.name].__metadata__[0]}" for f in fields(Limits)]


def limits_from(words: Iterable[str]) -> Limits:
    """Read `NAME=VALUE` words, as `--limit` gives them, over the defaults.

    Raises:
        ValueError: a name that is no limit, or a value that is not a number above 0.
    """
    kinds: dict[str, type[int] | type[float]] = {n: type(v) for n, v in vars(Limits()).items()}
    chosen: dict[str, int | float] = {}
    for word in words:
        name, _, text = word.partition("=")
        if name not in kinds:
            raise ValueError(f"no limit is called {name!r}; there are: {', '.join(kinds)}")
        try:
            value = kinds[name](text)
        except ValueError:
            value = 0
        if not 0 < value < math.inf:
            raise ValueError(f"limit {name} takes a number above 0, not {text!r}")
        chosen[name] = value
    return Limits(**chosen)  # type: ignore[arg-type]  # each value has its field's own type
