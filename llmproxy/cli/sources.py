"""Settings from flags, from LLMPROXY_… variables and from a TOML file, in this order.

Every flag of a parser that takes part is a setting: `--allow-host` is the variable
LLMPROXY_ALLOW_HOST and the key `allow-host` of the file, with the same values. A new flag needs
nothing here. `config`, the file itself, is a flag and a variable only.
"""

from __future__ import annotations

import argparse
import os
from argparse import Action, ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import SettingsError
from ..core.field_types import closest

PREFIX = "LLMPROXY_"
SHARED = ("database", "prices")  # that commands besides the server take from the same places
# Their values may have commas: in the environment they are separated by line breaks only.
_HAVE_COMMAS = ("ignore", "recordings")
_ON, _OFF = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
# In a file, and in the environment.
_MEANINGLESS = ("help", "version", "help_limits", "completion", "config", "with_defaults")


class Wrong(Exception):
    """A value that a setting can't have, with the reason."""


@dataclass
class Given:
    """What was set, and where.

    values: by dest, those of the parser's defaults included. sources: of those that were set,
    by dest: `--port`, `LLMPROXY_PORT`, `llmproxy.toml: port`. config: the file. warnings: about
    variables that are no setting.
    """

    values: dict[str, Any]
    sources: dict[str, str] = field(default_factory=dict)
    config: Path | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> Namespace:
        """The values as `parse_args` returns them."""
        return Namespace(**self.values)

    @contextmanager
    def naming_errors(self, parser: ArgumentParser) -> Iterator[None]:
        """Let errors name each setting as the user did, or else by its flag."""
        names = flags_of(parser)
        for action in parser._actions:
            if source := self.sources.get(action.dest):
                names[f"{action.dest}={action.const}"] = names[action.dest] = source
        try:
            yield
        except SettingsError as exc:
            raise SettingsError(exc.with_flags(names)) from exc


def flags_of(parser: ArgumentParser) -> dict[str, str]:
    """Return the flag for each setting, for switches with the setting's value: `auth=False`."""
    return {
        f"{action.dest}={action.const}" if action.nargs == 0 else action.dest: flag
        for action in parser._actions
        for flag in action.option_strings[-1:]
    }


def settings_of(parser: ArgumentParser) -> dict[str, Action]:
    """Return the flags that are settings, by their keys in the file: `allow-host`."""
    return {
        action.option_strings[-1].removeprefix("--"): action
        for action in parser._actions
        if action.option_strings and action.dest not in _MEANINGLESS
    }


def variable_of(key: str) -> str:
    """Return the environment variable of a setting."""
    return PREFIX + key.upper().replace("-", "_")


def is_secret(action: Action) -> bool:
    """Check whether a setting's value is a key, which is never shown."""
    return "KEY" in str(action.metavar or "")


