import os
import tempfile

# Before anything imports llm: some plugins read its folder when they are loaded. Without
# most plugins that are installed a process starts in half the time: see `every_plugin`.
os.environ["LLM_USER_PATH"] = tempfile.mkdtemp(prefix="llmproxy-tests-")
os.environ["LLM_LOAD_PLUGINS"] = "llm-echo"
for name in [name for name in os.environ if name.endswith("_API_KEY") or name.endswith("_KEY")]:
    del os.environ[name]
