"""Load only llm's own plugins in these tests: others take seconds."""

from tests.log_fixtures import few_plugins

__all__ = ["few_plugins"]
