"""The cost of responses, by prices from the user's file. No prices are built in.

The file is JSON: `{"currency": "USD", "model": {"input": 2.5, "cached": 1.25, "output": 10}}`, per
million tokens. The currency may be left out; then sums have no unit. A model that has changed its
prices has a list of them, with `from_date` and `to_date`.

Or it is what llm-prices.com publishes, current or historical:
https://github.com/simonw/llm-prices#json-apis
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from ..core import payload
from ..core.errors import InvalidRequest
from ..core.usage import Usage

TOKENS = 1_000_000  # the unit of vendors' price lists
MAX_CURRENCY_CHARS = 12
MAX_PRICE = 10**9  # per million tokens: keeps every sum within a double


@dataclass(frozen=True)
class Price:
    """Prices of a model per million tokens.

    cached: of input read from the provider's cache; cache_write: of input written to it.
        Both default to the price of other input.
    cache_write_1h: of input written to the cache for an hour, by default as cache_write.
    currency: in which they are; empty if the file doesn't say.
    from_date, to_date: the first day on which they hold, and the first on which they don't.
    others: the model's prices at other times.
    """

    input: float
    output: float
    cached: float | None = None
    cache_write: float | None = None
    cache_write_1h: float | None = None
    currency: str = ""
    from_date: date = date.min
    to_date: date = date.max
    others: tuple[Price, ...] = ()

    def on(self, day: date) -> Price | None:
        """Return the prices of a day (UTC), None if there are none."""
        held = [one for one in (self, *self.others) if one.from_date <= day < one.to_date]
        return max(held, key=lambda one: one.from_date, default=None)


@dataclass(frozen=True)
class _Written:
    """A price in the user's own file."""

    input: float
    output: float
    cached: float | None = None
    cache_write: float | None = None
    cache_write_1h: float | None = None
    currency: str = ""
    from_date: str | None = None
    to_date: str | None = None


@dataclass(frozen=True)
class _Published:
    """A price in a file of llm-prices.com, in which a user may have added those of writes."""

    id: str
    input: float
    output: float
    input_cached: float | None = None
    cache_write: float | None = None
    cache_write_1h: float | None = None
    from_date: str | None = None
    to_date: str | None = None


@dataclass(frozen=True)
class _PublishedFile:
    prices: list[_Published]


def load_prices(data: bytes) -> dict[str, Price]:
    """Parse a file of prices, by model.

    Raises:
        InvalidRequest: it is not such JSON. Unknown members are refused too, by their path:
            a misspelt one would make the sums wrong without a sign of it. In a file of
            llm-prices.com they are ignored, since nobody has typed them.
    """
    values = payload.parse(data, name="it")
    if isinstance(values, dict) and isinstance(values.get("prices"), list):
        published = payload.load(_PublishedFile, values).prices
        return _by_model((f"prices[{i}]", one.id, _of(one)) for i, one in enumerate(published))
    return _by_model(_own(values))


def _own(values: Any) -> Iterable[tuple[str, str, _Written]]:
    """Yield the path, the model and each price of a user's own file."""
    unknown: list[str] = []
    currency = ""
    lists: dict[str, Any] = {}
    if isinstance(values, dict):
        if isinstance(values.get("currency"), str):
            currency = values["currency"].strip()
            values = {name: value for name, value in values.items() if name != "currency"}
        lists = {name: value for name, value in values.items() if isinstance(value, list)}
        values = {name: value for name, value in values.items() if name not in lists}
    single = payload.load(dict[str, _Written], values, unknown)
    several = payload.load(dict[str, list[_Written]], lists, unknown)
    if unknown:
        raise InvalidRequest("unknown price", param=unknown[0])
    for model, one in single.items():
        yield model, model, replace(one, currency=one.currency or currency)
    for model, periods in several.items():
        for i, one in enumerate(periods):
            yield f"{model}[{i}]", model, replace(one, currency=one.currency or currency)


def _of(one: _Published) -> _Written:
    prices = one.input, one.output, one.input_cached, one.cache_write, one.cache_write_1h
    return _Written(*prices, "USD", one.from_date, one.to_date)


def _by_model(written: Iterable[tuple[str, str, _Written]]) -> dict[str, Price]:
    """Check prices, and put those of a model together."""
    found: dict[str, Price] = {}
    for path, model, one in written:
        if len(one.currency) > MAX_CURRENCY_CHARS or not one.currency.isprintable():
            raise InvalidRequest("expected a short name, such as USD", param="currency")
        for name, value in vars(one).items():
            if isinstance(value, float | int) and not 0 <= value <= MAX_PRICE:
                raise InvalidRequest(
                    f"a price must be from 0 to {MAX_PRICE:,}", param=f"{path}.{name}"
                )
        prices = one.input, one.output, one.cached, one.cache_write, one.cache_write_1h
        start = _day(one.from_date, date.min, f"{path}.from_date")
        end = _day(one.to_date, date.max, f"{path}.to_date")
        price = Price(*prices, one.currency, start, end)
        first = found.get(model)
        found[model] = replace(first, others=(*first.others, price)) if first else price
    return found


def _day(text: str | None, default: date, path: str) -> date:
    try:
        return default if text is None else date.fromisoformat(text)
    except ValueError:
        raise InvalidRequest("expected a date such as 2026-01-31", param=path) from None


def of_models(prices: Mapping[str, Price], models: Sequence[str]) -> dict[str, Price]:
    """Return the prices of models, by their names: whole, or after the last slash.

    llm's plugins call a model `anthropic/claude-…`, a list of prices just `claude-…`.
    """
    found = {model: prices.get(model) or prices.get(model.rpartition("/")[2]) for model in models}
    return {model: price for model, price in found.items() if price is not None}


def without_model(prices: Mapping[str, Price], models: Sequence[str]) -> tuple[str, ...]:
    """Return the names in a file of prices that none of these models has, misspelt perhaps.

    None if every model has a price: a file may have those of others.
    """
    if len(of_models(prices, models)) == len(set(models)):
        return ()
    names = {*models, *(model.rpartition("/")[2] for model in models)}
    return tuple(name for name in prices if name not in names)


def cost(usage: Usage, price: Price, day: date) -> float | None:
    """Compute the cost of a response of this day (UTC), in the prices' currency.

    None if the provider did not count both input and output, or no price holds on that day.
    Cached tokens and tokens written to the cache are part of the input, and count at most as
    many as that.
    """
    held = price.on(day)
    if held is None or usage.input_tokens is None or usage.output_tokens is None:
        return None
    cached = min(usage.cached_tokens or 0, usage.input_tokens)
    written = min(usage.cache_write_tokens or 0, usage.input_tokens - cached)
    for_an_hour = min(usage.cache_write_1h_tokens or 0, written)
    plain = usage.input_tokens - cached - written
    write = held.input if held.cache_write is None else held.cache_write
    whole = (
        plain * held.input
        + cached * (held.input if held.cached is None else held.cached)
        + (written - for_an_hour) * write
        + for_an_hour * (write if held.cache_write_1h is None else held.cache_write_1h)
        + usage.output_tokens * held.output
    )
    return whole / TOKENS
