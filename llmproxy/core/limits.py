"""The server's limits in one table: name, default, unit and reason.

Each part reads its own fields of a `Limits`, so that one flag (`--limit NAME=VALUE`) sets any
of them, and one list describes them all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, get_type_hints

from .errors import SettingsError
from .field_types import find_wrong_field, name_unknown_fields

OFF = "off"


@name_unknown_fields
@dataclass(frozen=True)
class Limits:
    """The server's limits: sizes in bytes, times (`…_s`) in seconds."""

    body: Annotated[int, "bytes of a decompressed body: ten photos and a long chat"] = 64 * 2**20
    head: Annotated[int, "bytes of request line and headers: cookies can be long"] = 64 * 2**10
    headers: Annotated[int, "header fields in a request: SDKs send about twenty"] = 128
    target: Annotated[int, "bytes of a request target: RFC 9112 3 recommends 8,000"] = 8 * 2**10
    json_depth: Annotated[int, "levels of nested JSON: tools' schemas have about ten"] = 100
    json_values: Annotated[int, "JSON values in a body: long sessions have 100,000"] = 500_000
    int_digits: Annotated[int, "digits of a JSON number: parsing takes quadratic time"] = 400
    connections: Annotated[int, "open at once, more are refused: each takes a descriptor"] = 4_000
    running: Annotated[int, "responses at once, more must wait: each may take a thread"] = 256
    answer: Annotated[int, "bytes of memory for a running response: 500,000 tokens"] = 256 * 2**20
    header_s: Annotated[float, "time for a request head to arrive, from its first byte"] = 10.0
    body_s: Annotated[float, "between two reads of a body: bad mobile connections stall"] = 60.0
    idle_s: Annotated[float, "time a kept-alive connection may be idle"] = 120.0
    stall_s: Annotated[float, "until a client that reads nothing is disconnected"] = 300.0
    queue_s: Annotated[float, "time in queue; then a busy model is a 503, our limit a 429"] = 30.0
    answer_s: Annotated[float, "time for a whole response: models may think for an hour"] = math.inf
    first_event_s: Annotated[float, "time the status waits for the model's first event"] = 10.0
    keepalive_s: Annotated[float, "silence before a keep-alive: proxies disconnect after 30"] = 10.0
    log_wait_s: Annotated[float, "time a response's end waits for the log's commit"] = 1.0
    shutdown_s: Annotated[float, "time for running responses to end at shutdown"] = 30.0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: one is not a number above 0.
        """
        wrong = find_wrong_field(self)
        if wrong:
            raise SettingsError(f"limit {wrong}")
        for name, value in vars(self).items():
            if value <= 0:
                raise SettingsError(f"limit {name} takes a number above 0, not {value}")


def describe() -> list[str]:
    """Return a line `name=default  reason` for each limit, in order."""
    reasons = get_type_hints(Limits, include_extras=True)
    return [
        f"{name}={_format(default)}  {reasons[name].__metadata__[0]}"
        for name, default in vars(Limits()).items()
    ]


def _format(value: float) -> str:
    return OFF if value == math.inf else f"{value}"


def parse_limits(settings: Iterable[str]) -> Limits:
    """Parse `NAME=VALUE` arguments of `--limit`; other limits keep their defaults.

    A limit that is off by default may be set to "off".

    Raises:
        ValueError: an unknown name, or a value that is not a number above 0.
    """
    defaults: dict[str, int | float] = vars(Limits())
    chosen: dict[str, int | float] = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in defaults:
            raise ValueError(f"unknown limit {name!r}; limits are: {', '.join(defaults)}")
        default = defaults[name]
        try:
            value = default if text == _format(default) else type(default)(text)
        except ValueError:
            value = 0
        if not 0 < value < math.inf and value != default:
            raise ValueError(f"limit {name} takes a number above 0, not {text!r}")
        chosen[name] = value
    return Limits(**chosen)  # type: ignore[arg-type]  # each value has its field's own type
