"""`bench` as a person runs it, on what a real proxy recorded."""

import asyncio
import json
import os
import shutil
import signal
import socket
import sqlite3
import time
from contextlib import nullcontext
from types import SimpleNamespace
from urllib.request import Request, urlopen

import pytest
from llm.parts import ReasoningPart, StreamEvent

from llmproxy.backends.log_source import exchange_request
from llmproxy.bench.runs import claim_run, find_run
from llmproxy.cli import bench as bench_command
from llmproxy.recorder.listing import Filter
from llmproxy.recorder.reader import LogReader
from llmproxy.report.figures import figures
from llmproxy.report.load import study_of_run
from tests.models import AsyncScript, ScriptOptions, SyncScript, response_json, usage
from tests.models import registered as registered_models
from tests.provider import chat_stream, playing, say_json
from tests.proxies import running

# Of the plugins that are installed none is needed, and loading them takes a second.
pytestmark = pytest.mark.usefixtures("no_plugins")


@pytest.fixture
def no_plugins(monkeypatch):
    monkeypatch.setattr("llmproxy.backends.engine.catalog._load_plugins", lambda: False)


@pytest.fixture
def history(llm_user_path):
    history = LogReader(llm_user_path / "logs.db")
    yield history
    history.close()


def post(proxy, path, body, **headers):
    data = json.dumps(body).encode()
    with urlopen(Request(f"{proxy.url}{path}", data, headers)) as answer:
        return json.loads(answer.read())


def ask(proxy, messages, model="recorded", **fields):
    body = {"model": model, "messages": messages, **fields}
    return post(proxy, "/v1/chat/completions", body)["choices"][0]["message"]


def talk(proxy, turns, model="recorded"):
    """Record a conversation of so many turns."""
    messages = []
    for number in range(turns):
        messages.append({"role": "user", "content": f"What is {number} + {number}?"})
        messages.append(ask(proxy, messages, model))


def answers(*words, **counts):
    """The steps of an answer, a text for each word."""
    return [*words, usage(20, len(words), **counts)]


@pytest.fixture(scope="module")
def recorded_session(tmp_path_factory):
    """Three turns of one conversation, recorded."""
    path = tmp_path_factory.mktemp("session") / "logs.db"
    model = AsyncScript("recorded", *answers("It", " is", " four."))
    with running(model, database=path) as proxy:
        talk(proxy, 3)
    return path


@pytest.fixture
def session(recorded_session, llm_user_path):
    """The log of them for this test alone."""
    shutil.copy(recorded_session, llm_user_path / "logs.db")


def bench(*words, models=(), code=0):
    with registered_models(*models) if models else nullcontext():
        assert bench_command.main(words, "llmproxy") == code


def rows(history, sql):
    return [tuple(row) for row in history.rows(sql, {})]


def one_word(model_id, word="Four.", *steps):
    return AsyncScript(model_id, *steps, *answers(word))


# ---- what is asked


def test_each_model_gets_the_recorded_messages(session, history, capsys):
    a, b = one_word("a"), one_word("b")
    bench("--models", "a,b", "--warmup", "0", "--repeat", "2", models=[a, b])
    recorded = [history.exchange(id) for id in history.ids(Filter(is_traffic=True))]
    asked = [exchange.turn.messages for exchange in recorded]
    assert [prompt.messages for prompt in a.prompts] == asked * 2 == [p.messages for p in b.prompts]


def test_models_take_turns_at_being_first(session, history):
    order = []
    models = [AsyncScript(id, lambda _, id=id: order.append(id), *answers("4")) for id in "abc"]
    bench("--models", "a,b,c", "--warmup", "0", models=models)
    assert "".join(order) == "abcbcacab"


def test_answers_are_siblings_of_the_recorded_one_under_a_named_run(session, history):
    before = rows(history, "select id, tip_message_hash from threads")
    bench("--models", "a,b", "--name", "friday", models=[one_word("a"), one_word("b")])
    siblings = rows(
        history,
        """
        select asked.model_asked, asked.repeat, asked.status, asked.client
        from proxy_runs join proxy_exchanges as asked on run_id = proxy_runs.id
        join turns on turns.id = asked.id join turns as recorded on recorded.id = recorded_id
        where name = 'friday' and turns.parent_message_hash = recorded.parent_message_hash
        and turns.tip_message_hash != recorded.tip_message_hash order by asked.number
        """,
    )
    asked = "ab" + "abbaab"
    repeats = [0] * 2 + [1] * 6
    assert siblings == [
        (model, repeat, "ok", "llmproxy bench")
        for model, repeat in zip(asked, repeats, strict=True)
    ]
    tips = "select id, tip_message_hash from threads where forked_from is null"
    assert rows(history, tips) == before
    newest = rows(history, "select id, tip_message_hash from threads order by id desc limit 1")
    assert newest == before, "which `llm -c` goes on with"
    assert find_run(history, "friday").ended is not None


def test_requests_are_recorded_as_sent(session, history):
    bench(
        "--models", "a", "--warmup", "0", "--last", "1", "--max-tokens", "7", models=[one_word("a")]
    )
    (id,) = history.ids(Filter(client="llmproxy bench"))
    body = history.exchange(id).request.body
    assert (body["model"], body["stream"], body["max_tokens"]) == ("a", True, 7)
    assert body["messages"][-1]["content"] == "What is 2 + 2?"


def test_the_smaller_token_limit_is_sent(llm_user_path, history_of):
    with running(one_word("recorded")) as proxy:
        ask(proxy, [{"role": "user", "content": "1"}], max_completion_tokens=5)
        ask(proxy, [{"role": "user", "content": "2"}], max_completion_tokens=50)
        ask(proxy, [{"role": "user", "content": "3"}])
    a = one_word("a")
    bench("--models", "a", "--warmup", "0", "--max-tokens", "9", models=[a])
    assert [prompt.options.max_tokens for prompt in a.prompts] == [5, 9, 9]
    bodies = [history_of().exchange(id).request.body for id in history_of().ids()][3:]
    assert [body.get("max_completion_tokens") for body in bodies] == [5, 9, None]
    assert bodies[2]["max_tokens"] == 9


