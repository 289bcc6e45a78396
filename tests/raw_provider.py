"""A provider on loopback that is scripted byte by byte, plain or over TLS, and records bytes.

`provider.py` has one for plugins, which need no more than JSON. This one is for what passes
bytes on: it keeps exactly what it was sent, and sends exactly what the test says.
"""

from __future__ import annotations

import itertools
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from pathlib import Path

import trustme

CLOSE = b"<close>"  # a piece of an answer: end the connection here
RESET = b"<reset>"  # the same by a RST, as of a server that died
WAIT_S = 20.0  # for a peer: far more than anything takes, so that a test never hangs


@dataclass
class RawRequest:
    """One request as it came.

    raw: its head and body, byte for byte. headers: in order and case. body: without chunks.
    connection: which one it came on, from 0. socket: for what no script can say.
    """

    raw: bytes
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    connection: int
    socket: socket.socket = field(repr=False)

    def header(self, name: str) -> str | None:
        """Return the first value of a field."""
        return next((value for one, value in self.headers if one.lower() == name.lower()), None)

    def wait_for_hang_up(self, within_s: float = WAIT_S) -> bool:
        """Wait until the peer has ended the connection; return whether it has."""
        if not select.select([self.socket], [], [], within_s)[0]:
            return False
        try:
            return not self.socket.recv(1)
        except OSError:
            return True


Answer = bytes | Iterable[bytes] | Callable[[RawRequest], bytes | Iterable[bytes]]


@dataclass
class RawProvider:
    """A provider that runs.

    received: by connection, every byte that came on it. hung_up: set when a peer was gone before
    an answer was sent. may_read: cleared, it stops reading, and a request's body stays where it is.
    ca_pem: of a provider with TLS, the CA to trust.
    """

    url: str
    port: int
    ca_pem: bytes = b""
    requests: list[RawRequest] = field(default_factory=list)
    received: list[bytearray] = field(default_factory=list)
    hung_up: threading.Event = field(default_factory=threading.Event)
    may_read: threading.Event = field(default_factory=threading.Event)

    def write_ca(self, folder: Path) -> Path:
        """Write the CA's certificate to a file that can be trusted."""
        path = folder / "ca.pem"
        path.write_bytes(self.ca_pem)
        return path


