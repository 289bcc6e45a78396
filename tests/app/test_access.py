"""Who may come in: the attacks that a local server meets, and the clients that it serves."""

import base64

import pytest

from llmproxy.app.access import Access, is_loopback
from llmproxy.core.errors import Forbidden, Unauthorized
from llmproxy.transport.http11 import Headers, Request


def request(method="POST", host="localhost:11435", **headers):
    fields = [("host", host)] if host is not None else []
    fields += [(name.replace("_", "-"), value) for name, value in headers.items()]
    return Request(method, "/v1/chat/completions", Headers(fields))


def check(access, asked):
    access.check_source(asked)
    access.check_key(asked)


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
        "laptop.local",
        "HOST.docker.INTERNAL:11435",
        None,
    ],
)
def test_a_host_of_this_machine_passes(host):
    check(Access(), request(host=host))


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:11435", "127.0.0.1.evil.example", "192.168.0.7", "[fe80::1]:80"],
)
def test_a_foreign_host_is_refused_on_loopback(host):
    """A name that its owner's DNS turns to 127.0.0.1 shows here."""
    error = refused(Access(), host=host)
    shown = host if host.startswith("192") or ":" not in host else host.rpartition(":")[0]
    assert error.status == 403
    assert error.message == (f"the host {shown!r} is not this server's; allow it by --allow-host")


def test_a_long_host_is_cut_in_the_error():
    assert "a" * 80 + "'" in refused(Access(), host="a" * 5_000).message


def test_an_allowed_host_passes_and_a_star_allows_all():
    check(Access(hosts=["Box.Example"]), request(host="box.example:11435"))
    check(Access(hosts=["*"]), request(host="evil.example"))
    assert refused(Access(hosts=["box.example"]), host="x.box.example").status == 403


def test_hosts_are_free_where_the_bind_is_not_loopback():
    check(Access(is_local=False, keys=["k"]), request(host="any.example", x_api_key="k"))


# ---- origins


def test_our_own_page_passes():
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
def test_pages_of_others_are_refused(origin):
    """Another port and another name for the same machine are another origin."""
    error = refused(Access(), origin=origin)
    assert (error.status, error.message) == (
        403,
        f"pages of {origin!r} may not use this server; allow it by --allow-origin",
    )


def test_an_allowed_origin_passes_whatever_its_spelling():
    access = Access(origins=["https://App.example/"])
    check(access, request(origin="https://app.example"))
    assert refused(access, origin="https://app.example:8443").status == 403
    check(Access(origins=["*"]), request(origin="null"))


def test_an_origin_is_refused_before_the_key_is_looked_at():
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
    ],
)
def test_a_key_is_taken_as_openai_anthropic_and_browsers_send_it(headers):
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
    ],
)
def test_no_key_or_a_wrong_one_is_refused(headers):
    error = refused(Access(keys=["sesame"]), **headers)
    assert (error.status, error.message, dict(error.headers)) == (
        401,
        "a key is needed: authorization: Bearer <key>, or x-api-key",
        {"www-authenticate": 'Basic realm="llmproxy", charset="UTF-8"'},
    )


def test_a_key_beyond_ascii_is_the_same_in_every_field():
    key = "schlüssel渐"
    on_the_wire = key.encode().decode("latin-1")
    access = Access(keys=[key])
    check(access, request(authorization=f"Bearer {on_the_wire}"))
    check(access, request(x_api_key=on_the_wire))
    check(access, request(authorization=basic(key)))


def test_any_key_will_do_where_none_is_asked():
    check(Access(), request(authorization="Bearer whatever"))


def test_a_preflight_needs_no_key_but_an_allowed_origin():
    access = Access(origins=["https://app.example"], keys=["k"])
    check(access, request("OPTIONS", origin="https://app.example"))
    assert refused(access, "OPTIONS", origin="https://evil.example").status == 403


# ---- CORS


def test_answers_to_pages_say_who_may_read_them():
    assert Access().cors_headers(request()) == []
    assert Access().cors_headers(request(origin="https://app.example")) == [
        ("access-control-allow-origin", "https://app.example"),
        ("vary", "origin"),
        ("access-control-expose-headers", "*"),
    ]


def test_a_preflight_is_allowed_the_headers_that_it_asks_for():
    """SDKs in a browser ask for a dozen x-stainless-* fields."""
    asked = "authorization,content-type,x-stainless-os"
    preflight = request(
        "OPTIONS", origin="https://app.example", access_control_request_headers=asked
    )
    assert Access().cors_headers(preflight) == [
        ("access-control-allow-origin", "https://app.example"),
        ("vary", "origin"),
        ("access-control-allow-methods", "GET, POST, HEAD, OPTIONS"),
        ("access-control-max-age", "600"),
        ("access-control-allow-headers", asked),
    ]
    assert len(Access().cors_headers(request("OPTIONS", origin="https://a.example"))) == 4
