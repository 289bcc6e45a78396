"""Attachments of messages: made from base64 and URLs, typed by their bytes, never fetched."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import replace
from urllib.parse import unquote, unquote_to_bytes, urlsplit

import llm
from llm.parts import AttachmentPart, Message, Part, ToolResultPart

from .errors import InvalidRequest, Unsupported


class RemoteAttachment(llm.Attachment):
    """An attachment by URL that our process never opens.

    llm's own Attachment sends HEAD and GET to whatever address a client wrote. Plugins that
    pass URLs on work with this one; those that would fetch the content get an error.
    """

    def resolve_type(self) -> str:
        return self.type or "image/*"

    def content_bytes(self) -> bytes:
        raise Unsupported("this model needs the content itself: send base64 data, not a URL")

    def base64_content(self) -> str:
        return str(self.content_bytes())


def find_attachments(message: Message) -> list[llm.Attachment]:
    """Return a message's attachments in order, those of tool results included."""
    found: list[llm.Attachment] = []
    for part in message.parts:
        match part:
            case AttachmentPart(attachment=llm.Attachment() as attachment):
                found.append(attachment)
            case ToolResultPart(attachments=attachments):
                found += attachments
    return found


def map_attachments(
    message: Message, change: Callable[[llm.Attachment], llm.Attachment]
) -> Message:
    """Return the message with `change` applied to each of its attachments, in order."""

    def changed(part: Part) -> Part:
        match part:
            case AttachmentPart(attachment=llm.Attachment() as attachment):
                return replace(part, attachment=change(attachment))
            case ToolResultPart(attachments=[*attachments]) if attachments:
                return replace(part, attachments=[change(one) for one in attachments])
            case _:
                return part

    return replace(message, parts=[changed(part) for part in message.parts])


def attachment_from_url(url: str, *, param: str | None = None) -> llm.Attachment:
    """Make an attachment from an http(s) or data: URL. Nothing is fetched.

    A data: URL is read as browsers do: percent-encoded or not, without white space around it.
    A remote one gets its type from the URL's ending, else `image/*`: without a type, llm's
    log would request it from the address.

    Raises:
        InvalidRequest: another scheme, or a data: URL that does not decode or has no
            data; at `param`.
    """
    url = url.strip(_URL_EDGES)
    scheme = url[:8].partition(":")[0].lower()
    if scheme == "data":
        comma = url.find(",")
        head = url[5:comma] if comma >= 0 else url[5:]
        media_type, *parameters = (word.strip() for word in unquote(head).split(";"))
        if comma < 0:
            raise InvalidRequest("expected data:<type>;base64,<data>", param=param)
        data = url[comma + 1 :]
        if "base64" in [parameter.lower() for parameter in parameters]:
            if "%" in data:
                data = unquote_to_bytes(data).decode("latin-1")
            return _decoded(data, media_type or None, param)
        if not data:
            raise InvalidRequest("expected data after the comma, got none", param=param)
        media_type = (media_type or "text/plain").lower()
        return llm.Attachment(type=media_type, content=unquote_to_bytes(data))
    if scheme not in ("http", "https") or not _host(url):
        raise InvalidRequest("expected an http(s) or data: URL", param=param)
    ending = urlsplit(url).path.lower().rpartition(".")[2]
    return RemoteAttachment(type=_ENDINGS.get(ending, "image/*"), url=url)


# Readers of URLs strip these: C0 controls and the space (https://url.spec.whatwg.org/#url-parsing).
_URL_EDGES = "".join(map(chr, range(0x21)))

# Not `mimetypes`: it reads files of the machine, and a message must be stored the same
# everywhere. An unknown ending (`photo.php`) is an image, as the client declared it.
_ENDINGS: Mapping[str, str] = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "gif": "image/gif",
    "webp": "image/webp",
    "pdf": "application/pdf",
}


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


_WITHOUT_SPACE = dict.fromkeys(map(ord, "\t\n\f\r "))  # ASCII's, no other


def attachment_from_base64(
    data: str, media_type: str | None = None, *, param: str | None = None
) -> llm.Attachment:
    """Make an attachment from base64 text, of the type that its bytes show, else `media_type`.

    Clients label JPEG as PNG and write `image/jpg`; providers refuse both, so the
    bytes decide. White space and missing padding are accepted, and a whole data: URL.

    Raises:
        InvalidRequest: text that is not base64, or empty; at `param`.

    Spec: https://infra.spec.whatwg.org/#forgiving-base64-decode
    """
    if data[:16].lstrip()[:5].lower() == "data:":
        return attachment_from_url(data, param=param)
    return _decoded(data, media_type, param)


def _decoded(data: str, media_type: str | None, param: str | None) -> llm.Attachment:
    try:  # as nearly all clients write it; the copies below take half as long again
        content = binascii.a2b_base64(data, strict_mode=True)
    except ValueError:
        content = _forgiven(data, param)
    if not content:
        raise InvalidRequest("expected base64 data, got none", param=param)
    declared = (media_type or "application/octet-stream").lower()
    declared = "image/jpeg" if declared == "image/jpg" else declared
    return llm.Attachment(type=_sniffed(content) or declared, content=content)


def _forgiven(data: str, param: str | None) -> bytes:
    letters = data.translate(_WITHOUT_SPACE)
    if len(letters) % 4 == 0:
        letters = letters.removesuffix("=").removesuffix("=")
    if len(letters) % 4 == 1 or "=" in letters:
        raise InvalidRequest("expected base64 data", param=param)
    try:
        return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except ValueError:
        raise InvalidRequest("expected base64 data", param=param) from None


_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"ID3", "audio/mpeg"),
)


def _sniffed(content: bytes) -> str | None:
    if content[:4] == b"RIFF":
        return {b"WEBP": "image/webp", b"WAVE": "audio/wav"}.get(content[8:12])
    return next((type_ for magic, type_ in _MAGIC if content.startswith(magic)), None)
