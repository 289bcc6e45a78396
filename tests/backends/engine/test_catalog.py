"""Tests of the catalog: looking up names, and listing models in spite of broken plugins."""

import asyncio
import json

import llm
import pytest
from llm.plugins import pm

from llmproxy.backends.engine import Catalog, catalog
from llmproxy.core.errors import ModelNotFound
from tests.models import AsyncScript, SyncScript, registered


def choose(name, loaded=None, **settings):
    loaded = loaded or load(**settings)
    return asyncio.run(loaded.choose(name)).model_id


def load(**settings) -> Catalog:
    loaded = Catalog(**settings)
    loaded.load()
    return loaded


def test_models_are_found_by_id_and_alias():
    assert choose("gpt-4o") == choose("4o") == "gpt-4o"


def test_models_are_found_by_the_users_aliases(llm_user_path):
    (llm_user_path / "aliases.json").write_text(json.dumps({"fast": "gpt-4o-mini"}))
    assert choose("fast") == "gpt-4o-mini"


def test_the_async_model_is_preferred():
    entry = asyncio.run(load().choose("gpt-4o"))
    assert isinstance(entry.model, llm.AsyncKeyModel)
    assert (entry.owned_by, entry.sync_model.model_id) == ("openai", "gpt-4o")


def test_latest_tag_is_optional():
    """C14"""
    assert choose("gpt-4o:latest") == "gpt-4o"


def test_unknown_name_is_an_error_that_names_it():
    with pytest.raises(ModelNotFound) as caught:
        choose("nobody")
    assert (caught.value.message, caught.value.param) == (
        "there is no model 'nobody' here; llm models lists them",
        "model",
    )


def test_the_error_for_a_misspelt_name_suggests_the_right_one():
    with pytest.raises(ModelNotFound, match="did you mean 'gpt-4o-mini'?"):
        choose("gpt-4o-mini2")


def test_a_long_unknown_name_gets_no_suggestion(monkeypatch):
    """Looking for similar names takes seconds if a name has megabytes."""
    compared = []
    monkeypatch.setattr(
        catalog,
        "get_close_matches",
        lambda name, known, *_: compared.append((name, [*known])) or [],
    )
    for size in (200, 201, 10**6):
        with pytest.raises(ModelNotFound, match="llm models lists them"):
            choose("x" * size)
    assert [len(known) > 0 for _, known in compared] == [True, False, False]


def test_the_default_model_is_used_for_unknown_and_missing_names():
    loaded = load(default_model="gpt-4o")
    assert choose("gpt-99", loaded) == choose(None, loaded) == "gpt-4o"


def test_missing_name_means_llms_own_default(llm_user_path):
    (llm_user_path / "default_model.txt").write_text("gpt-4o-mini")
    assert choose(None) == "gpt-4o-mini"


def test_the_first_matching_map_takes_precedence_over_names():
    maps = [("claude-*haiku*", "gpt-4o-mini"), ("claude-*", "gpt-4o"), ("gpt-4.1", "gpt-4o")]
    loaded = load(maps=maps)
    assert choose("claude-3-haiku-20240307", loaded) == "gpt-4o-mini"
    assert choose("claude-opus-4-1", loaded) == "gpt-4o"
    assert choose("gpt-4.1", loaded) == "gpt-4o"
    assert choose("gpt-4.1-mini", loaded) == "gpt-4.1-mini"


@pytest.mark.parametrize(
    "pattern, matching, other",
    [
        ("claude-opus[1m]", "claude-opus[1m]", "claude-opus1"),
        ("claude-*[1m]", "claude-opus[1m]", "claude-opusm"),
        ("*]", "claude-opus[1m]", "claude-opus"),
        ("[*", "[local]", "a"),
        ("[!a]", "[!a]", "b"),
        ("[]]", "[]]", "]"),
        ("m?", "m1", "m12"),
    ],
)
def test_brackets_in_patterns_are_letters(pattern, matching, other):
    loaded = load(maps=[(pattern, "gpt-4o")], default_model="gpt-4o-mini")
    assert (choose(matching, loaded), choose(other, loaded)) == ("gpt-4o", "gpt-4o-mini")
    models = [(SyncScript(matching), None), (SyncScript(other), None)]
    limited = load(parallel=[(pattern, 7)], extra_models=models)
    limiters = [asyncio.run(limited.choose(name)).limiter for name in (matching, other)]
    assert [limiter.limit for limiter in limiters] == [7, 1]


