"""The summary of a conversation as the opaque text that its client sends back.

It is no secret: base64, so that no client mistakes it for words.
"""

from __future__ import annotations

import base64
import binascii

_MARK = "llmproxy:"


def encode_compaction(summary: str) -> str:
    """Encode a summary as an opaque text."""
    return _MARK + base64.b64encode(summary.encode()).decode()


def decode_compaction(text: str) -> str | None:
    """Return the summary in an opaque text, None if another server wrote it."""
    if not text.startswith(_MARK):
        return None
    try:
        return base64.b64decode(text.removeprefix(_MARK), validate=True).decode()
    except (binascii.Error, ValueError):
        return None
