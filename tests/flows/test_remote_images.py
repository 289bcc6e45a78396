"""Images by URL: which are passed on, to which models, and that the proxy fetches none."""

import json
import socket
import sys
import threading
from contextlib import contextmanager
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import httpx2
import llm
import pytest
from llm.default_plugins.openai_models import AsyncChat, AsyncResponses, Chat
from llm.parts import AttachmentPart, Message, TextPart, ToolResultPart
from llm_anthropic import AsyncClaudeMessages, ClaudeMessages
from llm_groq import LLMGroq

from llmproxy.backends.engine.prompt import build_prompt
from llmproxy.cli import bench, export_import, log, report
from llmproxy.core import attachments, chat
from llmproxy.core.errors import Unsupported
from llmproxy.core.url_policy import check, why_not_public
from tests.models import AsyncScript
from tests.provider import begin_sse, chat_stream, playing, say_event
from tests.proxies import running

URL = "https://pictures.example.org/cat.png"
PDF = "https://pictures.example.org/paper.pdf"
HOST = "pictures.example.org"

NOT_PUBLIC = {
    "its host is not a public address": [
        "http://127.0.0.1/",
        "http://127.8.8.8:80/a.png",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://172.16.3.4/",
        "https://192.168.1.1/cat.png",
        "http://100.64.0.1/",
        "http://0.0.0.0:8080/",
        "http://224.0.0.1/",
        "http://240.0.0.1/",
        "http://255.255.255.255/",
        "http://192.0.2.1/",
        "http://198.18.0.1/",
        "http://127.0.0.1./",
        "http://[::1]/",
        "http://[::]/",
        "http://[fe80::1]/",
        "http://[fe80::1%25eth0]/",
        "http://[fd00::1]/",
        "http://[ff02::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:8.8.8.8]/",
        "http://[::127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://[2001:0:7f00:1::]/",
        "http://[2001:db8::1]/",
    ],
    "its host is a number, but not a plain address": [
        "http://2130706433/",
        "http://0x7f.1/",
        "http://127.1/",
        "http://0/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://010.0.0.1/",
        "http://127.0.0.0x1/",
        "http://1.1.1.257/",
    ],
    "its host is a local name": [
        "http://localhost/",
        "http://LOCALHOST:80/",
        "http://localhost./",
        "http://a.localhost/",
        "http://printer.local/",
        "http://metadata.google.internal/",
        "http://router.home.arpa/",
        "http://nas.lan/",
        "http://intranet/",
    ],
    "it has a user name": ["http://u@example.org/", "http://example.org:80@127.0.0.1/", "http://@a.org/"],
    "it is not http:// or https://": [
        "file:///etc/passwd",
        "ftp://example.org/",
        "/etc/passwd",
        "http:/127.0.0.1/",
        "http:127.0.0.1",
        "gopher://127.0.0.1/",
        "",
    ],
    "its host is not a valid name": [
        "http:///127.0.0.1/",
        "http://%31%32%37.0.0.1/",
        "http://a..org/",
        "http://example.org;b/",
        "http://-a.org/",
    ],
    "its host is not a valid address": ["http://[v1.x]/", "http://[1.2.3.4]/"],
    "its host or port can't be read": ["http://[::1", "http://example.org:x/", "http://example.org:70000/"],
    "its host is not ASCII (xn--…)": ["http://１２７.0.0.1/", "http://local\u00adhost/", "http://ⓛocalhost/"],
    "it has spaces, control characters or backslashes": [
        "http://example.org\\@127.0.0.1/",
        "http:\\\\127.0.0.1/",
        "http://exam\tple.org/",
        " http://127.0.0.1/",
        "http://127.0.0.1\n.example.org/",
    ],
}  # fmt: skip
PRIVATE_URLS = [(url, reason) for reason, urls in NOT_PUBLIC.items() for url in urls]


@pytest.mark.parametrize("url, reason", PRIVATE_URLS)
def test_urls_that_are_not_public(url, reason):
    assert why_not_public(url) in (
        reason,
        "its host is not a valid address",
        "its host or port can't be read",
    )


@pytest.mark.parametrize(
    "url",
    [
        URL,
        "HTTP://EXAMPLE.ORG/",
        "http://example.org:8080/a?b=@c#d",
        "https://example.org./",
        "https://ja.wikipedia.org/wiki/ファイル.jpg",
        "https://xn--mnchen-3ya.de/",
        "https://my_bucket.s3.amazonaws.com/a%20b.png",
        "http://8.8.8.8/",
        "http://[2606:4700::1111]/",
        "http://localhost.example.org/",
        "http://example.org/?u=http://127.0.0.1/",
    ],
)
def test_public_urls(url):
    assert why_not_public(url) is None


