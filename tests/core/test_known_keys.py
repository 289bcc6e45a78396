"""What is a key, and where it is taken out of."""

import time

import pytest

from llmproxy.core import errors
from llmproxy.core.known_keys import (
    REMOVED,
    KnownKeys,
    is_secret_parameter,
    without_key_shapes,
    without_secrets,
)

KEY = "my-own/key+9=="


@pytest.mark.parametrize(
    "key",
    [
        "sk-proj-" + "a1" * 9,
        "sk-ant-api03-" + "b2" * 9,
        "AIza" + "x" * 30,
        "gsk_" + "a" * 20,
        "AKIAIOSFODNN7EXAMPLE",
        "github_pat_11ABCDEFG0123456789",
        "sk-proj-****************abcd",
    ],
)
def test_what_looks_like_a_key_is_blotted_out(key):
    said = without_key_shapes(f"Incorrect API key provided: {key} (see docs)")
    assert said == f"Incorrect API key provided: {REMOVED} (see docs)"
    assert without_key_shapes(f"'Authorization': 'Bearer {key}'").count(key) == 0


def test_the_user_of_a_url_is_a_secret():
    assert (
        without_key_shapes("GET https://me:pw@host/a failed")
        == f"GET https://{REMOVED}@host/a failed"
    )


@pytest.mark.parametrize(
    "text",
    [
        "Unknown parameter: key_management_enabled",
        "No key found - add one using 'llm keys set anthropic' or ANTHROPIC_API_KEY",
        "model claude-sonnet-4 is overloaded; see https://example.com/a@b, task-force sk-ip",
        "messages[0].keys: expected a string",
    ],
)
def test_words_about_keys_are_not_keys(text):
    assert KnownKeys().redact_foreign(text) == text


def test_a_named_key_in_foreign_text_is_removed():
    assert KnownKeys().redact_foreign("GET /?key=0123456789abcdef") == f"GET /?key={REMOVED}"
    assert KnownKeys().redact("tools[0].key: expected a string").endswith("expected a string")


def test_known_keys_are_found_in_a_url_too_and_short_ones_are_left():
    keys = KnownKeys([f" {KEY}\n", "none", ""])
    assert keys.redact(f"{KEY} none /?q=my-own%2Fkey%2B9%3D%3D") == f"{REMOVED} none /?q={REMOVED}"


def test_a_key_that_begins_as_another_does_is_taken_out_whole():
    assert KnownKeys(["abcdefgh", "abcdefgh-second"]).redact("abcdefgh-second") == REMOVED


def test_what_is_put_in_a_keys_place_is_not_searched():
    assert KnownKeys(["my-removed-key", "removed]"]).redact("my-removed-key") == REMOVED
    assert without_secrets("removed] and a removed", ["removed]", "removed"]) == (
        f"{REMOVED} and a {REMOVED}"
    )


def test_thousands_of_secrets_are_looked_for_in_no_time():
    secrets = [f"secret-{i}" for i in range(6_000)]
    began = time.process_time()
    for _ in range(10):
        assert without_secrets("no secret, " * 45 + "secret-77", secrets).endswith(REMOVED)
    assert time.process_time() - began < 1


def test_what_was_known_once_stays_known():
    now = ["first-key-1"]
    keys = KnownKeys(look=lambda: now)
    keys.look()
    now[:] = ["second-key-2"]
    assert keys.redact("first-key-1, second-key-2") == f"{REMOVED}, {REMOVED}"


def test_an_error_is_cleaned_in_all_its_facts():
    error = errors.RateLimited(
        f"not {KEY}", param=f"a.{KEY}", code=KEY, status=418, headers={"retry-after": KEY}
    )
    cleaned = KnownKeys([KEY]).redact_error(error)
    assert type(cleaned) is errors.RateLimited
    assert (cleaned.full_message, cleaned.code, cleaned.status, cleaned.headers) == (
        f"a.{REMOVED}: not {REMOVED}",
        REMOVED,
        418,
        {"retry-after": REMOVED},
    )


@pytest.mark.parametrize(
    "name",
    "code sig token access_token id_token key api_key api-key apikey X-Amz-Signature"
    " X-Amz-Credential X-Amz-Security-Token X-Goog-Signature Signature auth oauth_verifier"
    " client_secret code_verifier userCode device.code pwd password passwd pass sid session"
    " sessionId session_id jsessionid PHPSESSID jwt otp ticket SAMLResponse csrf hmac CODE Sig"
    " to%6ben api%5Fkey auth[code] assertion".split(),
)
def test_a_parameter_of_this_name_is_a_secret(name):
    assert is_secret_parameter(name)
    text = f"GET https://host/a?v=1&{name}=0a.b-C_d~e%2Bf%3D&alt=sse failed"
    assert without_key_shapes(text) == f"GET https://host/a?v=1&{name}={REMOVED}&alt=sse failed"


@pytest.mark.parametrize(
    "name", "v alt beta model decode codec design signal bypass compass spin sp se sv state".split()
)
def test_a_parameter_of_another_name_is_kept(name):
    assert not is_secret_parameter(name)
    assert without_key_shapes(f"/?{name}=0123456789") == f"/?{name}=0123456789"


@pytest.mark.parametrize(
    "text, cleaned",
    [
        ("a#access_token=abc&x=1", "a#access_token=[removed]&x=1"),
        ("a;jsessionid=abc&x=1", "a;jsessionid=[removed]&x=1"),
        ("/?x=1;code=abc", "/?x=1;code=[removed]"),
        (
            "/?to=https%3A%2F%2Fb%2F%3Fcode%3Dabc%26v%3D1&x=1",
            "/?to=https%3A%2F%2Fb%2F%3Fcode%3D%5Bremoved%5D%26v%3D1&x=1",
        ),
        ("/?code=%5Bremoved%5D", "/?code=%5Bremoved%5D"),
        ("failed with code=401, token=none", "failed with code=401, token=none"),
        ("?code= and &sig=", "?code= and &sig="),
        ("/?" + "a=%3F" * 9999, "/?" + "a=%3F" * 9999),
    ],
)
def test_secrets_in_urls_are_removed_and_nothing_else(text, cleaned):
    assert without_key_shapes(text) == cleaned
    assert without_key_shapes(cleaned) == cleaned
