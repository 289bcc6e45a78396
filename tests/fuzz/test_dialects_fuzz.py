"""Any JSON is a request or an InvalidRequest, any answer events or a ProxyError."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmproxy.core import chat, payload, token_estimate
from llmproxy.core.errors import InvalidRequest, ProxyError
from llmproxy.core.fingerprints import request_key
from llmproxy.dialects import DIALECTS
from llmproxy.transport.framing import MAX_FRAME_BYTES, SSEFrame
from tests.fuzz.corpus import cases
from tests.fuzz.json_text import NASTY, damaged, requests_of, spliced
from tests.strategies import json_values
from tests.wire_cases import hub_json, wire_cases

NAMES = [dialect.NAME for dialect in DIALECTS]
BY_NAME = {dialect.NAME: dialect for dialect in DIALECTS}
every_dialect = pytest.mark.parametrize("name", NAMES)

HEADERS = [{}, {"anthropic-beta": "a,b,,\xff"}, {"anthropic-version": ""}, {"user-agent": "x/\xe9"}]


def check_request(name, body, headers):
    dialect = BY_NAME[name]
    before = json.dumps(body)
    try:
        request = dialect.parse_request(body, headers)
    except InvalidRequest as refused:
        payload.encode(dialect.render_error(refused))
    else:
        assert isinstance(request, chat.ChatRequest)
        payload.encode(hub_json(request))
        assert token_estimate.estimate(request) >= 0
        request_key(request)
        for other in DIALECTS:  # as convert and a study write it anew
            try:
                written, ignored = other.render_request(request)
            except ProxyError as refused:
                payload.encode(other.render_error(refused))
            else:
                payload.encode(written)
                assert all(isinstance(path, str) for path in ignored)
    payload.encode(dialect.normalize_body(body))
    assert json.dumps(body) == before


def anybody(name):
    nearly = damaged(requests_of(name))
    return st.integers(0, 9).flatmap(
        lambda i: nearly if i else json_values(20) | st.sampled_from(NASTY)
    )


@every_dialect
@given(st.data(), st.sampled_from(HEADERS))
def test_any_body_is_read_or_refused(name, data, headers):
    check_request(name, data.draw(anybody(name)), headers)


@pytest.mark.slow
@every_dialect
@given(st.data(), st.sampled_from(HEADERS))
@settings(max_examples=240)
def test_very_many_bodies_are_read_or_refused(name, data, headers):
    check_request(name, data.draw(anybody(name)), headers)


@every_dialect
def test_one_dialects_bodies_are_read_or_refused_by_another(name):
    for other in NAMES:
        for body in requests_of(other):
            check_request(name, body, {})


CORPUS = [
    pytest.param(name, *case.values, id=f"{name}-{case.id}")
    for name in NAMES
    for case in cases(name)
]


@pytest.mark.parametrize("name, text", CORPUS)
def test_case_of_the_corpus(name, text):
    check_request(name, payload.parse(text), {})


# Answers


def pieces_of(frames):
    """The events' data as JSON, and their names."""
    frames = [f if isinstance(f, SSEFrame) else SSEFrame("message", f.decode()) for f in frames]
    return [[frame.event, json.loads(frame.data)] for frame in frames if frame.data != "[DONE]"]


def frames_of(name, stream):
    decoder = BY_NAME[name].StreamDecoder(MAX_FRAME_BYTES)
    return decoder.feed(stream) + decoder.end()


STREAMS = {
    name: [case.stream for case in wire_cases(name, answered=True) if case.stream] for name in NAMES
}
FRAMES = {
    name: [pieces_of(frames_of(name, stream)) for stream in streams]
    for name, streams in STREAMS.items()
}
RESPONSES = {
    name: [case.response for case in wire_cases(name, answered=True) if case.response]
    for name in NAMES
}
ENVELOPE = chat.Envelope("id", 0, "m")


def check_frames(name, frames):
    """Feed frames; what was read until an error is a reply as far as it came."""
    parser, events = BY_NAME[name].StreamParser(), []
    try:
        for frame in frames:
            events += parser.feed(frame)
        events += parser.end()
    except ProxyError as failed:
        for dialect in DIALECTS:
            payload.encode(dialect.render_error(failed))
    else:
        assert isinstance(events[-1], chat.Finish)
    assert parser.model is None or isinstance(parser.model, str)
    assert not any(isinstance(event, chat.Finish) for event in events[:-1])
    chat.collect(events)
    for dialect in DIALECTS:
        renderer = dialect.StreamRenderer(ENVELOPE)
        wire = b"".join([*renderer.start(), *(f for e in events for f in renderer.feed(e))])
        wire.decode()


def check_pieces(name, pieces):
    """Frames as damage has left them: a list of [event, data], or nearly."""
    frames = []
    for piece in pieces if isinstance(pieces, list) else [pieces]:
        event, value = piece if isinstance(piece, list) and len(piece) == 2 else ("message", piece)
        event = event if isinstance(event, str) else "message"
        text = payload.encode(value)
        is_sse = BY_NAME[name].STREAM_TYPE.startswith("text/event-stream")
        frames.append(SSEFrame(event, text.decode()) if is_sse else text)
    check_frames(name, frames)


def check_response(name, body):
    try:
        response = BY_NAME[name].parse_response(body, {"x-request-id": "1"})
    except ProxyError as failed:
        payload.encode(BY_NAME[name].render_error(failed))
    else:
        for dialect in DIALECTS:
            payload.encode(dialect.render_response(response, ENVELOPE))


def check_error(name, status, body):
    failed = BY_NAME[name].parse_error(status, body, {"retry-after": "soon"})
    assert isinstance(failed, ProxyError)
    for dialect in DIALECTS:
        payload.encode(dialect.render_error(failed))


def check_answers(name, data):
    check_pieces(name, data.draw(damaged(FRAMES[name]) | json_values(9)))
    check_response(name, data.draw(damaged(RESPONSES[name]) | json_values(9)))
    body = data.draw(damaged([{"error": {"type": "a", "message": "b", "code": 1}}]) | st.text())
    check_error(name, data.draw(st.sampled_from([400, 401, 404, 418, 429, 500, 529])), body)
    bits = st.sampled_from(
        [b"\n\n", b"\r", b"data: ", b"data: [DONE]\n\n", b"\xff", b"event: x\n", b"{}"]
    )
    check_frames(name, frames_of(name, data.draw(spliced(st.sampled_from(STREAMS[name]), bits))))


@every_dialect
@given(st.data())
def test_any_answer_is_read_or_the_upstreams_failure(name, data):
    check_answers(name, data)


@pytest.mark.slow
@every_dialect
@given(st.data())
@settings(max_examples=120)
def test_very_many_answers_are_read_or_the_upstreams_failure(name, data):
    check_answers(name, data)


@every_dialect
def test_one_dialects_streams_are_another_upstreams_failure(name):
    for other in set(NAMES) - {name}:
        for stream in STREAMS[other]:
            check_frames(name, frames_of(name, stream))
