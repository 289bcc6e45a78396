"""Hosts, origins and keys: attacks on a local server, and the clients that it serves."""

import base64
import platform
from dataclasses import replace

import pytest

from llmproxy.app.access import Access, is_loopback
from llmproxy.core.errors import Forbidden, Unauthorized
from llmproxy.transport.http11 import Headers, Request


def request(method="POST", host="localhost:11435", **headers):
    fields = [("host", host)] if host is not None else []
    fields += [(name.replace("_", "-"), value) for name, value in headers.items()]
    return Request(method, "/v1/chat/completions", Headers(fields))


def check(access, request):
    access.check_source(request)
    access.check_key(request)


def refused(access, *args, **kwargs):
    with pytest.raises((Forbidden, Unauthorized)) as caught:
        check(access, request(*args, **kwargs))
    return caught.value


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "a.localhost", "127.0.0.1", "127.8.8.8", "::1", "[::1]"]
)
def test_loopback_names_and_addresses(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "0.0.0.0",
        "::",
        "192.168.0.1",
        "example.com",
        "127.0.0.1.example.com",
        "localhost.example.com",
        "notlocalhost",
        "127.1",
        "2130706433",
    ],
)
def test_other_names_and_addresses_are_not_loopback(host):
    assert not is_loopback(host)


# ---- hosts


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:11435",
        "127.0.0.1:11435",
        "[::1]:11435",
        "proxy.localhost:1",
        "HOST.docker.INTERNAL:11435",
        "host.containers.internal",
        None,
    ],
)
def test_a_host_of_this_machine_is_allowed(host):
    check(Access(), request(host=host))


def test_this_machines_own_name_is_allowed(monkeypatch):
    for node in ("Laptop", "laptop.lan", "LAPTOP.local"):
        monkeypatch.setattr(platform, "node", lambda node=node: node)
        check(Access(), request(host="laptop.LOCAL:11435"))
        assert refused(Access(), host="laptop.lan").status == 403
        assert refused(Access(), host="laptop.local.evil.example").status == 403


@pytest.mark.parametrize("node", ["localhost", "", ".", "localhost.localdomain"])
@pytest.mark.parametrize(
    "host",
    ["evil.local", "evil.internal", "localhost.local", ".local", "metadata.google.internal"]
    + ["x.host.docker.internal", "host.docker.internal.evil.example", "gateway.docker.internal"],
)
def test_the_name_of_another_machine_needs_to_be_allowed(host, node, monkeypatch):
    """Whoever answers mDNS in a network, or its DNS, gives such names to any address."""
    monkeypatch.setattr(platform, "node", lambda: node)
    assert refused(Access(), host=host, origin=f"http://{host}").status == 403
    check(Access(hosts=[host]), request(host=host, origin=f"http://{host}"))


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:11435", "127.0.0.1.evil.example", "192.168.0.7", "[fe80::1]:80"],
)
def test_a_foreign_host_is_refused_on_loopback(host):
    """As in DNS rebinding: the Host is still the attacker's name."""
    error = refused(Access(), host=host)
    shown = host if host.startswith("192") or ":" not in host else host.rpartition(":")[0]
    assert error.status == 403
    assert error.message == (
        f"the host {shown!r} is not this server's; to allow it, set --allow-host, "
        "LLMPROXY_ALLOW_HOST or Settings(hosts=…)"
    )


def test_a_long_host_is_cut_in_the_error():
    assert "a" * 80 + "'" in refused(Access(), host="a" * 5_000).message


def test_allow_host_allows_a_name_and_a_star_allows_all():
    check(Access(hosts=["Box.Example"]), request(host="box.example:11435"))
    check(Access(hosts=["*"]), request(host="evil.example"))
    assert refused(Access(hosts=["box.example"]), host="x.box.example").status == 403


def test_any_host_is_allowed_if_the_server_is_not_bound_to_loopback():
    check(Access(is_local=False, keys=["k"]), request(host="any.example", x_api_key="k"))


# ---- origins


def test_the_servers_own_pages_are_allowed():
    check(Access(), request(origin="http://localhost:11435"))
    check(Access(), request(host="LOCALHOST:11435", origin="http://LocalHost:11435"))
    check(
        Access(is_local=False, keys=["k"]),
        request(host="box:443", origin="https://box:443", authorization="Bearer k"),
    )


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://localhost:8080",
        "http://127.0.0.1:11435",
        "null",
        "",
        "file://",
        "chrome-extension://abcdef",
    ],
)
def test_pages_of_other_origins_are_refused(origin):
    """Another port or another name of the same machine is another origin."""
    error = refused(Access(), origin=origin)
    assert (error.status, error.message) == (
        403,
        f"pages of {origin!r} may not use this server; to allow them, set --allow-origin, "
        "LLMPROXY_ALLOW_ORIGIN or Settings(origins=…)",
    )


FROM_OTHER_SITE = {"sec_fetch_site": "cross-site"}
NAVIGATION = {**FROM_OTHER_SITE, "sec_fetch_mode": "navigate"}


