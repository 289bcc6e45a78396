"""A real browser for tests, driven over the DevTools protocol through a pipe.

Chromium reads commands on its file descriptor 3 and writes what it has to say on 4, each a
JSON object that ends with NUL: no port, no websocket, nothing but the stdlib.

Spec: https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

TIMEOUT_S = 30  # of one command: a cold start on a busy machine is slow
NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def open_browser(tmp_path: Path, *flags: str) -> Iterator[Browser]:
    """Start a browser with a new profile; the test is skipped where there is none.

    flags: of the browser's own command line, besides those that it needs here.
    """
    binary = next(filter(None, map(shutil.which, NAMES)), None)
    if binary is None:
        pytest.skip("no Chromium on this machine")
    to_browser, our_commands = os.pipe()
    our_answers, from_browser = os.pipe()
    # Which numbers the pipes have is chance; the shell gives them those that Chromium reads.
    wired = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
    command = [
        "bash",
        "-c",
        wired,
        binary,
        *flags,
        *_FLAGS,
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    process = subprocess.Popen(
        command,
        pass_fds=(to_browser, from_browser),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"HOME": str(tmp_path)},
    )
    os.close(to_browser)
    os.close(from_browser)
    browser = Browser(our_commands, our_answers)
    try:
        browser.attach()
        yield browser
    finally:
        os.close(our_commands)  # a browser whose pipe ends goes
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(our_answers)


_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # it refuses to start as root otherwise, as which containers run
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
    "about:blank",
)


class Browser:
    """One tab. `messages` has what its console and its log said since `navigate`."""

    def __init__(self, commands: int, answers: int) -> None:
        self.messages: list[str] = []
        self._commands = commands
        self._answers = answers
        self._buffer = b""
        self._last_id = 0
        self._session: str | None = None
        self._events: list[dict[str, Any]] = []

    def attach(self) -> None:
        """Find the tab, and have it tell what happens."""
        targets = self.command("Target.getTargets")["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        attached = self.command("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")

    def navigate(self, url: str) -> None:
        """Open a page and wait until it has loaded."""
        self.messages.clear()
        self._events.clear()
        answer = self.command("Page.navigate", url=url)
        assert "errorText" not in answer, answer["errorText"]
        self._wait_for("Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """Evaluate JavaScript in the page, also where its own is forbidden; await a promise."""
        answer = self.command(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def show(
        self, *, width: int = 1280, height: int = 900, scheme: str = "light", media: str = ""
    ) -> None:
        """Set the window's size, the user's colour scheme, and the medium ("print")."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.command("Emulation.setEmulatedMedia", media=media, features=features)

    def screenshot(self, path: Path, *, whole: bool = False, clip: Any = None) -> bytes:
        """Write what is to be seen as a PNG; `whole`: down to the page's end."""
        more = {"clip": clip} if clip else {}
        answer = self.command(
            "Page.captureScreenshot", format="png", captureBeyondViewport=whole, **more
        )
        image = base64.b64decode(answer["data"])
        path.write_bytes(image)
        return image

    def layout(self) -> dict[str, Any]:
        """Give the sizes of the page and of the window, in CSS pixels."""
        return self.command("Page.getLayoutMetrics")

    def requested(self) -> list[str]:
        """Name every URL that was asked for since `navigate`."""
        self.evaluate("1")  # what was asked for before has been told before this answer
        return [
            event["params"]["request"]["url"]
            for event in self._events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the protocol and give its result."""
        self._last_id += 1
        message: dict[str, Any] = {"id": self._last_id, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            answer = self._next(deadline)
            if answer.get("id") == self._last_id:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def _wait_for(self, method: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not any(event["method"] == method for event in self._events):
            self._next(deadline)

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._answers], [], [], max(left, 0))
            assert ready, "the browser said nothing in time"
            data = os.read(self._answers, 2**20)
            assert data, "the browser has gone"
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self._events.append(message)
            self._note(message["method"], message["params"])
        return message

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.consoleAPICalled":
            words = (str(each.get("value", each.get("description"))) for each in params["args"])
            self.messages.append(f"{params['type']}: {' '.join(words)}")
        elif method == "Log.entryAdded":
            self.messages.append(f"{params['entry']['level']}: {params['entry']['text']}")
        elif method == "Runtime.exceptionThrown":
            self.messages.append(f"exception: {params['exceptionDetails']['text']}")
