import os
import tempfile
from fnmatch import fnmatchcase

# Set by whoever runs the tests, and read by what they run. All others stay: programs and folders
# are found by them.
FOREIGN_VARIABLES = (
    *("CI", "BUILD_NUMBER", "GITHUB_*"),  # pytest and hypothesis do other things in a CI
    *("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "PY_COLORS", "CLICOLOR*"),
    *("LANGUAGE", "PAGER", "PYTHONWARNINGS", "PYTHONDEVMODE", "PYTHONIOENCODING"),
    *("*_PROXY", "*_KEY", "*_TOKEN", "*_BASE_URL", "SSL_CERT_*", "*_CA_BUNDLE"),
    *("OPENAI_*", "ANTHROPIC_*", "OLLAMA_*", "GROQ_*", "LLM_*", "LLMPROXY_*", "OTEL_*"),
    *("UVICORN_*", "GRANIAN_*", "WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS", "XDG_CONFIG_HOME"),
)
for name in list(os.environ):
    if any(fnmatchcase(name.upper(), pattern) for pattern in FOREIGN_VARIABLES):
        del os.environ[name]

# Before anything imports llm: some plugins read its folder when they are loaded. Without
# most plugins that are installed a process starts in half the time: see `every_plugin`.
os.environ["LLM_USER_PATH"] = tempfile.mkdtemp(prefix="llmproxy-tests-")
os.environ["LLM_LOAD_PLUGINS"] = "llm-echo"
