"""Embeddings by OpenAI's and Ollama's own clients, run in threads and logged without content."""

from __future__ import annotations

import hashlib
import json
import socket
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy
import ollama
import openai
import pytest

from llmproxy.core.limits import Limits
from tests.app.test_app import request
from tests.models import AsyncScript, EmbeddingScript
from tests.proxies import running


def openai_client(proxy):
    return openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="any", max_retries=0)


# ---- OpenAI's API


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}], ids=["base64", "float"])
@pytest.mark.parametrize("texts", ["hello", ["a", "bcd"]], ids=["string", "list"])
def test_the_sdk_reads_vectors_in_both_encodings(llm_user_path, encoding, texts):
    """C19: the SDK asks for base64 unless it is told otherwise."""
    with running(EmbeddingScript("e")) as proxy:
        answer = openai_client(proxy).embeddings.create(model="e", input=texts, **encoding)
    sizes = [5.0] if texts == "hello" else [1.0, 3.0]
    assert [one.embedding for one in answer.data] == [[n, n + 1, n + 2] for n in sizes]
    assert [one.index for one in answer.data] == list(range(len(sizes)))
    assert answer.model == "e"
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 2


def test_a_request_of_litellm_names_no_format_and_gets_numbers(llm_user_path):
    """C19"""
    with running(EmbeddingScript("e")) as proxy:
        body = {"model": "e", "input": ["ab"], "user": "u"}
        status, headers, raw = request(proxy, "POST", "/v1/embeddings", body)
        below_api = request(proxy, "POST", "/api/v1/embeddings", body)
    assert (status, below_api[0]) == (200, 200)
    assert json.loads(raw)["data"][0]["embedding"] == [2.0, 3.0, 4.0]
    assert headers["x-llmproxy-ignored"] == "user, usage"


def test_the_models_batches_are_kept(llm_user_path):
    with running(e := EmbeddingScript("e", batch_size=2)) as proxy:
        openai_client(proxy).embeddings.create(model="e", input=["a", "b", "c", "d", "e"])
    assert e.batches == [["a", "b"], ["c", "d"], ["e"]]


def test_dimensions_are_set_where_the_model_has_them_and_else_refused(llm_user_path):
    with running(EmbeddingScript("sized", dimensions=None), EmbeddingScript("fixed")) as proxy:
        client = openai_client(proxy)
        sized = client.embeddings.create(model="sized", input="ab", dimensions=2)
        full = client.embeddings.create(model="sized", input="ab")
        same = client.embeddings.create(model="fixed", input="ab", dimensions=3)
        with pytest.raises(openai.BadRequestError, match="vectors of 3 dimensions only") as no:
            client.embeddings.create(model="fixed", input="ab", dimensions=2)
    assert sized.data[0].embedding == [2.0, 3.0]
    assert len(full.data[0].embedding) == len(same.data[0].embedding) == 3
    assert no.value.param == "dimensions"


@pytest.mark.parametrize(
    "body, param, words",
    [
        ({"input": [1, 2, 3]}, "input", "check_embedding_ctx_length=False"),
        ({"input": [[1, 2], [3]]}, "input", "tokens can't be read here"),
        ({"input": []}, "input", "nothing to embed"),
        ({"input": ""}, "input", "can't be empty"),
        ({"input": ["a", None]}, "input[1]", "expected a string"),
        ({}, "input", "required"),
        ({"input": "a", "dimensions": 0}, "dimensions", "above 0"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "expected one of"),
    ],
)
def test_what_is_no_request_is_refused_by_the_name_of_its_field(llm_user_path, body, param, words):
    with running(e := EmbeddingScript("e")) as proxy:
        status, _, raw = request(proxy, "POST", "/v1/embeddings", {"model": "e", **body})
        exchange = proxy.wait_for_report()
    error = json.loads(raw)["error"]
    assert (status, error["param"]) == (400, param)
    assert words in error["message"]
    assert (e.batches, exchange.status, exchange.error_param) == ([], "error", param)


