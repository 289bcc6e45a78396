"""Render the conclusions of a study as HTML."""

from __future__ import annotations

from collections.abc import Iterator

from ..conclusions import Name, Sentence, Strong, conclusions
from ..data import Study
from ..figures import Figures
from ..numbers import shortened
from . import markup

MODEL_CHARS = 60  # of a model's name in a sentence


def summary(study: Study, figures: Figures) -> Iterator[tuple[str, str]]:
    """Yield questions with their answers as HTML."""
    for conclusion in conclusions(study, figures):
        yield conclusion.question, _html(conclusion.answer)


def _html(sentence: Sentence) -> str:
    return "".join(map(_part, sentence))


def _part(part: str | Name | Strong) -> str:
    match part:
        case str():
            return markup.text(part)
        case Name(text, is_model=False):
            return markup.name(text)
        case Name(text):
            return f'<span class="model">{markup.name(shortened(text, MODEL_CHARS))}</span>'
        case Strong(parts):
            return f"<b>{_html(parts)}</b>"
