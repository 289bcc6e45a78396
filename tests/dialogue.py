"""What is said in tests/session.py: a user mends a small program together with an agent.

Each step has the recorded answer, a terse one that another model gives in its place, and
what a third model puts otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["DIALOGUES", "TOOLS", "Call", "Step"]


@dataclass(frozen=True)
class Call:
    """A tool call; `arguments` is JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Step:
    """One request and how each model answers it.

    asked: the user's words or, with `is_result`, what the tools gave.
    said, call: the recorded answer. quick, quick_call: a terse one.
    instead: words of the recorded answer, and what a thorough one has in their place.
    schema: what the answer is to fit.
    """

    asked: str
    said: str = ""
    call: Call | None = None
    quick: str = ""
    quick_call: Call | None = None
    instead: tuple[tuple[str, str], ...] = ()
    is_result: bool = False
    schema: dict[str, Any] | None = None

    @property
    def thorough(self) -> str:
        """The recorded words with what is put otherwise."""
        words = self.said
        for old, new in self.instead:
            assert old in words, old
            words = words.replace(old, new)
        return words


def _tool(name: str, description: str, **properties: str) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {
            key: {"type": "string", "description": words} for key, words in properties.items()
        },
        "required": list(properties),
        "additionalProperties": False,
    }
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


TOOLS = [
    _tool("read_file", "Read a file of the project.", path="Where it is."),
    _tool("edit_file", "Replace a text in a file.", path="Where.", old="What.", new="By what."),
    _tool("run_tests", "Run the tests.", pattern="Whose names contain this."),
]

TALLY = '''import csv
from collections import defaultdict

def totals(path):
    """Sum the receipts of each month."""
    sums = defaultdict(float)
    with open(path) as file:
        for row in csv.DictReader(file, delimiter=";"):
            sums[row["date"][:7]] += float(row["amount"])
    return dict(sums)
'''

COMMIT_MESSAGE = {
    "type": "object",
    "properties": {"subject": {"type": "string"}, "body": {"type": "string"}},
    "required": ["subject", "body"],
    "additionalProperties": False,
}
FUNCTIONS = {
    "type": "object",
    "properties": {
        "functions": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "returns": {"type": "string"}},
                "required": ["name", "returns"],
            },
        }
    },
    "required": ["functions"],
}

