"""The variables of whoever runs the tests are no part of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

FOREIGN = """CI BUILD_NUMBER GITHUB_ACTIONS COLUMNS LINES NO_COLOR FORCE_COLOR PY_COLORS
    CLICOLOR_FORCE HTTPS_PROXY https_proxy http_proxy ALL_PROXY NO_PROXY no_proxy OPENAI_API_KEY
    OPENAI_BASE_URL OPENAI_ORG_ID ANTHROPIC_AUTH_TOKEN ANTHROPIC_BASE_URL OLLAMA_HOST GROQ_BASE_URL
    LLM_MODEL LLM_OPENAI_SHOW_RESPONSES LLMPROXY_PORT OTEL_EXPORTER_OTLP_HEADERS WEB_CONCURRENCY
    SSL_CERT_FILE REQUESTS_CA_BUNDLE PYTHONWARNINGS""".split()


def test_variables_of_the_caller_are_removed_and_those_of_the_machine_stay():
    program = "import json, os, tests; print(json.dumps(dict(os.environ)))"
    machine = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    output = subprocess.run(
        [sys.executable, "-c", program],
        env=machine | dict.fromkeys(FOREIGN, "7") | {"LLM_USER_PATH": "/users", "LC_ALL": "C"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        check=True,
        timeout=30,
    ).stdout
    left = json.loads(output)
    assert left.pop("LLM_USER_PATH") != "/users"
    assert left == machine | {"LC_ALL": "C", "LLM_LOAD_PLUGINS": "llm-echo"}
