"""The version of llmproxy, which any module may show."""

__version__ = "0.1.0"
