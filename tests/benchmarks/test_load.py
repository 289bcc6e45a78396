"""The load generator, against servers that are told what to send."""

import itertools
import json
import socket
import threading
import time

import pytest

from benchmarks import load, requests
from benchmarks.limit_servers import frame

WORDS = b"lorem lorem, "
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n" + WORDS
CHUNKED = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\nlorem \r\n7\r\nlorem, \r\n0\r\n\r\n"
)


@pytest.mark.parametrize("response", [WHOLE, CHUNKED])
def test_a_response_is_complete_at_its_end_however_it_is_cut(response):
    for size in (1, 2, 5, len(response)):
        connection = load.Connection(0)
        connection.buffer, connection.end = b"", 0
        pieces = [response[i : i + size] for i in range(0, len(response), size)]
        assert [connection.feed(piece) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        assert connection.buffer == response


def serving(*answers):
    """Answer each request with the next of these (None: close), in a thread; give the port."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        left = list(answers)
        while left:
            connection, _ = server.accept()
            with connection:
                while left and connection.recv(2**16):
                    answer = left.pop(0)
                    if answer is None:
                        break
                    connection.sendall(answer)
        server.close()

    threading.Thread(target=serve, daemon=True).start()
    return server.getsockname()[1]


def test_responses_are_counted_and_checked():
    error = b'HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\ndata: {"error":'
    refused = b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"
    short = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nlorem "
    port = serving(WHOLE, error, refused, None, short, CHUNKED)
    sent = itertools.islice(requests.questions("scripted-2", False), 6)
    outcome = load.run(port, sent, 1, 2)
    assert outcome.answered == len(outcome.latencies_ms) == 2
    assert outcome.failures == {
        "error in the stream": 1,
        "503": 1,
        "connection closed": 1,
        "incomplete": 1,
    }


def test_lags_are_taken_from_the_times_in_chunks():
    made = time.monotonic_ns() - 5_000_000
    began = made - 7_000_000
    data = frame("m", f"^{began}^@{made}@ lorem ") + b"0\r\n\r\n"
    port = serving(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + data)
    sent = itertools.islice(requests.questions("m", True), 1)
    outcome = load.run(port, sent, 1, 1, stamped=True)
    assert len(outcome.lags_ms) == 1
    assert 5 <= outcome.lags_ms[0] < 5_000
    # The model began before it was asked, which counts as less.
    assert outcome.outside_ms == [pytest.approx(outcome.latencies_ms[0] - 7)]


def body(request):
    head, _, data = request.partition(b"\r\n\r\n")
    assert f"content-length: {len(data)}".encode() in head
    return json.loads(data)


def test_questions_differ_and_have_their_length():
    first, second = itertools.islice(requests.questions("scripted-20", True), 2)
    assert first != second
    assert body(first)["model"] == body(second)["model"] == "scripted-20"


def test_a_conversation_grows_by_a_turn():
    bodies = [body(request) for request in requests.resent(requests.chat_messages(4), 3)]
    assert [len(body["messages"]) for body in bodies] == [5, 7, 9]
    assert bodies[2]["messages"][:7] == bodies[1]["messages"]
    assert bodies[1]["messages"][5] == {"role": "assistant", "content": requests.REPLY}


def test_sizes_are_as_asked():
    agent = json.dumps(requests.agent_messages(560_000))
    assert 560_000 <= len(agent) < 600_000
    members = requests.many_members(200_000)
    assert 4_000_000 <= len(members) < 4_500_000
    assert len(body(members)["metadata"]) == 200_000
    assert len(requests.image(3_000)) > 4_000