def test_unknown_targets_lists_mistakes_in_maps_and_the_default():
    loaded = load(maps=[("a", "gpt-4o"), ("b", "nope")], default_model="neither")
    assert loaded.unknown_targets() == ["nope", "neither"]


def test_patterns_for_parallel_requests_that_match_no_model_are_listed():
    patterns = [("gpt-4*", 2), ("mine", 1), ("gtp-*", 2), ("GPT-4o", 3), ("gtp-*", 1)]
    loaded = load(parallel=patterns, extra_models=[(SyncScript("mine"), None)])
    assert loaded.unmatched_parallel() == ["gtp-*", "GPT-4o"]


def test_plugin_that_fails_to_list_its_models_loses_only_its_own(caplog):
    """d6.27"""

    class Broken:
        @llm.hookimpl
        def register_models(self, register):
            register(SyncScript("first"))
            raise SystemExit("no config")

    broken = Broken()
    pm.register(broken, name="broken")
    try:
        ids = [model.id for model in load().models()]
    finally:
        pm.unregister(broken)
    assert "first" in ids
    assert "gpt-4o" in ids
    assert "plugin broken could not list its models: SystemExit('no config')" in caplog.text


def test_plugin_that_fails_to_import_loses_only_its_own_models(every_plugin, tmp_path):
    """d6.27: with llm alone the first lookup raises, and the second finds no models."""
    import os
    import subprocess
    import sys

    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('half installed')")
    info = tmp_path / "broken_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[llm]\nbroken = broken_plugin\n")
    code = (
        "from llmproxy.backends.engine import Catalog; c = Catalog(); c.load();"
        "print('gpt-4o' in [m.id for m in c.models()])"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.getcwd()}"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "True"
    assert "plugin broken could not be loaded: RuntimeError('half installed')" in run.stderr


def test_a_plugins_model_replaces_one_that_needs_no_plugin():
    ours, theirs = SyncScript("spare"), AsyncScript("spare")
    loaded = load(extra_models=[(ours, None)])
    with registered(theirs):
        again = load(extra_models=[(ours, None)])
    assert asyncio.run(again.choose("spare")).model is theirs
    assert "spare" in [model.id for model in loaded.models()]


def test_an_unknown_name_reloads_the_files_but_not_too_often(llm_user_path, monkeypatch):
    loaded = load()

    async def ask_twice():
        (llm_user_path / "aliases.json").write_text(json.dumps({"new": "gpt-4o"}))
        with pytest.raises(ModelNotFound):
            await loaded.choose("new")
        monkeypatch.setattr(catalog, "RELOAD_S", 0.0)
        return (await loaded.choose("new")).model_id

    assert asyncio.run(ask_twice(), debug=True) == "gpt-4o"


def test_a_known_name_does_not_wait_for_a_reload(llm_user_path, monkeypatch):
    import threading

    loaded = load()
    monkeypatch.setattr(catalog, "RELOAD_S", 0.0)
    may_go_on, reading = threading.Event(), threading.Event()

    def slow(*_):
        reading.set()
        may_go_on.wait(10)
        return False

    monkeypatch.setattr(catalog, "_load_plugins", slow)

    async def ask():
        entry = await loaded.choose("gpt-4o")
        assert reading.wait(10)
        may_go_on.set()
        return entry.model_id

    assert asyncio.run(ask()) == "gpt-4o"


def test_options_returns_the_users_defaults_of_a_model(llm_user_path):
    options = {"gpt-4o": {"temperature": 0.2}}
    (llm_user_path / "model_options.json").write_text(json.dumps(options))
    assert load().options("gpt-4o") == {"temperature": 0.2}
    assert load().options("gpt-4o-mini") == {}


def test_a_broken_settings_file_causes_only_a_warning(llm_user_path, caplog):
    (llm_user_path / "aliases.json").write_text("{")
    assert choose("gpt-4o") == "gpt-4o"
    assert "aliases.json could not be read" in caplog.text


def test_models_that_a_plugin_finds_later_are_found_though_no_file_changed(monkeypatch):
    """As after `ollama pull`: the plugin asks its server, and no file changes."""
    loaded = load()
    monkeypatch.setattr(catalog, "RELOAD_S", 0.0)
    with registered(SyncScript("pulled")):
        monkeypatch.setattr(catalog, "_load_plugins", lambda: False)
        assert choose("pulled", loaded) == "pulled"
