"""llm's hooks: the demo model, and `llm proxy` for the same command. Cheap to import."""

from __future__ import annotations

import sys
from typing import Any

import llm

__all__ = ["register_commands", "register_models"]


@llm.hookimpl
def register_models(register: Any) -> None:
    """Register the demo model, so that llm can show and continue its conversations."""
    from .backends.engine.demo import AsyncDemo, Demo

    register(Demo(), AsyncDemo())


@llm.hookimpl
def register_commands(cli: Any) -> None:
    """Add `llm proxy`, which takes the words of `python -m llmproxy` as they are."""

    def proxy() -> None:
        "Serve every llm model to programs that speak an LLM wire"
        from .cli.main import run

        # Ours to parse, and not by click, on which we do not depend.
        words = sys.argv[sys.argv.index("proxy") + 1 :]
        run(words, program="llm proxy")

    settings = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    cli.command(name="proxy", context_settings=settings)(proxy)
