"""Every example, run as it is."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.proxies import running

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(command: list[str], url: str = "") -> str:
    environment = os.environ | {"LLMPROXY_URL": url}
    environment["PYTHONPATH"] = str(EXAMPLES.parent)
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=30, check=True
    )
    return result.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_session():
    with running() as proxy:
        out = run([str(EXAMPLES / "curl_session.sh")], proxy.url)
    assert out.startswith('{"id":"demo","object":"model"')
    assert out.count("You said: Hello!") == 1
    assert "data: [DONE]" in out
    assert '"param":"messages[0].content"' in out


def test_stream_with_sdk():
    with running() as proxy:
        out = run([sys.executable, str(EXAMPLES / "stream_with_sdk.py")], proxy.url)
    assert out.startswith("You said: Say hello in three languages.")
    assert re.search(r"\(5 tokens in, \d+ out\)\n$", out)


@pytest.mark.slow
def test_serve_own_model():
    out = run([sys.executable, str(EXAMPLES / "serve_own_model.py")])
    assert out == "GOOD! MORNING! \n"


def test_convert_request():
    out = run([sys.executable, str(EXAMPLES / "convert_request.py")])
    body, _, lines = out.rpartition("}\n")
    assert json.loads(body + "}")["system"] == "Answer in one word."
    assert lines == ("not carried: logit_bias\nrefused: messages: expected a list, got a string\n")


def test_convert_live_stream():
    out = run([sys.executable, str(EXAMPLES / "convert_live_stream.py")])
    chunks, _, lines = out.partition("data: [DONE]\n\n")
    deltas = [json.loads(line[6:])["choices"] for line in chunks.splitlines() if line]
    said = [choice["delta"].get("content") for choices in deltas for choice in choices]
    assert said == ["", "Hé", "llo 🌊", None]
    assert lines == "Héllo 🌊 9 4\nmeasured: True failed: None lost: ()\n"


@pytest.mark.slow
@pytest.mark.timeout(240)  # four runs of pytest
def test_agent_tests(tmp_path):
    """Record, replay without a model on another day, and check each way to fail."""
    database, recording = tmp_path / "agent.db", tmp_path / "agent.jsonl"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]

    def tested(**environment):
        environment |= {"AGENT_DB": str(database), "PYTHONPATH": str(EXAMPLES.parent)}
        return subprocess.run(
            [*command, str(EXAMPLES / "agent_tests.py")],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )

    missing = tested()
    assert f"{recording} is missing: record it with RECORD=1" in missing.stdout
    assert "Traceback" not in missing.stdout + missing.stderr
    recorded = tested(RECORD="1")
    assert recorded.returncode == 0, recorded.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent.db", "agent.jsonl"]
    database.unlink()
    text, count = re.subn(r"Today is [\d-]+", "Today is 2020-01-01", recording.read_text())
    assert count >= 2
    recording.write_text(text)
    replayed = tested()
    assert replayed.returncode == 0, replayed.stdout
    changed = tested(TASK="Tidy the barn.")
    assert changed.returncode == 1
    assert "differs at character 9: it was 'Tidy the shed.'" in changed.stdout
    assert re.search(r"no test used these recordings: \w+ \(Tidy the shed", changed.stdout)
    assert [path.name for path in tmp_path.iterdir()] == ["agent.jsonl"]
    assert recording.read_text() == text


@pytest.mark.parametrize(
    ("name", "missing", "sentence"),
    [
        ("otel", "opentelemetry", "this example needs a package: pip install opentelemetry-sdk"),
        ("stream_with_sdk", "openai", "this example needs a package: pip install openai"),
        ("agent_tests", "openai", "this example needs a package: pip install openai"),
    ],
)
def test_an_example_without_its_package_says_so(monkeypatch, name, missing, sentence):
    monkeypatch.setitem(sys.modules, missing, None)  # importing it fails
    with pytest.raises((SystemExit, pytest.exit.Exception)) as ended:
        runpy.run_path(str(EXAMPLES / f"{name}.py"))
    assert str(ended.value) == sentence


@pytest.mark.parametrize("model", ["demo", "nope"])
def test_an_example_whose_request_fails_says_why(monkeypatch, model):
    monkeypatch.setattr("sys.argv", ["stream_with_sdk.py", model])
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0)
    with running() as proxy:
        url = proxy.url
        monkeypatch.setenv("LLMPROXY_URL", url)
        if model == "nope":
            with pytest.raises(SystemExit, match="there is no model 'nope' here"):
                runpy.run_path(str(EXAMPLES / "stream_with_sdk.py"))
    if model == "demo":
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(EXAMPLES / "stream_with_sdk.py"))
        assert str(ended.value) == f"{url}: Connection error. Is `python -m llmproxy` running?"


def test_every_example_has_a_test_and_is_short():
    for path in filter(Path.is_file, EXAMPLES.iterdir()):
        assert f"test_{path.stem}" in globals(), path
        assert len(path.read_text().splitlines()) < 60, path


def test_hooks():
    lines = run([sys.executable, str(EXAMPLES / "hooks.py")]).splitlines()
    assert [line.partition(": ")[2][:4] for line in lines] == [
        "stop",
        "stop",
        "403 ",
        "stop",
        "403 ",
    ]


def test_otel():
    span = json.loads(run([sys.executable, str(EXAMPLES / "otel.py")]))
    assert span["name"] == "chat demo"
    assert span["parent_id"] == "0x00f067aa0ba902b7"
    assert span["attributes"]["gen_ai.usage.output_tokens"] > 10
