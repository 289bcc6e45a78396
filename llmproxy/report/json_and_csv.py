"""Format a study as JSON and as CSV.

Names of models and errors come from clients and servers: they are kept from running as formulas
in a spreadsheet.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from ..core.text import printable
from ..recorder.summary import ExchangeSummary
from .agreement import Agreement
from .data import Measured, Study
from .figures import Figures, agreement_with_recorded
from .measures import MEASURES
from .prices import Price, cost


def report_json(
    study: Study, figures: Figures, prices: Mapping[str, Price] | None = None
) -> dict[str, Any]:
    """Return a study as JSON values: its figures, and each response in short, warm-ups too.

    A quantile that most requests never reached is null, as its interval's end.
    """
    return {
        "title": study.title,
        "is_run": study.is_run,
        "began": _iso(study.began),
        "ended": _iso(study.ended),
        "settings": {
            name: _iso(value) if isinstance(value, datetime) else value
            for name, value in study.settings.items()
        },
        "planned": study.planned,
        "is_partial": study.is_partial,
        "models": [finite(asdict(model)) for model in figures.models],
        "comparisons": [finite(asdict(found)) for found in figures.comparisons],
        "tested": figures.tested,
        "between": [asdict(between) for between in figures.between],
        "throughput": figures.throughput and asdict(figures.throughput),
        "samples": [
            {"id": sample.id, "received": _iso(sample.received), "client": sample.client}
            for sample in study.samples
        ],
        "answers": _answers_in_short(study, prices),
    }


def finite(value: Any) -> Any:
    """Replace infinite numbers, which JSON can't have, by None."""
    if isinstance(value, dict):
        return {name: finite(member) for name, member in value.items()}
    return None if isinstance(value, float) and math.isinf(value) else value


def report_csv(study: Study, prices: Mapping[str, Price] | None = None) -> str:
    """Return a row per response below a header row, as CSV (RFC 4180).

    Times are in milliseconds, costs in `cost_currency`, `similarity` is from 0 to 1. A warm-up has
    `is_warm_up` true and `repeat` 0; the responses that count have `repeat` from 1 on.

    Text that a spreadsheet would run as a formula gets an apostrophe in front, and unprintable
    characters are escaped; numbers stay numbers.
    """
    rows = _answers_in_short(study, prices)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    writer.writerows([csv_cell(value) for value in row.values()] for row in rows)
    return text.getvalue()


def _answers_in_short(study: Study, prices: Mapping[str, Price] | None) -> list[dict[str, Any]]:
    samples = {sample.id: sample for sample in study.samples} if study.is_run else {}
    return [
        _answer(answer, agreement_with_recorded(answer, samples), (prices or {}).get(answer.model))
        for answer in study.answers
    ]


def _answer(answer: Measured, agreed: Agreement | None, price: Price | None) -> dict[str, Any]:
    exchange = answer.exchange
    spent = (
        None
        if price is None or exchange.status != "ok"
        else cost(exchange.usage, price, exchange.received.date())
    )
    return {
        "id": exchange.id,
        "sample": answer.sample,
        "model": answer.model,
        "is_warm_up": answer.repeat == 0,
        "repeat": answer.repeat,
        "was_sent_again": answer.was_sent_again,
        "received": _iso(exchange.received) if exchange.is_timed else None,
        "status": exchange.status,
        "error_kind": answer.error_kind,
        "error": exchange.error,
        "finish_reason": exchange.finish_reason,
        "setup_ms": exchange.setup_ms,
        "queue_ms": exchange.queue_ms,
        "is_first_run": exchange.is_first_run,
        **{measure: measured(answer) for measure, measured in MEASURES.items()},
        **asdict(exchange.usage),
        "output_tokens_estimate": exchange.output_tokens_estimate,
        "cost": spent,
        "cost_currency": (price.currency or None) if price and spent is not None else None,
        "similarity": agreed and agreed.similarity,
        "same_text": agreed and agreed.exact_text,
        "same_json": agreed and agreed.same_json,
        "same_tool_calls": agreed and agreed.same_tool_calls,
        "fits_schema": agreed.schema.is_valid if agreed and agreed.schema else None,
    }


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


_NO_EXCHANGE = ExchangeSummary(id="", received=datetime.min, dialect="", path="", client="")
_COLUMNS = tuple(_answer(Measured(exchange=_NO_EXCHANGE, model="", sample=""), None, None))


def csv_cell(value: Any) -> Any:
    """Return a value as a spreadsheet can take it: text that looks like a formula is quoted."""
    if not isinstance(value, str):
        return value
    # https://owasp.org/www-community/attacks/CSV_Injection
    return printable(f"'{value}" if value.startswith(_FORMULA) else value)


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