_MENDING = (
    Step(
        "My January total in tally.py is 12 cents off. Can you find out why?",
        said="I will look at how the amounts are read and added up.",
        call=Call("read_file", '{"path": "tally.py"}'),
        quick_call=Call("read_file", '{"path": "tally.py"}'),
        instead=(("I will look", "Let me look"),),
    ),
    Step(
        TALLY,
        is_result=True,
        said=(
            "The amounts are added as binary floats, which cannot hold most cents exactly: "
            "`0.1 + 0.2` is already `0.30000000000000004`. Over a few hundred receipts these "
            "errors add up, and rounding at the end cannot take them out again. "
            "`decimal.Decimal` holds cents as they are written; shall I change it?"
        ),
        quick="You add floats. Use `decimal.Decimal` instead; it is exact for cents.",
        instead=(
            ("these errors add up, and", "these errors add up;"),
            ("shall I change it?", "I would change `totals` and nothing else. Shall I?"),
        ),
    ),
    Step(
        "Yes, change it to Decimal, and keep what it prints as it is.",
        call=Call(
            "edit_file",
            '{"path": "tally.py", "old": "defaultdict(float)", "new": "defaultdict(Decimal)"}',
        ),
        quick_call=Call(
            "edit_file",
            '{"path": "tally.py", "old": "float", "new": "Decimal"}',
        ),
    ),
    Step(
        "edited tally.py: 1 replacement",
        is_result=True,
        call=Call(
            "edit_file",
            '{"path": "tally.py", "old": "float(row[\\"amount\\"])",'
            ' "new": "Decimal(row[\\"amount\\"])"}',
        ),
        quick_call=Call("run_tests", '{"pattern": "tally"}'),
    ),
    Step(
        "edited tally.py: 1 replacement; Decimal is not imported",
        is_result=True,
        call=Call(
            "edit_file",
            '{"path": "tally.py", "old": "from collections import defaultdict",'
            ' "new": "from collections import defaultdict\\nfrom decimal import Decimal"}',
        ),
        quick_call=Call(
            "edit_file",
            '{"path": "tally.py", "old": "import csv",'
            ' "new": "import csv\\nfrom decimal import Decimal"}',
        ),
    ),
    Step(
        "edited tally.py: now 11 lines",
        is_result=True,
        said="Now the tests, to see that the sums are the same but for the cents.",
        call=Call("run_tests", '{"pattern": "totals"}'),
        quick="Running the tests.",
        quick_call=Call("run_tests", '{"pattern": "totals"}'),
        instead=(("to see that", "which should say that"),),
    ),
    Step(
        "2 passed, 1 failed: test_totals_of_bank_export: InvalidOperation: '12,40'",
        is_result=True,
        said=(
            "Two pass. The third reads an export of the bank, where a comma stands before the "
            "cents: `12,40`. `Decimal` refuses that, as `float` did; the test was skipped "
            "until now because its file was missing. Do you want both forms to be read?"
        ),
        quick="The bank's file has a comma: `12,40`. Read both forms?",
        instead=(("Do you want both forms to be read?", "Shall I have both forms read?"),),
    ),
    Step(
        "Both, please. Thousands may have a point: 1.204,50 €.",
        said=(
            "```python\n"
            "def amount(text: str) -> Decimal:\n"
            '    """Read an amount, written the English or the German way."""\n'
            '    text = text.replace("€", "").strip()\n'
            '    if "," in text and text.rfind(",") > text.rfind("."):\n'
            '        text = text.replace(".", "").replace(",", ".")\n'
            '    return Decimal(text.replace(",", ""))\n'
            "```\n"
            "The sign that comes last is taken for the decimal one, so `1,204.50` works too."
        ),
        quick=(
            "```python\n"
            "def amount(text):\n"
            '    return Decimal(text.strip(" €").replace(".", "").replace(",", "."))\n'
            "```"
        ),
        instead=(
            ('.replace("€", "").strip()', '.strip(" €")'),
            ("so `1,204.50` works too.", "so `1,204.50` works too, and `12,40`."),
        ),
    ),
    Step(
        "What does it make of 1.204, without cents?",
        said=(
            "That one is ambiguous: it reads `1.204` as one point two, since a single point is "
            "the English decimal sign. If the bank always writes cents, that never happens. To "
            "be safe, refuse three digits after a single sign:\n"
            "```python\n"
            'if re.fullmatch(r"\\d{1,3}[.,]\\d{3}", text):\n'
            '    raise ValueError(f"{text!r}: thousands or decimals?")\n'
            "```"
        ),
        quick="1204: all points go. An English `1.204` would be wrong then.",
        instead=(("To be safe, refuse", "I would rather refuse"), ("always writes", "writes")),
    ),
    Step(
        "Good, refuse it. Which tests would you write for amount()?",
        said=(
            "One table, so that each case is a line:\n"
            "```python\n"
            '@pytest.mark.parametrize("text, cents", [\n'
            '    ("12.40", 1240),\n'
            '    ("12,40", 1240),\n'
            '    ("1.204,50 €", 120450),\n'
            '    ("1,204.50", 120450),\n'
            '    ("-3,00", -300),\n'
            "])\n"
            "def test_amounts_are_read(text, cents):\n"
            "    assert amount(text) * 100 == cents\n"
            "```\n"
            "and one more for `1.204`, which expects `ValueError`."
        ),
        quick=(
            "```python\n"
            "def test_amount():\n"
            '    assert amount("12,40") == Decimal("12.40")\n'
            '    assert amount("1.204,50 €") == Decimal("1204.50")\n'
            "```"
        ),
        instead=(('    ("-3,00", -300),\n', '    ("-3,00", -300),\n    ("0", 0),\n'),),
    ),
    Step(
        "Run them.",
        call=Call("run_tests", '{"pattern": "amount"}'),
        quick_call=Call("run_tests", '{"pattern": "amount"}'),
    ),
    Step(
        "6 passed in 0.03s",
        is_result=True,
        said=(
            "All six pass. `totals` calls `amount` for each row now, and your January total "
            "should be right to the cent."
        ),
        quick="All six pass.",
    ),
    Step(
        "It is, thank you! Can it also leave out receipts marked as private?",
        said=(
            "Where is the mark? If the file has a column for it, one line in the loop does it:\n"
            "```python\n"
            'if row.get("private", "").strip().lower() in ("x", "yes"):\n'
            "    continue\n"
            "```\n"
            "I would make it an option, `--without-private`, so that old totals stay what they "
            "were."
        ),
        quick='Skip such rows: `if row["private"]: continue`.',
        instead=(("Where is the mark? If", "If"), ("stay what they were", "do not change")),
    ),
    Step(
        "An option is fine. Sum up in three points what has changed today.",
        said=(
            "1. Amounts are `Decimal`, so that totals are exact to the cent.\n"
            "2. `amount` reads the English and the German way, and refuses what could be both.\n"
            "3. `--without-private` leaves out receipts that are marked; without it nothing "
            "changes."
        ),
        quick="Decimal, both ways of writing, and an option for private receipts.",
        instead=(("so that totals are exact", "and totals are exact"),),
    ),
)

