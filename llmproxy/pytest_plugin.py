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
import traceback
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from .proxy import Proxy, Settings
    from .recorder.exchange import Exchange

MODES = ("none", "once", "new_episodes", "rewrite")
_MISSES = pytest.StashKey[list[tuple[Path, str]]]()
_HAS_PASSED = pytest.StashKey[bool]()
_UNUSED = pytest.StashKey[str]()  # names the recordings that a test has not used
# The recordings that this run has made, with their content before; tests may share one.
_MADE = pytest.StashKey[dict[Path, bytes]]()

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
    settings = _settings(options)
    path = _recording_path(node, options.get("database"))
    mode = request.config.getoption("--llmproxy-record")
    made = request.config.stash.setdefault(_MADE, {})
    misses = node.stash.setdefault(_MISSES, [])
    report = settings.on_exchange

    def collect(exchange: Exchange) -> Any:
        if exchange.error_code == "not_recorded":
            misses.append((path, exchange.error or ""))
        return report(exchange)

    settings = replace(settings, database=None, on_exchange=collect)
    if mode == "none" or (mode == "once" and path.exists() and path not in made):
        if not path.exists():
            _fail(f"{path} is missing: record it with --llmproxy-record=once")
        serving = _replaying(path, tmp_path_factory, settings)
    else:
        is_new = not path.exists() or (mode == "rewrite" and path not in made)
        folder = tmp_path_factory.mktemp("llmproxy")
        serving = _recording(node, path, folder / "logs.db", settings, is_new=is_new)
    with serving as proxy:
        yield proxy
        # What others use of a shared file is not known here: this run may leave them out.
        if options.get("database") is None and (unused := proxy.unused_recordings()):
            from .cli.serve import unused_text

            text = unused_text(unused, proxy.recording_count)
            node.stash[_UNUSED] = f"{path}: {text}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Explain a fixture's requests that were not recorded."""
    yield from _failing_on_misses(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Fail a test whose requests were not recorded, also if it has caught the error."""
    item.stash[_HAS_PASSED], item.stash[_UNUSED] = False, ""  # of an earlier attempt
    yield from _failing_on_misses(item)
    item.stash[_HAS_PASSED] = True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Fail a test that has sent such requests since its own end."""
    yield from _failing_on_misses(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the recordings that a test has not used, if it passed, into its last report.

    A report's attributes are sent from xdist's workers.
    """
    report = yield
    unused = item.stash.get(_UNUSED, "")  # known when the fixture has ended
    is_last = report.when == "teardown" and report.passed
    if is_last and item.stash.get(_HAS_PASSED, False) and unused:
        report.llmproxy_unused = unused  # type: ignore[attr-defined]
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the recordings that tests have not used."""
    reports = (report for reports in terminalreporter.stats.values() for report in reports)
    if unused := [text for one in reports if (text := getattr(one, "llmproxy_unused", None))]:
        terminalreporter.write_sep("=", "recordings that were not used")
        for text in unused:
            terminalreporter.write_line(text)
        terminalreporter.write_line("--llmproxy-record=rewrite drops them")


def _failing_on_misses(item: pytest.Item) -> Generator[None, None, None]:
    failure: BaseException | None = None
    try:
        yield
    except BaseException as exc:
        failure = exc
    misses = item.stash.get(_MISSES, [])
    if misses and not isinstance(failure, _NO_FAILURES):
        explanation = _explanation(misses, failure)
        misses.clear()
        raise pytest.fail.Exception(explanation, pytrace=False) from failure
    if failure is not None:
        raise failure


_NO_FAILURES = (pytest.skip.Exception, pytest.exit.Exception, KeyboardInterrupt)


@contextmanager
def _replaying(path: Path, folders: pytest.TempPathFactory, settings: Settings) -> Iterator[Proxy]:
    """Replay a recording; of Responses from a copy in a log, where clients can refer to them."""
    if _has_responses(path):
        database = folders.mktemp("llmproxy") / "logs.db"
        _copy_recording(path, database)
        source: dict[str, Any] = {"database": database}
    else:
        source = {"recordings" if _is_text(path) else "database": path, "log": False}
    with _running(settings, source) as proxy:
        yield proxy


@contextmanager
def _recording(
    node: pytest.Item, path: Path, database: Path, settings: Settings, *, is_new: bool
) -> Iterator[Proxy]:
    """Record in a new log, which takes the recording's place if the test passes."""
    from .recorder.reader import LogReader
    from .transfer.rewrite import rewrite_file

    changes: dict[str, Any] = {"replay": None, "ignore": ()}
    if not is_new:
        _copy_recording(path, database)
        changes = {"replay": "replay-or-live"}
    with _running(settings, {**changes, "database": database}) as proxy:
        yield proxy
    if not node.stash.get(_HAS_PASSED, False) or not database.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    made = node.config.stash[_MADE]
    if _is_text(path):
        before = made.setdefault(path, path.read_bytes() if path.exists() else b"")
        with LogReader(database) as reader:
            rewrite_file(reader, path, before)
    else:
        made[path] = b""
        shutil.copyfile(database, path)


@contextmanager
def _running(settings: Settings, changes: dict[str, Any]) -> Iterator[Proxy]:
    """Run a proxy; one that can't start fails the test in one line."""
    from .core.errors import SettingsError
    from .serving import running

    with ExitStack() as stack:
        try:
            proxy = stack.enter_context(running(replace(settings, **changes)))
        except SettingsError as exc:
            _fail(f"llmproxy_server: {exc}")
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
            _fail("the marker llmproxy takes arguments by name only")
        options |= marker.kwargs
    return options


def _settings(options: dict[str, Any]) -> Settings:
    """Return the settings of a replay with a marker's options, all of which are checked.

    In all modes: an option that only a replay needs must not fail after the recording.
    """
    from .core.errors import SettingsError
    from .core.field_types import closest
    from .proxy import Settings, check_together, upstreams_of

    class TestSettings(Settings):
        needs_recordings = False  # a test may ask no model, and for its list only
        how_to_record = "record it first, with --llmproxy-record=new_episodes"

    names = {field.name for field in fields(Settings)} - _SET_BY_FIXTURE
    for name in options:
        if name in _SET_BY_FIXTURE:
            _fail(f"the marker llmproxy can't set {name!r}: `database` names the recording")
        if name not in names:
            alike = closest(name, names)
            hint = f"; did you mean {alike!r}?" if alike else ""
            _fail(f"the marker llmproxy has no option {name!r}{hint}")
    defaults: dict[str, Any] = {"port": 0, "keys": (), "replay": "replay", "replay_speed": 0}
    try:
        settings = TestSettings(**defaults | options)
        check_together(settings)
        upstreams_of(settings)
    except SettingsError as exc:
        _fail(f"the marker llmproxy: {exc}")
    return settings


_SET_BY_FIXTURE = {"log", "recordings"}


def _fail(message: str) -> NoReturn:
    """Fail a test in one line, without the exception that is being handled."""
    raise pytest.fail.Exception(message, pytrace=False) from None


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


def _explanation(misses: list[tuple[Path, str]], failure: BaseException | None) -> str:
    """Name the requests that were not recorded; pytest shows the failure itself before this."""
    shown = _letters("".join(traceback.format_exception(failure))) if failure else ""
    lines = [
        f"{path}: see the error above" if _letters(error) in shown else f"{path}: {error}"
        for path, error in misses
    ]
    return "\n".join(["requests that were not recorded:", *dict.fromkeys(lines)])


def _letters(text: str) -> str:
    """Return what stays of an error's text however a client quotes it."""
    return re.sub(r"\W", "", text)
