"""The pages about the log, made from logs that a test has written."""

import re
from dataclasses import replace
from datetime import timedelta
from html.parser import HTMLParser
from urllib.parse import urljoin

import llm
import pytest
from llm.parts import Message, TextPart, ToolCallPart, ToolResultPart

from llmproxy.app.log_page import log_page
from llmproxy.core.usage import Usage
from llmproxy.recorder.summary import timestamp
from llmproxy.report.html.entry import Links
from tests.browser import open_browser
from tests.log_fixtures import RECEIVED

HOSTILE = "<script>alert(1)</script> \u202e & \"quotes'"
VOID = {"meta", "br", "input", "path", "rect", "line", "circle"}


class Reader(HTMLParser):
    """Reads a page strictly: each tag is closed, in the reverse order of opening."""

    def __init__(self):
        super().__init__()
        self.open, self.texts, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)


def read(html):
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "iframe", "img", "object"}
    for tag, attributes in reader.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert not attributes.get("href", "/").startswith(("http", "//", "javascript"))
        if tag in ("input", "select"):
            assert attributes["name"]
    reader.words = " ".join(" ".join(reader.texts).split())
    return reader


def page_at(path, address):
    where, _, query = address.partition("?")
    root = "../" if where.count("/") == 2 else "./"
    return log_page(path, where, query, "http://localhost:9", root)


@pytest.fixture
def get(path):
    def get(address, status=200):
        found, html = page_at(path, address)
        assert found == status, html[-600:]
        page = read(html)
        for _, attributes in page.tags:
            for name in {"href", "action"} & attributes.keys():
                assert not attributes[name].startswith("/")
                if not attributes[name].startswith("#"):
                    attributes[name] = urljoin(address, attributes[name])
        return page

    return get


def session(talk):
    """Record a session of an agent: calls, results, a sub-agent, a fork, a failure."""
    call = ToolCallPart(name="read_file", arguments={"path": "a.txt"}, tool_call_id="c1")
    asked = talk(
        "Read a.txt", reply=[Message("assistant", [TextPart("I'll read it."), call])],
        usage=Usage(10, 5),
    )  # fmt: skip
    result = Message(
        "tool", [ToolResultPart(name="read_file", output="It says hi.", tool_call_id="c1")]
    )
    history = [*asked.turn.messages, *asked.turn.reply, result]
    failed = talk("", asked, messages=history, status="error", reply=[], error="overloaded")
    done = talk("", asked, messages=history, answer="It says hi.", usage=Usage(40, 5, 32))
    talk("What is hi?", asked, "call", messages=[llm.user("What is hi?")], answer="A greeting.")
    talk("And b.txt?", asked, messages=[*history[:2], llm.user("And b.txt?")], answer="No.")
    return asked, failed, done


# ---- the list


def test_the_list_is_newest_first_and_says_what_was_asked_and_answered(talk, get):
    session(talk)
    words = get("/").words
    rows = [
        "And b.txt? No.",
        "What is hi? A greeting.",
        "read_file → It says hi. It says hi.",
        "read_file → It says hi. overloaded",
        "Read a.txt calls read_file (a.txt) · I'll read it.",
    ]
    places = [words.index(row) for row in rows]
    assert places == sorted(places)
    assert "demo" in words and "tests" in words and "error" in words
    assert "12 ms first 1.0 ms" in words or "13 ms first 1.0 ms" in words


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("client=tests", True),
        ("client=nobody", False),
        ("model=demo", True),
        ("model=nobody", False),
        ("status=ok", True),
        ("status=interrupted", False),
        ("search=greeting", True),
        ("search=rhubarb", False),
        ("search=%22%29+or+%28", False),
        ("client=%ff%00&search=%ff", False),
    ],
)
def test_filters_are_in_the_address(talk, get, query, found):
    talk("hello", answer="a greeting")
    page = get(f"/?{query}")
    assert (f"{'/exchanges/'}" in str(page.tags)) == found
    assert ("No exchange matches." in page.words) != found
    form = next(attributes for tag, attributes in page.tags if tag == "form")
    assert form["action"] == "/" and form.get("method", "get") == "get"