def test_an_unknown_model_and_a_chat_model_are_404s(llm_user_path):
    with running(EmbeddingScript("e"), AsyncScript("m", "a")) as proxy:
        client = openai_client(proxy)
        with pytest.raises(openai.NotFoundError, match="there is no model 'none' here"):
            client.embeddings.create(model="none", input="a")
        with pytest.raises(openai.NotFoundError, match="the model 'm' embeds nothing"):
            client.embeddings.create(model="m", input="a")
        aliased = client.embeddings.create(model="e-alias", input="a")
        (llm_user_path / "default_embedding_model.txt").write_text("e")
        default = request(proxy, "POST", "/v1/embeddings", {"input": "a"})
    assert (aliased.model, default[0]) == ("e-alias", 200)


def test_a_model_that_fails_is_an_error_without_its_key(llm_user_path):
    with running(e := EmbeddingScript("e", key="sk-secret-12345678")) as proxy:
        e.fails = RuntimeError("the key sk-secret-12345678 is wrong")
        status, _, raw = request(proxy, "POST", "/v1/embeddings", {"model": "e", "input": "a"})
        e.fails = SystemExit("no")
        second = request(proxy, "POST", "/v1/embeddings", {"model": "e", "input": "a"})
    assert (status, second[0]) == (502, 502)
    assert b"sk-secret" not in raw and b"is wrong" in raw


@pytest.mark.parametrize("vector", [[float("nan")], ["a"], [None], 3, [[1.0]]])
def test_a_vector_of_no_numbers_is_the_models_failure(llm_user_path, vector):
    class Broken(EmbeddingScript):
        def embed_batch(self, items, *, key=None):
            yield vector

    with running(Broken("e")) as proxy:
        status, _, raw = request(proxy, "POST", "/v1/embeddings", {"model": "e", "input": "a"})
    assert (status, b"a vector of no numbers" in raw) == (502, True)


def test_numbers_of_numpy_are_numbers(llm_user_path):
    class Numpy(EmbeddingScript):
        def embed_batch(self, items, *, key=None):
            yield from numpy.array([[1.5, 2.0]], dtype="float32")

    with running(Numpy("e")) as proxy:
        answer = openai_client(proxy).embeddings.create(model="e", input="a")
        floats = ollama.Client(proxy.url).embed("e", "a").embeddings
    assert answer.data[0].embedding == floats[0] == [1.5, 2.0]


def test_tokens_that_were_refused_are_not_logged(llm_user_path):
    """LangChain sends them: they are the text."""
    with running(EmbeddingScript("e")) as proxy:
        for tokens in ([1, 2, 3], [[1, 2], [3]]):
            request(proxy, "POST", "/v1/embeddings", {"model": "e", "input": tokens})
        proxy.wait_for_report(2)
    inputs = [report.request.body["input"] for report in proxy.reports]
    assert inputs == [{"tokens": 3}, [{"tokens": 2}, {"tokens": 1}]]


def test_too_few_vectors_are_the_models_failure(llm_user_path):
    class Short(EmbeddingScript):
        def embed_batch(self, items, *, key=None):
            yield [1.0]

    with running(Short("e")) as proxy:
        status, _, raw = request(
            proxy, "POST", "/v1/embeddings", {"model": "e", "input": ["a", "b"]}
        )
    assert (status, b"gave 1 vectors for 2 texts" in raw) == (502, True)


def test_vectors_take_no_more_memory_than_an_answer_may(llm_user_path):
    with running(EmbeddingScript("e", 1_000), limits=Limits(answer=100_000, shutdown_s=5)) as proxy:
        one = request(proxy, "POST", "/v1/embeddings", {"model": "e", "input": ["a"]})
        four = request(proxy, "POST", "/v1/embeddings", {"model": "e", "input": ["a"] * 4})
    assert (one[0], four[0], b"limit answer" in four[2]) == (200, 502, True)


# ---- running


