"""`convert`: a request, an answer or a stream of one wire as that of another."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

from .. import convert
from ..core import payload
from ..dialects import DIALECTS
from .run import run

__all__ = ["main"]

CHUNK_BYTES = 64 * 2**10  # at most; what is there is taken at once


def main(words: Sequence[str], program: str) -> int:
    """Run `convert` with these words; give its exit code."""
    name = f"{program} convert"
    arguments = _parser(name).parse_args(words)
    return run(name, lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    with open(arguments.file, "rb") if arguments.file else sys.stdin.buffer as file:
        ignored = _convert(file, arguments)
    for path in ignored:
        print(f"not carried: {path}", file=sys.stderr)
    return 0


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Read a request, an answer or a stream of one wire and write it as that of "
        "another. What could not be carried is listed on stderr.",
        allow_abbrev=False,
    )
    names = [dialect.NAME for dialect in DIALECTS]
    add = parser.add_argument
    add("--from", dest="source", choices=names, required=True, help="the wire that is read")
    add("--to", dest="target", choices=names, required=True, help="the wire that is written")
    add(
        "--kind",
        choices=("request", "response", "stream"),
        default="request",
        help="what is read (%(default)s); a stream is converted as it comes",
    )
    add("file", nargs="?", metavar="FILE", help="standard input where none is named")
    return parser


def _convert(file: BinaryIO, arguments: argparse.Namespace) -> Iterable[str]:
    """Convert to standard output; give what could not be carried."""
    between = {"source": arguments.source, "target": arguments.target}
    if arguments.kind == "stream":
        return _convert_stream(file, convert.StreamConverter(**between))
    convert_body: Callable[..., convert.Converted]
    convert_body = convert.convert_response
    if arguments.kind == "request":
        convert_body = convert.convert_request
    body = payload.parse(file.read())
    converted = convert_body(body, **between)
    _write(payload.encode(converted.body) + b"\n")
    return converted.ignored


def _convert_stream(file: BinaryIO, stream: convert.StreamConverter) -> Iterable[str]:
    for data in _pieces(file):
        _write(stream.feed(data))
    _write(stream.end())
    if stream.failed is not None:
        raise stream.failed
    return stream.ignored


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    """Give what is there as soon as it is there."""
    while data := file.read1(CHUNK_BYTES):  # type: ignore[attr-defined]  # buffered files have it
        yield data


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