@contextmanager
def playing_raw(
    *answers: Answer, tls: str | None = None, host: str = "127.0.0.1"
) -> Iterator[RawProvider]:
    """Run a provider on a free port of loopback; each request gets the next answer.

    The last answer is also given to all later requests. An answer is bytes, an iterable of bytes
    that are sent one by one (`CLOSE` and `RESET` among them end the connection), or a function
    from the request to either. The connection is kept after it, whatever its headers say.

    tls: the name or address to have a certificate for, such as "127.0.0.1"; another than the
        one that is connected to makes a certificate that fails.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family)
    port = listener.getsockname()[1]
    authority = f"[{host}]" if ":" in host else host
    provider = RawProvider(f"{'https' if tls else 'http'}://{authority}:{port}", port)
    provider.may_read.set()
    context = None
    if tls:
        context = _serving_as(tls)
        provider.ca_pem = certificate_authority().cert_pem.bytes()
    each = itertools.chain(answers, itertools.repeat(answers[-1]))
    turn = threading.Lock()

    def serve(peer: socket.socket, number: int) -> None:
        reader = _Reader(peer, provider, number)
        while request := reader.read_request():
            with turn:
                provider.requests.append(request)
                answer = next(each)
            if not _give(answer, request, provider):
                break

    with _listening(listener, serve, context) as connections:
        provider.received = connections
        try:
            yield provider
        finally:
            provider.may_read.set()


@contextmanager
def relaying(
    port: int, *, answers_connect: bool = False, tls: str | None = None
) -> Iterator[RawProvider]:
    """Run a plain TCP relay to a port of loopback.

    answers_connect: be an HTTP proxy instead, whose tunnels all lead there; `received` then
        has the CONNECT of each. tls: speak TLS as such a proxy, with a certificate for this name.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    own_port = listener.getsockname()[1]
    relay = RawProvider(f"{'https' if tls else 'http'}://127.0.0.1:{own_port}", own_port)

    def serve(peer: socket.socket, number: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as there:
            if answers_connect:
                while not relay.received[number].endswith(b"\r\n\r\n"):
                    relay.received[number] += peer.recv(1)
                peer.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            if isinstance(peer, ssl.SSLSocket):
                _copy_both(peer, there)
                return
            back = threading.Thread(target=copy, args=(there, peer, bytearray()), daemon=True)
            back.start()
            copy(peer, there, bytearray() if answers_connect else relay.received[number])
            back.join(WAIT_S)

    def copy(source: socket.socket, target: socket.socket, record: bytearray) -> None:
        try:
            while data := source.recv(2**16):
                record += data
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    with _listening(listener, serve, _serving_as(tls) if tls else None) as connections:
        relay.received = connections
        yield relay


def _copy_both(peer: ssl.SSLSocket, there: socket.socket) -> None:
    """Copy both ways in one thread: two may not use a TLS connection at the same time."""
    while True:
        ready = [peer] if peer.pending() else select.select([peer, there], [], [], WAIT_S)[0]
        for source in ready:
            data = source.recv(2**16)
            if not data:
                return
            (there if source is peer else peer).sendall(data)


# ---- what answers are made of


def response(
    body: bytes = b"",
    status: int = 200,
    headers: Iterable[tuple[str, str]] = (("Content-Type", "application/json"),),
    *,
    reason: str | None = None,
) -> bytes:
    """A response with a content-length."""
    return _head(status, [*headers, ("Content-Length", str(len(body)))], reason) + body


def begin_chunked(
    status: int = 200,
    headers: Iterable[tuple[str, str]] = (("Content-Type", "text/event-stream"),),
) -> bytes:
    """The head of a response whose body comes in chunks."""
    return _head(status, [*headers, ("Transfer-Encoding", "chunked")], None)


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    """One chunk of a body."""
    return b"%x%b\r\n%b\r\n" % (len(data), extension, data)


def end_chunks(trailers: bytes = b"") -> bytes:
    """The last chunk, with trailer lines."""
    return b"0\r\n" + trailers + b"\r\n"


def single_bytes(data: bytes) -> Iterator[bytes]:
    """The same one byte at a time."""
    return (data[at : at + 1] for at in range(len(data)))


@cache
def certificate_authority() -> trustme.CA:
    """The CA that signs for providers with TLS."""
    return trustme.CA()


def _serving_as(name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate_authority().issue_cert(name).configure_cert(context)
    return context


def _head(status: int, headers: Iterable[tuple[str, str]], reason: str | None) -> bytes:
    phrase = HTTPStatus(status).phrase if reason is None else reason
    lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


# ---- sockets


@contextmanager
def _listening(
    listener: socket.socket,
    serve: Callable[[socket.socket, int], None],
    tls: ssl.SSLContext | None = None,
) -> Iterator[list[bytearray]]:
    """Serve each connection in a thread; yield a record for each."""
    records: list[bytearray] = []
    peers: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                peer = listener.accept()[0]
            except OSError:
                return
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.settimeout(WAIT_S)
            records.append(bytearray())
            threading.Thread(target=run, args=(peer, len(records) - 1), daemon=True).start()

    def run(peer: socket.socket, number: int) -> None:
        try:
            if tls is not None:
                peer = tls.wrap_socket(peer, server_side=True)
            peers.append(peer)
            serve(peer, number)
        except OSError:
            pass  # the client does not trust us, or has left
        finally:
            peer.close()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield records
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join(WAIT_S)
        for peer in peers:
            try:
                peer.shutdown(socket.SHUT_RDWR)  # wakes its thread, which closes it
            except OSError:
                pass


class _Reader:
    """Reads requests off a connection, as they come."""

    def __init__(self, peer: socket.socket, provider: RawProvider, number: int) -> None:
        self._peer = peer
        self._provider = provider
        self._number = number
        self._buffer = bytearray()
        self._raw = bytearray()

    def read_request(self) -> RawRequest | None:
        """Read the next request; None at the connection's end."""
        self._raw = bytearray()
        head = self._until(b"\r\n\r\n")
        if not head:
            return None
        line, *fields = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        method, target, _ = line.split(" ")
        pairs = [(name, value.strip()) for name, _, value in (one.partition(":") for one in fields)]
        named = {name.lower(): value for name, value in pairs}
        body = b""
        if "transfer-encoding" in named:
            while size := int(self._until(b"\r\n").partition(b";")[0], 16):
                body += self._exactly(size)
                self._exactly(2)
            while self._until(b"\r\n") != b"\r\n":
                pass
        else:
            body = self._exactly(int(named.get("content-length", "0")))
        return RawRequest(bytes(self._raw), method, target, pairs, body, self._number, self._peer)

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            if not self._more():
                return b""
        return self._take(self._buffer.index(mark) + len(mark))

    def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            if not self._more():
                raise ConnectionError("the request was cut")
        return self._take(count)

    def _take(self, count: int) -> bytes:
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        self._raw += data
        return data

    def _more(self) -> bytes:
        self._provider.may_read.wait(WAIT_S)
        data = self._peer.recv(2**16)
        self._provider.received[self._number] += data
        self._buffer += data
        return data


def _give(answer: Answer, request: RawRequest, provider: RawProvider) -> bool:
    """Send an answer; return whether the connection goes on."""
    said = answer(request) if callable(answer) else answer
    try:
        for piece in [said] if isinstance(said, bytes) else said:
            if piece is CLOSE:
                return False
            if piece is RESET:
                linger = struct.pack("ii", 1, 0)
                request.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return False
            request.socket.sendall(piece)
    except OSError:
        provider.hung_up.set()
        return False
    return True
