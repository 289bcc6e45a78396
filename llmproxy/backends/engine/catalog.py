"""The catalog of llm's models, and the lookup of the names that clients send.

llm reads all its plugins and models again on every lookup: one broken plugin makes all
lookups fail, and the first takes two seconds. Here they are read one by
one, before the server listens, and again in a thread when llm's files change or a name
is unknown.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from importlib import metadata
from typing import Any

import llm
from llm import plugins
from llm.models import EmbeddingModel

from ...core import backend
from ...core.errors import LLM_LISTS_THEM, ModelNotFound, Unavailable
from ...core.limiter import Limiter
from ...core.model_patterns import fits
from ...core.threads import RETRY_S, in_daemon_thread

logger = logging.getLogger(__name__)

SyncModel = llm.Model | llm.KeyModel
AsyncModel = llm.AsyncModel | llm.AsyncKeyModel
AnyModel = SyncModel | AsyncModel
_Pair = tuple[SyncModel | None, AsyncModel | None]  # with the same id

RELOAD_S = 10.0  # the least time between two checks of llm's files
MAX_COMPARED_CHARS = 200  # of an unknown name, to suggest a similar one; names have about 40
RELOAD_WAIT_S = 5.0  # how long a request for an unknown name waits for a reload
# Options by which a model is told to think, and names that plugins give a context's length.
THINKING_OPTIONS = frozenset(
    ("thinking", "think", "reasoning_effort", "thinking_effort", "thinking_level")
)
CONTEXT_NAMES = ("num_ctx", "n_ctx", "context_length", "context_window", "max_context_length")
SETTINGS_SUFFIXES = (".json", ".yaml", ".yml", ".txt")  # files that llm and its plugins read


@dataclass(frozen=True)
class CatalogEntry:
    """A model as a plugin registered it: async, sync, or both.

    limiter: limits how many requests it runs at one time; None for no limit.
    """

    model_id: str
    sync_model: SyncModel | None
    async_model: AsyncModel | None
    owned_by: str
    limiter: Limiter | None = None

    @property
    def model(self) -> SyncModel | AsyncModel:
        """Return the model to run: the async one if any."""
        model = self.async_model or self.sync_model
        assert model is not None, "a plugin registers at least one of the two"
        return model

    @property
    def runs_in_process(self) -> bool:
        """Return whether the model seems to run in this process: sync, and needs no API key.

        Most such models share native state between requests and abort the process if two
        run at once; their first run loads them.
        """
        return self.async_model is None and not getattr(self.sync_model, "needs_key", None)


@dataclass(frozen=True)
class EmbedderEntry:
    """An embedding model as a plugin registered it.

    limiter: one request at a time for a model that seems to run in this process, as it needs no
        key; None for no limit.
    """

    model_id: str
    model: EmbeddingModel
    owned_by: str
    limiter: Limiter | None = None

    @property
    def runs_in_process(self) -> bool:
        """Return whether the model seems to run in this process, since it needs no API key."""
        return getattr(self.model, "needs_key", None) is None

    @property
    def key(self) -> str:
        """Return its name beside chat models, of which one may have the same id."""
        return f"{self.model_id} (embeddings)"


async def model_turn(limiter: Limiter, model_id: str, wait_s: float | None) -> bool:
    """Wait for a model's limiter; return whether other requests were before this one.

    Raises:
        Unavailable: the turn did not come within `wait_s` seconds.
    """
    try:
        return await limiter.enter(wait_s)
    except TimeoutError:
        few = "one request" if limiter.limit == 1 else f"{limiter.limit} requests"
        raise Unavailable(
            f"the model {model_id!r} runs {few} at a time, and this one's turn did not"
            f" come within {wait_s:g} s (limit queue_s)",
            headers={"retry-after": f"{RETRY_S}"},
        ) from None


@dataclass(frozen=True)
class _Contents:
    """The result of one load, replaced as a whole so that no lookup sees half of it."""

    entries: Mapping[str, CatalogEntry]
    by_name: Mapping[str, CatalogEntry]
    options: Mapping[str, Mapping[str, Any]]
    default_model: str
    files: frozenset[tuple[str, int, int]]
    embedders: Mapping[str, EmbedderEntry] = field(default_factory=dict)  # by name
    user_aliases: tuple[str, ...] = ()  # of `llm aliases set`


class Catalog:
    """The models of llm by their ids and aliases.

    maps: pairs of a pattern and a model; the first pattern that matches the client's name
        decides, before any model's own name. In patterns, `*` stands for any characters and
        `?` for one; all others are letters.
    default_model: used for unknown and missing names; without it an unknown name is an
        error, and a missing one means llm's own default.
    parallel: pairs of a pattern and how many requests a model with a matching id or
        alias runs at one time; the first match decides. By default a model that runs in
        this process runs one request at a time, and any other has no limit.
    extra_models: models that need no plugin; one of a plugin takes precedence.
    models: more of them, which take precedence over all others.
    """

    def __init__(
        self,
        *,
        maps: Sequence[tuple[str, str]] = (),
        default_model: str | None = None,
        parallel: Sequence[tuple[str, int]] = (),
        extra_models: Sequence[_Pair] = (),
        models: Sequence[AnyModel] = (),
    ) -> None:
        self._maps = tuple(maps)
        self._default_model = default_model
        self._parallel = tuple(parallel)
        self._limiters: dict[str, Limiter] = {}  # by model id; kept over reloads
        self._extra_models = tuple(extra_models)
        self._own_models = _pairs(models)
        self._contents = _Contents({}, {}, {}, "", frozenset())
        self._created = int(time.time())  # providers don't report it; at least it is stable
        self._checked_at = float("-inf")
        self._reload: asyncio.Future[None] | None = None
        self.ran: dict[str, object] = {}  # the last model that ran under each id

    def load(self) -> None:
        """Read plugins, models, aliases and defaults. Blocks, for seconds the first time."""
        self._checked_at = time.monotonic()
        self._contents = self._read()

    def unmatched_parallel(self) -> list[str]:
        """List the patterns of `parallel` that match no model under any of its names."""
        contents = self._contents
        names = {*contents.entries, *contents.by_name, *contents.embedders}
        patterns = dict.fromkeys(pattern for pattern, _ in self._parallel)
        return [one for one in patterns if not any(fits(name, one) for name in names)]

    def models(self) -> list[backend.ModelEntry]:
        """List every model under its own id, then under the names that the user gave it.

        Those are the aliases of `llm aliases set` and the names in `maps` that stand for
        themselves. A plugin's own short names are only in `aliases`.
        """
        embedders = {one.id: one for one in map(self._embedder, self._embedders())}
        chats = self._listed(self._contents.entries.values())
        by_id = {
            one.id: replace(one, embeds=embedders.pop(one.id, None) is not None) for one in chats
        } | embedders
        for name in self._user_names():
            target = self._find(name) or self._find_embedder(name)
            if target is not None and target.model_id != name:
                by_id[name] = replace(by_id[target.model_id], id=name, alias_of=target.model_id)
        return [*by_id.values()]

    def _user_names(self) -> list[str]:
        exact = [pattern for pattern, _ in self._maps if not set(pattern) & set("*?")]
        return list(dict.fromkeys((*exact, *self._contents.user_aliases)))

    def running_models(self) -> list[backend.ModelEntry]:
        """List the models that have run in this process, and so are loaded in it."""
        chats = self._listed(
            entry
            for entry in self._contents.entries.values()
            if entry.runs_in_process and self.ran.get(entry.model_id) is entry.model
        )
        embedders = [
            self._embedder(entry)
            for entry in self._embedders()
            if entry.runs_in_process and self.ran.get(entry.key) is entry.model
        ]
        return chats + embedders

    async def model(self, name: str) -> backend.ModelEntry:
        """Return a model under one of its names, which may be an alias.

        Raises:
            ModelNotFound: no model has this name.
        """
        embedder = self._find_embedder(name)
        if embedder is not None and self._find(name) is None:
            entry = self._embedder(embedder)
        else:
            [chats] = self._listed([await self.choose(name)])
            entry = replace(chats, embeds=embedder is not None)
        return entry if name == entry.id else replace(entry, id=name, alias_of=entry.id)

    def _embedders(self) -> list[EmbedderEntry]:
        return [one for name, one in self._contents.embedders.items() if name == one.model_id]

    def _embedder(self, entry: EmbedderEntry) -> backend.ModelEntry:
        named = self._contents.embedders.items()
        return backend.ModelEntry(
            entry.model_id,
            entry.owned_by,
            self._created,
            aliases=tuple(n for n, one in named if one is entry and n != entry.model_id),
            chats=False,
            embeds=True,
            is_sync=True,
            context_length=_context_length(entry.model, {}),
        )

    def _listed(self, entries: Iterable[CatalogEntry]) -> list[backend.ModelEntry]:
        """Say what llm knows of models."""
        names: dict[str, list[str]] = {}
        for name, entry in self._contents.by_name.items():
            names.setdefault(entry.model_id, []).append(name)
        return [
            backend.ModelEntry(
                entry.model_id,
                entry.owned_by,
                self._created,
                aliases=tuple(n for n in names.get(entry.model_id, ()) if n != entry.model_id),
                is_async=entry.async_model is not None,
                is_sync=entry.sync_model is not None,
                tools=entry.model.supports_tools,
                schema=entry.model.supports_schema,
                thinks=not THINKING_OPTIONS.isdisjoint(entry.model.Options.model_fields),
                attachment_types=tuple(sorted(entry.model.attachment_types or ())),
                context_length=_context_length(entry.model, self.options(entry.model_id)),
            )
            for entry in entries
        ]

    def options(self, model_id: str) -> Mapping[str, Any]:
        """Return the user's defaults for a model (`llm models options set`)."""
        return self._contents.options.get(model_id, {})

    def has(self, name: str) -> bool:
        """Return whether a model has this name."""
        return self._find(name) is not None or self._find_embedder(name) is not None

    def unknown_targets(self) -> list[str]:
        """Return the names in `maps` and `default_model` that match no model."""
        chats, embedders = self._contents.by_name, self._contents.embedders
        unknown = [t for _, t in self._maps if t and t not in chats and t not in embedders]
        default = self._default_model
        return unknown if not default or default in chats else [*unknown, default]

    def missing_key(self, name: str | None) -> str | None:
        """Say why a model's key can't be found; None if it can, or if there is no such model."""
        entry = self._find(name) or self._find_embedder(name)
        try:
            if entry is not None and hasattr(entry.model, "get_key"):
                entry.model.get_key()
        except llm.NeedsKeyException as exc:
            return str(exc)
        return None

    async def choose(self, name: str | None) -> CatalogEntry:
        """Find the model for the name in a request.

        Raises:
            ModelNotFound: no model of that name, and no default for it.
        """
        entry = self._find(name)
        if entry is None or self._is_due():
            reload = self._start_reload(is_unknown=entry is None)
            if entry is None and reload is not None:
                await asyncio.wait({reload}, timeout=RELOAD_WAIT_S)
                entry = self._find(name)
        if entry is None and self._default_model is not None:
            entry = self._contents.by_name.get(self._default_model)
        if entry is None:
            raise ModelNotFound(
                self._not_found(name or self._contents.default_model), param="model"
            )
        return entry

    async def choose_embedder(self, name: str | None) -> EmbedderEntry:
        """Find the embedding model for the name in a request; llm's default if there is none.

        Raises:
            ModelNotFound: no embedding model of that name, and no default.
        """
        entry = self._find_embedder(name)
        if entry is None or self._is_due():
            reload = self._start_reload(is_unknown=entry is None)
            if entry is None and reload is not None:
                await asyncio.wait({reload}, timeout=RELOAD_WAIT_S)
                entry = self._find_embedder(name)
        if entry is not None:
            return entry
        if name is None:
            raise ModelNotFound("name an embedding model: llm has no default", param="model")
        raise ModelNotFound(
            f"the model {name[:200]!r} embeds nothing"
            if self._find(name)
            else self._not_found(name),
            param="model",
        )

    def _find_embedder(self, name: str | None) -> EmbedderEntry | None:
        if name is None:
            name = llm.get_default_embedding_model()
        if name is None:
            return None
        embedders = self._contents.embedders
        target = self._mapped(name)
        return embedders.get(target) or embedders.get(target.removesuffix(":latest"))

    def _mapped(self, name: str) -> str:
        return next((t for pattern, t in self._maps if fits(name, pattern)), name)

    def _not_found(self, name: str) -> str:
        known = self._contents.by_name if len(name) <= MAX_COMPARED_CHARS else ()
        close = get_close_matches(name.lower(), known, 1, 0.7)
        hint = f"did you mean {close[0]!r}?" if close else LLM_LISTS_THEM
        return f"there is no model {name[:200]!r} here; {hint}"

    def _find(self, name: str | None) -> CatalogEntry | None:
        by_name = self._contents.by_name
        if name is None:
            return by_name.get(self._default_model or self._contents.default_model)
        target = self._mapped(name)
        # Ollama's clients add this tag to every name, and Claude Code wants names with this prefix.
        bare = target.removesuffix(":latest").removeprefix(backend.GATEWAY_PREFIX)
        return by_name.get(target) or by_name.get(bare)

    def _is_due(self) -> bool:
        return time.monotonic() - self._checked_at >= RELOAD_S

    def _start_reload(self, *, is_unknown: bool) -> asyncio.Future[None] | None:
        """Start a reload in a thread, or return the running one; None if it is too soon."""
        if self._reload is not None and not self._reload.done():
            return self._reload
        if not self._is_due():
            return None
        self._checked_at = time.monotonic()
        self._reload = in_daemon_thread(
            lambda: self._read_again(is_unknown=is_unknown), "llmproxy-catalog"
        )
        return self._reload

    def _read_again(self, *, is_unknown: bool) -> None:
        try:
            # Some plugins ask a server for their models: a change there changes no file.
            new_plugins = _load_plugins()
            if is_unknown or new_plugins or _files() != self._contents.files:
                self._contents = self._read()
        except Exception:
            logger.exception("could not reload llm's models; the earlier list stays in use")

    def _read(self) -> _Contents:
        contents = _read(self._extra_models, self._own_models)
        limited = _with_limiters(contents, self._parallel, self._limiters)
        self._limiters |= {id: entry.limiter for id, entry in limited.items() if entry.limiter}
        by_name = {name: limited[entry.model_id] for name, entry in contents.by_name.items()}
        return replace(
            contents, entries=limited, by_name=by_name, embedders=self._limited(contents)
        )

    def _limited(self, contents: _Contents) -> dict[str, EmbedderEntry]:
        """Set the limiters of embedding models, those from before a reload if there are any."""
        limited = {}
        for entry in {id(entry): entry for entry in contents.embedders.values()}.values():
            if entry.runs_in_process:
                limiter = self._limiters.setdefault(entry.key, Limiter(1))
                limited[entry.model_id] = replace(entry, limiter=limiter)
        return {
            name: limited.get(entry.model_id, entry) for name, entry in contents.embedders.items()
        }


