"""The SQL that finds words in what exchanges asked and answered, for `Filter.search`.

Imports nothing of llm, as the lists that use it.
"""

from __future__ import annotations

import re
import string


def search_condition(among: str, is_indexed: bool) -> str:
    """Return the condition that an exchange has the words.

    among: where it is looked for; "" for everywhere.
    """
    if not among:
        return _SEARCHED.format(
            candidates=_LIKELY,
            index=f"{_INDEX} union" if is_indexed else "",
            others="failed cross join proxy_exchanges as other on other.number = failed.number",
            replays="failed",
            among="true",
        )
    return _SEARCHED.format(
        candidates=_CANDIDATES.format(among=among),
        index=f"{_INDEX}{_INDEXED_CANDIDATES} union" if is_indexed else "",
        others="candidates cross join proxy_exchanges as other on other.id = candidates.id",
        replays="proxy_exchanges",
        among=among,
    )


# llm's index finds whole words in the prompts and replies of turns. It has no words of scripts
# that are written without spaces, no results of tools, and nothing of exchanges without a turn:
# so their text is searched too.
_INDEX = (
    "select turn_id from turn_search_fts join turn_search"
    " on turn_search.id = turn_search_fts.rowid where turn_search_fts match :indexed"
)
# A common word is in every turn: only those since the first candidate are looked at.
_INDEXED_CANDIDATES = (
    " and turn_search_fts.rowid >= (select min(turn_search.id)"
    " from candidates cross join turn_search on turn_id = candidates.id)"
)
# Replays have no turn: they are found with what they replay, or by their own first words.
_CANDIDATES = """
    candidates as materialized (
        select id from proxy_exchanges where {among}
        union
        select replay_of from proxy_exchanges where replay_of is not null and {among}
    ),
"""
# Of all turns, those that have the longest word. Reading each table as it lies takes a third of
# the time of looking for the text of each turn: 1.7 s with a million, instead of 5.2.
_LIKELY = """
    candidates as materialized (
        select turn_id as id from turn_search
        where instr(lower(prompt || ' ' || response), :longest)
        union
        select turns.id from turns where parent_message_hash in (
            with recursive said (hash, role) as (
                select hash, role from parts cross join messages on hash = message_hash
                where instr(lower(case type
                    when 'text' then text
                    when 'tool_result' then
                        iif(json_valid(payload), json_extract(payload, '$.output'), '')
                end), :longest) and role in ('user', 'tool')
                union
                select later.hash, later.role
                from said join messages as later on later.parent_hash = said.hash
                where said.role != 'assistant'
            )
            select hash from said
        )
    ),
    failed as materialized (
        select number, id, thread_id, replay_of from proxy_exchanges
        where status != 'ok' or replay_of is not null
    ),
"""
_HAS_WORDS = """
    not exists (select 1 from json_each(:words) where not instr(lower(
        coalesce((select prompt || ' ' || response from turn_search where turn_id = {id}), {words})
        || ' ' || coalesce((
            with recursive new (hash, parent_hash, role) as (
                select hash, parent_hash, role from messages where hash = {hash}
                union
                select before.hash, before.parent_hash, before.role
                from new join messages as before on before.hash = new.parent_hash
                where before.role != 'assistant'
            )
            select group_concat(case type
                when 'text' then text
                when 'tool_result' then
                    iif(json_valid(payload), json_extract(payload, '$.output'), '')
            end, ' ')
            from new join parts on parts.message_hash = new.hash
            where new.role in ('user', 'tool')
        ), '')
    ), value))
"""
_TURN_HAS_WORDS = _HAS_WORDS.format(id="turns.id", hash="turns.parent_message_hash", words="''")
_OTHER_HAS_WORDS = _HAS_WORDS.format(
    id="other.id", hash="other.message_hash", words="other.first_words"
)
_SEARCHED = f"""
    id in (with {{candidates}} found as (
        {{index}}
        select turns.id as turn_id from candidates cross join turns on turns.id = candidates.id
        where {_TURN_HAS_WORDS}
        union
        select other.id from {{others}}
        where +other.thread_id is null and (other.status != 'ok' or other.replay_of is not null)
            and {_OTHER_HAS_WORDS}
        )
        select turn_id from found
        union
        select id from {{replays}}
        where +thread_id is null and replay_of in (select turn_id from found) and {{among}}
    )
"""


def indexed_words(search: str) -> str | None:
    """Return a search as FTS5 takes it; None if its index can't find all of the words."""
    words = search.replace("\0", " ").split()
    return " ".join(map(_quoted, words)) if words and all(map(_is_indexed, words)) else None


def _quoted(word: str) -> str:
    """Quote a word, since FTS5 has a query syntax."""
    return '"' + _storable(word).replace('"', '""') + '"'


def _storable(text: str) -> str:
    """Replace lone surrogates, which a command's arguments can have."""
    return text.encode(errors="replace").decode()


def lower_ascii(word: str) -> str:
    """Lower a word as SQLite does, which leaves all but ASCII as it is."""
    return _storable(word).translate(_ASCII_LOWER)


_ASCII_LOWER = {ord(letter): letter.lower() for letter in string.ascii_uppercase}


def _is_indexed(word: str) -> bool:
    """Check whether FTS5 finds a word where it stands: not within a longer run of letters."""
    return any(map(str.isalnum, word)) and not _UNSPACED.search(word)


# Thai, Lao, Burmese, Khmer, kana, Chinese characters; Korean has spaces, but glues on particles.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u9fff\ua960-\ua97f"
    "\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc\U0001b000-\U0001b16f\U00020000-\U0003ffff]"
)