_RELEASING = (
    Step(
        "Which functions has tally.py, and what does each return?",
        said=(
            '{"functions": [{"name": "amount", "returns": "Decimal"}, '
            '{"name": "totals", "returns": "dict[str, Decimal]"}]}'
        ),
        quick='{"functions": [{"name": "amount"}, {"name": "totals"}]}',
        schema=FUNCTIONS,
    ),
    Step(
        "Write the commit message for exact amounts.",
        said=(
            '{"subject": "Add up receipts as Decimal", "body": "Floats were off by some cents '
            'in a month of a few hundred receipts. Amounts may have a comma now."}'
        ),
        quick='{"subject": "Use Decimal", "body": "Floats are not exact."}',
        instead=(("were off by some cents", "were some cents off"),),
        schema=COMMIT_MESSAGE,
    ),
    Step(
        "Is that change worth a new version number?",
        said=(
            "Yes: 1.3.0. Totals change by cents for everyone, and what was refused is read now, "
            "so it is more than a fix; nothing that worked stops working, so it is no 2.0."
        ),
        quick="Yes, 1.3.0.",
        instead=(("Totals change by cents for everyone", "Everyone's totals change by cents"),),
    ),
    Step(
        "How would you say so in the change log?",
        said=(
            "> **1.3.0** – Totals are exact to the cent. Amounts may be written `1,204.50` or "
            "`1.204,50 €`; `1.204` is refused, since it could be either. New: "
            "`--without-private`."
        ),
        quick="> **1.3.0** – Exact totals, both ways of writing amounts, `--without-private`.",
        instead=(("since it could be either", "as it could be both"),),
    ),
    Step(
        "Set the version in pyproject.toml, it is 1.2.4 there.",
        call=Call(
            "edit_file",
            '{"path": "pyproject.toml", "old": "version = \\"1.2.4\\"",'
            ' "new": "version = \\"1.3.0\\""}',
        ),
        quick_call=Call(
            "edit_file",
            '{"path": "pyproject.toml", "old": "1.2.4", "new": "1.3.0"}',
        ),
    ),
    Step(
        "edited pyproject.toml: 1 replacement",
        is_result=True,
        said=(
            "The version is 1.3.0. What is left: tag it, `git tag v1.3.0`, and build it with "
            "`python -m build`."
        ),
        quick="Done: 1.3.0.",
        instead=(("What is left: tag it,", "Now tag it with"),),
    ),
)

DIALOGUES = (_MENDING, _RELEASING)
"""Each is one conversation."""
