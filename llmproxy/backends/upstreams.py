"""The upstreams: servers that requests may be sent to, the models that go there, and the keys.

All of it comes from the settings: no request can name a host. `Upstreams.route` says where a
model's requests go; `credentials` which keys are sent there; `check_loop` refuses a request that
this server has sent itself.
"""

from __future__ import annotations

import base64
import hmac
import os
import re
import secrets
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args
from urllib.parse import urlsplit

import llm

from ..core import backend, url_policy
from ..core.dialect_names import DialectName
from ..core.errors import (
    InvalidRequest,
    SettingsError,
    Unauthorized,
    Unsupported,
)
from ..core.model_patterns import fits
from ..dialects import by_name
from ..transport.client import Client
from ..transport.connections import Address, Deadlines, Proxies, trust

LLM = "llm"  # in a map's target, and in the source of a key: llm itself
LOOP_HEADER = "x-llmproxy-via"
"""The instances that a request has passed; sent only to servers that might be one of them."""

CREDENTIAL_FIELDS = frozenset({"authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie"})
"""Header fields that hold a client's credentials; they are never passed on without a rule."""

KeySource = Literal["client", "llm", "env"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"/v[0-9]+(?:beta)?$")
_VERSIONS_FIRST = re.compile(r"^(?:/+v1(?=/|$))+")
_SIGNED = "aws4-hmac-sha256"  # the scheme of AWS's signatures, which cover the host


@dataclass(frozen=True)
class UpstreamKey:
    """The source of the key for an upstream.

    source: "client" passes the client's own credentials on; "llm" takes the key that `llm keys
        set NAME` has stored; "env" that of the environment's variable NAME.
    """

    source: KeySource = "client"
    name: str = ""

    def __str__(self) -> str:
        return self.source if self.source == "client" else f"{self.source}:{self.name}"

    def value(self) -> str | None:
        """Return the key; None if it is the client's, or is not set."""
        if self.source == "client":
            return None
        if self.source == "env":
            return os.environ.get(self.name, "").strip() or None
        return (llm.get_key(alias=self.name) or "").strip() or None


@dataclass(frozen=True)
class NamedUpstream:
    """An upstream as the settings describe it.

    name: its name in maps, in models' names and in the log.
    dialects: those in which it takes requests as they come; others are converted to the first.
    url: its base, without a slash at the end, with or without the API's version.
    is_builtin: the URL is the public one of a known name, so that it is not this server.
    has_version: paths of its API have a version (`/v1`), in the base URL or after it.
    owns_names: its models have their own names in the log, as llm's plugin has them too.
    """

    name: str
    dialects: tuple[DialectName, ...]
    url: str
    key: UpstreamKey = UpstreamKey()
    is_builtin: bool = False
    has_version: bool = True
    owns_names: bool = False

    @property
    def dialect(self) -> DialectName:
        """The dialect that requests are converted to, if they are converted."""
        return self.dialects[0]

    def has_api_of(self, dialect: DialectName) -> bool:
        """Return whether it serves the API of a dialect: OpenAI's two are at one server."""
        return dialect.partition("_")[0] in {one.partition("_")[0] for one in self.dialects}

    def url_for(self, path: str, query: str = "") -> str:
        """Return the URL of a path of its API, as a client of this server has it.

        A `/v1` at the path's beginning is left out if the base URL ends in a version, or if the
        API has none; it is added to the API's own routes if a client leaves it out.
        """
        found = _VERSIONS_FIRST.match(path)
        bare = path[found.end() :] if found else path
        if self.has_version and not _VERSION.search(urlsplit(self.url).path):
            routes = by_name(self.dialect).ROUTES
            if found or any(route.path == f"/v1{bare}" for route in routes):
                bare = f"/v1{bare}"
        return f"{self.url}{bare}" + (f"?{query}" if query else "")

    @property
    def chat_url(self) -> str:
        """The URL to which converted chats are sent."""
        return self.url_for(backend.chat_path(by_name(self.dialect).ROUTES))

    def model_id(self, model: str) -> str:
        """Return the id that the log gives one of its models: that of llm's plugin for it."""
        return (
            model
            if self.owns_names or model.startswith(f"{self.name}/")
            else f"{self.name}/{model}"
        )