def remote(url: str) -> llm.Attachment:
    return attachments.RemoteAttachment(type="image/png", url=url)


def test_the_error_names_the_field_in_a_tool_result_too():
    result = ToolResultPart("f", "x", "c1", attachments=[remote("http://10.1.1.1/")])
    messages = [Message("user", [AttachmentPart(remote(URL))]), Message("tool", [result])]
    request = chat.ChatRequest("m", messages, attachment_paths=("first", "second"))
    with pytest.raises(Unsupported) as caught:
        check(request, "pass")
    assert caught.value.full_message == ("second: URL refused: its host is not a public address")
    with pytest.raises(Unsupported) as caught:
        check(request, "refuse")
    assert caught.value.full_message == "first: URLs are not accepted here: send base64 data"


def openai(kind, url, model_id="openai"):
    model = kind(model_id, api_base=url, supports_tools=True, vision=True)
    model.needs_key = None
    return model


def claude(kind, url, model_id="claude"):
    model = kind(model_id, supports_pdf=True, base_url=url)
    model.model_id, model.key = model_id, "none"
    return model


def groq_that_sees():
    model = LLMGroq("groq", "m", vision=True)
    model.key = "none"
    return model


@pytest.mark.parametrize(
    "model, url, sends",
    [
        (openai(Chat, ""), URL, True),
        (openai(AsyncChat, ""), URL, True),
        (openai(AsyncResponses, ""), URL, True),
        (claude(ClaudeMessages, ""), URL, True),
        (claude(AsyncClaudeMessages, ""), PDF, True),
        (openai(AsyncChat, ""), PDF, False),  # it would open it
        (groq_that_sees(), URL, False),
        (AsyncScript("unknown"), URL, False),
    ],
    ids=lambda value: getattr(value, "model_id", None),
)
def test_models_that_get_urls(model, url, sends):
    attachment = attachments.attachment_from_url(url)
    message = Message("user", [TextPart("what?"), AttachmentPart(attachment)])
    request = chat.ChatRequest("m", [message], attachment_paths=("here",))
    if sends:
        assert build_prompt(request, model, {}).prompt.attachments == [attachment]
        return
    with pytest.raises(Unsupported) as caught:
        build_prompt(request, model, {})
    assert caught.value.param == "here"


# ---- the whole proxy


OPENED: list[str] = []
_watching = False


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if _watching and event in ("socket.getaddrinfo", "socket.connect"):
        OPENED.append(repr(arguments))


sys.addaudithook(_hear)  # can't be removed again


@contextmanager
def watching():
    """Collect all names looked up and all addresses connected to."""
    global _watching
    OPENED.clear()
    _watching = True
    try:
        yield OPENED
    finally:
        _watching = False


def test_watching_notices_a_fetch_by_llm():
    with watching() as opened:
        with pytest.raises(httpx2.ConnectError):
            llm.Attachment(url="http://pictures.invalid/").resolve_type()
    assert "pictures.invalid" in str(opened)


@pytest.fixture
def trap():
    """Run a server that must never get a request."""
    touched = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept():
            try:
                server.accept()
                touched.set()
            except OSError:
                pass

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        assert not touched.is_set()


def ask(proxy, path, body):
    request = Request(proxy.url + path, json.dumps(body).encode())
    request.add_header("content-type", "application/json")
    request.add_header("anthropic-version", "2023-06-01")
    with urlopen(request, timeout=10) as response:
        return response.read().decode()


def ask_chat(url, model="openai", **fields):
    image = {"type": "image_url", "image_url": {"url": url}}
    content = [{"type": "text", "text": "what is it?"}, image]
    return {"model": model, "messages": [{"role": "user", "content": content}], **fields}


def messages(url, model="openai", type_="image"):
    content = [{"type": type_, "source": {"type": "url", "url": url}}]
    return {"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": content}]}


WIRES = pytest.mark.parametrize(
    "path, body, field",
    [
        ("/v1/chat/completions", ask_chat, "messages[0].content[1].image_url.url"),
        ("/v1/messages", messages, "messages.0.content.0.source.url"),
    ],
    ids=["openai", "anthropic"],
)


def refusal(proxy, path, body):
    with pytest.raises(HTTPError) as caught:
        ask(proxy, path, body)
    assert caught.value.code == 400
    return caught.value.read().decode()


@WIRES
def test_private_addresses_are_refused_without_a_connection(path, body, field, trap):
    with playing(chat_stream({"content": "a cat"})) as provider:
        with running(openai(AsyncChat, provider.url)) as proxy, watching() as opened:
            for url in (f"http://127.0.0.1:{trap}/a.png", f"http://localhost:{trap}/a.png"):
                said = refusal(proxy, path, body(url))
                assert "URL refused: " in said
                assert field in said or field.replace(".0", "[0]") in said
        assert not provider.bodies
    assert str(trap) not in str(opened)


