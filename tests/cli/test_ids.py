"""Every flag that takes an ID takes it in every form that was ever shown, and names others."""

from __future__ import annotations

import codecs
import json
import shutil
from urllib.request import Request, urlopen

import pytest

from llmproxy.recorder.reader import LogReader
from tests.commands import run_here
from tests.models import AsyncScript, registered, usage
from tests.proxies import running

pytestmark = pytest.mark.usefixtures("no_plugins")


@pytest.fixture
def no_plugins(monkeypatch):
    monkeypatch.setattr("llmproxy.backends.engine.catalog._load_plugins", lambda: False)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Two conversations, one of two exchanges, and a benchmark; gives the log."""
    path = tmp_path_factory.mktemp("ids") / "logs.db"
    with running(AsyncScript("m", "Hello.", usage(3, 2)), database=path) as proxy:
        said = [{"role": "user", "content": "greet me"}]
        ask(proxy, said)
        ask(proxy, [*said, {"role": "assistant", "content": "Hello."}, said[0]])
        ask(proxy, [{"role": "user", "content": "something else"}])
    with registered(AsyncScript("m", "Hello.", usage(3, 2))), pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmproxy.backends.engine.catalog._load_plugins", lambda: False)
        words = ["--models", "m", "--last", "1", "--name", "night", "--database", str(path)]
        assert run_here("bench", *words)[0] == 0
    return path


def ask(proxy, messages):
    data = json.dumps({"model": "m", "messages": messages}).encode()
    with urlopen(Request(f"{proxy.url}/v1/chat/completions", data)) as response:
        response.read()


@pytest.fixture
def ids(recorded, llm_user_path):
    """Put the log where llm has it; gives the ids of the clients' exchanges."""
    shutil.copy(recorded, llm_user_path / "logs.db")
    with LogReader(recorded) as history:
        rows = history.rows("select id from proxy_exchanges where run_id is null", {})
    return [row["id"] for row in rows]


def shown(*words: str) -> bytes:
    with registered(AsyncScript("m")):
        code, out, err = run_here(*words)
    assert code == 0, err
    assert out
    return out


FORMS = {
    "the client's": lambda id: f"chatcmpl-{id}",
    "Anthropic's": lambda id: f"msg_{id}",
    "upper case": str.upper,
    "its beginning": lambda id: id[:-1],
    "blanks": lambda id: f" {id}\t",
}
ONE = {
    "log": ["log", "ID", "--json"],
    "log --thread": ["log", "--thread", "ID"],
    "log --thread, as a list": ["log", "--thread", "ID", "--json"],
    "log --threads": ["log", "--threads", "--thread", "ID"],
    "log --cache": ["log", "--cache", "--thread", "ID"],
    "log --prune": ["log", "--prune", "--dry-run", "ID"],
    "log --prune --thread": ["log", "--prune", "--dry-run", "--thread", "ID"],
    "export": ["export", "-", "ID"],
    "export --thread": ["export", "-", "--thread", "ID"],
    "bench --thread": ["bench", "--models", "m", "--dry-run", "--thread", "ID"],
    "report --thread": ["report", "--csv", "--thread", "ID"],
}
MANY = {
    "log": ["log", "--ids", "FILE"],
    "log --threads": ["log", "--threads", "--ids", "FILE"],
    "log --prune": ["log", "--prune", "--dry-run", "--ids", "FILE"],
    "export": ["export", "-", "--ids", "FILE"],
    "bench": ["bench", "--models", "m", "--dry-run", "--ids", "FILE"],
    "report": ["report", "--csv", "--ids", "FILE"],
}


def filled(words, **values):
    return [values.get(word, word) for word in words]


@pytest.mark.parametrize("words", ONE.values(), ids=ONE)
def test_a_flag_takes_an_id_in_every_form(ids, words):
    meant = shown(*filled(words, ID=ids[2]))
    for form in FORMS.values():
        assert shown(*filled(words, ID=form(ids[2]))) == meant


