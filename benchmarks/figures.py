"""The figures of the table: their titles and goals."""

from __future__ import annotations

from dataclasses import dataclass

OURS, PEER, LITELLM, L2, L1, LLM = "ours", "peer", "LiteLLM", "L2", "L1", "llm"


@dataclass(frozen=True)
class Goal:
    """At least (or, of costs, at most) this many times another server's figure.

    of: the other server; "" for a goal that is a number.
    """

    factor: float
    of: str = PEER


@dataclass(frozen=True)
class Figure:
    """A row of the table.

    title: with the names of an Effort's sizes in braces. digits: after the point.
    more_is_better: for the goals' direction.
    """

    name: str
    title: str
    digits: int = 1
    more_is_better: bool = False
    goals: tuple[Goal, ...] = ()


def _rate(name: str, title: str, *goals: Goal) -> Figure:
    return Figure(name, title, 0, True, goals)


def _cost(name: str, title: str, digits: int, *goals: Goal) -> Figure:
    return Figure(name, title, digits, False, goals)


MAIN = (
    _rate("rate_1", "logged requests/s, 20-chunk response, 1 connection", Goal(10)),
    _rate("rate_16", "logged requests/s, 20-chunk response, 16 connections", Goal(18)),
    _cost("cpu_1", "CPU ms a request, 1 connection", 3, Goal(0.15)),
    _cost("cpu_16", "CPU ms a request, 16 connections", 3),
    _cost("p50_1", "latency p50, 1 connection, ms", 2),
    _cost("p99_16", "latency p99, 16 connections, ms", 1, Goal(0.2)),
    _rate("chunks_1", "streamed chunks/s, 200-chunk responses, 1 connection", Goal(5)),
    _rate(
        "chunks_16",
        "streamed chunks/s, 200-chunk responses, 16 connections",
        Goal(5),
        Goal(1.3, L2),
    ),
    _cost("chunk_cpu_1", "CPU ms per 1,000 chunks, 1 connection", 1),
    _cost(
        "chunk_cpu_16",
        "CPU ms per 1,000 chunks, 16 connections",
        1,
        Goal(0.18),
        Goal(0.8, L2),
        Goal(2.2, L1),
    ),
    _cost("chunk_cpu_paced", "CPU ms per 1,000 chunks, 200 streams of a chunk every 10 ms", 1),
    _cost("ttft_p50", "time to first token added, p50, ms", 2, Goal(0.15), Goal(2, L2)),
    _cost("ttft_p99", "time to first token added, p99, ms", 2, Goal(0.15), Goal(2, L2)),
    _cost("lag_p50", "lag of a chunk at 200 streams of 10 ms, p50, ms", 2, Goal(0.5, "")),
    _cost("lag_p99", "lag of a chunk at 200 streams of 10 ms, p99, ms", 1, Goal(5, "")),
    _cost("length", "length of those streams over the model's schedule", 2, Goal(0.65)),
    _cost("resend_cpu_1000", "re-sending 1,000 messages, CPU ms", 1, Goal(0.15)),
    _cost("resend_p50_400", "re-sending 400 messages, p50 ms", 1, Goal(0.15)),
    _cost("image_cpu", "an image of 5 MB, CPU ms", 0, Goal(1.2, L1)),
    _cost(
        "long_stream", "a stream of 100,000 chunks against 10,000, CPU per chunk", 2, Goal(1.1, "")
    ),
    _cost("start_cpu", "start to first response, CPU ms", 0, Goal(0.75)),
    _cost("start_rss", "RSS after the first response, MiB", 1, Goal(0.95)),
    _cost("peak_rss", "RSS peak with 200 streams, MiB", 1, Goal(0.75)),
    _cost(
        "turns_before",
        "{turns_before:,} exchanges in logs.db against none, CPU of a turn",
        2,
        Goal(1.1, ""),
    ),
    _cost(
        "members_stall",
        "a body of 4 MB with 200,000 members stalls streams for, ms",
        0,
        Goal(50, ""),
    ),
    _cost("agent_cpu_560k", "a turn of a known conversation of 560 kB, CPU ms", 1, Goal(2, L1)),
    _cost("agent_cpu_3500k", "a turn of a known conversation of 3.5 MB, CPU ms", 1, Goal(2, L1)),
    _cost("agent_stall_560k", "streams' longest stall beside such 560 kB, ms", 1, Goal(20, "")),
    _cost("agent_stall_3500k", "streams' longest stall beside such 3.5 MB, ms", 1, Goal(20, "")),
    _cost("log_list", "`log` over {rows:,} exchanges, ms", 0, Goal(300, "")),
    _cost("log_search", "`log --search` of a rare word, ms", 0, Goal(300, "")),
    _cost("log_search_all", "`log --search` of a word in every exchange, ms", 0, Goal(300, "")),
    _cost("log_threads", "`log --threads`, ms", 0, Goal(300, "")),
    _cost("log_page", "the page, ms", 0, Goal(300, "")),
    _cost("log_list_growth", "`log`, {rows:,} exchanges against {few_rows:,}", 2, Goal(1.1, "")),
    _cost(
        "log_search_growth",
        "`log --search`, rare word, {rows:,} against {few_rows:,}",
        2,
        Goal(1.1, ""),
    ),
    _cost(
        "log_search_all_growth",
        "`log --search`, common word, {rows:,} against {few_rows:,}",
        2,
        Goal(1.1, ""),
    ),
    _cost("log_threads_growth", "`log --threads`, {rows:,} against {few_rows:,}", 2, Goal(1.1, "")),
    _cost("log_page_growth", "the page, {rows:,} against {few_rows:,}", 2, Goal(1.1, "")),
    Figure("logged", "logged, of all requests, %", 1, True, (Goal(100, ""),)),
    Figure("answered", "answered without an error, of all requests, %", 1, True),
    _cost("overhead_seen", "request to model, and its last chunk to the end, p50, ms", 2),
    _cost("overhead_told", "of this by the server's own `overhead_ms`, p50, ms", 2),
)
GROWTH = (
    _cost("resend_cpu_2", "re-sending 2 messages, CPU ms", 2),
    _cost("resend_cpu_10", "10 messages", 2),
    _cost("resend_cpu_100", "100 messages", 2),
    _cost("resend_cpu_400", "400 messages", 1),
    _cost("resend_cpu_1000", "1,000 messages", 1),
    _cost("cpu_1", "a request, 1 connection, CPU ms", 2),
    _cost("cpu_4", "4 connections", 2),
    _cost("cpu_16", "16 connections", 2),
    _cost("cpu_64", "64 connections", 2),
    _cost("cpu_200", "200 connections", 2),
    _cost("chunk_cpu_1", "1,000 chunks, in streams of 200, CPU ms", 1),
    _cost("chunk_cpu_10k", "in streams of 10,000", 1),
    _cost("chunk_cpu_100k", "in streams of 100,000", 1),
)
APIS = (
    _cost("chunk_cpu_chat", "OpenAI's Chat Completions", 1),
    _cost("chunk_cpu_messages", "Anthropic's Messages", 1),
    _cost("chunk_cpu_responses", "OpenAI's Responses", 1),
    _cost("chunk_cpu_ollama", "Ollama's chat", 1),
)
GENERATOR = (
    _cost("server_16", "16 connections: the server's CPU, %", 0),
    _cost("generator_16", "the load generator's CPU, %", 0),
    _cost("stream_server_16", "16 connections, streams: the server's CPU, %", 0),
    _cost("stream_generator_16", "the load generator's CPU, %", 0),
)
TABLES = {
    "": MAIN,
    "How the cost grows with messages, connections and chunks:": GROWTH,
    "CPU ms per 1,000 chunks by each API, 200-chunk responses, 16 connections:": APIS,
    "Whether the load generator kept up (L1 is saturated if its CPU is near 100 %):": GENERATOR,
}
"""All figures, in tables, each with a line that goes before it."""