def test_a_filter_tells_benchmarks_from_clients(store, make_exchange, get):
    sent = [make_exchange("by a client"), make_exchange("by a benchmark")]
    store.write([sent[0], replace(sent[1], run_id="01jd00000000000000000000r0")])
    for query, words in {
        "": {"by a client", "by a benchmark"},
        "?sent=client": {"by a client"},
        "?sent=benchmark": {"by a benchmark"},
    }.items():
        assert set(re.findall("by a (?:client|benchmark)", get(f"/{query}").words)) == words


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("/?status=bogus", "status 'bogus'; possible: ok, error, cancelled, interrupted, running"),
        ("/?status=OK&client=tests", "status 'OK'; possible: ok, "),
        ("/?status=%3Cscript%3E", "status '<script>'; possible: ok, "),
        ("/?sent=nobody&live=1", "sent 'nobody'; possible: client, benchmark"),
        ("/?live=0", "live '0'; possible: 1"),
        ("/?stauts=error", "filter 'stauts'; possible: search, status, client, model, sent, run"),
        ("/?since=2026-13-99", "filter 'since'; possible: search, "),
        ("/conversations?model=demo", "filter 'model'; possible: before"),
        ("/figures?model=demo", "filter 'model'; this page has none"),
        ("/conversations/{id}?from=-1", "from: expected a number below 1, not '-1'"),
        ("/conversations/{id}?from=1", "from: expected a number below 1, not '1'"),
        ("/conversations/{id}?from=12345678901", "from: expected a number below 1, not "),
    ],
)
def test_what_no_filter_takes_is_refused_in_words(talk, get, address, words):
    exchange = talk("hello", answer="a greeting")
    page = get(address.format(id=exchange.id), 400)
    assert words in page.words
    assert "hello" not in page.words and "greeting" not in page.words
    assert ("a", {"href": "/"}) in page.tags and "refresh" not in str(page.tags)


def test_pages_of_the_list_follow_one_another_without_gap(talk, store, make_exchange, get):
    """Also where many exchanges have one time, as imported ones have."""
    exchanges = [make_exchange(f"number {n}") for n in range(120)]
    store.write([replace(each, received=RECEIVED, thread_id=None) for each in exchanges])
    address, seen = "/", []
    while address:
        page = get(address)
        seen += [
            attributes["href"].rpartition("/")[2]
            for tag, attributes in page.tags
            if tag == "a" and attributes["href"].startswith("/exchanges/")
        ]
        address = next((a["href"] for t, a in page.tags if t == "a" and a.get("rel") == "next"), "")
    assert seen == [each.id for each in reversed(exchanges)]
    for address in ("/", "/conversations"):
        assert "nosuch" in get(f"{address}?before=nosuch", 404).words


@pytest.mark.parametrize("address", ["/", "/conversations"])
def test_a_list_goes_on_from_an_id_in_any_form(talk, get, address):
    ids = [talk(f"say {word}").id for word in ("one", "two", "three")]
    for form in (ids[1], f"chatcmpl-{ids[1]}", ids[1].upper(), "-2"):
        words = get(f"{address}?before={form}").words
        assert "say one" in words and "say two" not in words and "say three" not in words, form


def test_every_field_of_the_form_has_a_label(talk, get):
    talk("hello")
    page = get("/")
    labels = sum(tag == "label" for tag, _ in page.tags)
    assert labels == sum(tag in ("input", "select") for tag, _ in page.tags) == 5
    columns = [attributes for tag, attributes in page.tags if tag == "th"]
    assert all(attributes["scope"] in ("col", "rowgroup", "row") for attributes in columns)
    assert [attributes.get("lang") for tag, attributes in page.tags if tag == "html"] == ["en"]


