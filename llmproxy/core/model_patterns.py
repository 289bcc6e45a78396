"""Patterns for names of models, as `--map` and `--parallel` have them."""

from fnmatch import fnmatchcase


def fits(name: str, pattern: str) -> bool:
    """Match a name with a pattern: `*` stands for any characters, `?` for one.

    Brackets are letters: names of models have them (`[1m]`).
    """
    return fnmatchcase(name, pattern.replace("[", "[[]"))