@pytest.mark.parametrize("key, most", [(None, 1), ("a-key", 2)], ids=["local", "remote"])
def test_a_local_model_runs_one_request_at_a_time(llm_user_path, key, most):
    running_now, seen, lock = 0, [], threading.Lock()
    both = threading.Event()

    def before(batch):
        nonlocal running_now
        with lock:
            running_now += 1
            seen.append(running_now)
            if running_now == 2:
                both.set()
        both.wait(0.2)
        with lock:
            running_now -= 1

    e = EmbeddingScript("e", needs_key=key, key="k")
    e.before = before
    with running(e) as proxy, ThreadPoolExecutor(2) as pool:
        client = openai_client(proxy)
        list(pool.map(lambda text: client.embeddings.create(model="e", input=text), ["a", "b"]))
    assert max(seen) == most


@pytest.mark.parametrize("limits", [{}, {"running": 1}], ids=["the model", "the limit"])
def test_a_wait_for_a_turn_is_told_apart_from_our_own_time(llm_user_path, limits):
    thinking_s = 0.1
    e = EmbeddingScript("e", before=lambda batch: time.sleep(thinking_s))
    chosen = Limits(shutdown_s=5, **limits)
    with running(e, limits=chosen) as proxy, ThreadPoolExecutor(2) as pool:
        body = {"model": "e", "input": "a"}
        sent = [pool.submit(request, proxy, "POST", "/v1/embeddings", body) for _ in range(2)]
        timings = [one.result(10)[1]["server-timing"] for one in sent]
        proxy.wait_for_report(2)
    (waited_ms,) = [float(one.rpartition("queue;dur=")[2]) for one in timings if "queue" in one]
    (waited,) = [one for one in proxy.reports if one.queue_ms is not None]
    assert waited_ms == pytest.approx(waited.queue_ms, abs=0.01)
    assert 0 < waited.overhead_ms <= waited.duration_ms - waited.queue_ms - thinking_s * 1000


def test_the_server_answers_others_while_a_model_embeds(llm_user_path):
    asked, go_on = threading.Event(), threading.Event()
    e = EmbeddingScript("e")

    def before(batch):
        asked.set()
        assert go_on.wait(10)

    e.before = before
    with running(e) as proxy, ThreadPoolExecutor(1) as pool:
        client = openai_client(proxy)
        answer = pool.submit(client.embeddings.create, model="e", input="a")
        assert asked.wait(10)
        assert request(proxy, "GET", "/healthz")[0] == 200
        busy = request(proxy, "POST", "/v1/embeddings", b'{"model": "none", "input": "a"}')
        go_on.set()
        assert answer.result(10).data
    assert busy[0] == 404


def test_a_request_that_waits_for_its_model_holds_no_place(llm_user_path):
    """Others would wait behind it, though the limit on running responses has room for them."""
    asked, go_on = threading.Event(), threading.Event()
    e = EmbeddingScript("e")

    def before(batch):
        asked.set()
        assert go_on.wait(10)

    e.before = before
    limits = Limits(running=2, queue_s=5, shutdown_s=5)
    with running(e, AsyncScript("m", "a"), limits=limits) as proxy, ThreadPoolExecutor(2) as pool:
        client = openai_client(proxy)
        first = pool.submit(client.embeddings.create, model="e", input="a")
        assert asked.wait(10)
        second = pool.submit(client.embeddings.create, model="e", input="b")
        while json.loads(request(proxy, "GET", "/healthz")[2])["waiting"] == 0:
            time.sleep(0.01)
        said = client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hi"}], timeout=2
        )
        go_on.set()
        assert first.result(10).data and second.result(10).data
    assert said.choices[0].message.content == "a"