def test_nothing_recorded_says_how_to_begin(get):
    for address in ("/", "/conversations"):
        assert "OPENAI_BASE_URL=http://localhost:9/v1" in get(address).words
    assert "Nothing has been recorded yet." in get("/figures").words
    get("/exchanges/01x", 404)


# ---- one exchange


def test_an_exchange_has_its_facts_messages_and_the_request(talk, get):
    _, failed, done = session(talk)
    words = get(f"/exchanges/{done.id}").words
    assert "read_file returned It says hi." in words and "2 earlier messages" in words
    assert "40 → 5 tokens" in words and "32 tokens (80 %)" in words
    assert "continues" in words and done.previous_id in words
    assert "Waiting 1.0 ms" in words and "Streaming" in words
    assert (
        "Request as received" in words and "POST /v1/chat/completions user-agent: tests/1" in words
    )
    assert "overloaded" in get(f"/exchanges/{failed.id}").words


@pytest.mark.parametrize("reply", ["", "It"])
def test_an_error_is_shown_once_and_named_in_the_legend(talk, get, reply):
    asked = talk("hello")
    said = [llm.assistant(reply)] if reply else []
    failed = talk("more", asked, status="error", error="overloaded", reply=said)
    page = get(f"/exchanges/{failed.id}")
    assert page.words.count("overloaded") == 1
    assert page.words.index("overloaded") < page.words.index("Model")
    assert ("span", {"class": "key broken"}) in page.tags
    drawn = "Waiting 1.0\xa0ms Failed after 12\xa0ms" if reply else "Timeline Failed after 12\xa0ms"
    assert drawn in _words(page)
    article = get(f"/conversations/{asked.id}").words.rpartition(" 2. ")[2]
    assert article.count("overloaded") == 1


def test_what_was_recalled_ignored_and_missed_is_said(talk, get):
    one = talk("one", messages=[llm.system("careful"), llm.user("one")])
    changed = [llm.system("hasty"), llm.user("one"), *one.turn.reply, llm.user("two")]
    two = talk("two", one, messages=changed)
    page = get(f"/exchanges/{two.id}")
    assert "Prompt cache missed" in page.words and "message 0 (system)" in page.words
    conversation = get(f"/conversations/{one.id}")
    assert "Cache misses 1" in conversation.words


def test_recalled_and_ignored_are_facts(store, make_exchange, get):
    exchange = replace(make_exchange("x"), recalled=2, ignored=("seed", "tools[*].strict"))
    store.write([exchange])
    words = get(f"/exchanges/{exchange.id}").words
    assert "Recalled 2 messages" in words and "seed , tools[*].strict" in words
    assert "2 ignored" in get("/").words


def test_lists_name_what_the_client_chose_and_the_api_ignored(store, make_exchange, get):
    forced = {"dialect": "anthropic_messages", "ignored": ("max_tokens", "usage")}
    exchange = replace(make_exchange("x"), **forced)
    store.write([exchange])
    assert " ignored" not in get("/").words
    assert "max_tokens , usage" in get(f"/exchanges/{exchange.id}").words


def test_a_wait_in_the_queue_is_said_beside_the_times(store, make_exchange, get):
    exchange = replace(make_exchange("x"), duration_ms=805.0, ttft_ms=789.0, queue_ms=550.0)
    store.write([exchange])
    assert "first 789\xa0ms 550\xa0ms of it waiting" in _words(get("/"))
    assert "Took 805\xa0ms (550\xa0ms of it waiting)" in _words(get(f"/exchanges/{exchange.id}"))


def _words(page):
    return re.sub("[ \n]+", " ", " ".join(page.texts))


def test_a_cut_text_ends_with_an_ellipsis(talk, get):
    long = " ".join(f"line {number}" for number in range(60))
    exchange = talk(long, answer=long)
    assert f"{long[:80]}…" in get("/conversations").words
    for address in ("/", f"/exchanges/{exchange.id}"):
        assert f"{long[:239]}…" in get(address).words
    assert get("/").words.count(f"{long[:239]}…") == 2
    talk("short words")
    assert "short words…" not in get("/conversations").words


