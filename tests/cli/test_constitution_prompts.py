"""`fairlead constitution prompts`, as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairlead.cli import remote
from fairlead.cli.main import main
from support.reader import Reader


def test_a_short_count_is_told_written_and_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["constitution", "prompts", "harbour", "--out", "p.jsonl", "--n", "5"]) == 1
    out = capsys.readouterr().out
    assert "short: voice has 0 of 5 pairs: it has no example that must be answered" in out
    assert "AUROC 0.50 [" in out and "n 20" in out and "20 prompts in p.jsonl" in out
    assert len(Path("p.jsonl").read_text().splitlines()) == 20


def test_a_whole_count_ends_with_0_and_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    row = "{id: p, dimension: harmless, severity: 5, text: T., good: [{user: a b c, reply: Gladly.}], bad: [{user: d e f, reply: Sure.}]}"
    Path("c.yaml").write_text(f"name: c\nprinciples:\n- {row}\n")
    assert main(["constitution", "prompts", "c.yaml", "-o", "p.jsonl", "--n", "4", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["principles"] == {"p": {"tempting": 4, "twin": 4}} and body["short"] == {} and body["prompts"] == 8


def test_a_mute_model_writes_nothing_and_leaves_the_file_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "opened", lambda *args: ([Reader(lambda text: "")], None))
    Path("p.jsonl").write_text("mine")
    assert main(["constitution", "prompts", "harbour", "-o", "p.jsonl", "-m", "mute"]) == 1
    assert "nothing to write, p.jsonl is left as it was" in capsys.readouterr().out
    assert Path("p.jsonl").read_text() == "mine"


def test_the_bank_of_a_pack_is_used_and_only_its_training_split(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["constitution", "prompts", "health", "-o", "p.jsonl", "--n", "2"]) == 1
    rows = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    assert {row["principle"] for row in rows} >= {"health-scope", "health-dosing"}
    from fairlead.constitution import load
    from fairlead.constitution.prompts_bank import bank

    audit = {case.messages[-1].text for kind in ("tempting", "twin") for case in bank(load("health"), "audit", kind)}
    assert not audit & {row["messages"][-1]["content"] for row in rows}
