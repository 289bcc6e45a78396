"""The pytest plugin, in a pytest of its own."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
from _pytest.pytester import SysModulesSnapshot

pytest_plugins = ["pytester"]

AGENT = """
import json, urllib.request, urllib.error
import pytest
from _pytest.pytester import SysModulesSnapshot

def ask(server, text):
    body = {"model": "demo", "messages": [{"role": "user", "content": text}]}
    request = urllib.request.Request(
        server.url + "/v1/chat/completions", json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    return json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"]
"""


def hashed(name):
    return hashlib.sha256(name.encode()).hexdigest()[:8]


@pytest.fixture
def tests(pytester, llm_user_path, monkeypatch):
    """Make a test file; return a function that runs it with arguments."""

    def forget(self):
        """Forget the files of the test alone, not whatever was imported meanwhile.

        A second copy of a library's modules would raise errors that the first does not know.
        """
        for name in ("test_agent", "conftest"):
            sys.modules.pop(name, None)

    monkeypatch.setattr(SysModulesSnapshot, "restore", forget)
    pytester.makeini("[pytest]\naddopts = -p no:xdist -p no:cacheprovider -p no:llmproxy")

    def make(code):
        pytester.makepyfile(test_agent=AGENT + code)
        return lambda *words: pytester.runpytest_inprocess("-p", "llmproxy.pytest_plugin", *words)

    return make


TIDY = """
def test_tidy(llmproxy_server):
    assert ask(llmproxy_server, "Tidy the shed.").startswith("You said: Tidy the shed.")
"""


def test_a_test_is_recorded_once_and_then_replayed(tests, pytester):
    run = tests(TIDY)
    run("--llmproxy-record=once").assert_outcomes(passed=1)
    recording = pytester.path / "recordings" / "test_agent" / "test_tidy.jsonl"
    recorded = recording.read_bytes()
    exchanges = json.loads(recorded)  # one, indented to be reviewed
    assert exchanges["first_words"] == "Tidy the shed."
    run().assert_outcomes(passed=1)
    run("--llmproxy-record=once").assert_outcomes(passed=1)
    assert recording.read_bytes() == recorded
    assert [one.name for one in recording.parent.iterdir()] == ["test_tidy.jsonl"]


def test_a_missing_recording_says_how_to_make_it(tests):
    result = tests(TIDY)()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*test_tidy.jsonl is missing: record it with --llmproxy-record=*"])


def test_a_miss_fails_the_test_even_if_it_is_caught(tests, pytester):
    tests(TIDY)("--llmproxy-record=once").assert_outcomes(passed=1)
    changed = TIDY.replace("    assert ask", "    with pytest.raises(Exception): ask").replace(
        '.").startswith("You said: Tidy the shed.")', ' twice.")'
    )
    result = tests(changed)()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["requests that were not recorded:", "*messages?0?*differs*"])
    tests(changed)("--llmproxy-record=new_episodes").assert_outcomes(failed=1)  # it did not raise


def test_new_requests_are_added_and_all_are_made_anew_if_asked(tests, pytester):
    tests(TIDY)("--llmproxy-record=once").assert_outcomes(passed=1)
    two = TIDY + '    ask(llmproxy_server, "And the barn.")\n'
    tests(two)().assert_outcomes(failed=1)
    tests(two)("--llmproxy-record=new_episodes").assert_outcomes(passed=1)
    tests(two)().assert_outcomes(passed=1)
    recording = pytester.path / "recordings" / "test_agent" / "test_tidy.jsonl"
    before = recording.read_bytes()
    tests(TIDY)("--llmproxy-record=rewrite").assert_outcomes(passed=1)
    assert len(recording.read_bytes()) < len(before)
    tests(two)().assert_outcomes(failed=1)


@pytest.mark.parametrize("mode", ["rewrite", "new_episodes"])
def test_recording_unchanged_tests_again_changes_nothing(tests, pytester, mode):
    """Of tests with a recording of their own, and with a shared one."""
    shared = """
@pytest.mark.llmproxy(database="shared.jsonl")
@pytest.mark.parametrize("word", ["shed", "barn"])
def test_shared(llmproxy_server, word):
    ask(llmproxy_server, f"Tidy the {word}.")
"""
    run = tests(TIDY + shared)
    run("--llmproxy-record=once").assert_outcomes(passed=3)
    before = {one.name: one.read_bytes() for one in pytester.path.rglob("*.jsonl")}
    assert sorted(before) == ["shared.jsonl", "test_tidy.jsonl"]
    run(f"--llmproxy-record={mode}").assert_outcomes(passed=3)
    assert {one.name: one.read_bytes() for one in pytester.path.rglob("*.jsonl")} == before


def test_a_failed_test_leaves_its_recording_as_it_was(tests, pytester):
    tests(TIDY)("--llmproxy-record=once").assert_outcomes(passed=1)
    recording = pytester.path / "recordings" / "test_agent" / "test_tidy.jsonl"
    before = recording.read_bytes()
    tests(TIDY + "    assert False\n")("--llmproxy-record=rewrite").assert_outcomes(failed=1)
    assert recording.read_bytes() == before


def test_the_marker_names_a_database_and_settings(tests, pytester):
    marked = """
pytestmark = pytest.mark.llmproxy(ignore=[r"[0-9]+"])

@pytest.mark.llmproxy(database="session.db")
@pytest.mark.parametrize("number", [1, 2])
def test_number(llmproxy_server, number):
    ask(llmproxy_server, f"Number 7.")

@pytest.mark.parametrize("number", ["a/b", "c"])
def test_name(llmproxy_server, number):
    ask(llmproxy_server, "Number 7.")
"""
    tests(marked)("--llmproxy-record=once").assert_outcomes(passed=4)
    found = sorted(str(one.relative_to(pytester.path)) for one in pytester.path.rglob("*.jsonl"))
    assert found == [
        f"recordings/test_agent/test_name-{name}.jsonl"
        for name in ("a-b-" + hashed("test_name[a/b]"), "c")
    ]
    files = {one.name: one.read_bytes() for one in pytester.path.glob("session.db*")}
    assert list(files) == ["session.db"]
    tests(marked.replace("Number 7", "Number 8"))().assert_outcomes(passed=4)
    assert {one.name: one.read_bytes() for one in pytester.path.glob("session.db*")} == files


def test_the_documented_example_runs(tests):
    page = (Path(__file__).parents[1] / "docs" / "replay.md").read_text()
    block = page.rpartition("```python\n")[2].partition("```")[0]
    asked = (
        "    client.chat.completions.create(model='demo', messages=[{'role': 'user', 'content': "
    )
    run = tests("import openai\n" + block + asked + "'hi'}])\n")
    run("--llmproxy-record=once").assert_outcomes(passed=1)
    run().assert_outcomes(passed=1)


def test_a_marker_with_a_place_and_a_wrong_setting_are_explained(tests):
    result = tests("@pytest.mark.llmproxy('x.db')\n" + TIDY.lstrip())()
    result.stdout.fnmatch_lines(["*the marker llmproxy takes arguments by name only*"])


def test_the_plugin_costs_runs_that_do_not_use_it_nothing(pytester):
    pytester.makepyfile("import sys\ndef test_it():\n    assert 'llm' not in sys.modules\n")
    result = pytester.run(
        sys.executable, "-m", "pytest", "-p", "llmproxy.pytest_plugin", "-p", "no:llmproxy"
    )
    result.assert_outcomes(passed=1)


def test_each_test_has_a_recording_of_its_own(tests, pytester):
    """Names that a file can't have, long ones, and methods of the same name included."""
    many = """
class TestOne:
    def test_it(self, llmproxy_server):
        ask(llmproxy_server, "one")

class TestTwo:
    def test_it(self, llmproxy_server):
        ask(llmproxy_server, "two")

@pytest.mark.parametrize("x", ["a/b", "a b", "a-b", "a" * 300, "a" * 299 + "b"], ids=str)
def test_name(llmproxy_server, x):
    ask(llmproxy_server, x)
"""
    tests(many)("--llmproxy-record=once").assert_outcomes(passed=7)
    names = {one.name for one in pytester.path.rglob("*.jsonl")}
    assert len(names) == 7
    assert names > {"TestOne.test_it.jsonl", "TestTwo.test_it.jsonl", "test_name-a-b.jsonl"}
    tests(many)().assert_outcomes(passed=7)


SHARED = """
pytestmark = pytest.mark.llmproxy(database="shared.jsonl")

def test_one(llmproxy_server):
    ask(llmproxy_server, "one")

def test_two(llmproxy_server):
    ask(llmproxy_server, "two")
"""


def test_tests_may_share_a_recording(tests, pytester):
    run = tests(SHARED)
    run("--llmproxy-record=once").assert_outcomes(passed=2)
    run().assert_outcomes(passed=2)
    tests(SHARED.replace('"two"', '"three"'))("--llmproxy-record=rewrite").assert_outcomes(passed=2)
    asked = [
        json.loads(line.partition(": ")[2].rstrip(","))
        for line in (pytester.path / "shared.jsonl").read_text().splitlines()
        if line.startswith('  "first_words"')
    ]
    assert asked == ["one", "three"]


@pytest.mark.parametrize("database", [None, "session.db"])
def test_a_response_is_continued_by_its_id(tests, database):
    marker = f"@pytest.mark.llmproxy(database={database!r})\n" if database else ""
    run = tests(
        f"""
import openai

{marker}def test_continued(llmproxy_server):
    client = openai.OpenAI(base_url=f"{{llmproxy_server.url}}/v1", api_key="any", max_retries=0)
    first = client.responses.create(model="demo", input="Hello!")
    second = client.responses.create(
        model="demo", input="And?", previous_response_id=first.id
    )
    assert "turn 2" in second.output_text
"""
    )
    run("--llmproxy-record=once").assert_outcomes(passed=1)
    run().assert_outcomes(passed=1)


def test_a_miss_says_where_it_was_and_how_to_record_it(tests, pytester):
    tests(TIDY)("--llmproxy-record=once").assert_outcomes(passed=1)
    result = tests(TIDY.replace("shed", "barn"))()
    recording = pytester.path / "recordings" / "test_agent" / "test_tidy.jsonl"
    lines = result.stdout.str().splitlines()
    at = lines.index("requests that were not recorded:")
    assert lines[at + 1].startswith(f"{recording}: no recording matches this request; the nearest")
    assert lines[at + 1].endswith(
        "it was 'Tidy the shed.' and is 'Tidy the barn.'; "
        "record it first, with --llmproxy-record=new_episodes"
    )


@pytest.mark.parametrize(
    "wrong, message",
    [
        ("nonsense=1", "the marker llmproxy has no option 'nonsense'"),
        ("ignroe=['a']", "the marker llmproxy has no option 'ignroe'; did you mean 'ignore'?"),
        (
            "recordings='a.jsonl'",
            "the marker llmproxy can't set 'recordings': `database` names the recording",
        ),
        ("ignore=['(']", "the marker llmproxy: ignore: '(' is no regular expression: *"),
        ("ignore=['(a+)+']", "the marker llmproxy: ignore: '(a+)+' could take too long: *"),
        ("database=3", "the marker llmproxy: database: expected *"),
        ("replay='live'", "the marker llmproxy: replay: expected *"),
        ("host='0.0.0.0'", "the marker llmproxy: 0.0.0.0 can be reached by others, *"),
        ("upstreams=['nope']", "the marker llmproxy: *nope*"),
    ],
)
@pytest.mark.parametrize("mode", ["none", "rewrite"])
def test_a_wrong_option_of_the_marker_is_one_line(tests, pytester, wrong, message, mode):
    """In all modes: where the recording is missing, and before one is made."""
    run = tests(f"@pytest.mark.llmproxy({wrong})\n" + TIDY.lstrip())
    result = run(f"--llmproxy-record={mode}")
    result.assert_outcomes(errors=1)
    lines = [line for line in result.stdout.str().splitlines() if "marker llmproxy" in line]
    assert len(lines) == 2 and lines[1].startswith("ERROR test_agent.py"), lines  # and the summary
    result.stdout.fnmatch_lines([message.replace("[", "[[]")])
    result.stdout.no_fnmatch_line("*Traceback*")
    assert not (pytester.path / "recordings").exists()


SHED_AND_BARN = TIDY + '    ask(llmproxy_server, "And the barn.")\n'
TITLE = "recordings that were not used"


def unused_lines(result):
    """Return the lines of the section about recordings that were not used."""
    lines = result.stdout.str().splitlines()
    titles = [at for at, line in enumerate(lines) if TITLE in line]
    if not titles:
        return []
    (at,) = titles
    section = lines[at + 1 :]
    return section[
        : next(end for end, line in enumerate(section) if line.startswith("=") or " in " in line)
    ]


def test_recordings_that_a_test_did_not_use_are_named(tests, pytester):
    assert unused_lines(tests(SHED_AND_BARN)("--llmproxy-record=once")) == []
    assert unused_lines(tests(SHED_AND_BARN)()) == []
    recording = pytester.path / "recordings" / "test_agent" / "test_tidy.jsonl"
    id = recording.read_text().partition("And the barn.")[0].rpartition('"id": "')[2][:26]
    expected = [
        f"{recording}: not used: 1 of 2 recordings: {id} ('And the barn.')",
        "--llmproxy-record=rewrite drops them",
    ]
    before = recording.read_bytes()
    for words in ([], ["--llmproxy-record=once"], ["--llmproxy-record=new_episodes"]):
        result = tests(TIDY)(*words)
        result.assert_outcomes(passed=1)
        assert unused_lines(result) == expected
    assert recording.read_bytes() == before
    assert unused_lines(tests(TIDY)("--llmproxy-record=rewrite")) == []
    assert unused_lines(tests(TIDY)()) == []


RERUN = """
from _pytest.runner import runtestprotocol

def pytest_runtest_protocol(item, nextitem):
    reports = runtestprotocol(item, nextitem=nextitem, log=False)
    if any(report.failed for report in reports):
        item._initrequest()
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    return True
"""

FAILS_AT_FIRST = """
attempts = []

def test_tidy(llmproxy_server):
    ask(llmproxy_server, "Tidy the shed.")
    attempts.append(1)
    assert RECORDS or len(attempts) == 2
    ask(llmproxy_server, "And the barn.")
"""


def test_what_a_test_has_used_counts_at_its_last_attempt(tests, pytester):
    tests(f"RECORDS = True{FAILS_AT_FIRST}")("--llmproxy-record=once").assert_outcomes(passed=1)
    pytester.makeconftest(RERUN)
    result = tests(f"RECORDS = False{FAILS_AT_FIRST}")()
    result.assert_outcomes(passed=1)
    assert unused_lines(result) == []


NOT_PASSED = """
@pytest.fixture
def begun(llmproxy_server):
    assert not CHANGED

@pytest.fixture
def ended(llmproxy_server):
    yield
    assert not CHANGED

def test_fails_at_its_start(llmproxy_server, begun):
    more(llmproxy_server)

def test_fails_at_its_end(llmproxy_server, ended):
    more(llmproxy_server)

def test_fails(llmproxy_server):
    more(llmproxy_server)
    assert not CHANGED

def test_misses(llmproxy_server):
    more(llmproxy_server)
    if CHANGED:
        with pytest.raises(Exception):
            ask(llmproxy_server, "no recording")

def test_skips(llmproxy_server):
    more(llmproxy_server)
    if CHANGED:
        pytest.skip("enough")

def test_xfails(llmproxy_server):
    more(llmproxy_server)
    if CHANGED:
        pytest.xfail("known")

def more(server):
    ask(server, "Tidy the shed.")
    if not CHANGED:
        ask(server, "And the barn.")
"""


def test_of_a_test_that_did_not_pass_unused_recordings_are_no_news(tests):
    tests("CHANGED = False\n" + NOT_PASSED)("--llmproxy-record=once").assert_outcomes(passed=6)
    result = tests("CHANGED = True\n" + NOT_PASSED)()
    result.assert_outcomes(passed=1, errors=2, failed=2, skipped=1, xfailed=1)
    assert unused_lines(result) == []


def test_of_a_shared_file_unused_recordings_are_no_news(tests):
    """Other tests may use them, which this run may have left out."""
    tests(SHARED)("--llmproxy-record=once").assert_outcomes(passed=2)
    for words in ([], ["-k", "one"]):
        assert unused_lines(tests(SHARED)(*words)) == []


@pytest.mark.slow
def test_workers_of_xdist_tell_of_unused_recordings(tests, pytester):
    response = """
    import openai
    with openai.OpenAI(base_url=f"{llmproxy_server.url}/v1", api_key="any") as client:
        client.responses.create(model="demo", input="And\\nnow?")
"""
    tests(SHED_AND_BARN + response)("--llmproxy-record=once").assert_outcomes(passed=1)
    tests(TIDY)
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider -p no:llmproxy")
    result = pytester.runpytest("-p", "llmproxy.pytest_plugin", "-n", "1")
    result.assert_outcomes(passed=1)
    first, last = unused_lines(result)
    assert ": not used: 2 of 3 recordings: " in first and "('And the barn.')" in first
    assert last == "--llmproxy-record=rewrite drops them"


def test_a_test_that_asks_no_model_has_an_empty_recording(tests, pytester):
    run = tests(
        """
def test_models(llmproxy_server):
    assert urllib.request.urlopen(llmproxy_server.url + "/v1/models").status == 200
"""
    )
    for words in (["--llmproxy-record=once"], [], ["--llmproxy-record=new_episodes"]):
        run(*words).assert_outcomes(passed=1)
    assert [one.read_bytes() for one in pytester.path.rglob("*.jsonl")] == [b""]


ASKED = """
import openai

@pytest.fixture
def said(llmproxy_server):
    def say(text):
        messages = [{"role": "user", "content": text}]
        return client.chat.completions.create(model="demo", messages=messages)
    with openai.OpenAI(base_url=f"{llmproxy_server.url}/v1", api_key="any") as client:
        yield say

TEXT = "Tidy the 'old' shed\\n or the \\"new\\" one."
pytestmark = pytest.mark.llmproxy(database="shared.jsonl")

def test_not_caught(said):
    said(TEXT)
"""
MISSING = """
def test_raised_again(said):
    try:
        said(TEXT)
    except Exception as exc:
        raise KeyError("no answer") from exc

@pytest.fixture
def answer(said):
    return said(TEXT)

def test_in_a_fixture(answer):
    pass

@pytest.fixture
def end(said):
    yield
    said(TEXT)

def test_at_the_end(end):
    pass

def test_without_its_text(llmproxy_server):
    ask(llmproxy_server, TEXT)

def test_caught_thrice(said):
    for _ in range(3):
        with pytest.raises(Exception):
            said(TEXT)
"""


def test_a_miss_is_explained_once(tests):
    tests(ASKED)("--llmproxy-record=once").assert_outcomes(passed=1)
    result = tests(ASKED.replace("shed", "barn") + MISSING)()
    result.assert_outcomes(passed=1, failed=4, errors=2)
    said = result.stdout.str()
    assert said.count("no recording matches this request") == 6, said
    assert said.count("shared.jsonl: ") == 6, said
    assert said.count("shared.jsonl: see the error above") == 4, said
