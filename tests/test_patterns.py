"""No pattern of the package takes more than linear time, whatever the text.

All patterns are taken from the source. Each is fed texts made of its own parts, repeated: that
is where a pattern that backtracks, or that starts again at each position, takes quadratic time.
"""

from __future__ import annotations

import ast
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

import pytest

from llmproxy.core.error_meanings import MEANINGS

from .imports import NAMES, PATHS, tree

SIZE = 12_000  # characters
MAX_PARTS = 30  # of a pattern; long alternations have more, which are alike
LONGEST_S = 0.04  # of CPU time for SIZE; linear patterns take a hundredth of that
ANCHORED = {"match", "fullmatch"}
SCANNING = {"search", "sub", "subn", "split", "findall", "finditer"}
FUNCTIONS = {"compile", *ANCHORED, *SCANNING}


@dataclass(frozen=True)
class Use:
    """A pattern and how it is used: from one position, or at each in turn."""

    place: str
    pattern: re.Pattern[Any]
    is_scanning: bool


def uses() -> Iterator[Use]:
    for module in NAMES:
        for node in ast.walk(tree(module)):
            if _is_call_of_re(node):
                assert isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
                yield from _use(module, node, node.func.attr)


def _is_call_of_re(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "re"
        and node.func.attr in FUNCTIONS
    )


def _use(module: str, call: ast.Call, function: str) -> Iterator[Use]:
    names = vars(import_module(f"llmproxy.{module}" if module != "__init__" else "llmproxy"))

    def value(node: ast.expr) -> Any:
        return eval(compile(ast.Expression(node), module, "eval"), names)  # noqa: S307  # our own source

    place = f"{module}:{call.lineno}"
    if function == "compile":
        try:
            pattern = value(call)
        except NameError:  # one of several that a comprehension makes, and a loop tries
            operations = set(re.findall(r"\bpattern\.(\w+)\(", PATHS[module].read_text("utf-8")))
            for pattern in _patterns_in(list(names.values())):
                yield Use(place, pattern, bool(operations & SCANNING) or not operations)
            return
        operations = _operations()[_name_of(module, call)]
        yield Use(place, pattern, bool(operations & SCANNING) or not operations & ANCHORED)
        return
    flags = [keyword.value for keyword in call.keywords if keyword.arg == "flags"]
    last = call.args[-1]
    if isinstance(last, ast.Attribute) and isinstance(last.value, ast.Name):
        flags += [last] if last.value.id == "re" else []
    try:
        text = value(call.args[0])
    except NameError:  # given by a caller, where it is compiled
        return
    pattern = text if isinstance(text, re.Pattern) else re.compile(text, *map(value, flags))
    yield Use(place, pattern, function in SCANNING)


def _patterns_in(value: Any) -> Iterator[re.Pattern[Any]]:
    """Find the patterns in a module's lists and tuples."""
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _patterns_in(item)


def _name_of(module: str, call: ast.Call) -> str:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Assign) and node.value is call:
            assert isinstance(node.targets[0], ast.Name)
            return node.targets[0].id
    return "no name"


@cache
def _operations() -> dict[str, set[str]]:
    """Return the methods that the package calls of each name."""
    found = defaultdict[str, set[str]](set)
    for path in PATHS.values():
        for name, method in re.findall(r"\b(\w+)\.(\w+)\(", path.read_text("utf-8")):
            found[name].add(method)
    return found


def samples(parsed: Any, letters: str) -> Iterator[str]:
    """Give texts that the parts of a pattern match, and its beginnings: what to repeat."""
    items = list(parsed)
    for end in range(1, len(items) + 1):
        yield sample(items[:end], letters)
    for operation, argument in items:
        for part in _parts(operation, argument):
            yield from samples(part, letters)


def _parts(operation: Any, argument: Any) -> list[Any]:
    match operation:
        case _constants.MAX_REPEAT | _constants.MIN_REPEAT | _constants.POSSESSIVE_REPEAT:
            return [argument[2]]
        case _constants.SUBPATTERN:
            return [argument[3]]
        case _constants.ATOMIC_GROUP:
            return [argument]
        case _constants.ASSERT | _constants.ASSERT_NOT:
            return [argument[1]]
        case _constants.BRANCH:
            return list(argument[1])
    return []


def sample(parsed: Any, letters: str) -> str:
    """Give a text that a pattern matches, but for parts that have to be repeated.

    letters: the characters to choose from, the first ones first.
    """
    text = ""
    for operation, argument in parsed:
        match operation:
            case _constants.LITERAL:
                text += chr(argument)
            case _constants.NOT_LITERAL:
                text += next(c for c in letters if ord(c) != argument)
            case _constants.ANY:
                text += letters[0]
            case _constants.IN:
                text += next((c for c in letters if _is_in(c, argument)), letters[0])
            case _constants.MAX_REPEAT | _constants.MIN_REPEAT | _constants.POSSESSIVE_REPEAT:
                text += sample(argument[2], letters)  # once: what is repeated restarts often
            case _constants.SUBPATTERN | _constants.ATOMIC_GROUP | _constants.BRANCH:
                text += sample(_parts(operation, argument)[0], letters)
    return text


