import json
from types import SimpleNamespace

import pytest

from llmproxy.backends.llm_keys import keys_of_model, known_keys
from llmproxy.core.known_keys import REMOVED


def test_the_keys_in_llms_file_are_redacted_including_those_set_later(llm_user_path):
    keys = known_keys(["own-key-1"])
    assert keys.redact("own-key-1 stored-key-1") == f"{REMOVED} stored-key-1"
    file = llm_user_path / "keys.json"
    file.write_text(json.dumps({"// Note": "This file stores", "a": "stored-key-1", "b": 5}))
    assert keys.redact("stored-key-1 This file stores") == f"{REMOVED} This file stores"
    file.write_text(json.dumps({"a": "stored-key-22"}))
    assert keys.redact("stored-key-1 stored-key-22") == f"{REMOVED} {REMOVED}"


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "\udcff"])
def test_a_broken_file_is_ignored(llm_user_path, text):
    (llm_user_path / "keys.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert known_keys().redact("a text") == "a text"


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "LLM_GEMINI_KEY", "HF_TOKEN", "my_secret"])
def test_the_keys_in_the_environment_are_redacted(monkeypatch, name):
    monkeypatch.setenv(name, "of-the-env-1,of-the-env-2")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "a-word-of-its")
    text = "of-the-env-1 of-the-env-2 a-word-of-its"
    assert known_keys().redact(text) == f"{REMOVED} {REMOVED} a-word-of-its"


def test_the_keys_set_on_a_model_are_found():
    headers = {"Authorization": "Bearer local-key-1", "http-referer": "https://my.example"}
    model = SimpleNamespace(key="local-key-2", headers=headers)
    assert set(keys_of_model(model)) == {"Bearer", "local-key-1", "local-key-2"}
    assert list(keys_of_model(SimpleNamespace(key=None, headers=None))) == []
