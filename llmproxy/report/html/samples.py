"""Render requests: each prompt with the recorded reply and the reply of every model.

Differences from the recorded reply are marked word by word. All text comes from clients and
models: long text is cut, and all of it goes through `markup.text`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from llm.parts import Message, ReasoningPart, TextPart, ToolResultPart

from .. import numbers
from ..data import Measured, Sample, Study
from . import charts, content, markup
from .word_diff import Change, differences

MAX_SAMPLES = 200  # requests on a page: more than a person opens
MAX_REQUESTS_CHARS = 6_000_000  # of all their markup; a phone still opens it
MAX_ERROR_CHARS = 600
MAX_FIRST_CHARS = 140  # of a request's one line
MAX_REPEATS = 10  # responses of a model to one request
MAX_MODELS = 12  # responses side by side
LEAST_KEPT = 0.25  # of the longer text: with less in common, marks would cover everything


def requests(study: Study, models: Mapping[str, int]) -> str:
    """Render the requests in the study's order; of traffic, the newest first.

    models: all models with responses, with their numbers in the charts.
    """
    given: dict[str, dict[str, list[Measured]]] = {}
    for answer in study.answers:
        if answer.counts:
            given.setdefault(answer.sample, {}).setdefault(answer.model, []).append(answer)
    samples = list(study.samples)
    if not study.is_run:
        samples.reverse()
    written, chars = [], 0
    for place, sample in enumerate(samples[:MAX_SAMPLES], 1):
        written.append(_request(place, sample, given.get(sample.id, {}), models, study.is_run))
        chars += len(written[-1])
        if chars > MAX_REQUESTS_CHARS:
            break
    left_out = len(samples) - len(written)
    if left_out:
        more = numbers.count_of(left_out, "more request")
        written.append(f'<p class="soft">{more} left out, to keep this page small.</p>')
    return "".join(written)


def stamp(at: datetime, day: bool = True, seconds: bool = False) -> str:
    """Format a time: shown as local time to the minute or second, marked up in UTC."""
    local = at.astimezone()
    shown = f"{local:%Y-%m-%d %H:%M}" if day else f"{local:%H:%M}"
    shown += f"{local::%S}" if seconds else ""
    return f'<time datetime="{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}">{shown}</time>'


def _received(sample: Sample) -> str:
    if sample.received is None:
        return ""
    return f"{stamp(sample.received)} {numbers.zone(sample.received.astimezone())} · "


def _request(
    place: int,
    sample: Sample,
    given: Mapping[str, Sequence[Measured]],
    models: Mapping[str, int],
    is_run: bool,
) -> str:
    open_ = " open" if place == 1 else ""  # to show what the folded ones contain
    cards = []
    if sample.recorded is not None:
        cards.append(_card(sample.recorded, None, None, is_run))
    for model in list(models)[:MAX_MODELS]:
        if model in given:
            cards.append(_of_model(given[model], models[model], sample.recorded, is_run))
    schema = '<p class="soft">asked for JSON by a schema</p>' if sample.schema is not None else ""
    return (
        f'<details class="request"{open_}><summary>{_summary(place, sample, given, models)}'
        f'</summary><div class="inside">{_prompt(sample)}{schema}'
        f'<div class="answers">{"".join(cards)}</div>'
        f'<p class="soft ids">{_received(sample)}{markup.name(sample.client)} · '
        f"request <code>{markup.name(sample.id)}</code></p></div></details>"
    )


def _summary(
    place: int,
    sample: Sample,
    given: Mapping[str, Sequence[Measured]],
    models: Mapping[str, int],
) -> str:
    first = _first_words(sample.prompt)
    chips = "".join(
        f'<span class="chip">{charts.mark(models[model])}{_in_short(given[model][0])}</span>'
        for model in list(models)[:MAX_MODELS]
        if model in given
    )
    return (
        f'<span class="place">{place}</span><span class="first" dir="auto">{first}</span>'
        f'<span class="chips">{chips}</span>'
    )


def _in_short(answer: Measured) -> str:
    if answer.exchange.status != "ok":
        kind = markup.name(answer.error_kind or answer.exchange.status)
        return f'<span class="failure">{kind}</span>'
    return "–" if answer.duration_ms is None else numbers.seconds(answer.duration_ms)


def _first_words(prompt: Sequence[Message]) -> str:
    """Return the start of the newest user message, else of any text, else of a tool result.

    Most prompts of an agent are tool results.
    """
    texts = [
        (message.role, part.text)
        for message in reversed(prompt)
        for part in message.parts
        if isinstance(part, TextPart) and part.text.strip()
    ]
    users = [text for role, text in texts if role == "user"]
    newest = next(iter(users or [text for _, text in texts]), "")
    if newest:
        return markup.text(_one_line(newest))
    return next(_results(prompt), '<span class="soft">no text</span>')


def _one_line(text: str) -> str:
    return " ".join(text[: MAX_FIRST_CHARS * 4].split())[:MAX_FIRST_CHARS]


def _results(prompt: Sequence[Message]) -> Iterator[str]:
    """Yield tool results, the newest first, each on one line."""
    for message in reversed(prompt):
        for part in message.parts:
            if isinstance(part, ToolResultPart):
                output = markup.text(_one_line(part.exception or part.output))
                yield f'<span class="soft">{content.result_title(part)}</span> {output}'


# ---- the prompt


def _prompt(sample: Sample) -> str:
    earlier = (
        f'<p class="soft">{numbers.count_of(sample.earlier, "earlier message")} not shown</p>'
        if sample.earlier
        else ""
    )
    messages = "".join(
        f'<div class="message"><h3>{markup.name(message.role)}</h3>'
        f"{content.parts(message.parts)}</div>"
        for message in sample.prompt[: content.MAX_PARTS]
    )
    return f'<div class="prompt">{earlier}{messages}{content.more(sample.prompt, "message")}</div>'


# ---- responses


def _of_model(
    answers: Sequence[Measured], number: int, recorded: Measured | None, is_run: bool
) -> str:
    """Render the first response of a model, with the others folded below it."""
    first, *others = sorted(answers, key=lambda answer: answer.repeat)
    card = _card(first, number, recorded, is_run)
    if not others:
        return card
    folded = "".join(_card(answer, number, recorded, is_run) for answer in others[:MAX_REPEATS])
    if len(others) > MAX_REPEATS:
        folded += f'<p class="soft">{len(others) - MAX_REPEATS:,} more not shown</p>'
    label = numbers.count_of(len(others), "more response")
    chips = " · ".join(_in_short(answer) for answer in others[:MAX_REPEATS])
    return (
        f'<div class="stack">{card}<details class="again"><summary>{label}: {chips}</summary>'
        f"{folded}</details></div>"
    )


def _card(answer: Measured, number: int | None, recorded: Measured | None, is_run: bool) -> str:
    """Render one response; `number` is None for the recorded one."""
    if number is None:
        head = f'Recorded <span class="soft">{markup.name(answer.model)}</span>'
    else:
        head = charts.mark(number) + markup.name(answer.model)
    again = f' <span class="soft">again, {answer.repeat}</span>' if answer.repeat > 1 else ""
    return (
        f'<article class="answer"><h3>{head}{again}</h3><p class="facts">{_facts(answer)}</p>'
        f"{_failure(answer)}{_reply(answer, recorded)}"
        f'<p class="soft ids"><code>{markup.name(answer.exchange.id)}</code></p></article>'
    )


def _facts(answer: Measured) -> str:
    """Format times, tokens and finish reason on one line."""
    return " · ".join(_each_fact(answer)) or "nothing measured"


def _each_fact(answer: Measured) -> Iterator[str]:
    if answer.ttft_ms is not None:
        yield f"{numbers.seconds(answer.ttft_ms)} to the first event"
    if answer.exchange.is_first_run:
        yield "first run in its process, may include loading the model"
    if answer.exchange.queue_ms is not None:
        yield f"{numbers.seconds(answer.exchange.queue_ms)} of waiting before"
    if answer.duration_ms is not None:
        yield f"{numbers.seconds(answer.duration_ms)} in total"
    usage = answer.exchange.usage
    if usage.input_tokens is not None or usage.output_tokens is not None:
        reasoning = f", {usage.reasoning_tokens:,} reasoning" if usage.reasoning_tokens else ""
        cached = f" ({usage.cached_tokens:,} cached)" if usage.cached_tokens else ""
        into, out = (
            "?" if count is None else f"{count:,}"
            for count in (usage.input_tokens, usage.output_tokens)
        )
        yield f"{into}{cached} → {out} tokens{reasoning}"
    if answer.exchange.finish_reason is not None:
        yield markup.name(answer.exchange.finish_reason)


def _failure(answer: Measured) -> str:
    if answer.exchange.status == "ok":
        return ""
    kind = markup.name(answer.error_kind or answer.exchange.status)
    error = answer.exchange.error or ""
    message = f": {markup.text(error[:MAX_ERROR_CHARS])}{content.cut(error, MAX_ERROR_CHARS)}"
    return f'<p class="failed" dir="auto"><b>{kind}</b>{message if error else ""}</p>'


def _reply(answer: Measured, recorded: Measured | None) -> str:
    parts = [part for message in answer.reply for part in message.parts]
    if not parts:
        return '<p class="soft">empty reply</p>' if answer.exchange.status == "ok" else ""
    if recorded is None or not (text := _text(answer)):
        return content.parts(parts)
    others = [part for part in parts if not isinstance(part, TextPart)]
    reasoning = [part for part in others if isinstance(part, ReasoningPart)]
    rest = [part for part in others if not isinstance(part, ReasoningPart)]
    return content.parts(reasoning) + _held_against(_text(recorded), text) + content.parts(rest)


def _text(answer: Measured) -> str:
    return "".join(
        part.text
        for message in answer.reply
        for part in message.parts
        if isinstance(part, TextPart)
    ).replace("\r\n", "\n")


def _held_against(recorded: str, text: str) -> str:
    """Render a text with its differences from the recorded one marked, or say why not."""
    if text.strip() == recorded.strip():
        return f'<p class="note same">the same text</p>{content.block(text)}'
    if not recorded:
        return content.block(text)
    changes = differences(recorded[: content.MAX_TEXT_CHARS], text[: content.MAX_TEXT_CHARS])
    if changes is None:
        return f'<p class="note">too long to mark what differs</p>{content.block(text)}'
    kept = sum(len(change.kept) for change in changes)
    if kept < LEAST_KEPT * max(
        len(recorded[: content.MAX_TEXT_CHARS]), len(text[: content.MAX_TEXT_CHARS])
    ):
        return f'<p class="note">too different to compare</p>{content.block(text)}'
    marked = "".join(map(_marked, changes))
    return (
        f'<pre class="marked" dir="auto">{marked}{content.cut(text, content.MAX_TEXT_CHARS)}</pre>'
    )


def _marked(change: Change) -> str:
    removed, added = markup.text(change.removed), markup.text(change.added)
    return (
        markup.text(change.kept)
        + (f"<del>{removed}</del>" if removed else "")
        + (f"<ins>{added}</ins>" if added else "")
    )