def _context_length(model: object, defaults: Mapping[str, Any]) -> int | None:
    """Return the length that the user set for a model, else what its plugin says, if anything.

    A plugin says it in an attribute of the model, or as the default of an option.
    """
    told = [defaults.get(name) for name in CONTEXT_NAMES]
    told += [getattr(model, name, None) for name in CONTEXT_NAMES]
    options = getattr(getattr(model, "Options", None), "model_fields", {})
    told += [options[name].default for name in CONTEXT_NAMES if name in options]
    return next((length for length in told if type(length) is int and length > 0), None)


def _with_limiters(
    contents: _Contents, parallel: Sequence[tuple[str, int]], known: Mapping[str, Limiter]
) -> dict[str, CatalogEntry]:
    """Set each entry's limiter: that of its model object, or the one from before a reload."""
    names: dict[int, list[str]] = {}
    for name, entry in contents.by_name.items():
        names.setdefault(id(entry.model), []).append(name)
    limiters: dict[int, Limiter] = {}
    limited = {}
    for model_id, entry in contents.entries.items():
        key = id(entry.model)
        limit = _limit([model_id, *names.get(key, ())], parallel)
        if limit is None and entry.runs_in_process:
            limit = 1
        if limit is not None and key not in limiters:
            limiters[key] = known.get(model_id) or Limiter(limit)
        limited[model_id] = replace(entry, limiter=limiters.get(key))
    return limited


