"""Rounds of revision in the report: the picture's geometry, the table's words, and the file by itself."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fairlead.report.chart import Scale
from fairlead.report.html import render
from fairlead.report.rounds import alone, lines_of, rounds_chart, write_rounds
from fairlead.report.run import run_from
from report import example
from report.test_html import HOSTILE, Page


def test_every_judge_is_a_line_at_the_height_of_its_values() -> None:
    lines = lines_of(example.revisions())
    picture = ElementTree.fromstring(str(rounds_chart(lines)))
    groups = [g for g in picture.iter("g") if "series" in g.attrib["class"]]
    assert [g.attrib["class"] for g in groups] == ["series s0 weak", "series s1", "series s2"]
    for group, one in zip(groups, lines, strict=True):
        heights = [float(dot.attrib["cy"]) for dot in group.iter("circle")]
        assert heights == pytest.approx([Scale(0, 1).y(p.value) for p in one.points if p.value is not None], abs=0.01)
        assert heights == sorted(heights)  # harm falls, so the dots go down
    columns = [[float(dot.attrib["cx"]) for dot in group.iter("circle")] for group in groups]
    assert columns[0][0] < columns[1][0] < columns[2][0] < columns[0][1]  # one round's marks stand side by side


def test_the_page_tells_rounds_by_every_judge_and_evasion() -> None:
    body, _ = example.results(n=20)
    page = Page(render(run_from(body)))
    assert "Critique and revision, round by round: sft" in page.text
    assert "critic 0.82 [0.80, 0.84] n 1150 0.44 [0.41, 0.47] n 1150 0.21" in page.text
    assert "n 1150, 2 missing drove the revisions, no evidence" in page.text
    assert "Harmless prompts refused 0.00 1 of 700" in page.text and "of them by formula" in page.text
    body.pop("revisions")
    assert "Critique and revision, round by round" not in Page(render(run_from(body))).text


def test_a_share_that_is_not_known_is_a_gap() -> None:
    row = example.revisions()
    row["series"][1]["broken"][1] = {"k": 0, "n": 0, "value": None, "low": 0.0, "high": 1.0}
    lines = lines_of(row)
    assert lines[1].said == "0.71 → – → 0.16"
    dots = re.findall(r"<circle", str(rounds_chart(lines)))
    assert len(dots) == 8


def test_the_chart_stands_in_the_run_folder_as_a_file_by_itself(tmp_path: Path) -> None:
    body, lines = example.results(n=20)
    folder = example.write(tmp_path, body, lines)
    assert write_rounds(folder) == []  # no layer folder, nothing to put it in
    (folder / "layers" / "sft").mkdir(parents=True)
    (path,) = write_rounds(folder)
    assert path == folder / "layers" / "sft" / "rounds.svg"
    text = " ".join(item.text or "" for item in ElementTree.parse(path).iter() if item.tag.endswith("text"))
    assert "share of replies broken, by round" in text and "gold: 0.71 → 0.38 → 0.16 (n 1,150; independent)" in text
    assert "sampled" in text and "round 2" in text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_stay_text_in_the_file(text: str) -> None:
    row = example.revisions()
    calm = [item.tag for item in ElementTree.fromstring(alone(lines_of(row), "sft")).iter()]
    for one in row["series"]:
        one["judge"] = text
    hostile = [item.tag for item in ElementTree.fromstring(alone(lines_of(row), text)).iter()]
    assert hostile == calm
