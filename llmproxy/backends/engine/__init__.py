"""The backend that runs llm's models.

    catalog     plugins and models, looked up by the name that a client sends
    prompt      a ChatRequest → an llm.Prompt that the model supports
    model_events an async model's events, as llm reads them
    events      events of plugins → the common event stream
    outcome     finish reasons, usage and exceptions of providers → their common form
    event_queue the queue from a model, in the loop or a thread, to its reader
    run         the engine, and one running model, read in batches
    embed       embedding models

No other folder runs llm's models, and their exceptions don't leave this one.
"""

from .catalog import AnyModel, Catalog
from .embed import ModelEmbedder
from .run import Engine, EngineRun

__all__ = ["AnyModel", "Catalog", "Engine", "EngineRun", "ModelEmbedder"]