def test_a_benchmarks_response_names_its_run_and_what_it_repeats(store, talk, make_exchange, get):
    recorded = talk("hello")
    settings = {"name": "friday night", "began": timestamp(RECEIVED), "ended": None}
    store.write_run("01run", {**settings, "settings": "{}"})
    sent = {"run_id": "01run", "recorded_id": recorded.id}
    first = replace(make_exchange("hello"), **sent, repeat=2)
    warm = replace(make_exchange("hello"), **{**sent, "recorded_id": "01gone"}, repeat=0)
    store.write([first, warm])
    page = get(f"/exchanges/{first.id}")
    assert "Benchmark run friday night , repetition 2 Repeats " + recorded.id in page.words
    links = [attributes.get("href") for _, attributes in page.tags]
    assert "/?run=friday+night" in links and f"/exchanges/{recorded.id}" in links
    page = get(f"/exchanges/{warm.id}")
    assert "friday night , warm-up Repeats 01gone" in page.words
    assert "/exchanges/01gone" not in [attributes.get("href") for _, attributes in page.tags]
    page = get("/?run=friday+night")
    assert "Benchmark run friday night" in page.words
    shown = {attributes.get("href") for _, attributes in page.tags}
    assert {f"/exchanges/{first.id}", f"/exchanges/{warm.id}"} <= shown
    assert f"/exchanges/{recorded.id}" not in shown
    assert ("run", "friday night") in [(a.get("name"), a.get("value")) for _, a in page.tags]


@pytest.mark.parametrize("has_recording", [True, False])
def test_a_replay_links_to_its_recording_if_the_log_has_it(
    store, talk, make_exchange, get, has_recording
):
    recorded = talk("hello").id if has_recording else "01elsewhere"
    replayed = replace(make_exchange("hello"), replay_of=recorded)
    store.write([replayed])
    page = get(f"/exchanges/{replayed.id}")
    assert f"Replay of {recorded}" in page.words
    links = [attributes.get("href") for _, attributes in page.tags]
    assert (f"/exchanges/{recorded}" in links) == has_recording


@pytest.mark.parametrize("size", [10_000_000])
def test_a_message_of_10_mb_is_cut_and_says_so(talk, get, size):
    exchange = talk("x" * size, answer="y" * size)
    for address in ("/", f"/exchanges/{exchange.id}", f"/conversations/{exchange.id}"):
        _, html = log_page_of(get, address)
        assert len(html) < 300_000
    assert f"{size - 6_000:,} more characters" in get(f"/exchanges/{exchange.id}").words


def log_page_of(get, address):
    page = get(address)
    return page, page.rawdata + " ".join(page.texts)


def test_hostile_words_show_as_text(store, make_exchange, make_begun, get):
    call = ToolCallPart(name=HOSTILE, arguments={HOSTILE: HOSTILE}, tool_call_id="c")
    exchange = make_exchange(HOSTILE, reply=[Message("assistant", [TextPart(HOSTILE), call])])
    exchange = replace(
        exchange, client=HOSTILE, model_asked=HOSTILE, ignored=(HOSTILE,), previous_id=HOSTILE,
        link="reply",
    )  # fmt: skip
    failed = replace(make_exchange("y", status="error", error=HOSTILE), error_kind=HOSTILE)
    store.write([exchange, failed])
    for address in (
        "/", "/?search=%3Cscript%3E&client=%22%3E&live=1", "/conversations", "/figures",
        f"/exchanges/{exchange.id}", f"/exchanges/{failed.id}", f"/conversations/{exchange.id}",
    ):  # fmt: skip
        get(address)
    assert HOSTILE.replace("\u202e", "⟨U+202E⟩") in get(f"/exchanges/{exchange.id}").words


# ---- one conversation


