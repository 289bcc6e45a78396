from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.core.known_bodies import SharedItems
from llmproxy.recorder.request_store import LONG_CHARS, RUN, deduplicate, dumps, restore
from tests.examples import many_examples
from tests.strategies import json_values

keys = st.sampled_from(["$", "$$", "messages", "content"])
long_texts = st.sampled_from([f"{letter} 渐 " * 100 for letter in "ab"])
bodies = st.recursive(
    json_values(3) | long_texts | st.just("\ud800"),
    lambda children: st.one_of(
        st.lists(children, max_size=2 * RUN + 1), st.dictionaries(keys, children, max_size=3)
    ),
    max_leaves=50,
)


@many_examples(60)
@given(bodies)
def test_a_stored_body_is_restored_and_then_known(body):
    result = deduplicate(body, {})
    assert dumps(restore(result.text, result.blobs.__getitem__)) == dumps(body)
    again = deduplicate(body, result.seen)
    assert (again.text, again.blobs, again.seen) == (result.text, {}, {})


def test_a_stored_body_in_full():
    """The format in every logs.db: what this test contains must stay readable forever."""
    system, text = "s" * 300, "t" * 300
    body = {
        "model": "m",
        "system": system,
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "user", "content": [{"type": "text", "text": text}]},
            {"$": "real"},
        ],
    }
    result = deduplicate(body, {})
    assert json.loads(result.text) == {
        "model": "m",
        "system": {"$": "ea7ef1c551e258ddb218d312ad40a980"},
        "messages": [
            {"role": "user", "content": "hi"},
            {"$": "ca5b8f44ec0dd0edf90e88e7c297269e"},
            {"$": [{"$": "real"}]},
        ],
    }
    assert result.blobs == {
        "ea7ef1c551e258ddb218d312ad40a980": f'"{system}"',
        "2e2ee5d14a83b5c3f60fa840b5d3f6df": f'"{text}"',
        "ca5b8f44ec0dd0edf90e88e7c297269e": '{"role":"user","content":'
        '[{"type":"text","text":{"$":"2e2ee5d14a83b5c3f60fa840b5d3f6df"}}]}',
    }


@pytest.mark.parametrize("count", [RUN - 1, RUN, 2 * RUN + 3])
def test_only_the_end_of_a_long_list_is_stored_again(count):
    messages = [{"role": "user", "content": f"{i} " + "word " * 100} for i in range(count)]
    first = deduplicate({"messages": messages}, {})
    more = [*messages, {"role": "user", "content": "one more " * 100}]
    second = deduplicate({"messages": more}, first.seen)
    new = [text for text in second.blobs.values() if not text.startswith('[{"$"')]
    assert len(new) == 2  # the message, and the text in it
    assert len(second.text) < 40 * (len(more) // RUN + RUN)
    everything = {**first.blobs, **second.blobs}
    assert restore(second.text, everything.__getitem__) == {"messages": more}


def test_a_cache_marker_that_moves_stores_no_text_again():
    """Anthropic's clients mark the last block for the cache, another one in each request."""
    block = {"type": "tool_result", "tool_use_id": "t1", "content": "output " * 1000}
    marked = {"role": "user", "content": [{**block, "cache_control": {"type": "ephemeral"}}]}
    first = deduplicate({"messages": [marked]}, {})
    second = deduplicate({"messages": [{"role": "user", "content": [block]}]}, first.seen)
    assert sum(map(len, second.blobs.values())) + len(second.text) < LONG_CHARS


def test_equal_but_different_values_are_kept_apart():
    padding = "x" * LONG_CHARS
    first = deduplicate([{"a": 1, "p": padding}], {})
    for other in (1.0, True):
        second = deduplicate([{"a": other, "p": padding}], first.seen)
        everything = {**first.blobs, **second.blobs}
        assert dumps(restore(second.text, everything.__getitem__)[0]["a"]) == dumps(other)


def test_200_requests_of_a_growing_session_store_only_new_content():
    known, stored, sent, messages = {}, 0, 0, []
    tools = [{"name": f"t{i}", "description": "d" * 800} for i in range(20)]
    for step in range(200):
        messages.append({"role": "assistant", "content": f"step {step} " + "w" * 300})
        messages.append({"role": "user", "content": f"{step} " + "output " * 200})
        body = {"model": "m", "system": "s" * 20_000, "tools": tools, "messages": messages}
        result = deduplicate(body, known)
        known.update(result.seen)
        sent += len(dumps(body))
        stored += len(result.text) + sum(len(text) + 32 for text in result.blobs.values())
    new = len(dumps(body))
    assert sent > 37_000_000
    assert stored < 2 * new < 1_000_000


def test_items_with_known_hashes_are_stored_as_others():
    messages = [{"role": "user", "content": f"{i} {'x' * i}"} for i in range(100)]
    shared, plain, hashed = {}, {}, []
    for count in (40, 47, 64, 100, 30):
        hashed = [run for run in hashed if run[0] <= count]
        items = SharedItems(messages[:count], hashed)
        found = deduplicate({"messages": items}, shared)
        assert found == deduplicate({"messages": messages[:count]}, plain)
        shared |= found.seen
        plain |= found.seen
        assert [end for end, _ in hashed] == [*range(RUN, count + 1, RUN)]


@pytest.mark.parametrize("kind", ["$", "$$"])
def test_a_part_that_contains_itself_is_an_error(kind):
    """Only an edited file has one."""
    one, two = "1" * 32, "2" * 32
    blobs = {hash: json.dumps([{kind: other}]) for hash, other in ((one, two), (two, one))}
    with pytest.raises(ValueError, match=f"request part {one} contains itself"):
        restore(json.dumps({"a": [{kind: one}]}), blobs.__getitem__)
