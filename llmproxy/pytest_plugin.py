"""A pytest plugin: tests of programs that call a model run from recordings, without the model.

    @pytest.mark.llmproxy(ignore=[r"\\d{4}-\\d\\d-\\d\\d"])
    def test_agent(llmproxy_server):
        client = openai.OpenAI(base_url=f"{llmproxy_server.url}/v1", api_key="any")

A test's recording is a file beside it, `recordings/<module>/<test>.jsonl`, of a method
`<class>.<test>.jsonl`. By default it is replayed, never made: a request that it doesn't have
fails the test, whatever the test makes of the error. `--llmproxy-record` makes recordings.

Nothing of llm is imported before a test uses the fixture.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .proxy import Proxy
    from .recorder.exchange import Exchange

MODES = ("none", "once", "new_episodes", "rewrite")
_MISSES = pytest.StashKey[list[str]]()
_HAS_PASSED = pytest.StashKey[bool]()
_MADE = pytest.StashKey[set[Path]]()  # the recordings that this run has made; tests may share one

MAX_NAME = 120  # characters of a test's name in that of its recording; file systems take 255 bytes


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--llmproxy-record`."""
    parser.getgroup("llmproxy").addoption(
        "--llmproxy-record",
        choices=MODES,
        default="none",
        help="none: only replay recordings (default); once: record tests that have none; "
        "new_episodes: replay, and record what is missing; rewrite: record anew. "
        "A recording is kept if its test passes.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        "llmproxy(database=None, **settings): the file of the test's recording, relative to the "
        "test's folder (.jsonl to be reviewed, anything else is a logs.db), and fields of "
        "llmproxy.Settings, such as ignore and default_model.",
    )


@pytest.fixture
def llmproxy_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    """Return a running proxy that replays this test's recording, or makes it.

    Set by the marker `llmproxy`. Without a marker, a replay is at full speed, and clients need
    no key.
    """
    node = request.node
    options = _options(node)
    path = _recording_path(node, options.pop("database", None))
    mode = request.config.getoption("--llmproxy-record")
    made = request.config.stash.setdefault(_MADE, set())
    misses = node.stash.setdefault(_MISSES, [])
    report = options.pop("on_exchange", None)

    def collect(exchange: Exchange) -> Any:
        if exchange.error_code == "not_recorded":
            misses.append(f"{path}: {exchange.error}")
        return None if report is None else report(exchange)

    options = {"keys": (), "replay_speed": 0, **options, "on_exchange": collect}
    if mode == "none" or (mode == "once" and path.exists() and path not in made):
        if not path.exists():
            pytest.fail(f"{path} is missing: record it with --llmproxy-record=once", pytrace=False)
        serving = _replaying(path, tmp_path_factory, options)
    else:
        is_new = not path.exists() or (mode == "rewrite" and path not in made)
        if is_new:
            options.pop("replay", None)
            options.pop("ignore", None)
        folder = tmp_path_factory.mktemp("llmproxy")
        serving = _recording(node, path, folder / "logs.db", options, is_new=is_new)
    with serving as proxy:
        yield proxy
    if misses:  # those since the test's own end
        pytest.fail(_explanation(misses), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Fail a test whose requests were not recorded, also if it has caught the error."""
    failure: BaseException | None = None
    try:
        yield
    except BaseException as exc:
        failure = exc
    misses = item.stash.get(_MISSES, [])
    item.stash[_HAS_PASSED] = failure is None and not misses
    if misses and not isinstance(failure, pytest.skip.Exception):
        explanation = _explanation(misses)
        misses.clear()
        raise pytest.fail.Exception(explanation, pytrace=False) from failure
    if failure is not None:
        raise failure


@contextmanager
def _replaying(
    path: Path, folders: pytest.TempPathFactory, options: dict[str, Any]
) -> Iterator[Proxy]:
    """Replay a recording; of Responses from a copy in a log, where clients can refer to them."""
    if _has_responses(path):
        database = folders.mktemp("llmproxy") / "logs.db"
        _copy_recording(path, database)
        source: dict[str, Any] = {"database": database}
    else:
        source = {"recordings" if _is_text(path) else "database": path, "log": False}
    with _running({"replay": "replay", **options, **source}) as proxy:
        yield proxy


@contextmanager
def _recording(
    node: pytest.Item, path: Path, database: Path, options: dict[str, Any], *, is_new: bool
) -> Iterator[Proxy]:
    """Record in a new log, which takes the recording's place if the test passes."""
    from .recorder.listing import Filter
    from .recorder.reader import LogReader
    from .transfer.export import export_file

    if not is_new:
        _copy_recording(path, database)
        options = {"replay": "replay-or-live", **options}
    with _running({**options, "database": database}) as proxy:
        yield proxy
    if not node.stash.get(_HAS_PASSED, False) or not database.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if _is_text(path):
        reader = LogReader(database)
        try:
            export_file(reader, path, Filter(), indented=True)
        finally:
            reader.close()
    else:
        shutil.copyfile(database, path)
    node.config.stash[_MADE].add(path)


@contextmanager
def _running(options: dict[str, Any]) -> Iterator[Proxy]:
    """Run a proxy; settings that can't work fail the test in one line."""
    from .core.errors import SettingsError
    from .proxy import Settings
    from .serving import running

    class TestSettings(Settings):
        how_to_record = "record it first, with --llmproxy-record=new_episodes"

    with ExitStack() as stack:
        try:
            proxy = stack.enter_context(running(TestSettings(port=0), **options))
        except (SettingsError, TypeError) as exc:  # TypeError: no such field
            pytest.fail(f"the marker llmproxy: {exc}", pytrace=False)
        yield proxy


def _copy_recording(path: Path, database: Path) -> None:
    if _is_text(path):
        from .transfer.import_ import import_files

        import_files([path], database, strict=True)
    else:
        shutil.copyfile(path, database)


def _has_responses(path: Path) -> bool:
    """Return whether requests by OpenAI's Responses are in a recording."""
    from .log import open_log
    from .recorder.listing import Filter

    if _is_text(path):
        return b'"openai_responses"' in path.read_bytes()
    with open_log(path) as log:
        return bool(log.entries(Filter(dialect="openai_responses"), last=1))


def _options(node: pytest.Item) -> dict[str, Any]:
    """Return what the markers say; the closest to the test wins."""
    options: dict[str, Any] = {}
    for marker in reversed(list(node.iter_markers("llmproxy"))):
        if marker.args:
            pytest.fail("the marker llmproxy takes arguments by name only", pytrace=False)
        options |= marker.kwargs
    return options


def _recording_path(node: pytest.Item, given: str | Path | None) -> Path:
    if given is not None:
        return node.path.parent / given
    classes = [one.name for one in node.listchain() if isinstance(one, pytest.Class)]
    full = ".".join([*classes, node.name])
    name = re.sub(r"[^\w.-]+", "-", full).strip("-")  # of parametrized tests
    if not re.fullmatch(r"[\w.]+(\[[\w.-]+\])?", full) or len(name) > MAX_NAME:
        # Others could have the same name: `test[a/b]` and `test[a b]`.
        name = f"{name[:MAX_NAME]}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"
    return node.path.parent / "recordings" / node.path.stem / f"{name}.jsonl"


def _is_text(path: Path) -> bool:
    return path.suffix == ".jsonl"


def _explanation(misses: list[str]) -> str:
    return "\n".join(["requests that were not recorded:", *misses])