def test_a_conversation_is_a_tree_with_its_times(talk, get):
    asked, failed, done = session(talk)
    page = get(f"/conversations/{asked.id}")
    assert "sub-agent" in page.words and "fork" in page.words and "Timeline" in page.words
    bars = [a["aria-label"] for t, a in page.tags if t == "svg" and "aria-label" in a]
    assert bars[0] == "Waiting 1.0 ms, Streaming 12 ms" or bars[0].startswith("Waiting 1.0")
    anchors = {a["href"] for t, a in page.tags if t == "a" and a["href"].startswith("#x-")}
    assert {f"#x-{each.id}" for each in (asked, failed, done)} <= anchors
    assert {a["id"] for t, a in page.tags if t == "article"} == {
        anchor.removeprefix("#") for anchor in anchors
    }
    assert "And b.txt?" in get(f"/conversations/chatcmpl-{done.id.upper()}").words


def test_a_conversation_lasts_until_its_last_reply_has_ended(talk, get):
    asked = talk("hello")
    late = asked.received + timedelta(seconds=5)
    talk("more", asked, received=late)  # each takes 12 ms
    words = get(f"/conversations/{asked.id}").words.replace("\u00a0", " ")
    assert "Lasted 5.01 s" in words


def test_a_failed_request_is_listed_by_what_it_ended_with(store, make_exchange, make_begun, get):
    begun = make_begun("Read a.txt")
    failed = replace(
        make_exchange("Read a.txt", status="error", error="overloaded"),
        id=begun.id, thread_id=None, turn=None, last_message="read_file → It says hi.",
    )  # fmt: skip
    store.write([failed])
    assert "read_file → It says hi. overloaded" in get("/").words


def test_a_long_conversation_has_several_pages(talk, get):
    exchange = talk("one")
    first = exchange
    for n in range(70):
        exchange = talk(f"more {n}", exchange)
    page = get(f"/conversations/{first.id}")
    assert "1 to 30 of 71" in page.words
    (later,) = [a["href"] for t, a in page.tags if a.get("rel") == "next"]
    assert "31 to 60 of 71" in get(later).words
    assert get(f"/conversations/{first.id}?from=0").words == page.words


def test_conversations_are_listed_newest_first_and_paged(talk, get):
    firsts = [talk(f"topic {n}") for n in range(35)]
    page = get("/conversations")
    assert page.words.index("topic 34") < page.words.index("topic 33")
    (older,) = [a["href"] for t, a in page.tags if a.get("rel") == "next"]
    rest = get(older).words
    assert "topic 4" in rest and "topic 0" in rest and "topic 5 " not in rest
    assert len(firsts) == 35


def test_links_in_a_file_lead_only_into_it():
    links = Links(None, here=frozenset({"01a"}))
    assert links.exchange("01a", "x") == '<a href="#x-01a">x</a>'
    assert links.exchange("01b", "x") == links.conversation("01b", "x") == "x"


# ---- in a browser


@pytest.mark.slow
def test_no_page_is_wider_than_a_phone_and_print_has_no_empty_pages(talk, path, get, tmp_path):
    asked, _, done = session(talk)
    talk("w" * 300, answer="long" * 400, received=RECEIVED + timedelta(hours=9))
    with open_browser(tmp_path) as browser:
        for address in ("/", "/conversations", "/figures", f"/exchanges/{done.id}",
                        f"/conversations/{asked.id}"):  # fmt: skip
            html = page_at(path, address)[1]
            file = tmp_path / "page.html"
            file.write_text(html)
            for width in (390, 768, 1280):
                for scheme in ("light", "dark"):
                    browser.show(width=width, scheme=scheme)
                    browser.navigate(file.as_uri())
                    assert browser.layout()["cssContentSize"]["width"] <= width, (address, width)
                    assert browser.messages == []
            assert re.findall(r"https?://(?!localhost:9)", html) == []
            assert [url for url in browser.requested() if not url.startswith("file:")] == []
