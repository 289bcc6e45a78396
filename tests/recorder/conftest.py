"""Tests of the log load no plugins but llm's own, which takes seconds."""

from tests.log_fixtures import few_plugins

__all__ = ["few_plugins"]