def test_a_local_model_whose_client_hung_up_is_busy_until_it_yields(llm_user_path):
    """Its thread can't be stopped: another request beside it could crash the process."""
    asked, go_on = threading.Event(), threading.Event()
    e = EmbeddingScript("e", batch_size=1)

    def before(batch):
        asked.set()
        assert go_on.wait(10)

    e.before = before
    with running(e, limits=Limits(queue_s=0.2, shutdown_s=5)) as proxy:
        body = b'{"model": "e", "input": ["a", "b", "c"]}'
        head = f"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
        with socket.create_connection(("127.0.0.1", proxy.port)) as client:
            client.sendall(head.encode() + b"\r\n" + body)
            assert asked.wait(10)
        cancelled = proxy.wait_for_report()
        second = {"model": "e", "input": "d"}
        busy = request(proxy, "POST", "/v1/embeddings", second)
        go_on.set()
        answers = [request(proxy, "POST", "/v1/embeddings", second)[0] for _ in range(3)]
    assert (cancelled.status, busy[0]) == ("cancelled", 503)
    assert b"runs one request at a time" in busy[2]
    assert 200 in answers
    assert [batch for batch in e.batches if batch != ["d"]] in ([["a"]], [["a"], ["b"]])


# ---- Ollama's API


def test_ollamas_client_embeds(llm_user_path):
    with running(EmbeddingScript("e", dimensions=None)) as proxy:
        client = ollama.Client(proxy.url)
        one = client.embed("e", "hello", truncate=True)
        two = client.embed("e:latest", ["a", "bc"], dimensions=2)
        old = client.embeddings("e", "hello")
        none = client.embed("e", "")
        with pytest.raises(ollama.ResponseError, match="there is no model 'none'") as missing:
            client.embed("none", "a")
        exchange = proxy.wait_for_report()
    assert (one.embeddings, one.model) == ([[5.0, 6.0, 7.0]], "e")
    assert one.prompt_eval_count == 2 and one.total_duration > 0
    assert two.embeddings == [[1.0, 2.0], [2.0, 3.0]]
    assert old.embedding == [5.0, 6.0, 7.0]
    assert none.embeddings == []
    assert missing.value.status_code == 404
    assert exchange.dialect == "ollama"
    assert proxy.reports[0].ignored == ("truncate", "usage")


# ---- the log


def test_an_exchange_has_sizes_and_hashes_and_no_content(llm_user_path):
    text = "a secret thought of mine, nobody's business"
    with running(EmbeddingScript("e")) as proxy:
        openai_client(proxy).embeddings.create(model="e-alias", input=[text, "é"])
        ollama.Client(proxy.url).embeddings("e", text)
        exchange = proxy.wait_for_report(2)
    first = proxy.reports[0]
    assert (first.status, first.http_status, first.path) == ("ok", 200, "/v1/embeddings")
    assert (first.model_asked, first.model_used, first.thread_id) == ("e-alias", "e", None)
    sha = hashlib.sha256(text.encode()).hexdigest()
    assert first.request.body["input"] == [
        {"bytes": len(text), "sha256": sha},
        {"bytes": 2, "sha256": hashlib.sha256("é".encode()).hexdigest()},
    ]
    assert exchange.request.body["prompt"] == {"bytes": len(text), "sha256": sha}
    files = b"".join(p.read_bytes() for p in llm_user_path.glob("logs.db*"))
    assert b"secret thought" not in files
    with sqlite3.connect(llm_user_path / "logs.db") as log:
        rows = log.execute("select path, status, replay_key from proxy_exchanges").fetchall()
        turns = log.execute("select count(*) from turns").fetchone()
    assert rows == [("/v1/embeddings", "ok", None), ("/api/embeddings", "ok", None)]
    assert turns == (0,)


def test_recordings_have_no_vectors_to_replay(llm_user_path):
    with running(EmbeddingScript("e"), AsyncScript("m", "a")) as proxy:
        openai_client(proxy).embeddings.create(model="e", input="a")
        openai_client(proxy).chat.completions.create(
            model="m", messages=[{"role": "user", "content": "a"}]
        )
        proxy.wait_for_report(2)
    with running(EmbeddingScript("e"), replay="replay") as proxy:
        status, _, raw = request(proxy, "POST", "/v1/embeddings", {"model": "e", "input": "a"})
    assert (status, b"vectors are not recorded" in raw) == (422, True)
    with running(EmbeddingScript("e"), replay="replay-or-live") as proxy:
        live = request(proxy, "POST", "/v1/embeddings", {"model": "e", "input": "a"})
    assert live[0] == 200
