"""Draw docs/report.png and docs/report-dark.png: the head of a real report.

A session with an agent is recorded (tests/session.py, with models on loopback), sent again to
two other models by `bench`, and written as a page by `report`:

    python docs/picture.py

Run it in a checkout with the test extra installed and Chromium on the path; it takes a minute.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.browser import open_browser  # noqa: E402
from tests.session import Session, command, environment, on_stage, record  # noqa: E402

WIDTH = 1280
MAX_HEIGHT = 1800  # higher, the text is too small on the page
PICTURES = {"light": ROOT / "docs/report.png", "dark": ROOT / "docs/report-dark.png"}


def write_page(session: Session, path: Path) -> None:
    """Record the session, run the benchmark, and write the report."""
    record(session)
    bench = ["bench", "--models", "quick,thorough", "--repeat", "2", "--name", "friday"]
    for argv in (bench, ["report", "friday", "--html", str(path)]):
        subprocess.run(command(*argv), env=environment(session.folder), check=True)


def take_pictures(path: Path, folder: Path) -> None:
    """Take screenshots of the page down to the end of its charts."""
    with open_browser(folder) as browser:
        for scheme, picture in PICTURES.items():
            browser.show(width=WIDTH, height=MAX_HEIGHT, scheme=scheme)
            browser.navigate(path.as_uri())
            bottom = browser.evaluate(
                "document.querySelector('.grid').getBoundingClientRect().bottom"
            )
            height = min(round(bottom) + 24, MAX_HEIGHT)
            clip = {"x": 0, "y": 0, "width": WIDTH, "height": height, "scale": 1}
            image = browser.screenshot(picture, whole=True, clip=clip)
            print(f"{picture.relative_to(ROOT)}: {WIDTH} x {height}, {len(image):,} bytes")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        page = Path(name) / "page.html"
        with on_stage(Path(name) / "llm") as session:
            write_page(session, page)
        take_pictures(page, Path(name))
