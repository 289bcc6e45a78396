"""The cost of responses, by prices from the user's file. No prices are built in.

The file is JSON: `{"model": {"input": 2.5, "cached": 1.25, "output": 10}}`, per million tokens,
in any currency.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ..core import payload
from ..core.errors import InvalidRequest
from ..core.usage import Usage

TOKENS = 1_000_000  # the unit of vendors' price lists
MAX_PRICE = 10**9  # per million tokens: keeps every sum within a double


@dataclass(frozen=True)
class Price:
    """Prices of a model per million tokens.

    cached: of input read from the provider's cache; cache_write: of input written to it.
        Both default to the price of other input.
    """

    input: float
    output: float
    cached: float | None = None
    cache_write: float | None = None


def load_prices(data: bytes) -> dict[str, Price]:
    """Parse a file of prices, by model.

    Raises:
        InvalidRequest: it is not such JSON. Unknown members are refused too, by their path:
            a misspelt one would make the sums wrong without a sign of it.
    """
    unknown: list[str] = []
    prices = payload.load(dict[str, Price], payload.parse(data, name="it"), unknown)
    if unknown:
        raise InvalidRequest("unknown price", param=unknown[0])
    for model, price in prices.items():
        for name, value in asdict(price).items():
            if value is not None and not 0 <= value <= MAX_PRICE:
                raise InvalidRequest(
                    f"a price must be from 0 to {MAX_PRICE:,}", param=f"{model}.{name}"
                )
    return prices


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