@dataclass(frozen=True)
class Target:
    """A place for a request: an upstream's model, or one of llm's.

    upstream: None for llm's models. model: the name to ask for; None: as the client named it.
    """

    upstream: NamedUpstream | None
    model: str | None = None

    def __str__(self) -> str:
        return f"{self.upstream.name if self.upstream else LLM}:{self.model or ''}"


@dataclass(frozen=True)
class UpstreamStatus:
    """An upstream and whether its key is there, for `check`; nothing was sent.

    key: "client", "llm:NAME" or "env:VARIABLE". has_key: None if it is the client's.
    proxy: of the environment, by which it is reached. problem: why that can't be used.
    """

    name: str
    dialects: tuple[DialectName, ...]
    url: str
    key: str
    has_key: bool | None
    proxy: str
    problem: str


_KNOWN: Mapping[str, NamedUpstream] = {
    one.name: one
    for one in (
        NamedUpstream("anthropic", ("anthropic_messages",), "https://api.anthropic.com"),
        NamedUpstream(
            "openai",
            ("openai_chat", "openai_responses"),
            "https://api.openai.com/v1",
            owns_names=True,
        ),
        NamedUpstream(
            "codex",
            ("openai_responses",),
            "https://chatgpt.com/backend-api/codex",
            has_version=False,
            owns_names=True,
        ),
    )
}


