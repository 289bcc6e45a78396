"""docs/security.md: every promise names tests, and they exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "security.md").read_text()


def test_every_promise_names_its_tests():
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and "promise" not in line]
    assert len(rows) > 15
    for row in rows:
        assert re.search(r"`tests/", row.rpartition(" | ")[2]), row


def test_the_named_tests_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TEXT)
    assert len(named) > 40
    for path, name in named:
        source = (ROOT / path).read_text()
        assert not name or re.search(rf"^(async )?def {name}\(", source, re.MULTILINE), (path, name)
