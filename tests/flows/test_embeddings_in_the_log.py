"""Commands and pages over a log that has embeddings, completions and Ollama's requests."""

from __future__ import annotations

import json
from pathlib import Path

import ollama
import openai
import pytest

from tests.app.test_app import request
from tests.commands import run_here
from tests.models import AsyncScript, EmbeddingScript, registered, usage
from tests.proxies import running


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> tuple[Path, str]:
    """Record one request of each kind; return the log, and the page that shows it."""
    database = tmp_path_factory.mktemp("log") / "recorded.db"
    models = AsyncScript("m", "Fine, thank you very much.", usage(3, 4)), EmbeddingScript("e")
    with running(*models, database=database) as proxy:
        sdk = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="any", max_retries=0)
        sdk.embeddings.create(model="e", input=["one", "two"])
        with pytest.raises(openai.NotFoundError):
            sdk.embeddings.create(model="none", input="one")
        sdk.completions.create(model="m", prompt="How are you today?")
        client = ollama.Client(proxy.url)
        client.embed("e", "three")
        client.generate("m", "How are you, my friend?")
        client.chat("m", [{"role": "user", "content": "And how is your mother?"}])
        proxy.wait_for_report(6)
        page = request(proxy, "GET", "/", headers={"accept": "text/html"})
        metrics = request(proxy, "GET", "/metrics")
    assert (page[0], metrics[0]) == (200, 200)
    assert b'dialect="ollama"' in metrics[2]
    return database, page[2].decode()


def test_the_log_and_the_page_list_them(recorded):
    database, page = recorded
    code, out, _ = run_here("log", "--json", "--database", str(database))
    entries = [json.loads(line) for line in out.decode().splitlines()]
    assert code == 0
    shown = [(e["path"], e["model_used"], e["status"]) for e in entries]
    assert sorted(shown, key=str) == sorted(
        [
            ("/v1/embeddings", "e", "ok"),
            ("/v1/embeddings", None, "error"),
            ("/v1/completions", "m", "ok"),
            ("/api/embed", "e", "ok"),
            ("/api/generate", "m", "ok"),
            ("/api/chat", "m", "ok"),
        ],
        key=str,
    )
    assert "How are you, my friend?" in page
    for entry in entries:
        code, out, err = run_here("log", entry["id"], "--database", str(database))
        assert (code, err) == (0, ""), err
        assert entry["path"].encode() in out
    for flags, count in ([["--dialect", "ollama"], 3], [["--model", "e"], 2], [["--threads"], 3]):
        code, out, err = run_here("log", *flags, "--json", "--database", str(database))
        assert (code, len(out.splitlines())) == (0, count), err


def test_lists_say_how_much_was_embedded(recorded):
    database, page = recorded
    code, out, _ = run_here("log", "--model", "e", "--database", str(database))
    first, second = out.decode().splitlines()
    assert first.endswith("  embed 2 texts  2 vectors of 3 numbers")
    assert second.endswith("  embed 1 text  1 vector of 3 numbers"), second
    assert "embed 2 texts</a>" in page and "2 vectors of 3 numbers" in page
    assert "no text" not in page and "no reply" not in page


def test_they_are_exported_and_imported_as_they_are(recorded, tmp_path):
    database, _ = recorded
    file, copy = tmp_path / "all.jsonl", tmp_path / "copy.db"
    assert run_here("export", str(file), "--database", str(database))[0] == 0
    code, _, err = run_here("import", str(file), "--database", str(copy))
    assert code == 0, err
    listed = [
        sorted(run_here("log", "--json", "--database", str(path))[1].splitlines())
        for path in (database, copy)
    ]
    paths = [[json.loads(line)["path"] for line in lines] for lines in listed]
    assert sorted(paths[0]) == sorted(paths[1])


def test_a_benchmark_sends_the_chats_again(recorded):
    database, _ = recorded
    other = AsyncScript("other", "Quite well, and you?", usage(3, 4))
    with registered(AsyncScript("m", "a"), other):
        flags = ["--models", "other", "--warmup", "0", "--database", str(database)]
        code, out, err = run_here("bench", *flags)
    assert code == 0, err
    assert len(other.prompts) == 3


def test_a_report_compares_the_chats_only(recorded):
    database, _ = recorded
    code, out, err = run_here("report", "--database", str(database))
    assert code == 0, err
    assert out.startswith(b"the log: 3 requests, 3 responses, ")
    assert b"Errors: None in 3 responses." in out


def test_a_replay_offers_the_models_of_chats(recorded):
    database, _ = recorded
    with running(replay="replay", database=database, log=False) as proxy:
        _, _, raw = request(proxy, "GET", "/v1/models")
    assert [model["id"] for model in json.loads(raw)["data"]] == ["m"]