def _limit(names: Sequence[str], parallel: Sequence[tuple[str, int]]) -> int | None:
    matching = (n for pattern, n in parallel if any(fits(name, pattern) for name in names))
    return next(matching, None)


def _pairs(models: Iterable[AnyModel]) -> tuple[_Pair, ...]:
    """Return models with those of the other kind that have the same id."""
    pairs: dict[str, list[Any]] = {}
    for model in models:
        pairs.setdefault(model.model_id, [None, None])[isinstance(model, AsyncModel)] = model
    return tuple((sync_model, async_model) for sync_model, async_model in pairs.values())


def _read(extra_models: Iterable[_Pair], own_models: Iterable[_Pair]) -> _Contents:
    _load_plugins()
    files = _files()  # before their contents: a change in between is noticed next time
    aliases = _settings("aliases.json")
    entries: dict[str, CatalogEntry] = {}
    by_name: dict[str, CatalogEntry] = {}

    def add(
        sync_model: SyncModel | None,
        async_model: AsyncModel | None,
        names: Iterable[str],
        owned_by: str,
    ) -> None:
        model = sync_model or async_model
        if model is None:
            return
        owned_by = getattr(model, "needs_key", None) or owned_by
        entry = CatalogEntry(model.model_id, sync_model, async_model, owned_by)
        entries[model.model_id] = entry
        for name in (*names, model.model_id):
            by_name[name] = entry

    for sync_model, async_model in extra_models:
        add(sync_model, async_model, (), "llmproxy")
    for registered in _registered():
        add(*registered)
    for sync_model, async_model in own_models:
        add(sync_model, async_model, (), "llmproxy")
    for alias, model_id in aliases.items():
        if isinstance(model_id, str) and model_id in by_name:
            by_name.setdefault(alias, by_name[model_id])
    # An id takes precedence over another model's alias.
    by_name |= entries
    return _Contents(
        entries,
        by_name,
        _settings("model_options.json"),
        llm.get_default_model(),
        files,
        _embedders(aliases),
        tuple(aliases),
    )


