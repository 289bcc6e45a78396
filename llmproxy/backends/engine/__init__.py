"""llm's side of the house: which models there are, and how one of them is run.

    catalog     plugins and models, found by the name that a client asked for
    form        a hub request → the llm.Prompt that this model can read
    events      what plugins yield → the hub's event stream
    outcome     what llm has no field for: finish reason, usage, what an exception means
    llm_keys    llm's keys, to be kept out of everything
    run         the engine itself: one running model, read in batches

Nothing else imports llm's models, and nothing of llm's exceptions leaves here.
"""

from .catalog import Catalog, in_daemon_thread
from .llm_keys import known_keys
from .run import Answer, Engine

__all__ = ["Answer", "Catalog", "Engine", "in_daemon_thread", "known_keys"]