class Upstreams:
    """All upstreams of a server, which models go to them, and the client that reaches them.

    servers: by name. client: keeps connections to all of them.
    instance: this server's id in `LOOP_HEADER`.
    """

    def __init__(
        self,
        upstreams: Sequence[str] = (),
        *,
        maps: Sequence[tuple[str, str]] = (),
        passthrough: str | None = None,
        keys: Sequence[tuple[str, str]] = (),
        insecure: bool = False,
        ca: Path | str | None = None,
        wait_s: float = 0.0,
        own_keys: Sequence[str] = (),
    ) -> None:
        """Read the settings; nothing is sent.

        upstreams: `NAME` of a known one, `NAME=URL` for it, or `NAME=DIALECT+URL`.
        maps: (pattern, targets) pairs, see `_targets`. passthrough: the upstream for all models
            that no map takes. keys: (upstream, source) pairs; a source is `client`, `llm:NAME`
            or `env:VARIABLE`. insecure: http is used for public addresses too.
        ca: a file of certificates to trust besides the system's.
        wait_s: the longest wait for an upstream that refuses a request with 429 and says when it
            will take it.
        own_keys: the keys of this server's own clients, which are never sent on.

        Raises:
            SettingsError: one of them can't be used; the message names the setting and the part.
        """
        self.servers = _servers(upstreams, _keys(keys), insecure=insecure)
        self._maps = [(pattern, text, self._targets(pattern, text)) for pattern, text in maps]
        self._passthrough = None
        if passthrough is not None:
            self._passthrough = self._named(passthrough, "{passthrough}")
        for name, _ in keys:
            self._named(name, "{upstream_keys}")
        self._own_keys = tuple(key.encode(errors="surrogateescape") for key in own_keys)
        self.wait_s = wait_s
        self.instance = secrets.token_hex(8)
        self._proxies = Proxies.of_environment()
        self.client = Client(deadlines=_PATIENT, tls=_trust(ca), proxies=self._proxies)

    @property
    def is_used(self) -> bool:
        """Whether any model may go elsewhere than to llm's own lookup of its name."""
        return bool(self.servers) or any(targets for *_, targets in self._maps)

    @property
    def maps_of_llm(self) -> list[tuple[str, str]]:
        """The maps that name no upstream, only one model of llm each."""
        return [(pattern, text) for pattern, text, targets in self._maps if not targets]

    @property
    def models_of_llm(self) -> list[str]:
        """The models of llm that maps name among their targets."""
        targets = (target for *_, targets in self._maps for target in targets)
        return [one.model for one in targets if one.upstream is None and one.model is not None]

    def route(self, model: str | None) -> tuple[Target, ...]:
        """Return where a request for a model goes: the first, the others if it refuses.

        model: as the client named it, also with the prefix that Claude Code wants to see. The
            first map that fits decides, then `NAME:MODEL`, then the passthrough, then llm.
        """
        if model is not None:
            for name in dict.fromkeys((model, model.removeprefix(backend.GATEWAY_PREFIX))):
                for pattern, _, targets in self._maps:
                    if fits(name, pattern):
                        return _filled(targets, name, model)
            name, colon, rest = model.removeprefix(backend.GATEWAY_PREFIX).partition(":")
            if colon and rest and name in self.servers:
                return (Target(self.servers[name], rest),)
        return (Target(self._passthrough),)

    @property
    def passthrough(self) -> NamedUpstream | None:
        """The upstream for all models that no map takes."""
        return self._passthrough

    def speaking(self, dialect: DialectName) -> NamedUpstream | None:
        """Return the upstream for a request in a dialect that names no model; None if none can.

        It is the one for all models, else the first that takes the dialect as it comes.
        """
        return next((one for one in self._in_order() if dialect in one.dialects), None)

    def serving(self, dialect: DialectName) -> NamedUpstream | None:
        """Return the upstream for a path beside the chats of a dialect; None if there is none.

        It is the one that speaks the dialect, else the first that has its API.
        """
        each = (one for one in self._in_order() if one.has_api_of(dialect))
        return self.speaking(dialect) or next(each, None)

    def takes_all(self, dialect: DialectName) -> bool:
        """Return whether one upstream that has the API of a dialect gets every model."""
        only = self._passthrough if len(self.servers) == 1 and not self._maps else None
        return only is not None and only.has_api_of(dialect)

    def _in_order(self) -> list[NamedUpstream]:
        first = [self._passthrough] if self._passthrough else []
        return [*first, *self.servers.values()]

    def name_in_list(self, upstream: NamedUpstream, model: str) -> str:
        """Return the name under which clients may ask for an upstream's model."""
        first = self.route(model)[0]
        goes_there = first.upstream == upstream and first.model in (None, model)
        return model if goes_there else f"{upstream.name}:{model}"

    # ---- keys

    def credentials(
        self, upstream: NamedUpstream, headers: Iterable[tuple[str, str]]
    ) -> list[tuple[str, str]]:
        """Return the header fields with which a request is authenticated at an upstream.

        headers: of the client's request. Its own credentials are sent on as they came if the
            key is the client's, those for this server left out; otherwise none of them.

        Raises:
            Unauthorized: the key is not set.
        """
        if upstream.key.source == "client":
            return [
                (name, value)
                for name, value in headers
                if name.lower() in CREDENTIAL_FIELDS and not self._is_own(name.lower(), value)
            ]
        key = upstream.key.value()
        if key is None:
            raise Unauthorized(
                f"the key for the upstream {upstream.name} is not set ({upstream.key})"
            )
        fields = by_name(upstream.dialect).auth_headers(key).items()
        return [(name, value) for name, value in fields if name in CREDENTIAL_FIELDS]

    def converted_credentials(
        self, upstream: NamedUpstream, headers: Iterable[tuple[str, str]]
    ) -> list[tuple[str, str]]:
        """Return the fields for a request in the upstream's dialect, which the client's was not.

        A client's key goes where that dialect has it; its cookies stay here.
        """
        found = self.credentials(upstream, headers)
        fields = dict(by_name(upstream.dialect).auth_headers(None))
        if upstream.key.source != "client":
            return [*fields.items(), *found]
        key = next((key for name, value in found if (key := _key_of(name, value))), None)
        if key is not None and not key.startswith(_LOGIN):
            return list(by_name(upstream.dialect).auth_headers(key).items())
        login = [("authorization", f"Bearer {key}")] if key is not None else []
        return [*fields.items(), *login]

    def _is_own(self, name: str, value: str) -> bool:
        sent = (value, _key_of(name, value) or "", _password(value))
        return any(
            [
                hmac.compare_digest(one.encode("latin-1", "replace"), key)
                for one in sent
                for key in self._own_keys
            ]
        )

    # ---- loops and signatures

    def check(self, headers: Iterable[tuple[str, str]], query: str = "") -> None:
        """Refuse a request that has passed this server, or that is signed for another host.

        query: of the request, where a signature can be too.

        Raises:
            InvalidRequest: an upstream of this server is the server itself, or sends to it.
            Unsupported: its signature (AWS SigV4) would be wrong elsewhere.
        """
        if not self.servers:
            return
        if _SIGNED in query.lower():
            raise Unsupported(_NO_SIGNATURES)
        for name, value in headers:
            lower = name.lower()
            if lower == LOOP_HEADER and self.instance in [one.strip() for one in value.split(",")]:
                raise InvalidRequest("an upstream leads back to this server: a loop of upstreams")
            if lower == "authorization" and value.lower().startswith(_SIGNED):
                raise Unsupported(_NO_SIGNATURES)

    def loop_header(
        self, upstream: NamedUpstream, headers: Iterable[tuple[str, str]] = ()
    ) -> list[tuple[str, str]]:
        """Return the field that tells instances which of them a request has passed.

        The built-in addresses are providers' own, and get the request without it.
        """
        if upstream.is_builtin:
            return []
        passed = [value for name, value in headers if name.lower() == LOOP_HEADER]
        return [(LOOP_HEADER, ", ".join([*passed, self.instance]))]

    def describe(self) -> list[UpstreamStatus]:
        """Say of each upstream what it is and whether its key is set, without sending anything."""
        return [
            UpstreamStatus(
                one.name,
                one.dialects,
                one.url,
                str(one.key),
                None if one.key.source == "client" else one.key.value() is not None,
                *self._proxies.name_for(one.url),
            )
            for one in self.servers.values()
        ]

    def secrets(self) -> list[str]:
        """Return the keys that are sent to upstreams, to be kept out of texts."""
        return [key for one in self.servers.values() if (key := one.key.value())]

    # ---- settings

    def _named(self, name: str, setting: str) -> NamedUpstream:
        if name not in self.servers:
            known = ", ".join(self.servers) or "none"
            raise SettingsError(
                f"{setting}: there is no upstream {name!r} ({{upstreams}} names: {known})"
            )
        return self.servers[name]

    def _targets(self, pattern: str, text: str) -> tuple[Target, ...]:
        """Return a map's targets; none if it only names one of llm's models, as it always could.

        text: targets with commas between them: `NAME:` or `NAME:MODEL` for an upstream's model,
            `llm:MODEL` or `MODEL` for one of llm's.
        """
        parts = [part.strip() for part in text.split(",")]
        if not any(self._is_target(part) for part in parts):
            return ()
        return tuple(self._target(pattern, part) for part in parts)

    def _is_target(self, part: str) -> bool:
        name, colon, rest = part.partition(":")
        return bool(colon) and (name == LLM or name in self.servers or not rest)

    def _target(self, pattern: str, part: str) -> Target:
        name, colon, rest = part.partition(":")
        if not part:
            raise SettingsError(f"{{maps}}: a target of {pattern!r} is empty")
        if not self._is_target(part):
            return Target(None, part)
        if name == LLM:
            if not rest:
                raise SettingsError(f"{{maps}}: {part!r} names no model of llm: llm:MODEL")
            return Target(None, rest)
        return Target(self._named(name, f"{{maps}}: {f'{pattern}={part}'!r}"), rest or None)


