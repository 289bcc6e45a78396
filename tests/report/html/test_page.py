"""The page is read back as a browser would: its elements, its words, and what it must not hold."""

import dataclasses
import re
import types
import typing
import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import pytest
from llm import Attachment
from llm.parts import (
    AttachmentPart,
    Message,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

from llmproxy.core.usage import Usage
from llmproxy.report.data import NO_MODEL, Measured, Sample, Study
from llmproxy.report.figures import figures
from llmproxy.report.html import page as rooms_page
from llmproxy.report.html import samples
from llmproxy.report.html.page import page
from llmproxy.report.prices import Price
from tests.browser import open_browser
from tests.report.studies import BEGAN, a_failure, a_sample, a_study, an_answer, changed, said

VOID = {"meta", "br"}
INLINE = {"b", "bdi", "span", "del", "ins", "code", "time", "path"}


class Reader(HTMLParser):
    """Reads a page strictly: every element is closed, in its order."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.words, self._open = [], [], []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)
        if tag not in INLINE:
            self.words.append(" ")

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag not in INLINE:
            self.words.append(" ")

    def handle_data(self, data):
        if "style" not in self._open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())


def read(html):
    """Look at what holds of every page, and give it read."""
    html.encode()
    assert "\0" not in html
    reader = Reader(html)
    for tag, attributes in reader.elements:
        assert tag not in {"script", "iframe", "object", "embed", "img", "link", "base", "form"}
        for name in attributes:
            assert not name.startswith("on"), (tag, name)
            assert name not in {"src", "href", "xlink:href", "action", "srcset", "data"}, (
                tag,
                name,
            )
            assert name != "style", (tag, name)
    assert html.count("<style>") == html.count("</style>") == 1
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ET.fromstring(svg)
    return reader


def the_page(study, prices=None, **options):
    return page(study, figures(study, prices), **options)


# ---- what it says


def test_two_models_are_told_apart_in_words():
    study = a_study(n=8)
    words = read(the_page(study, {"a": Price(1, 2), "b": Price(2, 4)})).text
    assert "Benchmark · 8 requests · 2 models · repeat 1, concurrency 1, seed 0" in words
    assert "2026-01-02 03:04 to 03:06 UTC" in words
    assert (
        "First event a is faster than b by 20 ms (95 % interval 20 to 20 ms, 8 requests); "
        "medians 135 ms and 155 ms." in words
    )
    assert "a is cheapest" in words
    assert "Errors None in 16 responses." in words


def test_no_model_is_faster_where_chance_could_have_made_it_so():
    study = a_study(models=("a",), n=8)
    others = [
        changed(
            answer,
            id=f"b{answer.exchange.id}",
            model="b",
            ttft_ms=answer.ttft_ms + (9 if i % 2 else -9),
        )
        for i, answer in enumerate(study.answers)
    ]
    study = dataclasses.replace(
        study, models=("a", "b"), answers=(*study.answers, *others), planned=16
    )
    words = read(the_page(study)).text
    assert "First event No difference beyond chance: " in words
    assert "is faster" not in words.split("Whole response")[0]


def test_too_few_requests_say_nothing():
    words = read(the_page(a_study(n=2))).text
    assert (
        "First event Too few requests to tell (6 are needed, both answered 2): "
        "a 105 ms, b 125 ms." in words
    )
    assert "is faster" not in words


def test_of_many_models_the_fastest_and_the_next_are_named():
    words = read(the_page(a_study(models=("a", "b", "c", "d"), n=12))).text
    assert (
        "First event a is the fastest, median 155 ms. Next is b, slower by 20 ms "
        "(95 % interval 20 to 20 ms, 12 requests)." in words
    )
    assert (
        "Comparisons 30 made, each pair of models by each measure: 18 beyond chance if "
        "taken alone, 18 after Holm's correction for their number." in words
    )


def test_a_higher_rate_is_the_faster_one():
    study = a_study(n=8)
    answers = [
        changed(answer, tokens_per_second=30.0) if answer.model == "b" else answer
        for answer in study.answers
    ]
    words = read(the_page(dataclasses.replace(study, answers=answers))).text
    assert (
        "Tokens per second b is faster than a by 20/s (95 % interval 20 to 20, 8 requests)" in words
    )


def test_one_model_is_only_described():
    words = read(the_page(a_study(models=("a",), n=8))).text
    assert "First event a: median 135 ms (95 % interval" in words


def test_errors_are_told_with_their_kind_and_words():
    study = a_study(n=6)
    failure = a_failure(model="b", sample=study.samples[0].id, repeat=2)
    study = dataclasses.replace(study, answers=(*study.answers, failure), planned=None)
    words = read(the_page(study)).text
    assert "Errors b 1 of 7 (rate_limit); the other none." in words
    assert "rate_limit: slow down" in words


def test_figures_have_tokens_gaps_setup_and_warmups():
    study = a_study(n=6)
    warmup = an_answer(model="a", repeat=0, sample=study.samples[0].id)
    answers = [
        changed(answer, setup_ms=12.0, usage=Usage(20, 11, cached_tokens=7, reasoning_tokens=3))
        for answer in study.answers
    ]
    words = read(the_page(dataclasses.replace(study, answers=(warmup, *answers)))).text
    assert "6/6 +1 warm-up" in words
    for row in (
        "in 20 20",
        "in, cached 42",
        "out, reasoning 18",
        "Connecting (not in other times)",
        "longest",
        "same text",
    ):
        assert row in words


def test_failures_caches_and_tails_are_in_the_figures():
    study = a_study(models=("a",), n=300, recorded=False, settings={"cache": "cold"})
    warm = [changed(study.answers[1], usage=Usage(20, 11, cached_tokens=20))]
    failure = dataclasses.replace(a_failure(sample=study.samples[0].id), was_sent_again=True)
    answers = (failure, a_failure(sample=study.samples[0].id), *warm, *study.answers[2:])
    words = read(the_page(dataclasses.replace(study, answers=answers))).text
    assert "299/300 1 failed before and sent again" in words
    assert (
        "never reached 1 p95, 95 % interval 2.95 s 2.87 to 3.03 s "
        "p99, 95 % interval 3.07 s 3.00 s or more of the prompt, cached 0 % "
        "median, nothing cached 1.60 s 298 responses median, some cached 110 ms 1 response" in words
    )
    assert "counts as later than any" in words
    assert "A unique line was put first in each request" in words


def test_every_comparison_has_its_p_value():
    words = read(the_page(a_study(n=8))).text
    assert "a and b First event −20 ms −20 to −20 ms 8 0.039 a" in words
    assert "a and b Similarity 0.00 0.00 to 0.00 8 1.000 –" in words


# ---- which study it is


def test_a_run_that_is_not_over_says_so():
    study = a_study(n=3, ended=None, planned=40)
    assert "This run is not over: 6 of 40 responses so far." in read(the_page(study)).text
    study = a_study(n=3, planned=40)
    assert "This run was not finished: 6 of 40 responses so far." in read(the_page(study)).text
    assert "This run" not in read(the_page(a_study(n=3))).text


def test_an_empty_study_says_so():
    html = the_page(Study(title="The log", is_run=False))
    assert "Nothing has been recorded yet." in read(html).text
    assert "<svg" not in html


def traffic(n=8):
    samples, answers = [], []
    for i in range(n):
        at = BEGAN + timedelta(minutes=i)
        prompt = [Message("user", [TextPart(f"Question {i}?")])]
        samples.append(a_sample(id=f"s{i}", received=at, prompt=prompt))
        answers.append(an_answer(id=f"a{i}", sample=f"s{i}", model="ab"[i % 2], received=at))
    return Study(
        title="The log",
        is_run=False,
        began=BEGAN,
        ended=BEGAN + timedelta(days=1),
        models=("a", "b"),
        samples=samples,
        answers=answers,
    )


def test_traffic_has_its_requests_newest_first_and_no_agreement():
    html = the_page(traffic(), recorded_by="llmproxy 9")
    reader = read(html)
    words = reader.text
    assert words.index("Question 7?") < words.index("Question 0?")
    assert "Recorded traffic 8 requests" in words and "2026-01-02 03:04 to 2026-01-03" in words
    assert "Agreement" not in words and "Similarity" not in words
    assert "not over" not in words
    assert words.endswith("llmproxy 9")
    assert "refresh" not in html


def test_traffic_has_no_verdict_and_no_charts_of_what_can_not_be_compared():
    """Its models were asked different things."""
    html = the_page(traffic(40))
    assert (
        "Conclusions" not in html
        and "All comparisons" not in html
        and '<svg class="chart' not in html
    )
    one = dataclasses.replace(
        traffic(), models=("a",), answers=[each for each in traffic().answers if each.model == "a"]
    )
    assert "Charts" in read(the_page(one)).text


def test_names_that_no_model_has_are_failures_and_no_models():
    lost = a_failure(id="a9", sample="s9", model=NO_MODEL, model_asked="gtp-5", model_used=None)
    study = traffic()
    study = dataclasses.replace(
        study,
        samples=[*study.samples, a_sample(id="s9")],
        answers=[*study.answers, lost],
        no_model={"gtp-5": 1},
    )
    html = the_page(study)
    words = read(html).text
    assert "1 request failed before any model was asked. Asked for: gtp-5 1." in words
    assert [each.model for each in figures(study).models] == ["a", "b"]
    assert html.count('<th scope="col">') == 2 * 2  # the figures stand in two tables


def test_the_head_forbids_all_but_its_own_style():
    metas = [attributes for tag, attributes in read(the_page(a_study())).elements if tag == "meta"]
    policy = next(
        each["content"] for each in metas if each.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert {"charset": "utf-8"} in metas
    assert any(each.get("name") == "viewport" for each in metas)


# ---- side by side


def one_request(recorded, *answers, **sample):
    """A page of one request: what was recorded, and what was answered since."""
    old = an_answer(model="old", sample="s", reply=recorded)
    given = [
        answer
        if isinstance(answer, Measured)
        else an_answer(sample="s", repeat=i, id=f"a{i}", reply=answer)
        for i, answer in enumerate(answers, 1)
    ]
    sample = a_sample(id="s", recorded=old, **sample)
    return the_page(
        Study(
            title="one", is_run=True, began=BEGAN, ended=BEGAN, models=("a",),
            samples=[sample], answers=given,
        )
    )  # fmt: skip


def test_what_differs_from_the_recorded_answer_is_marked():
    html = one_request(said("The sum is four <b>."), said("The sum is five <b>."))
    assert "The sum is <del>four</del><ins>five</ins> &lt;b&gt;." in html


def test_the_same_text_is_said_to_be_the_same():
    assert "the same text" in one_request(said("Four."), said("Four. "))


def test_texts_with_little_in_common_are_not_marked():
    html = one_request(said("One thing or another, it is said."), said("Nope!"))
    assert "too different to compare" in html
    assert "<ins>Nope" not in html


def test_long_texts_are_cut_and_texts_of_many_words_not_marked():
    html = one_request(said("a." * 500_000), said("b." * 500_000))
    assert "too long to mark what differs" in html
    assert "994,000 more characters" in html
    assert len(html) < 60_000


def test_further_answers_are_folded():
    html = one_request(said("Four."), said("Four."), said("Five."), said("Six."))
    words = read(html).text
    assert "2 more responses: 1.10 s · 1.10 s" in words
    assert "again, 3" in words


def test_calls_reasoning_attachments_and_results_are_shown():
    prompt = [
        Message("tool", [ToolResultPart(name="read", output="x = 1", exception=None)]),
        Message("tool", [ToolResultPart(name="rm", output="", exception="no such file")]),
        Message("user", [AttachmentPart(Attachment(type="image/png", content=b"x" * 12_000))]),
        Message("user", [AttachmentPart(Attachment(type="image/png", url="https://e.org/a.png"))]),
    ]
    reply = [
        Message(
            "assistant",
            [
                ReasoningPart("Two and two."),
                ReasoningPart("", redacted=True),
                ToolCallPart("add", {"a": [2, 2], "sign": "ü"}),
            ],
        )
    ]
    words = read(one_request(said("Four."), reply, prompt=prompt, earlier=3)).text
    for shown in (
        "3 earlier messages not shown",
        "read returned x = 1",
        "rm failed no such file",
        "[image/png, 12,000 bytes]",
        "[image/png, https://e.org/a.png]",
        "Reasoning, 12 characters Two and two.",
        "Hidden reasoning",
        'add({"a": [2, 2], "sign": "ü"})',
    ):
        assert shown in words


def test_a_prompt_of_tool_results_alone_is_known_by_the_newest():
    results = [
        ToolResultPart(name="read", output="x = 1"),
        ToolResultPart(name="run", output="", exception="1 failed\n2 passed"),
    ]
    prompt = [Message("tool", [result]) for result in results]
    html = one_request(said("Four."), said("Four."), prompt=prompt)
    assert '<span class="soft"><bdi>run</bdi> failed</span> 1 failed 2 passed' in html


def test_models_stand_in_one_order_beside_every_request():
    study = a_study(n=2)
    a1, a2, b1, b2 = study.answers  # as a run asks: another model begins each time
    html = the_page(dataclasses.replace(study, answers=(a1, b1, b2, a2)))
    for chips in re.findall(r'<span class="chips">.*?</summary>', html):
        assert chips.index("m0") < chips.index("m1")


def test_an_answer_that_broke_off_shows_what_came():
    cut = an_answer(
        sample="s", status="error", error_kind="cut", error="the peer went", reply=said("Fou")
    )
    words = read(one_request(said("Four."), cut)).text
    assert "cut: the peer went" in words
    assert "Fou" in words


# ---- size


def test_a_page_of_many_requests_leaves_some_out():
    study = a_study(n=samples.MAX_SAMPLES + 5)
    assert "5 more requests left out" in read(the_page(study)).text


def test_requests_of_many_long_answers_are_bounded():
    text = "word " * 2000
    asked = [a_sample(id=f"s{i}") for i in range(200)]
    answers = [
        an_answer(id=f"{i}.{r}", sample=f"s{i}", repeat=r, reply=said(text))
        for i in range(200)
        for r in range(1, 9)
    ]
    study = Study(title="big", is_run=True, models=("a",), samples=asked, answers=answers)
    html = the_page(study)
    assert len(html) < samples.MAX_REQUESTS_CHARS + 400_000
    assert "more requests left out" in html


def test_a_usual_page_is_small():
    study = a_study(n=20, repeat=2)
    assert len(the_page(study).encode()) < 200_000


def test_more_models_than_are_drawn_are_counted():
    models = tuple(f"model-{i}" for i in range(rooms_page.MAX_CHARTED + 14))
    words = read(the_page(a_study(models=models, n=1))).text
    assert "14 models not in the charts." in words
    assert "2 models not shown." in words


def test_many_models_are_in_several_tables_that_no_screen_cuts():
    models = tuple(f"model-{i}" for i in range(9))
    html = the_page(a_study(models=models, n=1))
    heads = re.findall(r"<thead><tr><td></td>(.*?)</tr></thead>", html)
    assert [re.findall(r"model-\d", head) for head in heads[:3]] == [
        ["model-0", "model-1", "model-2"],
        ["model-3", "model-4", "model-5"],
        ["model-6", "model-7", "model-8"],
    ]


# ---- hostile words

HOSTILE = [
    "<script>alert(1)</script>",
    "</style></title></pre></details><img src=x onerror=alert(1)>",
    "\"' onmouseover='alert(1)' x=\"",
    "javascript:alert(1)",
    "<!-- --> <![CDATA[ ]]> &lt;script&gt; &#60;b&#62;",
    "\0\x1b[31m\x85\r\n\t",
    "\ud800 \udfff",
    "\u202egnp.exe\u2066 \u200e\ufeff",
    "\ufffe\uffff\U0001ffff\U000e0041",
    "<" * 1_000_000,
]


def filled(shape, words, name=""):
    """Make a value of a type with the words in every place that takes a string."""
    origin, arguments = typing.get_origin(shape), typing.get_args(shape)
    if shape is str or shape is typing.Any:
        return words
    if shape is Message:
        return Message(words, every_part(words))
    if origin is typing.Literal:
        return "error" if "error" in arguments else arguments[0]
    if origin in (typing.Union, types.UnionType):
        return filled(next(each for each in arguments if each is not type(None)), words, name)
    if origin is dict or (origin is not None and issubclass(origin, typing.Mapping)):
        return {words: filled(arguments[1], words)}
    if origin is tuple:
        return tuple(filled(each, words) for each in arguments if each is not Ellipsis)
    if origin is not None:  # a sequence
        return [filled(arguments[0], words)]
    if dataclasses.is_dataclass(shape):
        hints = typing.get_type_hints(shape)
        return shape(
            **{f.name: filled(hints[f.name], words, f.name) for f in dataclasses.fields(shape)}
        )
    return {int: 1, float: 7.0, bool: True, datetime: datetime(2026, 1, 1, tzinfo=UTC)}[shape]


def every_part(words):
    picture = Attachment(type=words, url=words)
    return [
        TextPart(words),
        ReasoningPart(words),
        ToolCallPart(words, {words: [words]}, words),
        ToolResultPart(name=words, output=words, attachments=[picture]),
        ToolResultPart(name=words, output=words, exception=words),
        AttachmentPart(picture),
        AttachmentPart(Attachment(type=None, content=b"x")),
    ]


@pytest.mark.parametrize("is_run", [True, False])
@pytest.mark.parametrize("words", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_words_in_every_field_show_as_text(words, is_run):
    study = dataclasses.replace(filled(Study, words), is_run=is_run)
    well = changed(study.answers[0], status="ok", id=f"{words}2", repeat=2)
    plain = dataclasses.replace(well, reply=said(words + " and more"), repeat=3)
    recorded = changed(
        study.samples[0].recorded, status="ok", reply=said("some " + words + " and less")
    )
    sample = dataclasses.replace(study.samples[0], recorded=recorded)
    study = dataclasses.replace(
        study, answers=[*study.answers, well, plain], samples=[sample]
    )  # fmt: skip
    html = page(study, figures(study), recorded_by=words[:99])
    reader = read(html)
    assert len(html) < 600_000
    if words == HOSTILE[0]:
        assert words in reader.text
    empty = Study(title=words, is_run=is_run)
    read(page(empty, figures(empty)))


def test_filling_reaches_every_string():
    """So that the test above means what it says."""
    study = filled(Study, "¤")
    answer, recorded = study.answers[0], study.samples[0].recorded
    for value in (study, study.samples[0], answer, answer.exchange, recorded, recorded.exchange):
        hints = typing.get_type_hints(type(value))
        strings = [name for name, hint in hints.items() if str in (hint, *typing.get_args(hint))]
        assert strings
        assert all("¤" in str(getattr(value, name)) for name in strings)
    assert {Study, Sample, Measured} <= {
        type(study),
        type(study.samples[0]),
        type(study.answers[0]),
    }


def test_numbers_that_are_none_are_not_written():
    nan, infinite = float("nan"), float("inf")
    study = a_study(n=6)
    odd = [
        changed(
            answer,
            ttft_ms=nan,
            duration_ms=infinite,
            ticks=((nan, 1), (infinite, 2)),
            setup_ms=nan,
        )
        for answer in study.answers
    ]
    html = page(dataclasses.replace(study, answers=odd), figures(study))
    drawn = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert drawn and not any(re.search(r"\b(nan|inf)\b", svg) for svg in drawn)
    assert not re.search(r"\b(nan|inf)\b", read(html).text)


# ---- in a browser


@pytest.mark.slow
def test_no_table_hides_a_column(tmp_path):
    """With many models of long names, tables wrap at each width instead of being cut."""
    names = [f"provider/a-model-with-a-long-name-{number}-2026" for number in range(8)]
    path = tmp_path / "page.html"
    with open_browser(tmp_path) as browser:
        for count in (4, 8):
            study = a_study(models=names[:count], n=6)
            found = figures(study)
            found = dataclasses.replace(
                found, models=[dataclasses.replace(each, first_runs=1) for each in found.models]
            )
            path.write_text(page(study, found))
            for width in (390, 800, 1400):
                browser.show(width=width)
                browser.navigate(path.as_uri())
                tables = "[...document.querySelectorAll('.wide')]"
                cut = browser.evaluate(f"{tables}.map(e => e.scrollWidth - e.clientWidth)")
                assert set(cut) == {0}, (count, width)
                browser.screenshot(tmp_path / f"{count}-{width}.png", whole=True)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_browser_shows_it_in_light_dark_narrow_and_on_paper(tmp_path):
    study = a_study(models=("first", "second-model-with-a-long-name" * 4), n=20, repeat=2)
    hostile = a_sample(
        id="h",
        prompt=[
            Message("user", [TextPart("<script>document.title = 'taken'</script>" + "w" * 500)])
        ],
    )
    answer = an_answer(model="first", sample="h", reply=said("<img src=//e.org onerror=alert(1)>"))
    study = dataclasses.replace(
        study, samples=(hostile, *study.samples), answers=(answer, *study.answers)
    )
    path = tmp_path / "page.html"
    path.write_text(the_page(study), encoding="utf-8")
    with open_browser(tmp_path) as browser:
        browser.show()
        browser.navigate(path.as_uri())
        assert browser.evaluate("document.title") == "a run"
        assert browser.evaluate("document.characterSet") == "UTF-8"
        assert browser.evaluate("document.compatMode") == "CSS1Compat"
        shots = {}
        for name, width, scheme, media in (
            ("light", 1280, "light", ""),
            ("dark", 1280, "dark", ""),
            ("narrow", 360, "light", ""),
            ("paper", 800, "light", "print"),
        ):
            browser.show(width=width, scheme=scheme, media=media)
            shots[name] = browser.screenshot(tmp_path / f"{name}.png")
            wide = browser.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"{name} scrolls sideways"
            assert browser.layout()["cssContentSize"]["width"] <= width
        assert len(set(shots.values())) == len(shots)
        assert all(shot.startswith(b"\x89PNG") and len(shot) > 10_000 for shot in shots.values())
        hidden = "[...document.querySelectorAll('.request:not([open]) .inside')]"
        assert browser.evaluate(f"{hidden}.every(each => each.offsetHeight > 0)")  # on paper
        browser.show()
        assert browser.messages == []
        assert browser.requested() == [path.as_uri()]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_words_can_be_read_against_what_is_behind_them(tmp_path):
    """WCAG 2.2, 1.4.3: 4.5 to 1."""
    study = a_study(models=tuple("abcdefgh"), n=6, planned=99)
    failure = a_failure(model="a", sample=study.samples[0].id, repeat=2)
    path = tmp_path / "page.html"
    path.write_text(the_page(dataclasses.replace(study, answers=(*study.answers, failure))))
    with open_browser(tmp_path) as browser:
        for scheme in ("light", "dark"):
            browser.show(scheme=scheme)
            browser.navigate(path.as_uri())
            assert browser.evaluate(LOW_CONTRAST) == []


LOW_CONTRAST = r"""(() => {
  const light = (rgb) => {
    const [r, g, b] = rgb.map(c => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const parts = (colour) => colour.match(/[\d.]+/g).map(Number);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const [r, g, b, a = 1] = parts(getComputedStyle(element).backgroundColor);
      if (a > 0) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const low = new Set();
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(n => n.nodeType == 3 && n.data.trim());
    if (!own || element.tagName == "title" || element.className == "none") continue;
    const style = getComputedStyle(element);
    const colour = element.closest("svg") ? style.fill : style.color;
    const [a, b] = [light(parts(colour).slice(0, 3)), light(behind(element))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) low.add(`${element.tagName}.${element.getAttribute("class")} ${ratio}`);
  }
  for (const element of document.querySelectorAll("svg .solid, svg .bold, .mark path")) {
    const style = getComputedStyle(element);
    const colour = style.fill == "none" ? style.stroke : style.fill;
    const [a, b] = [light(parts(colour).slice(0, 3)), light(behind(element))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) low.add(`${element.getAttribute("class")} ${ratio}`);
  }
  return [...low];
})()"""
