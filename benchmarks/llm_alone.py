"""llm without a server, as the floor of all servers of llm's models.

`python llm_alone.py SECONDS` prints the same figures as the servers have, as JSON: a response of
20 chunks with its row in logs.db (by llm's own log_to_db, on one open connection), streams of
200 chunks, and what it costs to import llm and find a model.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time

import llm
import sqlite_utils


async def logged(model: llm.AsyncModel, database: sqlite_utils.Database, number: int) -> None:
    """Do what a server must do for a whole response: run the model, and log."""
    response = model.prompt(f"question {number}", stream=True)
    await response.text()
    (await response.to_sync_response()).log_to_db(database)


async def streamed(model: llm.AsyncModel) -> int:
    """Do what a server must do for a stream, without a log; return the number of chunks."""
    count = 0
    async for _ in model.prompt("question", stream=True).astream_events():
        count += 1
    return count


async def main(seconds: float) -> None:
    model = llm.get_async_model("scripted-20")
    figures = {"start_cpu": time.process_time() * 1000}
    figures["start_rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    database = sqlite_utils.Database(llm.user_dir() / "logs.db")
    await logged(model, database, 0)
    count, began, began_cpu = 0, time.monotonic(), time.process_time()
    while time.monotonic() < began + seconds:
        count += 1
        await logged(model, database, count)
    figures["rate_1"] = count / (time.monotonic() - began)
    figures["cpu_1"] = 1000 * (time.process_time() - began_cpu) / count
    model = llm.get_async_model("scripted-200")
    chunks, began, began_cpu = 0, time.monotonic(), time.process_time()
    while time.monotonic() < began + seconds:
        chunks += await streamed(model)
    figures["chunks_1"] = chunks / (time.monotonic() - began)
    figures["chunk_cpu_1"] = 1e6 * (time.process_time() - began_cpu) / chunks
    print(json.dumps(figures))


asyncio.run(main(float(sys.argv[1])))