def _embedders(user_aliases: Mapping[str, Any]) -> dict[str, EmbedderEntry]:
    """Return llm's embedding models by their names."""
    by_name: dict[str, EmbedderEntry] = {}

    def add(owned_by: str, model: EmbeddingModel, aliases: Iterable[str] | None = None) -> None:
        if not isinstance(getattr(model, "model_id", None), str):
            raise TypeError(f"{type(model).__name__} is not a model")
        owned_by = getattr(model, "needs_key", None) or owned_by
        entry = EmbedderEntry(model.model_id, model, owned_by)
        for name in (*(aliases or ()), model.model_id):
            by_name[name] = entry

    _ask_plugins(plugins.pm.hook.register_embedding_models, add)
    for alias, model_id in user_aliases.items():
        if isinstance(model_id, str) and model_id in by_name:
            by_name.setdefault(alias, by_name[model_id])
    return by_name


def _registered() -> list[tuple[SyncModel | None, AsyncModel | None, list[str], str]]:
    """Ask each plugin for its models; one that fails loses only its own."""
    found: list[tuple[SyncModel | None, AsyncModel | None, list[str], str]] = []

    def add(
        owned_by: str,
        model: SyncModel | None,
        async_model: AsyncModel | None = None,
        aliases: Iterable[str] | None = None,
    ) -> None:
        for each in (model, async_model):
            if each is not None and not isinstance(getattr(each, "model_id", None), str):
                raise TypeError(f"{type(each).__name__} is not a model")
        found.append((model, async_model, list(aliases or ()), owned_by))

    _ask_plugins(plugins.pm.hook.register_models, add)
    return found


