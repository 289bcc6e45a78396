import os
import tempfile

# Before anything imports llm: some plugins read its folder when they are loaded.
os.environ["LLM_USER_PATH"] = tempfile.mkdtemp(prefix="llmproxy-tests-")
for name in [name for name in os.environ if name.endswith("_API_KEY") or name.endswith("_KEY")]:
    del os.environ[name]
