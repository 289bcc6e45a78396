"""What is a key, and where it is taken out of."""

import pytest

from llmproxy.core import errors
from llmproxy.core.known_keys import REMOVED, KnownKeys, without_key_shapes

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
