"""`convert`: convert a request, a response or a stream from one API's format to another's."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, get_args

from .. import convert
from ..core import payload
from ..core.dialect_names import DialectName
from ..core.errors import ProxyError
from ..core.text import printable
from .arguments import Parser
from .run import run
from .terminal import JsonOutput, print_error

CHUNK_BYTES = 64 * 2**10  # at most: a read returns what has arrived


def main(argv: Sequence[str], program: str) -> int:
    """Run `convert` with these arguments and return its exit code."""
    name = f"{program} convert"
    arguments = _parser(name).parse_args(argv)
    return run(name, lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    with sys.stdin.buffer if arguments.file is None else open(arguments.file, "rb") as file:
        try:
            ignored = _convert(file, arguments)
        except ProxyError as exc:
            name = arguments.file or "standard input"
            raise ProxyError(exc.full_message, param=name) from exc
    for path in ignored:
        print_error(f"not carried: {printable(path)}")
    return 0


def _parser(program: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=program,
        description="Convert a request, a response or a stream from one API's format to "
        "another's. What could not be carried over is listed on stderr.",
        allow_abbrev=False,
    )
    names = get_args(DialectName)
    add = parser.add_argument
    add("--from", dest="source", choices=names, required=True, help="API of the input")
    add("--to", dest="target", choices=names, required=True, help="API of the output")
    add(
        "--kind",
        choices=("request", "response", "stream"),
        default="request",
        help="what the input is (%(default)s); a stream is converted as it arrives",
    )
    add("file", nargs="?", metavar="FILE", help="input file (default: standard input)")
    return parser


def _convert(file: BinaryIO, arguments: argparse.Namespace) -> Iterable[str]:
    """Convert to standard output and return what could not be carried."""
    between = {"source": arguments.source, "target": arguments.target}
    if arguments.kind == "stream":
        return _convert_stream(file, convert.StreamConverter(**between))
    is_request = arguments.kind == "request"
    convert_body = convert.convert_request if is_request else convert.convert_response
    converted = convert_body(payload.parse(file.read(), name="it"), **between)
    _write(payload.encode(converted.body) + b"\n")
    return converted.ignored


def _write(data: bytes) -> None:
    """Write a body, or frames of a stream, at once."""
    output = JsonOutput()
    output.write(data)
    output.flush()


def _convert_stream(file: BinaryIO, stream: convert.StreamConverter) -> Iterable[str]:
    for data in _chunks(file):
        _write(stream.feed(data))
    _write(stream.end())
    if stream.failed is not None:
        raise stream.failed
    return stream.ignored


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    """Yield the data as it arrives."""
    while data := file.read1(CHUNK_BYTES):  # type: ignore[attr-defined]  # buffered files have it
        yield data
