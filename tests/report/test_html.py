from __future__ import annotations

import base64
import copy
import hashlib
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fairlead.constitution.load import load
from fairlead.exchange import Exchange, Media, Message, Reasoning, Refusal, Text, ToolCall, ToolResult, to_json, user
from fairlead.report import read_run, write_report
from fairlead.report.html import render
from fairlead.report.run import run_from
from fairlead.report.visible import visible
from report import example


class Page(HTMLParser):
    """Elements with their attribute names, the visible text, and every attribute value."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.shape: list[tuple[str, tuple[str, ...]]] = []
        self.values: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.odd: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.shape.append((tag, tuple(name for name, _ in attrs)))
        self.values += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_comment(self, data: str) -> None:
        self.odd.append(data)

    def unknown_decl(self, data: str) -> None:
        self.odd.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


HOSTILE = [
    "</script><script>alert(1)</script>",
    "</style><style>*{display:none}</style>",
    '" onmouseover="alert(1)" x="',
    "' autofocus onfocus='alert(1)",
    "<svg onload=alert(1)><animate/></svg>",
    "<img src=x onerror=alert(1)>",
    '<a href="javascript:alert(1)">click</a>',
    "javascript:alert(1)",
    "--><!-- --!><![CDATA[ ]]>",
    "</p></div></section></main><iframe srcdoc='x'>",
    "<details open ontoggle=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt; &#60;script&#62; &quot;",
    "\u202eevil\u202c \u2066x\u2069 \u200bzero \x1b[31mred\x07 \u0000nul \U000e0041tag",
    "<math><mi xlink:href='data:x,<script>'></math>",
    "<" * 50 + ">" * 50,
]


def replaced(body: Any, text: str) -> Any:
    """Every free text of the results and the exchanges replaced by `text`; keys, numbers and fixed words stay."""
    fixed = {
        "better",
        "verdict",
        "evidence",
        "layer",
        "from",
        "to",
        "measure",
        "layers",
        "status",
        "type",
        "role",
        "origin",
    }

    def walk(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: walk(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [walk(v, key) for v in value]
        if isinstance(value, str) and key not in fixed and not (key == "principle" and value == ""):
            return text
        return value

    return walk(copy.deepcopy(body))


def page_of(tmp_path: Path, text: str, names: str = "") -> str:
    """The page of a run in which every text is `text`, and every name of a layer or measure holds `names`."""
    body, lines = example.results(n=20)
    body, lines = replaced(body, text), replaced(lines, text)
    for case, line in enumerate(lines):
        line["case"] = f"{case % 20}"
    if names:
        for item in [*body["measures"], *lines]:
            item["measure"] += names
        for item in body["side_effects"]:
            item["measure"] += names
        body["seconds"] = {f"{k}{names}": v for k, v in body["seconds"].items()}
        body["versions"] = {f"{k}{names}": v for k, v in body["versions"].items()}
        body["guard"]["failed"] = {names: {names: 2}}
        body["guard"]["released"] = {names: 2}
    body["constitution"]["principles"] = [
        {"id": f"{n}{names}", "dimension": names or "x", "severity": 3, "text": text} for n in range(4)
    ]
    return write_report(example.write(tmp_path, body, lines)).read_text(encoding="utf-8")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_adds_no_element_and_no_attribute(tmp_path: Path, text: str) -> None:
    calm = Page(page_of(tmp_path / "calm", "plain words", "plain"))
    hostile = Page(page_of(tmp_path / "hostile", text, text))
    assert hostile.shape == calm.shape
    assert hostile.odd == []
    assert " ".join(visible(text).split()) in hostile.text
    for tag, name, value in hostile.values:
        assert not name.startswith("on") and name not in ("style", "srcdoc", "formaction"), (tag, name)
        if name in ("href", "src", "action", "xlink:href"):
            assert re.fullmatch(r"#[a-z]+", value), value


@pytest.mark.parametrize(
    "char", ["\u202e", "\u2066", "\u200b", "\ufeff", "\x1b", "\x00", "\U000e0041", "\u2028", "\ud800"]
)
def test_what_steers_or_hides_is_named(char: str) -> None:
    assert visible(f"a{char}b") == f"a⟦U+{ord(char):04X}⟧b"


def test_ordinary_text_is_shown_as_it_is() -> None:
    for text in ("plain", "two\nlines\tand a tab", "naïve – “quoted” 花 👩‍🔬 ❤️ שלום", "a < b & c"):
        assert visible(text) == text
    assert visible("dos\r\nline") == "dos\nline"


def test_no_hidden_character_reaches_the_page(tmp_path: Path) -> None:
    page = page_of(tmp_path, HOSTILE[13], HOSTILE[13])
    assert not set(page) & set("\u202e\u202c\u2066\u2069\u200b\x1b\x07\x00\U000e0041")


def test_the_page_needs_nothing_else_and_its_policy_allows_nothing_else(tmp_path: Path) -> None:
    page = write_report(example.make(tmp_path, n=20)).read_text(encoding="utf-8")
    parsed = Page(page)
    tags = Counter(tag for tag, _ in parsed.shape)
    for tag in ("script", "link", "img", "iframe", "object", "embed", "form", "base", "use", "image", "audio", "video"):
        assert not tags[tag], tag
    assert tags["style"] == 1 and not re.search(r"url\(|@import", page)
    assert not any(name in ("src", "style", "srcset") for _, name, _ in parsed.values)
    policy = next(value for tag, name, value in parsed.values if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy
    style = re.search(r"<style>(.*)</style>", page, re.S)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy
    before_policy = page[: page.index("Content-Security-Policy")]
    assert "<style" not in before_policy and "<script" not in before_policy


def test_the_page_is_well_formed(tmp_path: Path) -> None:
    page = write_report(example.make(tmp_path, n=20)).read_text(encoding="utf-8")
    void = {"meta", "line", "circle", "rect", "polyline", "br"}
    opened: list[str] = []

    class Nesting(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag not in void:
                opened.append(tag)

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag in void, tag

        def handle_endtag(self, tag: str) -> None:
            assert opened and opened.pop() == tag, tag

    Nesting().feed(page)
    assert opened == []


# ------------------------------------------------------------------------------------------ what it says


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example.make(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return Page(write_report(folder).read_text(encoding="utf-8")).text


def test_the_summary_counts_and_never_says_aligned(text: str) -> None:
    assert "9 measures of 12 improved, 2 got worse, and 1 cannot be told" in text
    assert "aligned" not in text.lower()
    assert "inner alignment" in text  # named as not measured
    assert "3 of 9600" in text  # missing answers are told


def test_zero_is_a_bound_and_cannot_tell_says_between_what(text: str) -> None:
    assert "0.00 [≤ 0.0" in text and "0.00 [0.00" not in text
    assert re.search(r"cannot tell: between 0\.\d\d worse and 0\.\d\d better", text)


def test_what_is_no_independent_evidence_is_marked(text: str) -> None:
    assert "Shown, but no independent evidence voice" in text and "evidence: related" in text


def test_failing_exchanges_stand_beside_what_the_first_layer_said(folder: Path) -> None:
    run = read_run(folder)
    wrong = run.slipped("sycophancy")
    assert len(wrong) == round((run.row("sycophancy", "guard").value or 0) * 200)  # type: ignore[union-attr]
    page = Page(render(run)).text
    assert f"{len(wrong)} of 200, 12 shown" in page
    assert "base answered" in page and "guard answers" in page
    assert wrong[0].exchange is not None and wrong[0].exchange.reply_text in page
    assert "Nothing among the cases asked: harmful compliance [≤" in page


def test_text_can_be_hidden(folder: Path) -> None:
    run = read_run(folder)
    assert "yes , the" in Page(render(run)).text
    hidden = Page(render(run, hide_text=True)).text
    assert "yes , the" not in hidden and "the reply complies" not in hidden and "hidden: " in hidden


def test_a_principle_is_inert_only_where_that_was_measured(folder: Path) -> None:
    body, _ = example.results(n=20)
    assert "Inert in this run" not in Page(render(run_from(body))).text
    assert "No measure stands beside this principle" in Page(render(run_from(body))).text
    body["counterfactual"] = [
        {"principle": "voice", "measure": "voice", "verdict": "cannot tell"},
        {"principle": "no-harm", "measure": "harmful_compliance", "verdict": "worse"},
    ]
    page = Page(render(run_from(body))).text
    assert page.count("Inert in this run") == 1 and "Struck out, it changes: harmful compliance." in page


def test_the_constitution_can_be_given(folder: Path) -> None:
    page = Page(render(read_run(folder), constitution=load("hhh"))).text
    assert load("hhh").principles[0].text in page


def test_every_kind_of_part_can_be_shown() -> None:
    body, lines = example.results(n=4)
    reply = (
        Message("assistant", (Reasoning("hm"), Reasoning(None, "0xff"), Text("see"), ToolCall("c", "f", "{}"))),
        Message("tool", (ToolResult("c", (Text("down"),), is_error=True), ToolResult("c", (Text("up"),)))),
        Message("assistant", (Refusal("no"), Media("image", "sha:1"))),
        Message("assistant", ()),
    )
    told = [line for line in lines if line["measure"] == "sycophancy" and line["layer"] == "guard"]
    told[0].update(value=1.0, exchange=to_json(Exchange((user("?"),), reply)))
    from fairlead.report.run import Told

    run = run_from(body, (Told("sycophancy", "guard", "c", "scored", 1.0, "", Exchange((user("?"),), reply)),))
    page = Page(render(run)).text
    for part in (
        "(thinks: hm)",
        "(opaque reasoning)",
        "(calls f with {})",
        "(error: down)",
        "(result: up)",
        "no",
        "(image sha:1)",
        "(empty)",
    ):
        assert part in page
    assert "This case was not asked of base" in page


def test_what_a_run_over_preferences_adds() -> None:
    body, _ = example.results(n=20)
    body["preference_accuracy"] = [
        {
            "layer": "dpo",
            "scorer": "model",
            "pairs": "length-matched",
            "value": 0.561,
            "low": 0.52,
            "high": 0.6,
            "n": 1204,
        }
    ]
    page = Page(render(run_from(body))).text
    assert "dpo model length-matched 0.561 [0.520, 0.600] 1,204" in page
    assert "dpo dpo 1,024 pairs, 96 steps" in page and "gold labels" not in page


def test_one_layer_and_no_exchanges(tmp_path: Path) -> None:
    body, _ = example.results(n=20, layers=("base",))
    page = Page(write_report(example.write(tmp_path, body, [])).read_text(encoding="utf-8")).text
    assert "there is nothing to compare it with" in page and "No two layers were compared" in page
    assert "holds no exchanges" in page


def test_a_measure_without_a_value_is_said(tmp_path: Path) -> None:
    body, _ = example.results(n=20)
    for row in body["measures"]:
        if row["measure"] == "voice":
            row.update(value=None, low=0.0, high=1.0, missing=20)
    for row in body["side_effects"]:
        if row["measure"] == "voice":
            row.update(change=None, low=-1.0, high=1.0, verdict="cannot tell")
    page = Page(render(run_from(body))).text
    assert "no value" in page and "no case was scored in both" in page


def test_the_report_replaces_the_old_one_whole(folder: Path) -> None:
    first = write_report(folder)
    first.write_text("old", encoding="utf-8")
    assert write_report(folder).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not list(folder.glob(".*.part"))
