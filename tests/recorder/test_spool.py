from __future__ import annotations

import os

import pytest

from llmproxy.recorder import spool as spool_module
from llmproxy.recorder.exchange import to_json
from llmproxy.recorder.process_lock import ProcessLock
from llmproxy.recorder.spool import Spool, read


@pytest.fixture
def spool(path):
    spool = Spool(ProcessLock(path, "me"))
    yield spool
    spool.owner.release()


def test_exchanges_read_back_in_order_and_with_their_owner(spool, make_begun, make_exchange):
    exchanges = [make_begun("渐 🌊"), make_exchange("two\u2028lines\n"), make_exchange("")]
    for exchange in exchanges:
        spool.append(exchange)
    assert [to_json(read_back) for read_back in read(spool.path)] == [
        to_json(exchange) | {"owner": "me"} for exchange in exchanges
    ]


def test_a_spool_is_private(spool, make_exchange):
    assert spool.is_empty()
    spool.append(make_exchange())
    assert not spool.is_empty()
    assert spool.path.stat().st_mode & 0o777 == 0o600
    assert ProcessLock(spool.path.with_name("logs.db"), "other").is_alive("me")
    spool.clear()
    assert spool.is_empty()


def test_an_incomplete_last_line_is_reported(spool, make_exchange):
    spool.append(make_exchange("whole"))
    spool.append(make_exchange("cut"))
    data = spool.path.read_bytes()
    spool.path.write_bytes(data[:-20])
    whole, cut = read(spool.path)
    assert whole.first_words == "whole"
    assert cut is None


@pytest.mark.parametrize("line", ["", "{}", "5", "no JSON", "[" * 100_000], ids=str.__len__)
def test_a_line_that_is_not_an_exchange_is_reported(spool, line, make_exchange):
    spool.path.write_text(line + "\n")
    spool.append(make_exchange("whole"))
    assert [exchange and exchange.first_words for exchange in read(spool.path)] == [None, "whole"]


def test_a_full_spool_leaves_no_partial_line(spool, make_exchange, monkeypatch):
    spool.append(make_exchange("one"))
    before = spool.path.read_bytes()
    monkeypatch.setattr(spool_module, "MAX_SPOOL_BYTES", len(before) + 10)
    with pytest.raises(OSError, match="is full"):
        spool.append(make_exchange("two"))
    assert spool.path.read_bytes() == before


def test_a_full_disk_leaves_no_partial_line(spool, make_exchange, monkeypatch):
    spool.append(make_exchange("one"))
    before = spool.path.read_bytes()
    write = os.write
    monkeypatch.setattr(spool_module.os, "write", lambda file, data: write(file, data[:9]))
    with pytest.raises(OSError, match="only 9 bytes"):
        spool.append(make_exchange("two"))
    assert spool.path.read_bytes() == before


def test_odd_values_of_a_plugin_are_spooled_as_text(spool, make_exchange):
    spool.append(make_exchange(response_json={"odd": object}))
    (exchange,) = read(spool.path)
    assert exchange.turn.response_json == {"odd": "<class 'object'>"}


def test_a_spool_in_a_missing_folder_raises(path, make_exchange):
    with pytest.raises(OSError):
        Spool(ProcessLock(path / "below", "me")).append(make_exchange())
