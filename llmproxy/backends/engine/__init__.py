"""llm's models as a backend: which there are, and how one of them is run.

    catalog     plugins and models, found by the name that a client asks for
    prompt      a ChatRequest → the llm.Prompt that a model can read
    events      what plugins yield → the common event stream
    outcome     what llm has no field for: finish reason, usage, the meaning of an exception
    llm_keys    llm's keys, kept out of everything that is shown
    run         the engine itself: one running model, read in batches

Only this folder runs llm's models; their exceptions do not leave it.
"""

from .catalog import Catalog
from .llm_keys import known_keys
from .run import Engine, EngineRun

__all__ = ["Catalog", "Engine", "EngineRun", "known_keys"]
