"""Changed messages and request parts are found and reported, and nothing is written."""

import hashlib
import sqlite3

import llm
import pytest
from llm.logs import LogStore
from llm.parts import AttachmentPart, Message, TextPart, ToolResultPart
from sqlite_utils import Database

from llmproxy.core import attachments
from llmproxy.recorder.database import Unusable
from llmproxy.recorder.verify import Broken, Verified, verify

LONG = "a long text that is kept apart from its request " * 10


@pytest.fixture
def change(path):
    """Change the database by hand."""

    def change(sql, *values):
        with sqlite3.connect(path) as connection:
            assert connection.execute(sql, values).rowcount > 0

    yield change


def hash_of(path, text):
    with sqlite3.connect(path) as connection:
        sql = "select message_hash from parts where text = ?"
        return connection.execute(sql, (text,)).fetchone()[0]


def test_an_unchanged_log_is_verified(talk, path):
    tool = Message("tool", [ToolResultPart("look", "sun", "c1")])
    first = talk("one", request={"body": {"messages": [LONG, {"role": "user"}]}})
    talk("two", first, messages=[*first.turn.messages, *first.turn.reply, tool, llm.user("two")])
    assert verify(path) == Verified(5, 1, 2, ())


def test_a_changed_message_is_reported_with_its_turn(talk, path, change):
    first = talk("one")
    talk("two", first)
    changed = hash_of(path, "one")
    change("update parts set text = 'won' where text = 'one'")
    (broken,) = verify(path).broken
    assert broken == Broken("message", changed, "user", "it was changed", first.id, first.id)


def test_all_broken_messages_are_reported(talk, path, change):
    first = talk("one")
    second = talk("two", first)
    metadata = hash_of(path, "two")
    change("update parts set text = 'won' where text = 'one'")
    change("delete from parts where text = 'one, answered at length'")
    change("update messages set provider_metadata = 'no json' where hash = ?", metadata)
    change(
        "update messages set role = 'system' where hash = ?",
        hash_of(path, "two, answered at length"),
    )
    found = verify(path)
    assert found.messages == 4
    assert [(broken.role, broken.why.partition(":")[0]) for broken in found.broken] == [
        ("user", "it was changed"),
        ("assistant", "its parts are missing"),
        ("user", "it can't be read"),
        ("system", "it was changed"),
    ]
    assert [broken.turn_id for broken in found.broken] == [first.id, first.id, second.id, second.id]


def test_a_message_whose_parent_is_gone_is_broken(talk, path, change):
    talk("one")
    change("delete from messages where hash = ?", hash_of(path, "one"))
    (broken,) = verify(path).broken
    assert (broken.role, broken.why) == ("assistant", "the previous message is missing")


def test_text_that_is_not_utf_8_is_broken(talk, path, change):
    talk("one")
    change("update parts set text = cast(x'ff00' as text) where text = 'one'")
    assert [broken.why for broken in verify(path).broken] == ["it was changed"]


def test_a_changed_blob_is_reported_with_its_exchange(talk, path, change):
    talk("one")
    second = talk("two", request={"body": {"messages": [{"role": "user", "content": LONG}]}})
    change("update proxy_contents set text = text || ' ' where text like '\"a long%'")
    found = verify(path)
    assert found.contents == 2  # the message, and the text that it refers to
    (broken,) = found.broken
    assert (broken.kind, broken.role, broken.why) == ("content", None, "it was changed")
    assert (broken.turn_id, broken.thread_id) == (second.id, second.id)
    text = f'"{LONG}"'.encode()
    assert broken.hash == hashlib.sha256(text).hexdigest()[:32]


def test_exchanges_that_continue_one_another_in_a_circle_are_broken(talk, path, change):
    first = talk("one")
    second = talk("two", first)
    talk("three", second)
    change("update proxy_exchanges set previous_id = ? where id = ?", second.id, first.id)
    why = "it continues itself, directly or through others"
    assert verify(path).broken == tuple(
        Broken("exchange", None, None, why, id, first.id) for id in (first.id, second.id)
    )


def test_messages_in_a_circle_are_broken(talk, path, change):
    talk("one")
    change("update messages set parent_hash = hash where parent_hash is null")
    assert [(broken.role, broken.why) for broken in verify(path).broken] == [
        ("user", "it was changed")
    ]


def looking(type):
    image = llm.Attachment(type=type, content=b"one image, as far as it goes")
    return Message("user", [TextPart(f"a {type}"), AttachmentPart(image)])


def test_bytes_that_were_logged_under_two_types_may_be_the_reason(talk, path, change):
    first = talk("one", messages=[looking("image/png")])
    assert verify(path).broken == ()
    talk("two", messages=[looking("image/jpeg")])
    (broken,) = verify(path).broken
    assert broken.turn_id == first.id
    assert broken.why == (
        "it was changed or its attachment was logged again under another media type"
    )


def test_a_missing_attachment_is_reported(talk, path, change):
    talk("one", messages=[looking("image/png")])
    change("delete from attachments")
    (broken,) = verify(path).broken
    assert broken.why.startswith("something it refers to is missing: ")


def test_no_url_is_requested(talk, path, change):
    """llm would request it, to find out the type of an attachment without one."""
    remote = attachments.attachment_from_url("http://127.0.0.1:1/a.png")
    talk("one", messages=[Message("user", [AttachmentPart(remote)])])
    assert verify(path).broken == ()
    change("update attachments set type = null")
    (broken,) = verify(path).broken
    assert "would have to be requested from its URL" in broken.why


def test_a_changed_file_is_reported(talk, path, tmp_path, store):
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n")
    attachment = llm.Attachment(type="image/png", path=str(picture))
    talk("one", messages=[Message("user", [AttachmentPart(attachment)])])
    assert verify(path).broken == ()
    picture.unlink()
    (broken,) = verify(path).broken
    assert broken.why == f"it was changed or the file {picture} was"


def test_it_finds_what_llm_finds(talk, path, change):
    first = talk("one")
    talk("two", first)
    change("update parts set text = 'won' where text = 'one'")
    database = Database(path)
    assert [broken.hash for broken in verify(path).broken] == LogStore(database).verify()
    database.close()


def test_a_log_of_llm_alone_is_checked_too(path, run_llm):
    run_llm("-m", "echo", "hello")
    assert verify(path) == Verified(2, 0, 0, ())


def test_nothing_is_written(talk, path, change):
    talk("one")
    change("update parts set text = 'won' where text = 'one'")
    with sqlite3.connect(path) as connection:
        before = connection.execute("pragma data_version").fetchone()
        verify(path)
        assert connection.execute("pragma data_version").fetchone() == before


def test_another_file_than_a_database_can_not_be_verified(path):
    path.write_text("this is no database at all, but long enough to be read as a header" * 9)
    with pytest.raises(Unusable):
        verify(path)
    with pytest.raises(Unusable):
        verify(path.with_name("nowhere.db"))