def _ask_plugins(hook: Any, add: Callable[..., None]) -> None:
    """Call a hook of each plugin; `add` is given the plugin's name, then what it registers."""
    distributions = {plugin: dist for plugin, dist in plugins.pm.list_plugin_distinfo()}
    # pluggy calls the newest first; the last model registered under a name wins, as in llm.
    for implementation in reversed(hook.get_hookimpls()):
        distribution = distributions.get(implementation.plugin)
        owned_by = distribution.project_name if distribution else "llm"
        arguments = {"register": partial(add, owned_by), "model_aliases": []}
        try:
            implementation.function(**{n: arguments[n] for n in implementation.argnames})
        except BaseException as exc:
            name = implementation.plugin_name
            logger.warning("plugin %s could not list its models: %r", name, exc)


def _load_plugins() -> bool:
    """Load llm's plugins one by one; return whether there were new ones."""
    before = len(plugins.pm.get_plugins())
    if plugins.LLM_LOAD_PLUGINS is None:
        for entry_point in metadata.entry_points(group="llm"):
            name = entry_point.name
            if plugins.pm.has_plugin(name) or plugins.pm.is_blocked(name):
                continue
            try:
                plugins.pm.load_setuptools_entrypoints("llm", name=name)
            except BaseException as exc:
                logger.warning("plugin %s could not be loaded: %r", name, exc)
                plugins.pm.set_blocked(name)
    try:
        plugins.load_plugins()
    except BaseException as exc:
        logger.warning("llm could not load its plugins: %r", exc)
    return len(plugins.pm.get_plugins()) > before


def _files() -> frozenset[tuple[str, int, int]]:
    """Return the state of the files in which llm and its plugins keep their settings."""
    found = set()
    for path in llm.user_dir().iterdir():
        if path.suffix in SETTINGS_SUFFIXES:
            status = path.stat()
            found.add((path.name, status.st_mtime_ns, status.st_size))
    return frozenset(found)


def _settings(name: str) -> dict[str, Any]:
    try:
        value = json.loads((llm.user_dir() / name).read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        logger.warning("%s could not be read: %s", name, exc)
        return {}
    return value if isinstance(value, dict) else {}
