"""What answers cost, by prices that the user wrote down: no list of prices is built in.

A file of them is JSON: `{"model": {"input": 2.5, "cached": 1.25, "output": 10}}`, each in
whatever currency, for a million tokens.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ..core import chat, payload
from ..core.errors import InvalidRequest

TOKENS = 1_000_000  # what vendors write their prices for
MAX_PRICE = 10**9  # of a million tokens: no sum then is beyond a double


@dataclass(frozen=True)
class Price:
    """What a million tokens of a model cost.

    cached: of input that the provider had in its cache; cache_write: of input that it
        wrote there. Each is the price of all other input where it is not given.
    """

    input: float
    output: float
    cached: float | None = None
    cache_write: float | None = None


def load_prices(data: bytes) -> dict[str, Price]:
    """Read a file of prices, by model.

    Raises:
        InvalidRequest: it is no such JSON. A member that is misspelt is refused
            too, by its path: the sums would be wrong, and none would show it.
    """
    unknown: list[str] = []
    prices = payload.load(dict[str, Price], payload.parse(data), unknown)
    if unknown:
        raise InvalidRequest("there is no such price", param=unknown[0])
    for model, price in prices.items():
        for name, value in asdict(price).items():
            if value is not None and not 0 <= value <= MAX_PRICE:
                raise InvalidRequest(f"a price is from 0 to {MAX_PRICE:,}", param=f"{model}.{name}")
    return prices


def cost(usage: chat.Usage, price: Price) -> float | None:
    """Say what an answer cost, in the prices' currency.

    None where the provider did not tell both input and output. Cached tokens, and those
    written to the cache, are part of the input: of more than that only as many count.
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
