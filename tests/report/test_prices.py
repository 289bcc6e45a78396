"""Prices as a user writes them, and what answers cost by them."""

import json
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.core.errors import InvalidRequest
from llmproxy.core.usage import Usage
from llmproxy.report.prices import Price, cost, load_prices, of_models, without_model

DAY = date(2026, 11, 26)
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
        (b"", None, "it is empty"),
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
    assert cost(usage, PRICE, DAY) == (None if expected is None else pytest.approx(expected))


def test_cached_tokens_without_a_price_of_their_own_cost_as_all_input():
    assert cost(Usage(1_000_000, 0, 500_000, 300_000), Price(2.0, 10.0), DAY) == 2.0


COUNTS = st.integers(0, 10**7)


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_the_cost_is_between_that_of_the_cheapest_and_of_the_dearest_input(
    input, output, cached, written
):
    paid = cost(Usage(input, output, cached, written), PRICE, DAY)
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


def test_writes_to_a_one_hour_cache_have_a_price_of_their_own():
    """By default that of other writes, and then that of other input."""
    usage = Usage(1_000_000, 0, 0, 600_000, cache_write_1h_tokens=200_000)
    price = Price(10.0, 1.0, cache_write=12.5, cache_write_1h=20.0)
    assert cost(usage, price, DAY) == pytest.approx(0.4 * 10 + 0.4 * 12.5 + 0.2 * 20)
    assert cost(usage, Price(10.0, 1.0, cache_write=12.5), DAY) == pytest.approx(4 + 0.6 * 12.5)
    assert cost(usage, Price(10.0, 1.0), DAY) == 10
    more = Usage(10, 0, 0, 5, cache_write_1h_tokens=10**9)  # a provider's mistake
    assert cost(more, price, DAY) == pytest.approx((5 * 10 + 5 * 20) / 1_000_000)


def test_a_price_holds_from_its_first_day_until_the_day_after_its_last():
    periods = [
        {"input": 10, "output": 0, "from_date": "2025-06-13"},
        {"input": 50, "output": 0, "from_date": "2025-06-01", "to_date": "2025-06-13"},
    ]
    price = load_prices(json.dumps({"currency": "EUR", "o3": periods}).encode())["o3"]
    spent = [
        cost(Usage(1_000_000, 0), price, date.fromisoformat(day))
        for day in ("2025-05-31", "2025-06-01", "2025-06-12", "2025-06-13", "2026-01-01")
    ]
    assert spent == [None, 50, 50, 10, 10]
    assert price.currency == "EUR"


# As the README of llm-prices shows both files, with a member that is not known yet.
CURRENT = {
    "updated_at": "2025-10-10",
    "prices": [
        {
            "id": "amazon-nova-micro",
            "vendor": "amazon",
            "name": "Amazon Nova Micro",
            "input": 0.035,
            "output": 0.14,
            "input_cached": None,
            "input_audio": 1,
        },
        {"id": "b", "vendor": "v", "name": "B", "input": 2, "output": 8, "input_cached": 0.5},
    ],
}
HISTORICAL = {
    "prices": [
        {"id": "b", "vendor": "v", "name": "B", "input": 2, "output": 8, "input_cached": 0.5}
        | {"from_date": "2026-02-01", "to_date": None},
        {"id": "b", "vendor": "v", "name": "B", "input": 4, "output": 9, "input_cached": None}
        | {"from_date": None, "to_date": "2026-02-01", "cache_write_1h": 8},
    ],
}


def test_files_of_llm_prices_are_read():
    current = load_prices(json.dumps(CURRENT).encode())
    assert current == {
        "amazon-nova-micro": Price(0.035, 0.14, currency="USD"),
        "b": Price(2, 8, 0.5, currency="USD"),
    }
    historical = load_prices(json.dumps(HISTORICAL).encode())["b"]
    assert historical.on(date(2026, 2, 1)).cached == 0.5
    assert historical.on(date(2026, 1, 31)) == Price(
        4, 9, cache_write_1h=8, currency="USD", to_date=date(2026, 2, 1)
    )


@pytest.mark.parametrize(
    "values, param, message",
    [
        ({"prices": [{"id": "a", "input": 1}]}, "prices[0].output", "this field is required"),
        (
            {"prices": [{"id": "a", "input": -1, "output": 1}]},
            "prices[0].input",
            "a price must be from 0",
        ),
        (
            {"a": [{"input": 1, "output": 1, "to_date": "soon"}]},
            "a[0].to_date",
            "expected a date such as 2026-01-31",
        ),
        ({"a": [{"input": 1, "output": 1, "form_date": ""}]}, "a[*].form_date", "unknown price"),
    ],
)
def test_a_bad_list_of_prices_is_refused_by_its_path(values, param, message):
    with pytest.raises(InvalidRequest, match=message) as caught:
        load_prices(json.dumps(values).encode())
    assert caught.value.param == param


def test_a_model_is_found_without_its_vendors_name():
    prices = {"claude-x": Price(1, 2), "a/b": Price(3, 4), "b": Price(5, 6)}
    found = of_models(prices, ["anthropic/claude-x", "a/b", "c"])
    assert found == {"anthropic/claude-x": Price(1, 2), "a/b": Price(3, 4)}
    assert without_model(prices, ["anthropic/claude-x"]) == ()
    assert without_model(prices, ["anthropic/claude-x", "c"]) == ("a/b", "b")