_NO_SIGNATURES = (
    "a request signed for AWS (SigV4) can't be passed on: its signature is for one host. Use a key"
    " that is not a signature"
)
# As long as SDKs wait: whole responses of models that think come after minutes of silence.
_PATIENT = Deadlines(first_byte_s=600.0, idle_s=300.0)
_LOGIN = "sk-ant-oat"  # Anthropic's logins are no keys: they are bearer tokens


def _filled(targets: tuple[Target, ...], name: str, model: str) -> tuple[Target, ...]:
    """Return a map's targets, with the name to ask for where the client's has a prefix."""
    if not targets:
        return (Target(None),)
    if name == model:
        return targets
    return tuple(
        Target(one.upstream, name) if one.upstream and one.model is None else one for one in targets
    )


def _key_of(name: str, value: str) -> str | None:
    """Return the key in a header field; None if it is none that another API could take."""
    if name.lower() == "authorization":
        scheme, _, key = value.partition(" ")
        return key.strip() or None if scheme.lower() == "bearer" else None
    return None if name.lower() == "cookie" else value.strip() or None


def _password(value: str) -> str:
    scheme, _, credentials = value.partition(" ")
    try:
        decoded = base64.b64decode(credentials) if scheme.lower() == "basic" else b""
    except ValueError:
        return ""
    return decoded.partition(b":")[2].decode("latin-1")


