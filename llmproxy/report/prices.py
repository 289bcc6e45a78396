"""The cost of responses, by prices from the user's file. No prices are built in.

The file is JSON: `{"currency": "USD", "model": {"input": 2.5, "cached": 1.25, "output": 10}}`, per
million tokens. The currency may be left out; then sums have no unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

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
    currency: in which they are; empty if the file doesn't say.
    """

    input: float
    output: float
    cached: float | None = None
    cache_write: float | None = None
    currency: str = ""


def load_prices(data: bytes) -> dict[str, Price]:
    """Parse a file of prices, by model.

    Raises:
        InvalidRequest: it is not such JSON. Unknown members are refused too, by their path:
            a misspelt one would make the sums wrong without a sign of it.
    """
    unknown: list[str] = []
    values = payload.parse(data, name="it")
    currency = ""
    if isinstance(values, dict) and isinstance(values.get("currency"), str):
        currency = values["currency"].strip()
        values = {name: value for name, value in values.items() if name != "currency"}
    prices = payload.load(dict[str, Price], values, unknown)
    if unknown:
        raise InvalidRequest("unknown price", param=unknown[0])
    for model, price in prices.items():
        named = price.currency or currency
        if len(named) > MAX_CURRENCY_CHARS or not named.isprintable():
            raise InvalidRequest("expected a short name, such as USD", param="currency")
        for name, value in asdict(price).items():
            if isinstance(value, float | int) and not 0 <= value <= MAX_PRICE:
                raise InvalidRequest(
                    f"a price must be from 0 to {MAX_PRICE:,}", param=f"{model}.{name}"
                )
    return {
        model: replace(price, currency=price.currency or currency)
        for model, price in prices.items()
    }


def without_model(prices: Mapping[str, Price], models: Sequence[str]) -> tuple[str, ...]:
    """Return the names in a file of prices that none of these models has, misspelt perhaps.

    None if every model has a price: a file may have those of others.
    """
    if all(model in prices for model in models):
        return ()
    return tuple(name for name in prices if name not in models)


def cost(usage: Usage, price: Price) -> float | None:
    """Compute the cost of a response, in the prices' currency.

    None if the provider did not count both input and output. Cached tokens and tokens written
    to the cache are part of the input, and count at most as many as that.
    """
    if usage.input_tokens is None or usage.output_tokens is None:
        return None
    cached = min(usage.cached_tokens or 0, usage.input_tokens)
    written = min(usage.cache_write_tokens or 0, usage.input_tokens - cached)
    plain = usage.input_tokens - cached - written
    whole = (
        plain * price.input
        + cached * (price.input if price.cached is None else price.cached)
        + written * (price.input if price.cache_write is None else price.cache_write)
        + usage.output_tokens * price.output
    )
    return whole / TOKENS