@pytest.mark.parametrize("mode", ["no-cors", "navigate", "cors", "websocket"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
def test_a_page_of_another_site_can_only_open_our_page(method, mode):
    """As an image, a script or a form: browsers send no Origin with a GET."""
    fetch = {**FROM_OTHER_SITE, "sec_fetch_mode": mode}
    error = refused(Access(), method, **fetch)
    assert (error.status, error.message) == (403, "pages of another site may not use this server")
    for path in ("/", "/healthz", "/metrics"):
        page = replace(request(method, **fetch), target=path)
        if (method, mode) == ("GET", "navigate"):
            check(Access(), page)
        else:
            with pytest.raises(Forbidden):
                check(Access(), page)
    for path in ("/replay/rewind", "/v1/models", "/x"):
        with pytest.raises(Forbidden):
            check(Access(), replace(request("GET", **NAVIGATION), target=path))


def test_an_allowed_page_of_another_site_is_let_in():
    access = Access(origins=["https://app.example"])
    check(access, request(origin="https://app.example", **FROM_OTHER_SITE))
    assert refused(access, **FROM_OTHER_SITE).status == 403
    check(Access(origins=["*"]), request("GET", **FROM_OTHER_SITE))


@pytest.mark.parametrize("site", ["same-origin", "same-site", "none", ""])
def test_our_own_page_and_the_address_bar_are_no_other_site(site):
    check(Access(), request("GET", sec_fetch_site=site, sec_fetch_mode="no-cors"))


def test_allow_origin_ignores_case_and_a_trailing_slash():
    access = Access(origins=["https://App.example/"])
    check(access, request(origin="https://app.example"))
    assert refused(access, origin="https://app.example:8443").status == 403
    check(Access(origins=["*"]), request(origin="null"))


def test_the_origin_is_checked_before_the_key():
    access = Access(keys=["k"])
    assert refused(access, origin="https://evil.example", authorization="Bearer k").status == 403


# ---- keys


def basic(password, user="me"):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer sesame"},
        {"authorization": "bearer   sesame "},
        {"x_api_key": "sesame"},
        {"authorization": basic("sesame")},
        {"authorization": basic("sesame", user="")},
        {"authorization": "Token other", "x_api_key": "sesame"},
        {"authorization": "Bearer a-foreign-login", "x_api_key": "sesame"},
        {"authorization": "", "x_api_key": "sesame"},
        {"authorization": "Bearer", "x_api_key": "sesame"},
        {"authorization": basic("wrong"), "x_api_key": "sesame"},
        {"authorization": "Basic /////w==", "x_api_key": "sesame"},
        {"authorization": "Bearer sesame", "x_api_key": "wrong"},
        {"authorization": basic("sesame"), "x_api_key": ""},
        {"api_key": "sesame", "authorization": "Bearer wrong"},
    ],
)
def test_a_key_is_accepted_as_openai_anthropic_and_browsers_send_it(headers):
    check(Access(keys=["other", "sesame"]), request(**headers))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer sesam"},
        {"authorization": "Bearer sesame1"},
        {"authorization": "sesame"},
        {"authorization": "Bearer sesame, Bearer sesame"},
        {"x_api_key": "SESAME"},
        {"authorization": "Basic sesame"},
        {"authorization": "Basic \xe9\xff"},
        {"authorization": "Basic /////w=="},
        {"authorization": basic("other")},
        {"x_api_key": "\xff\xfe"},
        {"authorization": "Bearer wrong", "x_api_key": "wrong", "api_key": "wrong"},
        {"authorization": "", "x_api_key": ""},
        {"x_goog_api_key": "sesame"},
    ],
)
def test_no_key_or_a_wrong_one_is_refused(headers):
    error = refused(Access(keys=["sesame"]), **headers)
    assert (error.status, error.message, dict(error.headers)) == (
        401,
        "a valid API key is needed, as a bearer token in authorization or in x-api-key",
        {"www-authenticate": 'Basic realm="llmproxy", charset="UTF-8"'},
    )


def test_a_good_key_among_several_lines_of_a_header_is_enough():
    fields = [("host", "localhost"), ("authorization", "Bearer wrong")]
    access = Access(keys=["sesame"])
    for name, value in (("authorization", "Bearer sesame"), ("x-api-key", "sesame")):
        check(access, Request("POST", "/", Headers([*fields, (name, value)])))
        check(access, Request("POST", "/", Headers([(name, value), *fields])))
    with pytest.raises(Unauthorized):
        check(access, Request("POST", "/", Headers([*fields, ("authorization", "Bearer no")])))


def test_a_key_with_non_ascii_characters_works_in_every_header():
    key = "schlüssel渐"
    as_sent = key.encode().decode("latin-1")
    access = Access(keys=[key])
    check(access, request(authorization=f"Bearer {as_sent}"))
    check(access, request(x_api_key=as_sent))
    check(access, request(authorization=basic(key)))


def test_any_key_is_accepted_if_the_server_has_none():
    check(Access(), request(authorization="Bearer whatever"))


def test_a_preflight_needs_an_allowed_origin_but_no_key():
    access = Access(origins=["https://app.example"], keys=["k"])
    check(access, request("OPTIONS", origin="https://app.example"))
    assert refused(access, "OPTIONS", origin="https://evil.example").status == 403


# ---- CORS


def test_responses_to_pages_have_cors_headers():
    assert Access().cors_headers(request()) == []
    assert Access().cors_headers(request(origin="https://app.example")) == [
        ("access-control-allow-origin", "https://app.example"),
        ("vary", "origin"),
        ("access-control-expose-headers", "*"),
    ]


def test_a_preflight_allows_the_requested_headers():
    """SDKs in a browser send a dozen x-stainless-* headers."""
    requested = "authorization,content-type,x-stainless-os"
    preflight = request(
        "OPTIONS", origin="https://app.example", access_control_request_headers=requested
    )
    assert Access().cors_headers(preflight) == [
        ("access-control-allow-origin", "https://app.example"),
        ("vary", "origin"),
        ("access-control-allow-methods", "GET, POST, HEAD, OPTIONS"),
        ("access-control-max-age", "600"),
        ("access-control-allow-headers", requested),
    ]
    assert len(Access().cors_headers(request("OPTIONS", origin="https://a.example"))) == 4