def _keys(keys: Sequence[tuple[str, str]]) -> dict[str, UpstreamKey]:
    found: dict[str, UpstreamKey] = {}
    for name, text in keys:
        if name in found:
            raise SettingsError(f"{{upstream_keys}}: the key of {name} is given twice")
        found[name] = _key(name, text)
    return found


def _key(name: str, text: str) -> UpstreamKey:
    source, colon, rest = text.partition(":")
    if text == "client":
        return UpstreamKey()
    if source in ("llm", "env") and rest:
        return UpstreamKey(cast(KeySource, source), rest)
    # What was given may be the key itself: it is not quoted.
    raise SettingsError(
        f"{{upstream_keys}}: the source of {name}'s key is none of client, llm:KEYNAME and"
        " env:VARIABLE"
    )


def _servers(
    texts: Sequence[str], keys: Mapping[str, UpstreamKey], *, insecure: bool
) -> dict[str, NamedUpstream]:
    servers: dict[str, NamedUpstream] = {}
    for text in texts:
        one = _server(text, keys, insecure=insecure)
        if one.name in servers:
            raise SettingsError(f"{{upstreams}}: {one.name} is given twice")
        servers[one.name] = one
    return servers


def _server(text: str, keys: Mapping[str, UpstreamKey], *, insecure: bool) -> NamedUpstream:
    name, equals, rest = text.partition("=")
    if not _NAME.fullmatch(name) or name == LLM:
        raise SettingsError(
            f"{{upstreams}}: {name[:80]!r} can't be an upstream's name: letters, digits and ._-,"
            f" and not {LLM!r}"
        )
    key = keys.get(name, UpstreamKey())
    known = _KNOWN.get(name)
    if not equals:
        if known is None:
            raise SettingsError(
                f"{{upstreams}}: {name} needs an API and an address, as {name}=DIALECT+URL;"
                f" only {', '.join(_KNOWN)} have theirs built in"
            )
        return _replaced(known, key=key, is_builtin=True)
    dialect, plus, url = rest.partition("+")
    if not plus or "/" in dialect or ":" in dialect:
        dialect, url = "", rest
    if dialect and dialect not in get_args(DialectName):
        raise SettingsError(
            f"{{upstreams}}: {name}: {dialect!r} is no dialect; they are"
            f" {', '.join(get_args(DialectName))}"
        )
    if not dialect and known is None:
        raise SettingsError(
            f"{{upstreams}}: {name}: the dialect is missing: {name}=DIALECT+URL; they are"
            f" {', '.join(get_args(DialectName))}"
        )
    url = _checked_url(name, url, insecure=insecure)
    if known is not None and not dialect:
        return _replaced(known, url=url, key=key)
    chosen = cast(DialectName, dialect)
    if chosen == "ollama":  # its paths begin with `/api`, and have no version
        url = re.sub(r"/(?:v1|api)$", "", url)
    return NamedUpstream(name, (chosen,), url, key, has_version=chosen != "ollama")


def _replaced(
    known: NamedUpstream, *, key: UpstreamKey, url: str | None = None, is_builtin: bool = False
) -> NamedUpstream:
    return NamedUpstream(
        known.name,
        known.dialects,
        url or known.url,
        key,
        is_builtin,
        known.has_version,
        known.owns_names,
    )


def _checked_url(name: str, url: str, *, insecure: bool) -> str:
    try:
        address = Address.of(url)
    except ValueError as exc:  # the URL is not quoted: it may have a password
        raise SettingsError(f"{{upstreams}}: {name}: {exc}") from exc
    if "?" in url:
        raise SettingsError(f"{{upstreams}}: {name}: the URL has a query")
    if not (address.is_tls or insecure or url_policy.is_local(address.host)):
        raise SettingsError(
            f"{{upstreams}}: {name}: http:// to {address.host} would show keys to the network:"
            " use https://, or allow it with {upstream_insecure}"
        )
    return url.rstrip("/")


def _trust(ca: Path | str | None) -> ssl.SSLContext | None:
    """Return what TLS trusts; None is the client's own default, read when it is needed."""
    if ca is None:
        return None
    try:
        return trust(ca)
    except SettingsError as exc:
        raise SettingsError(f"{{upstream_ca}}: {exc}") from exc
