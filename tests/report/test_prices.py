"""Prices as a user writes them, and what answers cost by them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.core.errors import InvalidRequest
from llmproxy.core.usage import Usage
from llmproxy.report.prices import Price, cost, load_prices, without_model

PRICE = Price(input=2.0, output=10.0, cached=0.5, cache_write=3.0)


def test_prices_are_read_by_model():
    data = (
        b'{"a": {"input": 2.5, "cached": 1.25, "output": 10}, "b/c.d": {"input": 0, "output": 0}}'
    )
    assert load_prices(data) == {
        "a": Price(input=2.5, output=10, cached=1.25),
        "b/c.d": Price(input=0, output=0),
    }
    assert load_prices(b"{}") == {}


@pytest.mark.parametrize(
    ("data", "param", "message"),
    [
        (b'{"a": {"input": 1}}', "a.output", "this field is required"),
        (b'{"a": {"input": 1, "output": "2"}}', "a.output", "expected a number"),
        (b'{"a": {"input": 1, "output": null}}', "a.output", "expected a number"),
        (b'{"a": {"input": 1, "output": true}}', "a.output", "expected a number"),
        (b'{"a": {"input": 1, "output": 2, "cahced": 0}}', "a.cahced", "unknown price"),
        (
            b'{"a": {"input": -1, "output": 2}}',
            "a.input",
            "a price must be from 0 to 1,000,000,000",
        ),
        (
            b'{"a": {"input": 1, "output": 2, "cached": -1}}',
            "a.cached",
            "a price must be from 0 to 1,000,000,000",
        ),
        (
            b'{"a": {"input": 1e10, "output": 2}}',
            "a.input",
            "a price must be from 0 to 1,000,000,000",
        ),
        (b'{"a": {"input": NaN, "output": 2}}', None, "NaN is not JSON"),
        (b'{"a": 1}', "a", "expected an object"),
        (b"[]", None, "expected an object"),
        (b"", None, "it is not JSON"),
    ],
)
def test_bad_prices_are_refused_by_their_path(data, param, message):
    with pytest.raises(InvalidRequest) as caught:
        load_prices(data)
    assert caught.value.param == param
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (Usage(1_000_000, 0), 2.0),
        (Usage(0, 1_000_000), 10.0),
        (Usage(1_000_000, 0, cached_tokens=600_000), 0.8 + 0.3),
        (Usage(1_000_000, 0, 500_000, 250_000), 0.5 + 0.25 + 0.75),
        (Usage(1_000_000, 0, cached_tokens=9_000_000), 0.5),
        (Usage(1_000_000, 0, 900_000, 900_000), 0.45 + 0.3),
        (Usage(0, 1_000_000, reasoning_tokens=900_000), 10.0),
        (Usage(None, 10), None),
        (Usage(10, None), None),
        (Usage(), None),
    ],
)
def test_an_answer_costs_what_its_tokens_do(usage, expected):
    assert cost(usage, PRICE) == (None if expected is None else pytest.approx(expected))


def test_cached_tokens_without_a_price_of_their_own_cost_as_all_input():
    assert cost(Usage(1_000_000, 0, 500_000, 300_000), Price(2.0, 10.0)) == 2.0


COUNTS = st.integers(0, 10**7)


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_the_cost_is_between_that_of_the_cheapest_and_of_the_dearest_input(
    input, output, cached, written
):
    paid = cost(Usage(input, output, cached, written), PRICE)
    low, high = ((input * per + output * 10.0) / 1e6 for per in (0.5, 3.0))
    assert low == pytest.approx(paid) or high == pytest.approx(paid) or low < paid < high


def test_a_file_names_its_currency():
    data = b'{"currency": "USD", "a": {"input": 1, "output": 2}}'
    assert load_prices(data) == {"a": Price(1.0, 2.0, currency="USD")}
    own = b'{"currency": "USD", "a": {"input": 1, "output": 2, "currency": "EUR"}}'
    assert load_prices(own)["a"].currency == "EUR"
    for word in ("\\u001b[1m", "a" * 13):
        with pytest.raises(InvalidRequest, match="short name"):
            load_prices(f'{{"currency": "{word}", "a": {{"input": 1, "output": 2}}}}'.encode())


def test_names_that_no_model_has_are_found_where_a_price_is_missing():
    prices = {"a": Price(1.0, 1.0), "typo": Price(1.0, 1.0)}
    assert without_model(prices, ["a"]) == ()
    assert without_model(prices, ["a", "b"]) == ("typo",)
    assert without_model({}, ["a"]) == ()
