"""llm's hooks: the demo model and the command `llm proxy`. Every `llm` command imports this."""

from __future__ import annotations

import sys
from typing import Any

import llm


@llm.hookimpl
def register_models(register: Any) -> None:
    """Register the demo model, so that llm can show and continue its conversations."""
    from .backends.engine.demo import AsyncDemo, Demo

    register(Demo(), AsyncDemo())


@llm.hookimpl
def register_commands(cli: Any) -> None:
    """Add `llm proxy`, which takes the same arguments as `python -m llmproxy`."""

    def proxy() -> None:
        "Serve every llm model to programs that speak an LLM API"
        from .cli.main import run

        # Parsed by us, not by click, on which we do not depend.
        argv = sys.argv[sys.argv.index("proxy") + 1 :]
        run(argv, program="llm proxy")

    settings = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    cli.command(name="proxy", context_settings=settings)(proxy)