@pytest.fixture
def history_of(llm_user_path):
    """Open the log when it is there."""
    opened = []

    def open_it():
        if not opened:
            opened.append(LogReader(llm_user_path / "logs.db"))
        return opened[0]

    yield open_it
    for history in opened:
        history.close()


def test_only_the_recorded_model_is_given_its_own_reasoning_again(llm_user_path, history_of):
    thought = StreamEvent(
        "reasoning", "Hm.", part_index=0, provider_metadata={"p": {"signature": "s"}}
    )
    text = StreamEvent("text", "An answer that nobody gives twice by chance.", part_index=1)
    thinker = AsyncScript("thinker", thought, text, usage(3, 2))
    other = one_word("other")
    with running(thinker) as proxy:
        question = {"role": "user", "content": "Why?"}
        answer = ask(proxy, [question], "thinker")
        answer.pop("reasoning_content", None)
        ask(proxy, [question, answer, question], "thinker")
    bench("--models", "thinker,other", "--warmup", "0", "--last", "1", models=[thinker, other])
    kinds = [
        [type(part).__name__ for part in model.prompts[-1].messages[1].parts]
        for model in (thinker, other)
    ]
    assert kinds == [[ReasoningPart.__name__, "TextPart"], ["TextPart"]]
    asked = rows(history_of(), "select parent_message_hash from turns order by datetime_utc")
    assert len(asked) == 4 and len(set(asked[1:])) == 1, "all are siblings all the same"


@pytest.fixture(scope="module")
def recorded_traffic(tmp_path_factory):
    """Nineteen answers alike, a failure, and one each of another dialect, client and model."""
    path = tmp_path_factory.mktemp("traffic") / "logs.db"
    models = one_word("recorded"), one_word("other"), AsyncScript("bad", OSError())
    say = [{"role": "user", "content": "hello"}]
    with running(*models, database=path) as proxy:
        for _ in range(19):
            ask(proxy, say)
        with pytest.raises(OSError):
            ask(proxy, say, "bad")
        post(proxy, "/v1/messages", {"model": "recorded", "max_tokens": 9, "messages": say})
        body = {"model": "recorded", "messages": say}
        post(proxy, "/v1/chat/completions", body, **{"x-title": "editor"})
        ask(proxy, [{"role": "user", "content": "the capital of France?"}], "other")
    return path


