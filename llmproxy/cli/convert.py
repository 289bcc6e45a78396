"""The `convert` command: convert a request, response or stream to another API dialect."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

from .. import convert
from ..core import payload
from ..dialects import DIALECTS
from .run import run

CHUNK_BYTES = 64 * 2**10  # at most; whatever has arrived is read at once


def main(words: Sequence[str], program: str) -> int:
    """Run `convert` with these arguments and return the exit code."""
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
        description="Convert a request, response or stream from one API dialect to another. "
        "What the target can't hold is listed on stderr.",
        allow_abbrev=False,
    )
    names = [dialect.NAME for dialect in DIALECTS]
    add = parser.add_argument
    add("--from", dest="source", choices=names, required=True, help="the dialect of the input")
    add("--to", dest="target", choices=names, required=True, help="the dialect of the output")
    add(
        "--kind",
        choices=("request", "response", "stream"),
        default="request",
        help="what the input is (%(default)s); a stream is converted as it arrives",
    )
    add("file", nargs="?", metavar="FILE", help="standard input by default")
    return parser


def _convert(file: BinaryIO, arguments: argparse.Namespace) -> Iterable[str]:
    """Convert to standard output and return what could not be carried."""
    between = {"source": arguments.source, "target": arguments.target}
    if arguments.kind == "stream":
        return _convert_stream(file, convert.StreamConverter(**between))
    is_request = arguments.kind == "request"
    convert_body = convert.convert_request if is_request else convert.convert_response
    converted = convert_body(payload.parse(file.read()), **between)
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
    """Yield the data as it arrives."""
    while data := file.read1(CHUNK_BYTES):  # type: ignore[attr-defined]  # buffered files have it
        yield data


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