@pytest.mark.parametrize("words", ONE.values(), ids=ONE)
def test_exchanges_are_counted_from_the_newest(ids, recorded, words):
    with LogReader(recorded) as history:
        newest = history.ids()[::-1]
    place = newest.index(ids[2])
    meant = shown(*filled(words, ID=ids[2]))
    assert shown(*filled(words, ID=f"-{place + 1}")) == meant
    assert shown("log", "last") == shown("log", "-1") == shown("log", newest[0])


def test_a_beginning_of_several_ids_lists_them(ids):
    code, _, err = run_here("log", ids[0][:4])
    assert code == 1 and err.startswith(f"llmproxy log: several ids begin with {ids[0][:4]}: ")
    assert all(id[:13] in err for id in ids)


@pytest.mark.parametrize("words", ONE.values(), ids=ONE)
def test_a_flag_names_an_id_that_does_not_exist(ids, words):
    with registered(AsyncScript("m")):
        code, out, err = run_here(*filled(words, ID="chatcmpl-nobody"))
    kind = "conversation" if "--thread" in words else "exchange"
    assert (code, out) == (1, b"")
    assert err == f"llmproxy {words[0]}: the log has no {kind} chatcmpl-nobody\n"


LISTS = {
    "lines": lambda ids: "\n".join(ids).encode(),
    "Windows' lines": lambda ids: "\r\n".join([*ids, ""]).encode(),
    "with a byte order mark": lambda ids: codecs.BOM_UTF8 + "\n".join(ids).encode(),
    "of PowerShell": lambda ids: "\r\n".join([*ids, ""]).encode("utf-16"),
    "with blanks and empty lines": lambda ids: "\n\n  ".join(["", *ids, "\t"]).encode(),
    "with commas": lambda ids: ", ".join(ids).encode(),
    "of JSON": lambda ids: json.dumps(ids).encode(),
    "as clients saw them": lambda ids: "\n".join(f"chatcmpl-{id}" for id in ids).encode(),
    "in upper case, twice": lambda ids: "\n".join([*ids, *map(str.upper, ids)]).encode(),
}


@pytest.mark.parametrize("words", MANY.values(), ids=MANY)
def test_a_file_of_ids_is_read_as_programs_write_it(ids, tmp_path, words):
    file = tmp_path / "ids"
    file.write_text(f"{ids[0]}\n{ids[2]}")
    meant = shown(*filled(words, FILE=str(file)))
    for form in LISTS.values():
        file.write_bytes(form([ids[0], ids[2]]))
        assert shown(*filled(words, FILE=str(file))) == meant


@pytest.mark.parametrize("words", MANY.values(), ids=MANY)
def test_unknown_ids_of_a_file_are_all_named(ids, tmp_path, words):
    (tmp_path / "ids").write_text(f"nobody\n{ids[0]}\nmsg_nothing\n")
    with registered(AsyncScript("m")):
        code, out, err = run_here(*filled(words, FILE=str(tmp_path / "ids")))
    assert (code, out) == (1, b"")
    assert err == f"llmproxy {words[0]}: the log has no exchanges nobody, msg_nothing\n"


@pytest.mark.parametrize("form", [str, str.upper, lambda id: id[:-1], lambda id: f" {id} "])
def test_a_run_is_known_by_its_id_too(recorded, ids, form):
    with LogReader(recorded) as history:
        (run,) = history.rows("select id from proxy_runs", {})
    meant = shown("log", "--run", "night")
    assert shown("log", "--run", form(run["id"])) == meant
    assert shown("report", form(run["id"])) == shown("report", "night")
    assert shown("export", "-", "--run", form(run["id"])) == shown("export", "-", "--run", "night")


@pytest.mark.parametrize(
    "name, reason",
    [
        ("nowhere", "No such file or directory"),
        (".", "Is a directory"),
        ("picture", "not a list of IDs"),
    ],
)
def test_a_list_that_can_not_be_read_is_named(ids, tmp_path, monkeypatch, name, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picture").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    code, _, err = run_here("log", "--ids", name)
    assert code == 2
    assert err.splitlines()[0] == f"llmproxy log: error: argument --ids: {name}: {reason}"