@pytest.mark.parametrize(
    "words, count",
    [
        ([], 20),
        (["--last", "2"], 2),
        (["--since", "1h"], 22),
        (["--search", "capital"], 1),
        (["--model", "other"], 1),
        (["--client", "editor"], 1),
        (["--dialect", "anthropic_messages"], 1),
        (["--status", "error"], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_filters_select_the_requests(recorded_traffic, llm_user_path, capsys, words, count):
    shutil.copy(recorded_traffic, llm_user_path / "logs.db")
    bench("--models", "a", "--dry-run", *words, models=[one_word("a")])
    *asked, last = capsys.readouterr().out.splitlines()
    assert len(asked) == count
    assert last.startswith(f"would send {count + 1} requests to each of a (1 of them to warm up), ")


def test_ids_in_a_file_select_requests(session, history, tmp_path, capsys):
    first, _, third = history.ids()
    (tmp_path / "ids").write_text(f"{third}\n{first}\n")
    bench("--models", "a", "--ids", str(tmp_path / "ids"), "--dry-run", models=[one_word("a")])
    asked = capsys.readouterr().out.splitlines()[:-1]
    assert [line.split()[0] for line in asked] == [first, third]


def test_damaged_requests_are_skipped(llm_user_path, history_of, capsys):
    with running(one_word("recorded")) as proxy:
        ask(proxy, [{"role": "user", "content": "word " * 1000}])
        ask(proxy, [{"role": "user", "content": "short"}])
    history = history_of()
    damaged, _ = history.ids()
    with sqlite3.connect(history.path) as log:
        assert log.execute("delete from proxy_contents").rowcount
    bench("--models", "a", models=[one_word("a")])
    out, err = capsys.readouterr()
    why = f"recording {damaged} is damaged; see `llmproxy log --verify`"
    assert err.splitlines()[0] == f"skipped: {damaged}: {why}"
    assert "1 request, 1 of 1 response," in out


def test_responses_of_a_run_are_not_sent_again(session, history, capsys):
    bench("--models", "a", models=[one_word("a")])
    bench("--models", "a", "--dry-run", models=[one_word("a")])
    assert "would send 4 requests to each of a " in capsys.readouterr().out
    assert len(history.ids(Filter(is_traffic=True))) == 3


@pytest.mark.parametrize(
    "words, warnings",
    [
        (["--parallel", "a=2"], ""),
        (["--parallel", "A*=2"], "warning: --parallel A* matches no model\n"),
        (
            ["--parallel", "a=2", "--base-url", "http://127.0.0.1:9"],
            "warning: --parallel has no effect with --base-url\n",
        ),
    ],
)
def test_a_parallel_pattern_without_effect_is_warned_of(session, words, warnings, capsys):
    bench("--models", "a", "--dry-run", *words, models=[one_word("a")])
    assert capsys.readouterr().err == warnings


def test_a_dry_run_sends_and_writes_nothing(session, history, llm_user_path, tmp_path, capsys):
    before = list(sqlite3.connect(llm_user_path / "logs.db").iterdump())
    (tmp_path / "prices.json").write_text('{"currency": "USD", "a": {"input": 1e6, "output": 0}}')
    a = one_word("a")
    prices = str(tmp_path / "prices.json")
    bench("--models", "a,b", "--prices", prices, "--dry-run", models=[a, one_word("b")])
    *_, planned, of_a, of_b = capsys.readouterr().out.splitlines()
    assert "would send 4 requests to each of a, b (1 of them to warm up), about " in planned
    assert planned.endswith("tokens; the recorded replies to as many requests had 9")
    tokens = int(planned.split("about ")[1].split()[0])
    assert of_a == f"  a: about {tokens:,.2f} USD by your prices"
    assert of_b == "  b: no price"
    assert a.prompts == []
    assert list(sqlite3.connect(llm_user_path / "logs.db").iterdump()) == before


# ---- what is refused


@pytest.mark.parametrize(
    "words, message",
    [
        (["--models", "a", "--cache", "hot"], "invalid choice: 'hot'"),
        (["--resume", "--cache", "cold"], "--resume continues a run as it began"),
        (["--models", "nobody"], "there is no model 'nobody' here; llm models lists them"),
        (
            ["--models", "a", "--search", "nowhere"],
            "no request that matches and could be sent again",
        ),
        (["--models", "a", "--resume", "x"], "--resume continues a run as it began"),
        (["--resume", "monday"], "the log has no run 'monday'; `llmproxy bench` creates one"),
        ([], "name the models to benchmark: --models A,B"),
        (["--models", "a", "--name", "last"], "expected a printable name other than 'last'"),
        (["--models", "a", "--timeout", "0"], "expected a number of seconds above 0"),
        (["--models", "a", "--ids", "/no/file"], "/no/file"),
        (["--models", "a", "--base-url", "http://me:word@host/"], "give a key with --key"),
        (
            ["--models", "a", "--base-url", "groq"],
            "--base-url: groq needs an API and an address, as groq=DIALECT+URL",
        ),
        (["--models", "a", "--prices", "/no/prices"], "/no/prices"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments_are_refused_before_anything_is_sent(
    session, history, capsys, words, message
):
    a = one_word("a")
    with registered_models(a):
        try:
            code = bench_command.main(words, "llmproxy")
        except SystemExit as exc:
            code = exc.code
    assert code in (1, 2)
    assert message in capsys.readouterr().err
    assert a.prompts == [] and len(history.ids()) == 3


def test_a_run_name_is_unique(session, capsys):
    bench("--models", "a", "--name", "friday", models=[one_word("a")])
    bench("--models", "a", "--name", "friday", models=[one_word("a")], code=1)
    assert "the run 'friday' exists already" in capsys.readouterr().err


def test_no_run_starts_with_logs_off(session, llm_user_path, capsys):
    (llm_user_path / "logs-off").touch()
    bench("--models", "a", models=[one_word("a")], code=2)
    assert "llm logs on" in capsys.readouterr().err


# ---- what is measured


class Paced(AsyncScript):
    """Says a word, waits, says the next, and remembers when it said each."""

    def __init__(self, model_id, first_s, gap_s, words):
        super().__init__(model_id)
        self.first_s, self.gap_s, self.words = first_s, gap_s, words
        self.said = []

    async def execute(self, prompt, stream, response, conversation):
        self._began(prompt, conversation)
        times = [time.monotonic()]
        self.said.append(times)
        for number in range(self.words):
            await asyncio.sleep(self.gap_s if number else self.first_s)
            times.append(time.monotonic())
            yield f"word{number} "
        response.set_usage(input=20, output=self.words)
        response_json(finish_reason="stop")(response)


def test_figures_match_the_scripted_times(session, history):
    """Held against the times at which the script really spoke, which a busy machine moves too."""
    slow, fast = Paced("slow", 0.1, 0.02, 8), Paced("fast", 0.05, 0.01, 8)
    bench("--models", "slow,fast", "--warmup", "0", models=[slow, fast])
    found = figures(study_of_run(history, find_run(history, "last")))
    for script, model in ((slow, found.models[0]), (fast, found.models[1])):
        firsts = sorted((first - began) * 1000 for began, first, *_ in script.said)
        wholes = sorted((times[-1] - times[0]) * 1000 for times in script.said)
        rates = sorted(7 / (times[-1] - times[1]) for times in script.said)
        gaps = [b - a for times in script.said for a, b in zip(times[1:], times[2:], strict=False)]
        assert model.ttft_ms.summary.p50 == pytest.approx(firsts[1], rel=0.05)
        assert model.first_output_ms.summary.p50 == pytest.approx(firsts[1], rel=0.05)
        assert model.duration_ms.summary.p50 == pytest.approx(wholes[1], rel=0.05)
        assert model.tokens_per_second.summary.p50 == pytest.approx(rates[1], rel=0.05)
        assert model.gaps.longest.summary.most == pytest.approx(max(gaps) * 1000, rel=0.1)
        assert (model.requests, model.ok, model.finish_reasons) == (3, 3, {"stop": 3})
        assert model.tokens["output_tokens"].mean == 8
        # And what was to be: a sleep is never shorter.
        assert model.ttft_ms.summary.least >= script.first_s * 1000
        assert model.gaps.typical.summary.least >= script.gap_s * 990


def test_a_response_of_calls_alone_has_a_first_output(session, history):
    """Reasoning comes before it, and a tool that the provider runs is no output."""
    thought = StreamEvent("reasoning", "Hm.", part_index=0)
    search = StreamEvent(
        "tool_call_name", "search", part_index=1, tool_call_id="s", server_executed=True
    )
    waits = [lambda _: asyncio.sleep(0.05), lambda _: asyncio.sleep(0.05)]
    name = StreamEvent("tool_call_name", "look", part_index=2, tool_call_id="1")
    arguments = StreamEvent("tool_call_args", "{}", part_index=2, tool_call_id="1")
    call = [waits[0], search, waits[1], name, arguments]
    caller = AsyncScript("caller", thought, *call, usage(9, 9))
    silent = AsyncScript("silent", thought, usage(9, 9))
    bench("--models", "caller,silent", "--warmup", "0", models=[caller, silent])
    found, nothing = figures(study_of_run(history, find_run(history, "last"))).models
    assert found.first_output_ms.summary.count == 3
    assert found.first_output_ms.summary.least >= found.ttft_ms.summary.least + 100
    assert (nothing.first_output_ms, nothing.ttft_ms.summary.count) == (None, 3)


def test_warm_ups_count_in_no_figure(session, history):
    cold = iter([0.3])
    model = AsyncScript("a", lambda _: asyncio.sleep(next(cold, 0)), *answers("Four."))
    bench("--models", "a", models=[model])
    (found,) = figures(study_of_run(history, find_run(history, "last"))).models
    assert (found.warmups, found.requests) == (1, 3)
    assert found.ttft_ms.summary.most < 300
    (warm_up,) = [one for one in history.entries() if one.repeat == 0]
    assert warm_up.ttft_ms >= 300


def test_work_before_a_model_starts_is_not_measured(session, history):
    class Slow(ScriptOptions):
        def __init__(self, **values):
            time.sleep(0.3)
            super().__init__(**values)

    bench("--models", "a", "--warmup", "0", models=[AsyncScript("a", *answers("4"), Options=Slow)])
    (found,) = figures(study_of_run(history, find_run(history, "last"))).models
    assert found.ttft_ms.summary.most <= found.duration_ms.summary.most < 300
    rows_of = rows(history, "select duration_ms from turns order by datetime_utc desc limit 3")
    assert all(ms < 300 for (ms,) in rows_of)


def test_work_after_the_last_event_is_not_measured(llm_user_path, history_of):
    class Lingering(AsyncScript):
        async def execute(self, prompt, stream, response, conversation):
            try:
                yield "so END"
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.5)

    with running(one_word("recorded")) as proxy:
        ask(proxy, [{"role": "user", "content": "Say END."}], stop=["END"])
    bench("--models", "slow", "--warmup", "0", models=[Lingering("slow")])
    (found,) = figures(study_of_run(history_of(), find_run(history_of(), "last"))).models
    assert (found.ok, found.duration_ms.summary.most < 400) == (1, True)


def test_a_system_prompt_is_no_part_of_what_is_shown_side_by_side(llm_user_path, history_of):
    system = {"role": "system", "content": "Be brief."}
    with running(one_word("recorded")) as proxy:
        ask(proxy, [system, {"role": "user", "content": "Why?"}])
    a = one_word("a")
    bench("--models", "a", models=[a])
    assert [message.role for message in a.prompts[-1].messages] == ["system", "user"]
    (sample,) = study_of_run(history_of(), find_run(history_of(), "last")).samples
    assert [message.role for message in sample.prompt] == ["user"]


def test_failures_are_counted_by_kind_and_kept(session, history, capsys):
    class Refused(Exception):
        status_code = 400

    bad = AsyncScript("bad", Refused("no such parameter"))
    cut = AsyncScript("cut", "so far", RuntimeError("gone"))
    bench("--models", "bad,cut,ok", "--warmup", "0", models=[bad, cut, one_word("ok")])
    found = figures(study_of_run(history, find_run(history, "last")))
    assert [model.errors for model in found.models] == [{"invalid_request": 3}, {"upstream": 3}, {}]
    kept = "select distinct status, http_status, error, thread_id is null from proxy_exchanges"
    assert rows(history, f"{kept} where model_asked = 'bad'") == [
        ("error", 400, "no such parameter", 1)
    ]
    assert rows(history, f"{kept} where model_asked = 'cut'")[0][3] == 0
    out, err = capsys.readouterr()
    assert "invalid_request" in out
    assert "\nbad can't take 3 requests (invalid_request); they are not sent again\n" in err
    assert "\n3 requests failed; to send again: bench --resume " in err


def test_an_endless_response_times_out(session, history):
    endless = AsyncScript("endless", "so", lambda _: asyncio.Event().wait())
    bench("--models", "endless", "--timeout", "0.1", "--last", "1", models=[endless], code=1)
    entries = history.entries(Filter(client="llmproxy bench"))
    assert {(one.status, one.http_status, one.error) for one in entries} == {
        ("error", 504, "the response did not end within 0.1 s")
    }
    assert endless.closed == 2


def test_concurrency_is_limited(session, history):
    now, most = 0, []

    class Counting(AsyncScript):
        async def execute(self, prompt, stream, response, conversation):
            nonlocal now
            now += 1
            most.append(now)
            await asyncio.sleep(0.02)
            now -= 1
            yield "4"

    models = [Counting("a"), Counting("b")]
    bench("--models", "a,b", "--concurrency", "3", "--repeat", "2", "--warmup", "0", models=models)
    assert max(most) == 3 and len(most) == 12
    assert len(history.ids(Filter(client="llmproxy bench"))) == 12


def test_sync_models_are_measured_too(session, history):
    bench("--models", "s", models=[SyncScript("s", *answers("It", " is", " 4"))])
    (found,) = figures(study_of_run(history, find_run(history, "last"))).models
    assert (found.ok, found.tokens["output_tokens"].p50) == (3, 3)


def test_a_piped_run_prints_a_line_per_response(session, capsys):
    bench("--models", "a", "--name", "friday", models=[one_word("a")])
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert [line.split("  ")[0] for line in lines[:4]] == ["0/3", "1/3", "2/3", "3/3"]
    assert "warm-up" in lines[0] and "  a  ok  " in lines[1]
    assert lines[4] == "as a page: report friday --html FILE"
    assert out.startswith("friday: 3 requests, 3 of 3 responses")


def test_a_terminal_shows_one_line_that_changes(session, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    bench("--models", "a", models=[one_word("a", "\x1b[31m")])
    err = capsys.readouterr().err
    assert err.count("\r\x1b[K") == 5
    assert "\r\x1b[K3/3, about 0 s left  a ok\r\x1b[K" in err


# ---- a server in place of llm


@pytest.mark.parametrize("dialect", ["openai_chat", "anthropic_messages"])
def test_a_server_gets_requests_in_its_dialect(session, history, dialect):
    there = AsyncScript(
        "there", *answers("It", " is", " four."), response_json(finish_reason="stop")
    )
    with running(there, log=False) as proxy:
        words = ["--models", "there", "--base-url", proxy.url, "--dialect", dialect]
        bench(*words, "--key", "any", "--warmup", "0")
        bodies = [prompt.messages for prompt in there.prompts]
    assert [messages[-1].parts[0].text for messages in bodies] == [
        f"What is {number} + {number}?" for number in range(3)
    ]
    entries = history.entries(Filter(client="llmproxy bench"))
    assert {(one.dialect, one.status, one.model_used) for one in entries} == {
        (dialect, "ok", "there")
    }
    assert all(0 < one.setup_ms < 5000 and 0 < one.ttft_ms for one in entries)
    (found,) = figures(study_of_run(history, find_run(history, "last"))).models
    assert found.setup_ms.summary.count == 3
    assert (found.tokens["input_tokens"].p50, found.tokens["output_tokens"].p50) == (20, 3)
    assert found.agreement.exact_text.count == 3
    assert rows(history, "select input_tokens, output_tokens from turns")[-1] == (20, 3)


def test_an_upstream_gets_requests_in_its_dialect_and_is_named(session, history):
    there = AsyncScript("there", *answers("It", " is", " four."))
    with running(there, log=False) as proxy:
        upstream = f"far=anthropic_messages+{proxy.url}"
        bench("--models", "there", "--base-url", upstream, "--warmup", "0", "--key", "any")
    entries = history.entries(Filter(client="llmproxy bench"))
    assert {(one.dialect, one.status, one.upstream) for one in entries} == {
        ("anthropic_messages", "ok", "far")
    }


def test_connecting_is_not_part_of_the_response_time(session, history, monkeypatch):
    look_up = socket.getaddrinfo

    def slow_look_up(host, port, *rest, **more):
        if host == "localhost":
            time.sleep(0.3)
        return look_up("127.0.0.1", port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", slow_look_up)
    with running(one_word("there"), log=False) as proxy:
        bench("--models", "there", "--base-url", f"http://localhost:{proxy.port}", "--warmup", "0")
    (found,) = figures(study_of_run(history, find_run(history, "last"))).models
    assert found.ok == 3 and found.setup_ms.summary.least >= 300
    assert found.ttft_ms.summary.most <= found.duration_ms.summary.most < 300


def test_an_unreachable_server_is_an_error_per_request(session, history):
    words = ["--models", "x", "--base-url", "http://127.0.0.1:1", "--warmup", "0", "--last", "1"]
    bench(*words, code=1)
    (entry,) = history.entries(Filter(client="llmproxy bench"))
    assert (entry.status, entry.http_status, entry.setup_ms) == ("error", 502, None)


def test_a_servers_key_comes_from_llms_keys_and_is_kept_nowhere(session, llm_user_path):
    secret = "sk-very-secret-key-of-a-server"
    (llm_user_path / "keys.json").write_text(json.dumps({"mine": secret}))
    with running(one_word("there"), log=False, keys=[secret]) as proxy:
        words = ["--models", "there", "--base-url", proxy.url, "--key"]
        bench(*words, "mine")
        bench(*words, "sk-wrong", code=1)
    history = LogReader(llm_user_path / "logs.db")
    entries = history.entries(Filter(client="llmproxy bench"))
    history.close()
    assert [one.http_status for one in entries] == [200] * 4 + [401] * 4
    for suffix in ("", "-wal"):
        path = llm_user_path / f"logs.db{suffix}"
        assert not path.exists() or secret.encode() not in path.read_bytes()


# ---- stopped, and gone on with


def test_a_run_that_is_stopped_reports_and_goes_on(session, history, capsys):
    """By a real signal: what was measured stays, what was cut is asked again."""

    async def stop_at_the_third(response):
        if len(a.prompts) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()

    a = AsyncScript("a", stop_at_the_third, *answers("Four."))
    b = one_word("b")
    bench("--models", "a,b", "--warmup", "0", "--repeat", "2", models=[a, b], code=130)
    out, err = capsys.readouterr()
    assert "3 requests, 4 of 12 responses" in out
    (name,) = rows(history, "select name from proxy_runs where ended is null")[0]
    assert err.splitlines()[-1] == f"stopped; to continue: bench --resume {name}"
    assert [one.status for one in history.entries(Filter(run=name))] == ["ok"] * 4 + ["cancelled"]
    bench("--resume", models=[a, b])
    out = capsys.readouterr().out
    assert "3 requests, 12 of 12 responses" in out
    measured = [
        (one.model_asked, one.recorded_id, one.repeat)
        for one in history.entries(Filter(run=name))
        if one.status == "ok"
    ]
    assert len(measured) == len(set(measured)) == 12
    assert find_run(history, name).ended is not None
    bench("--resume", name, models=[a, b])
    assert len(history.ids(Filter(run=name, status="ok"))) == 12


@pytest.fixture
def ignored_sigint():
    """SIGINT ignored, as a script's `&`, nohup and some CI runners pass it on."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ignored_sigint")
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_a_run_that_was_started_with_sigint_ignored(
    session, history, capsys, number, code
):
    async def stop_at_the_second(response):
        if len(a.prompts) == 2:
            os.kill(os.getpid(), number)
            await asyncio.Event().wait()

    a = AsyncScript("a", stop_at_the_second, *answers("Four."))
    bench("--models", "a", "--warmup", "0", "--name", "friday", models=[a], code=code)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN, "as it was before"
    out, err = capsys.readouterr()
    assert "3 requests, 1 of 3 responses" in out
    assert err.splitlines()[-1] == "stopped; to continue: bench --resume friday"
    statuses = [one.status for one in history.entries(Filter(run="friday"))]
    assert statuses == ["ok", "cancelled"]


@pytest.mark.usefixtures("ignored_sigint")
def test_ctrl_c_before_the_first_request_stops_too(session, history, capsys, monkeypatch):
    def interrupt(**_):
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not interrupted")

    monkeypatch.setattr(bench_command, "all_models", interrupt)
    bench("--models", "a", code=130)
    assert len(history.ids()) == 3


def test_a_finished_run_sends_nothing(session, history, capsys):
    """Not even to warm up: a request costs money. Its end stays, and the user is told."""
    a, b = one_word("a"), one_word("b")
    bench("--models", "a,b", "--name", "friday", models=[a, b])
    before = find_run(history, "friday")
    capsys.readouterr()
    bench("--resume", "friday", models=[a, b])
    assert len(a.prompts) == len(b.prompts) == 1 + 3
    assert find_run(history, "friday") == before and before.ended is not None
    assert capsys.readouterr().err.splitlines() == [
        "nothing to send: the log has all responses (6)",
        "as a page: report friday --html FILE",
    ]


def test_a_run_that_was_killed_after_its_last_response_gets_that_as_its_end(session, history):
    a = one_word("a")
    bench("--models", "a", "--name", "friday", models=[a])
    with sqlite3.connect(history.path) as log:
        log.execute("update proxy_runs set ended = null")
    bench("--resume", models=[a])
    last = [one for one in history.entries(Filter(run="friday")) if one.repeat][-1]
    ended = find_run(history, "friday").ended
    assert abs((ended - last.received).total_seconds() * 1000 - last.duration_ms) < 1
    assert len(a.prompts) == 1 + 3


def test_a_run_whose_requests_were_deleted_has_nothing_to_send(session, history, capsys):
    bench("--models", "a", "--name", "friday", models=[one_word("a")])
    with sqlite3.connect(history.path) as log:
        log.execute("delete from proxy_exchanges where run_id is null")
    bench("--resume", models=[one_word("a")], code=1)
    assert "there is nothing to send: the log has no request of this run any more" in (
        capsys.readouterr().err
    )


def test_failures_are_sent_again_and_the_newest_response_counts(session, history, capsys):
    """Whatever they failed by, if that can get better; what was answered stays."""
    broken = iter([RuntimeError("gone"), None, OSError("no"), RuntimeError("gone"), None])

    def fail(_):
        if error := next(broken):
            raise error

    a = AsyncScript("a", fail, *answers("Four."))
    bench("--models", "a", "--warmup", "0", "--name", "friday", models=[a])
    out, err = capsys.readouterr()
    assert "Errors: a 2 of 3 (upstream)." in out
    assert err.splitlines()[-2:] == [
        "2 requests failed; to send again: bench --resume friday",
        "as a page: report friday --html FILE",
    ]
    before = find_run(history, "friday").ended
    bench("--resume", models=[a])
    assert len(a.prompts) == 5
    assert "Errors: a 1 of 3 (upstream)." in capsys.readouterr().out
    study = study_of_run(history, find_run(history, "friday"))
    assert [one.was_sent_again for one in study.answers] == [True, False, True, False, False]
    (found,) = figures(study).models
    assert (found.requests, found.ok, found.sent_again) == (3, 2, 2)
    assert find_run(history, "friday").ended > before, "it went on"
    bench("--resume", models=[one_word("a")])
    assert "Errors: None in 3 responses." in capsys.readouterr().out


class Failed(Exception):
    def __init__(self, status, body=None):
        super().__init__("no")
        self.status_code, self.body = status, body


TOO_LONG = Failed(400, {"code": "context_length_exceeded"})
NO_CREDIT = Failed(400, {"message": "Your credit balance is too low"})


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Failed(400), "invalid_request"),
        (ValueError("no tools"), "invalid_request"),
        (Failed(413), "too_large"),
        (TOO_LONG, "invalid_request"),
        (NO_CREDIT, None),
        (Failed(401), None),
        (Failed(404), None),
        (Failed(500), None),
    ],
)
def test_a_request_that_its_model_can_not_take_is_not_sent_again(
    session, history, capsys, error, kind
):
    """Not even to warm up."""
    fails = iter([None, error, None])

    def fail(_):
        if found := next(fails, None):
            raise found

    a = AsyncScript("a", fail, *answers("Four."))
    bench("--models", "a", "--warmup", "0", "--name", "friday", models=[a])
    before = capsys.readouterr().err.splitlines()
    said = {
        True: f"a can't take 1 request ({kind}); it is not sent again",
        False: "1 request failed; to send again: bench --resume friday",
    }[kind is not None]
    assert before[-2:] == [said, "as a page: report friday --html FILE"]
    bench("--resume", models=[a])
    again = capsys.readouterr()
    if kind is None:
        assert len(a.prompts) == 3 + 1 and "Errors: None in 3 responses." in again.out
        return
    assert len(a.prompts) == 3 and f"Errors: a 1 of 3 ({kind})." in again.out
    assert again.err.splitlines() == [
        "nothing to send: the log has all responses that can be had (2)",
        *before[-2:],
    ]


def test_another_server_may_take_what_the_first_one_could_not(session, history, capsys):
    def refuse(body, handler):
        say_json(handler, {"error": {"message": "no"}}, 400)

    with playing(refuse) as first, playing(chat_stream({"content": "Four."})) as second:
        where = ["--warmup", "0", "--base-url"]
        bench("--models", "a", "--name", "friday", *where, first.url, code=1)
        bench("--resume", "--base-url", second.url)
        assert (len(first.bodies), len(second.bodies)) == (3, 3)
    assert "Errors: None in 3 responses." in capsys.readouterr().out


def test_a_warm_up_that_finds_no_server_ends_the_run(session, history, capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        where = ["--base-url", f"http://127.0.0.1:{port}"]
        bench("--models", "a,b", "--name", "friday", *where, code=1)
    *_, warm_up, said = capsys.readouterr().err.splitlines()
    assert warm_up.startswith("0/6  warm-up  ")
    assert said == (
        f"llmproxy bench: no connection to 127.0.0.1:{port}: Connection refused; nothing was"
        " measured; to try again: bench --resume friday"
    )
    (only,) = history.entries(Filter(run="friday"))
    assert (only.status, only.repeat) == ("error", 0)


def test_a_run_without_any_good_response_is_a_failure(session, history, capsys):
    bad = AsyncScript("bad", RuntimeError("gone"))
    bench("--models", "bad", "--name", "friday", models=[bad], code=1)
    assert find_run(history, "friday").ended is not None, "it is over all the same"
    bench("--resume", models=[bad], code=1)
    bench("--resume", models=[one_word("bad")])


# ---- rate limits


class Refused(Exception):
    """As an SDK raises it: 429, with the provider's headers."""

    status_code = 429

    def __init__(self, body=None, **headers):
        super().__init__("slow down")
        self.body = body
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.response = SimpleNamespace(headers=headers, status_code=429)


def refusing(id, *refusals):
    """A model that refuses so many requests first."""
    left = iter(refusals)

    def refuse(_):
        if error := next(left, None):
            raise error

    return AsyncScript(id, refuse, *answers("Four."))


def test_a_refused_request_is_sent_again_when_the_provider_allows_it(session, history, capsys):
    a = refusing("a", None, Refused(retry_after="0.3"), Refused(retry_after_ms="50"))
    began = time.monotonic()
    bench("--models", "a", "--warmup", "0", "--name", "friday", models=[a])
    assert 1.05 <= time.monotonic() - began, "the wait is passed on in whole seconds"
    out, err = capsys.readouterr()
    assert "3 requests, 3 of 3 responses" in out and "Errors: None in 3 responses." in out
    assert "a: 2 failed requests sent again, and counted in no other figure" in out
    first, refused, *_ = err.splitlines()
    assert first.startswith("1/3  ") and refused.startswith("1/3  ")
    assert "  error 429  " in refused
    assert refused.endswith("  What is 1 + 1?  slow down, again in 1 s")
    entries = history.entries(Filter(run="friday"))
    assert [one.http_status for one in entries] == [200, 429, 429, 200, 200]
    assert len({one.recorded_id for one in entries[1:4]}) == 1
    assert all(one.ttft_ms < 300 for one in entries if one.status == "ok"), "no wait is measured"


def test_a_refused_model_is_sent_nothing_until_it_may(session, history):
    """Nor by another of several workers; and a refused warm-up waits as well."""
    times = []
    a = refusing("a", Refused(retry_after="0.2"))
    steps = [lambda _: times.append(time.monotonic()), *a.steps]
    a = AsyncScript("a", *steps)
    bench("--models", "a", "--concurrency", "3", models=[a])
    refused, warm_up, *rest = times
    assert warm_up - refused >= 0.2 and len(rest) == 3


@pytest.mark.parametrize(
    ("refused", "kind"),
    [
        (Refused(retry_after="86400"), "rate_limit"),
        (Refused({"code": "insufficient_quota"}), "billing"),
        (Refused(x_should_retry="false", retry_after="0"), "rate_limit"),
    ],
    ids=["a day", "no quota", "told not to"],
)
def test_a_refusal_that_waiting_does_not_end_is_a_failure(session, history, refused, kind):
    a = refusing("a", *[refused] * 9)
    bench("--models", "a", "--warmup", "0", models=[a], code=1)
    assert len(a.prompts) == 3
    (found,) = figures(study_of_run(history, find_run(history, "last"))).models
    assert (found.errors, found.sent_again) == ({kind: 3}, 0)


def test_a_stop_while_a_model_refuses_leaves_its_request_to_be_sent(session, history, capsys):
    async def refuse(_):
        asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), signal.SIGINT)
        raise Refused(retry_after="60")

    a = AsyncScript("a", refuse)
    bench("--models", "a", "--warmup", "0", "--name", "friday", models=[a], code=130)
    bench("--resume", models=[one_word("a")])
    assert "3 requests, 3 of 3 responses" in capsys.readouterr().out


# ---- the provider's cache


@pytest.mark.parametrize("api", ["openai_chat", "anthropic_messages"])
@pytest.mark.parametrize("has_system", [True, False])
@pytest.mark.parametrize("is_in_parts", [True, False])
def test_a_cold_request_begins_with_a_line_of_its_own(
    llm_user_path, history_of, api, has_system, is_in_parts
):
    """The line is in the body; the turn is a sibling of the recorded one all the same."""

    def content(text):
        return [{"type": "text", "text": text}] if is_in_parts else text

    body = {"model": "recorded", "max_tokens": 9, "messages": []}
    if has_system and api == "anthropic_messages":
        body["system"] = content("Be brief.")
    elif has_system:
        body["messages"] = [{"role": "system", "content": content("Be brief.")}]
    body["messages"] = [*body["messages"], {"role": "user", "content": content("Why?")}]
    path = "/v1/messages" if api == "anthropic_messages" else "/v1/chat/completions"
    with running(one_word("recorded")) as proxy:
        post(proxy, path, body)
    a, there = one_word("a"), one_word("there")
    words = ["--cache", "cold", "--repeat", "2", "--warmup", "0"]
    bench("--models", "a", "--name", "here", *words, models=[a])
    with running(there, log=False) as proxy:
        server = ["--base-url", proxy.url, "--dialect", api]
        bench("--models", "there", "--name", "there", *server, *words)
    history = history_of()
    for name, model in (("here", a), ("there", there)):
        exchanges = [history.exchange(id) for id in history.ids(Filter(run=name))]
        expected = "Be brief." if has_system else "Why?"
        firsts = [prompt.messages[0].parts[0].text for prompt in model.prompts]
        assert firsts == [f"[{exchange.id}]\n{expected}" for exchange in exchanges]
        for exchange in exchanges:
            sent = exchange_request(exchange).messages[0].parts
            assert "".join(part.text for part in sent) == f"[{exchange.id}]\n{expected}"
            assert exchange.turn.messages[0].parts[0].text == expected
        assert find_run(history, name).settings["cache"] == "cold"
    parents = rows(history, "select count(*), count(distinct parent_message_hash) from turns")
    assert parents == [(5, 1)]


def test_a_cold_request_keeps_recalled_reasoning(llm_user_path, history_of):
    thought = StreamEvent(
        "reasoning", "Hm.", part_index=0, provider_metadata={"p": {"signature": "s"}}
    )
    text = StreamEvent("text", "An answer that nobody gives twice by chance.", part_index=1)
    thinker = AsyncScript("thinker", thought, text, usage(3, 2))
    with running(thinker) as proxy:
        question = {"role": "user", "content": "Why?"}
        answer = ask(proxy, [question], "thinker")
        answer.pop("reasoning_content", None)
        ask(proxy, [question, answer, question], "thinker")
    bench("--models", "thinker", "--cache", "cold", "--last", "1", models=[thinker])
    first, reply, _ = thinker.prompts[-1].messages
    assert first.parts[0].text.endswith("]\nWhy?")
    assert [type(part).__name__ for part in reply.parts] == [ReasoningPart.__name__, "TextPart"]


def test_a_warm_up_does_not_warm_the_prompts_to_be_measured(session, history, capsys):
    a = one_word("a")
    bench("--models", "a", models=[a])
    warm_up, first, *_ = (prompt.messages[0].parts[0].text for prompt in a.prompts)
    assert first == "What is 0 + 0?" and warm_up.endswith(f"]\n{first}")
    assert "cache as-is" in capsys.readouterr().out


def test_only_models_with_work_left_are_warmed_up(session, history):
    bench("--models", "a,b", "--name", "friday", models=[one_word("a"), one_word("b")])
    with sqlite3.connect(history.path) as log:
        log.execute("update proxy_exchanges set status = 'interrupted' where id = (select max(id)"
                    " from proxy_exchanges where model_asked = 'b')")  # fmt: skip
    a, b = one_word("a"), one_word("b")
    bench("--resume", models=[a, b])
    assert (len(a.prompts), len(b.prompts)) == (0, 1 + 1)


def test_a_run_can_not_be_resumed_twice_at_once(session, history, capsys):
    bench("--models", "a", "--name", "friday", models=[one_word("a")])
    with claim_run(history.path, find_run(history, "friday")):
        bench("--resume", "friday", models=[one_word("a")], code=1)
    assert "the run 'friday' is already running in another process" in capsys.readouterr().err
    bench("--resume", "friday", models=[one_word("a")])


def test_responses_that_wait_in_the_spool_are_not_requested_again(
    session, history, capsys, monkeypatch
):
    """They are told of, wait beside it, and are taken in by who goes on."""
    monkeypatch.setattr(bench_command, "FLUSH_S", 1.0)
    blocker = sqlite3.connect(history.path, isolation_level=None, timeout=9)

    def lock(_):
        if len(a.prompts) == 3:
            blocker.execute("begin immediate")

    a = AsyncScript("a", lock, *answers("Four."))
    words = ["--models", "a", "--name", "friday", "--repeat", "2", "--warmup", "0"]
    bench(*words, models=[a], code=1)
    blocker.execute("rollback")
    blocker.close()
    out, err = capsys.readouterr()
    assert "3 requests, 2 of 6 responses" in out
    assert "warning: 4 responses are missing from the log and from this report" in err
    assert err.splitlines()[-1] == "the log is incomplete; to continue: bench --resume friday"
    assert find_run(history, "friday").ended is None
    bench("--resume", "friday", models=[a])
    assert "3 requests, 6 of 6 responses" in capsys.readouterr().out
    assert len(a.prompts) == 6
    assert find_run(history, "friday").ended is not None


@pytest.mark.parametrize("url", ["http://h:99999", "http://h:0/", "http://h/a b", "http://ü/"])
def test_a_url_that_can_not_be_sent_is_refused(session, capsys, url):
    with pytest.raises(SystemExit):
        bench_command.main(["--models", "a", "--base-url", url], "llmproxy")
    assert "expected http(s)://host[:port][/path] and nothing else" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["two\nlines", "ключ", "sk-1 "])
def test_a_key_that_can_not_be_sent_is_refused_and_not_shown(session, history, capsys, key):
    bench("--models", "a", "--base-url", "http://127.0.0.1:1", "--key", key, code=1)
    err = capsys.readouterr().err
    assert err == "llmproxy bench: --key has characters that a key can't have\n"
    assert len(history.ids()) == 3


def test_zero_warm_ups_count_as_an_argument(session, capsys):
    with pytest.raises(SystemExit):
        bench_command.main(["--resume", "--warmup", "0"], "llmproxy")
    assert "--resume continues a run as it began" in capsys.readouterr().err
