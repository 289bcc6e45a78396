"""Which models there are, whatever their plugins do, and which one a name means."""

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


def test_models_are_found_by_id_and_by_their_plugins_aliases():
    assert choose("gpt-4o") == choose("4o") == "gpt-4o"


def test_the_users_aliases_count(llm_user_path):
    (llm_user_path / "aliases.json").write_text(json.dumps({"fast": "gpt-4o-mini"}))
    assert choose("fast") == "gpt-4o-mini"


def test_an_async_model_goes_before_its_sync_one():
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
        "there is no model 'nobody' here; GET /v1/models lists them",
        "model",
    )


def test_unknown_name_that_is_nearly_one_is_told_which():
    with pytest.raises(ModelNotFound, match="did you mean 'gpt-4o-mini'?"):
        choose("gpt-4o-mini2")


def test_default_model_answers_for_unknown_and_missing_names():
    loaded = load(default_model="gpt-4o")
    assert choose("gpt-99", loaded) == choose(None, loaded) == "gpt-4o"


def test_missing_name_means_llms_own_default(llm_user_path):
    (llm_user_path / "default_model.txt").write_text("gpt-4o-mini")
    assert choose(None) == "gpt-4o-mini"


def test_first_map_that_fits_goes_before_every_name():
    maps = [("claude-*haiku*", "gpt-4o-mini"), ("claude-*", "gpt-4o"), ("gpt-4.1", "gpt-4o")]
    loaded = load(maps=maps)
    assert choose("claude-3-haiku-20240307", loaded) == "gpt-4o-mini"
    assert choose("claude-opus-4-1", loaded) == "gpt-4o"
    assert choose("gpt-4.1", loaded) == "gpt-4o"
    assert choose("gpt-4.1-mini", loaded) == "gpt-4.1-mini"


def test_mistakes_in_maps_and_default_are_told():
    loaded = load(maps=[("a", "gpt-4o"), ("b", "nope")], default_model="neither")
    assert loaded.unknown_targets() == ["nope", "neither"]


def test_plugin_that_fails_to_list_its_models_costs_its_own_alone(caplog):
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


def test_plugin_that_fails_to_import_costs_its_own_alone(every_plugin, tmp_path):
    """d6.27: with llm alone the first question raises, and the second finds no models."""
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


def test_models_that_need_no_plugin_yield_to_a_plugins_own():
    ours, theirs = SyncScript("spare"), AsyncScript("spare")
    loaded = load(extra_models=[(ours, None)])
    with registered(theirs):
        again = load(extra_models=[(ours, None)])
    assert asyncio.run(again.choose("spare")).model is theirs
    assert "spare" in [model.id for model in loaded.models()]


def test_unknown_name_makes_the_files_read_again_but_not_at_once(llm_user_path, monkeypatch):
    loaded = load()

    async def ask_twice():
        (llm_user_path / "aliases.json").write_text(json.dumps({"new": "gpt-4o"}))
        with pytest.raises(ModelNotFound):
            await loaded.choose("new")
        monkeypatch.setattr(catalog, "RELOAD_S", 0.0)
        return (await loaded.choose("new")).model_id

    assert asyncio.run(ask_twice(), debug=True) == "gpt-4o"


def test_known_name_does_not_wait_for_the_reading(llm_user_path, monkeypatch):
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


def test_the_users_options_of_a_model(llm_user_path):
    options = {"gpt-4o": {"temperature": 0.2}}
    (llm_user_path / "model_options.json").write_text(json.dumps(options))
    assert load().options("gpt-4o") == {"temperature": 0.2}
    assert load().options("gpt-4o-mini") == {}


def test_broken_settings_are_warned_of_and_cost_nothing_else(llm_user_path, caplog):
    (llm_user_path / "aliases.json").write_text("{")
    assert choose("gpt-4o") == "gpt-4o"
    assert "aliases.json could not be read" in caplog.text


def test_models_that_a_plugin_finds_later_are_found_without_a_file(monkeypatch):
    """As after `ollama pull`: the plugin asks its server, and no file changes."""
    loaded = load()
    monkeypatch.setattr(catalog, "RELOAD_S", 0.0)
    with registered(SyncScript("pulled")):
        monkeypatch.setattr(catalog, "_load_plugins", lambda: False)
        assert choose("pulled", loaded) == "pulled"
