"""llm's user folder, found without llm."""

from __future__ import annotations

import os
import sys

import click.utils
import llm
import pytest

from llmproxy.recorder.user_files import user_file, user_folder


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
@pytest.mark.parametrize("name", ["LLM_USER_PATH", "XDG_CONFIG_HOME", "APPDATA", None])
def test_the_folder_is_llms_own(monkeypatch, tmp_path, platform, name):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for other in ("LLM_USER_PATH", "XDG_CONFIG_HOME", "APPDATA"):
        monkeypatch.delenv(other, raising=False)
    if name is not None:
        monkeypatch.setenv(name, str(tmp_path / "named"))
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(click.utils, "WIN", platform == "win32")
    folder = user_folder()
    assert folder == llm.user_dir()
    assert folder.is_dir()
    if name == "LLM_USER_PATH":
        assert user_file("x") == os.path.join(folder, "x")