@WIRES
def test_urls_can_be_refused_altogether(path, body, field):
    with playing(chat_stream({"content": "a cat"})) as provider:
        model = openai(AsyncChat, provider.url)
        with running(model, remote_images="refuse") as proxy:
            said = refusal(proxy, path, body(URL))
            assert field in said or field.replace(".0", "[0]") in said
            data = "data:image/png;base64,iVBORw0KGgoAAAAA"
            ask(proxy, "/v1/chat/completions", ask_chat(data))
    assert len(provider.bodies) == 1


@WIRES
@pytest.mark.parametrize("url", ["file:///etc/passwd", "/etc/passwd", "", "ftp://example.org/"])
def test_files_and_paths_are_refused(path, body, field, url):
    with running(AsyncScript("openai", "x")) as proxy:
        refusal(proxy, path, body(url))


@WIRES
def test_a_model_whose_plugin_would_fetch_the_url_is_not_run(path, body, field):
    """Groq's plugin reads the content of every attachment."""
    groq = groq_that_sees()
    groq.key = "none"
    with running(groq) as proxy, watching() as opened:
        said = refusal(proxy, path, body(URL, "groq"))
    assert "needs the content itself: send base64 data, not a URL" in said
    assert HOST not in str(opened)


def anthropic_answer(_, handler):
    begin_sse(handler)
    usage = {"input_tokens": 1, "output_tokens": 1}
    message = {"id": "m", "type": "message", "role": "assistant", "model": "x", "content": []}
    message |= {"stop_reason": None, "stop_sequence": None, "usage": usage}
    block = {"type": "text", "text": ""}
    for event in [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "cat"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage},
        {"type": "message_stop"},
    ]:
        say_event(handler, event, event["type"])


def test_anthropics_plugin_sends_images_and_documents_as_urls():
    with playing(anthropic_answer) as provider:
        model = claude(AsyncClaudeMessages, provider.url)
        with running(model) as proxy, watching() as opened:
            ask(proxy, "/v1/messages", messages(URL, "claude"))
            ask(proxy, "/v1/messages", messages(PDF, "claude", "document"))
    sent = [body["messages"][0]["content"][0] for body in provider.bodies]
    assert sent == [
        {"type": "image", "source": {"type": "url", "url": URL}},
        {"type": "document", "source": {"type": "url", "url": PDF}},
    ]
    assert HOST not in str(opened)


def test_a_url_is_never_fetched(tmp_path, llm_user_path, capsys):
    """Not for chat, log, recall, export, import, replay or bench."""
    database, other = llm_user_path / "logs.db", tmp_path / "other.db"
    with watching() as opened:
        with playing(chat_stream({"content": "a cat"})) as provider:
            model = openai(AsyncChat, provider.url)
            with running(model) as proxy:
                first = ask_chat(URL, stream=True)
                ask(proxy, "/v1/chat/completions", first)
                said = {"role": "assistant", "content": "a cat"}
                more = [*first["messages"], said, {"role": "user", "content": "sure?"}]
                ask(proxy, "/v1/chat/completions", first | {"messages": more})
                ask(proxy, "/v1/messages/count_tokens", messages(URL))
                sent = [body["messages"][0]["content"][1] for body in provider.bodies]
                assert sent == [{"type": "image_url", "image_url": {"url": URL}}] * 2
                ids = [exchange.id for exchange in proxy.reports]
            server = ["--base-url", provider.url, "--models", "openai", "--warmup", "0"]
            assert bench.main(server, "x") == 0
            assert provider.bodies[2]["messages"][0]["content"][1]["image_url"]["url"] == URL
            with running(model):
                assert bench.main(["--models", "openai", "--warmup", "0"], "x") == 0
            assert len(provider.bodies) == 6
        lines = tmp_path / "out.jsonl"
        for arguments in ([str(lines)], ["--format", "llama-stack", str(tmp_path / "folder")]):
            assert export_import.export_main(arguments, "x") == 0
        assert export_import.import_main([str(lines), "--database", str(other)], "x") == 0
        assert URL in lines.read_text()
        with running(database=other, replay="replay", replay_speed=0) as proxy:
            assert "a cat" in ask(proxy, "/v1/chat/completions", first)
        assert log.main([ids[0]], "x") == 0
        assert log.main(["--verify"], "x") == 0
        assert report.main(["last", "--html", str(tmp_path / "page.html")], "x") == 0
    assert database.exists()
    assert HOST not in str(opened)
    assert any("127.0.0.1" in one for one in opened)
