"""Bodies decoded piece by piece; whole ones are in test_http11."""

import gzip
import sys
import zlib

import pytest

from llmproxy.core.errors import ProtocolError, TooLarge, UnsupportedMediaType
from llmproxy.transport import content_coding
from llmproxy.transport.content_coding import PIECE_BYTES, BodyDecoder

TEXT = b"data: {}\n\n" * 20_000


@pytest.fixture
def zstd(monkeypatch):
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    module = pytest.importorskip(name)
    monkeypatch.setattr(content_coding, "zstd", module)
    monkeypatch.setattr(content_coding, "_ERRORS", (zlib.error, module.ZstdError))
    return module


CODED = {
    "": lambda zstd: TEXT,
    "identity": lambda zstd: TEXT,
    "gzip": lambda zstd: gzip.compress(TEXT[:50]) + gzip.compress(TEXT[50:]),
    "X-GZIP": lambda zstd: gzip.compress(TEXT),
    "deflate": lambda zstd: zlib.compress(TEXT),
    "zstd": lambda zstd: zstd.compress(TEXT[:50]) + zstd.compress(TEXT[50:]),
}


def decode(coding, pieces, max_bytes=10**6):
    decoder = BodyDecoder(coding, max_bytes)
    decoded = [part for piece in pieces for part in decoder.feed(piece)]
    decoder.end()
    return decoded


@pytest.mark.parametrize("step", [1, 7, 10**6])
@pytest.mark.parametrize("coding", CODED)
def test_a_body_is_decoded_whatever_its_pieces(coding, step, zstd):
    data = CODED[coding](zstd)
    decoded = decode(coding, [data[at : at + step] for at in range(0, len(data), step)])
    assert b"".join(decoded) == TEXT
    assert coding in ("", "identity") or max(map(len, decoded)) <= PIECE_BYTES


@pytest.mark.parametrize("coding", CODED)
def test_a_body_has_a_limit(coding, zstd):
    data = CODED[coding](zstd)
    assert sum(map(len, decode(coding, [data], len(TEXT)))) == len(TEXT)
    with pytest.raises(TooLarge, match=f"larger than {len(TEXT) - 1} bytes"):
        decode(coding, [data], len(TEXT) - 1)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
def test_another_body_and_a_cut_one_are_errors(coding, zstd):
    with pytest.raises(ProtocolError, match="does not match its content-encoding"):
        decode(coding, [b"\xff" + TEXT])
    with pytest.raises(ProtocolError, match="ends within its compressed data"):
        decode(coding, [CODED[coding](zstd)[:-1]])


@pytest.mark.parametrize("coding", ["br", "gzip, gzip", "zstd"])
def test_an_unknown_coding_is_refused_at_once(coding, monkeypatch):
    monkeypatch.setattr(content_coding, "zstd", None)
    with pytest.raises(UnsupportedMediaType, match="content codings known are gzip and deflate"):
        BodyDecoder(coding, 10)
