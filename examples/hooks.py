"""Let a program of your own decide who is served, and tell it what each exchange cost.

Each team has a key and a budget of tokens. The server asks `authorize` before it reads a body,
and gives `on_exchange` each exchange that has ended. Leaves out where keys come from and budgets
are kept.
"""

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import llmproxy

TEAMS = {"Bearer red-key": "red", "Bearer blue-key": "blue"}
BUDGET = 60  # tokens for each team
spent: Counter[str] = Counter()


def authorize(request: Any) -> bool:
    """Serve teams that have tokens left; `request` has a method, a path and headers."""
    team = TEAMS.get(request.headers.get("authorization", ""))
    return team is not None and spent[team] < BUDGET


async def on_exchange(exchange: Any) -> None:
    """Count what a team has used; its SDK names it as the client."""
    tokens = (exchange.usage.input_tokens or 0) + (exchange.usage.output_tokens or 0)
    spent[exchange.client] += tokens or exchange.output_tokens_estimate or 0


def ask(url: str, team: str) -> str:
    body = {"model": "demo", "messages": [{"role": "user", "content": "good morning"}]}
    headers = {"authorization": f"Bearer {team}-key", "x-title": team}
    request = Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urlopen(request) as response:
            return f"{team}: {json.load(response)['choices'][0]['finish_reason']}"
    except HTTPError as error:
        return f"{team}: {error.code} {json.load(error)['error']['message']}"


with tempfile.TemporaryDirectory() as folder:
    with llmproxy.running(
        database=Path(folder) / "logs.db", authorize=authorize, on_exchange=on_exchange
    ) as server:
        for team in ("red", "red", "red", "blue", "green"):
            print(ask(server.url, team))
