"""llmproxy: the flight recorder for llm."""

__version__ = "0.1.0"