class Once(argparse.Action):
    """Store a value and refuse a second, different one, which would silently replace it.

    For flags that people may want to give twice; of most others the last one counts.

    instead: what to do then, for the error.
    """

    def __init__(self, *args: Any, instead: str = "", **named: Any) -> None:
        super().__init__(*args, **named)
        self._instead = f"; {instead}" if instead else ""

    def __call__(
        self,
        parser: ArgumentParser,
        namespace: Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store the value."""
        if getattr(namespace, self.dest) not in (None, values):
            raise argparse.ArgumentError(self, f"it takes one value, not two{self._instead}")
        setattr(namespace, self.dest, values)


def add_config(parser: ArgumentParser) -> None:
    """Add the flag that names the file."""
    parser.add_argument(
        "--config",
        action=Once,
        metavar="FILE",
        help="read settings that are no flags here from this TOML file",
    )


def parse_flags(parser: ArgumentParser, argv: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Parse flags, None for each that is not given; return them and the unknown arguments."""
    unset = Namespace(**{action.dest: None for action in settings_of(parser).values()})
    return parser.parse_known_args(argv, unset)


def complete(
    parser: ArgumentParser, flags: Namespace, variables: Mapping[str, str] | None = None
) -> Given:
    """Fill in what the flags leave open: from variables, the file, then the defaults.

    A list replaces that of a later place. An empty variable is none. Paths in the file are
    relative to its folder.

    variables: the environment, by default that of the process.

    Raises:
        SettingsError: a value is wrong, or a key of the file unknown; it names where.
    """
    variables = os.environ if variables is None else variables
    settings = settings_of(parser)
    by_variable = {variable_of(key): action for key, action in settings.items()}
    path, table = _file(getattr(flags, "config", None), variables)
    _refuse_unknown(path, table, [*settings, *SHARED])
    given = Given(vars(flags), config=path, warnings=_unknown_variables(variables, by_variable))
    flag_names = flags_of(parser)
    for key, action in settings.items():
        dest = action.dest
        if given.values[dest] is None:
            value, source = _outside(key, action, variables, path, table)
            if source:
                given.values[dest], given.sources[dest] = value, source
        elif dest not in given.sources:
            given.sources[dest] = flag_names.get(dest) or flag_names[f"{dest}={action.const}"]
    for action in settings.values():
        if given.values[action.dest] is None:
            given.values[action.dest] = action.default
    return given


def fill_in(parser: ArgumentParser, arguments: Namespace) -> None:
    """Set what all commands share, the log and the prices, where no flag does.

    The file is that of LLMPROXY_CONFIG.

    Raises:
        SettingsError: as `complete` does.
    """
    path, table = _file(None, os.environ)
    for key, action in settings_of(parser).items():
        if key in SHARED and getattr(arguments, action.dest) is None:
            value, _ = _outside(key, action, os.environ, path, table)
            setattr(arguments, action.dest, value)


def _outside(
    key: str,
    action: Action,
    variables: Mapping[str, str],
    path: Path | None,
    table: Mapping[str, Any],
) -> tuple[Any, str]:
    """Return a setting's value from its variable or the file, and its source; "" without one."""
    source = ""
    try:
        if text := variables.get(source := variable_of(key)):
            return _value(action, _split(action, text)), source
        if path is not None and key in table:
            source = f"{path}: {key}"
            items = [_rebased(action, item, path.parent) for item in _items(table[key], action)]
            return _value(action, items), source
    except Wrong as exc:
        raise SettingsError(f"{source}: {exc}") from exc
    return None, ""


def _file(named: str | None, variables: Mapping[str, str]) -> tuple[Path | None, dict[str, Any]]:
    source, text = "--config", named
    if text is None:
        source, text = variable_of("config"), variables.get(variable_of("config"))
    if not text:
        return None, {}
    import tomllib  # 9 ms; most have no file

    path = Path(text)
    try:
        return path, tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as exc:
        raise SettingsError(f"{source}: {path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise SettingsError(f"{source}: {path}: it is not UTF-8") from exc
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise SettingsError(f"{source}: {path}: it is not TOML: {exc}") from exc


def _refuse_unknown(path: Path | None, table: Mapping[str, Any], keys: Iterable[str]) -> None:
    for key in table:
        if key not in keys:
            raise SettingsError(f"{path}: {key}: there is no such setting{_hint(key, keys)}")


def _unknown_variables(variables: Mapping[str, str], known: Iterable[str]) -> list[str]:
    """Warn only: a cluster sets LLMPROXY_SERVICE_HOST for a service of this name."""
    names = [*known, *map(variable_of, ("config", *SHARED))]
    return [
        f"{name}: there is no such setting{_hint(name, names)}"
        for name in sorted(variables)
        if name.startswith(PREFIX) and name not in names
    ]


def _hint(name: str, names: Iterable[str]) -> str:
    alike = closest(name, names)
    return f"; did you mean {alike}?" if alike else ""


def _is_list(action: Action) -> bool:
    return isinstance(action, argparse._AppendAction)


def _split(action: Action, text: str) -> list[object]:
    """Split a variable's list at line breaks, or else at commas."""
    if not _is_list(action):
        return [text]
    has_lines = "\n" in text.strip() or action.dest in _HAVE_COMMAS
    parts = text.splitlines() if has_lines else text.split(",")
    return [part.strip() for part in parts if part.strip()]


def _items(value: object, action: Action) -> list[object]:
    """Return the values that a key has in the file; those of NAME=VALUE may be a table."""
    if not _is_list(action):
        return [value]
    if isinstance(value, dict) and "=" in str(action.metavar):
        return [f"{name}={_text(item)}" for name, item in value.items()]
    return list(value) if isinstance(value, list) else [value]


def _rebased(action: Action, value: object, folder: Path) -> object:
    if action.metavar not in ("PATH", "FILE") or not isinstance(value, str) or value in ("", "-"):
        return value
    try:
        return str(folder / Path(value).expanduser())
    except RuntimeError as exc:  # ~nobody
        raise Wrong(str(exc)) from exc


def _value(action: Action, items: Sequence[object]) -> Any:
    if _is_list(action):
        return [_convert(action, item) for item in items]
    (item,) = items
    if action.nargs == 0:
        return action.const if _is_on(item) else action.default
    return _convert(action, item)


def _is_on(value: object) -> bool:
    word = str(value).lower()
    if word not in _ON + _OFF:
        raise Wrong("expected true or false")
    return word in _ON


def _text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Wrong(f"expected a string or a number, not {_TOML.get(type(value), 'a date')}")
    return str(value)


_TOML = {bool: "true or false", list: "an array", dict: "a table"}


def _convert(action: Action, value: object) -> Any:
    """Convert a value as argparse does; a key isn't quoted in what is wrong with it."""
    text = _text(value)
    try:
        converted = action.type(text) if callable(action.type) else text
    except (argparse.ArgumentTypeError, ValueError, TypeError) as exc:
        expected = f"expected {action.metavar}"
        raise Wrong(expected if is_secret(action) else str(exc) or expected) from exc
    if action.choices is not None and converted not in action.choices:
        raise Wrong(f"expected {' or '.join(map(str, action.choices))}, not {text!r}")
    return converted