def _is_in(character: str, items: Any) -> bool:
    is_negated = items[0][0] == _constants.NEGATE
    classes = {
        _constants.CATEGORY_SPACE: str.isspace,
        _constants.CATEGORY_NOT_SPACE: lambda c: not c.isspace(),
        _constants.CATEGORY_DIGIT: str.isdigit,
        _constants.CATEGORY_WORD: lambda c: c.isalnum() or c == "_",
        _constants.CATEGORY_NOT_WORD: lambda c: not (c.isalnum() or c == "_"),
    }
    found = False
    for kind, argument in items:
        if kind == _constants.LITERAL:
            found |= ord(character) == argument
        elif kind == _constants.RANGE:
            found |= argument[0] <= ord(character) <= argument[1]
        elif kind == _constants.CATEGORY:
            found |= classes[argument](character)
    return found != is_negated


LETTERS = 'a0-_ \t./+"\\é\x80\ud800', "-\\ _a0 "


def texts(pattern: re.Pattern[Any], size: int) -> Iterator[str]:
    parsed = _parser.parse(pattern.pattern, pattern.flags & re.VERBOSE)
    found = {part: None for letters in LETTERS for part in samples(parsed, letters) if part}
    parts = list(found)[:MAX_PARTS]
    shortest = sorted(parts, key=len)[:3]
    parts += [a + b for a in shortest for b in shortest if a != b]
    whole = sample(parsed, LETTERS[0])
    for part in parts:
        repeated = part * (size // len(part))
        yield repeated + "\0"
        yield whole + repeated + "!"
        yield whole[:-1] + repeated


def duration(use: Use, text: str) -> float:
    is_bytes = isinstance(use.pattern.pattern, bytes)
    subject: Any = text.encode("utf-8", "surrogatepass") if is_bytes else text
    began = time.thread_time()
    if use.is_scanning:
        for _ in use.pattern.finditer(subject):
            pass
    else:
        use.pattern.match(subject)
        use.pattern.fullmatch(subject)
    return time.thread_time() - began


ALL = [
    *uses(),
    *(
        Use("core.error_meanings", re.compile(words.known, re.IGNORECASE), is_scanning=True)
        for row in MEANINGS
        for words in (row.openai, row.anthropic)
    ),
]


# Made of a caller's flags; of a dialect's word, for `search` up to the first match; of escaped
# words, twice; of a table, whose patterns are above; the owner's own, which are checked and
# stopped (tests/backends/test_ignored_text.py).
ELSEWHERE = {
    "transfer.llama_stack.read",
    "core.errors",
    "core.known_bodies",
    "core.known_keys",
    "core.error_meanings",
    "backends.ignored_text",
}


def test_all_patterns_are_found():
    written = {
        f"{module}:{node.lineno}"
        for module in NAMES
        for node in ast.walk(tree(module))
        if _is_call_of_re(node)
    }
    missing = [place.partition(":")[0] for place in written - {use.place for use in ALL}]
    assert sorted(missing) == sorted(ELSEWHERE)


def test_patterns_are_made_in_no_other_way():
    """Only calls of `re.…` are found above. What `fnmatch` makes of a `*` takes linear time."""
    others = {
        (module, alias.name)
        for module in NAMES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if (isinstance(node, ast.ImportFrom) and node.module in ("re", "fnmatch"))
        or (alias.name in ("regex", "fnmatch") or (alias.name == "re" and alias.asname))
    }
    assert others == {
        ("core.model_patterns", "fnmatchcase"),
        ("backends.ignored_text", "_parser"),  # reads the owner's patterns, makes none
    }


@pytest.mark.parametrize("use", ALL, ids=lambda use: f"{use.place} {use.pattern.pattern!r:.30}")
def test_a_pattern_takes_linear_time(use: Use):
    check(use, SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("use", ALL, ids=lambda use: f"{use.place} {use.pattern.pattern!r:.30}")
def test_a_pattern_takes_linear_time_for_long_texts(use: Use):
    check(use, 6 * SIZE)


def check(use: Use, size: int) -> None:
    longest = LONGEST_S * size / SIZE
    for some in (size // 20, size // 4, size):  # to be done soon with what is slow already
        for text in texts(use.pattern, some):
            took = duration(use, text)
            if longest < took < 10 * longest:
                took = min(took, duration(use, text))
            shown = f"{text[:40]!r}… of {len(text)} characters"
            assert took <= longest, f"{use.pattern.pattern!r} took {took:.2f} s for {shown}"


@pytest.mark.parametrize("slow", [r"\s+$", r"(?:a-?)+=", r"\beyJ[\w-]{5,}\.[\w-]+", r"a*b*c"])
def test_a_pattern_of_quadratic_time_is_found(slow: str):
    with pytest.raises(AssertionError, match="took"):
        check(Use("here", re.compile(slow), is_scanning=True), SIZE)
