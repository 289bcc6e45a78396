"""A pytest plugin: tests of programs that call a model run from recordings, without the model.

    @pytest.mark.llmproxy(ignore=[r"\\d{4}-\\d\\d-\\d\\d"])
    def test_agent(llmproxy_server):
        client = openai.OpenAI(base_url=f"{llmproxy_server.url}/v1", api_key="any")

A test's recording is a file beside it, `recordings/<module>/<test>.jsonl`. By default it is
replayed, never made: a request that it doesn't have fails the test, whatever the test makes of
the error. `--llmproxy-record` makes recordings.

Nothing of llm is imported before a test uses the fixture.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .proxy import Proxy
    from .recorder.exchange import Exchange

MODES = ("none", "once", "new_episodes", "rewrite")
_MISSES = pytest.StashKey[list[str]]()
_HAS_PASSED = pytest.StashKey[bool]()


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
    misses = node.stash.setdefault(_MISSES, [])
    report = options.pop("on_exchange", None)

    def collect(exchange: Exchange) -> Any:
        if exchange.error_code == "not_recorded":
            misses.append(exchange.error or "")
        return None if report is None else report(exchange)

    options = {"keys": (), "replay_speed": 0, **options, "on_exchange": collect}
    if mode == "none" or (mode == "once" and path.exists()):
        if not path.exists():
            pytest.fail(f"{path} is missing: record it with --llmproxy-record=once", pytrace=False)
        serving = _replaying(path, options)
    else:
        if mode == "rewrite" or not path.exists():
            options.pop("replay", None)
            options.pop("ignore", None)
        folder = tmp_path_factory.mktemp("llmproxy")
        serving = _recording(node, path, folder / "logs.db", options, anew=mode == "rewrite")
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
def _replaying(path: Path, options: dict[str, Any]) -> Iterator[Proxy]:
    from .serving import running

    source = "recordings" if _is_text(path) else "database"
    given: dict[str, Any] = {source: path, "replay": "replay", **options, "log": False}
    with running(**given) as proxy:
        yield proxy


@contextmanager
def _recording(
    node: pytest.Item, path: Path, database: Path, options: dict[str, Any], *, anew: bool
) -> Iterator[Proxy]:
    """Record in a new log, which takes the recording's place if the test passes."""
    from .recorder.listing import Filter
    from .recorder.reader import LogReader
    from .serving import running
    from .transfer.export import export_file
    from .transfer.import_ import import_files

    if path.exists() and not anew:
        if _is_text(path):
            import_files([path], database, strict=True)
        else:
            shutil.copyfile(path, database)
        options = {"replay": "replay-or-live", **options}
    with running(**options, database=database) as proxy:
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
    name = re.sub(r"[^\w.-]+", "-", node.name).strip("-")  # of parametrized tests
    return node.path.parent / "recordings" / node.path.stem / f"{name}.jsonl"


def _is_text(path: Path) -> bool:
    return path.suffix == ".jsonl"


def _explanation(misses: list[str]) -> str:
    return "\n".join(["requests that were not recorded:", *misses])
