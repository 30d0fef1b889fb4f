"""`fairlead constitution try`, as a user meets it."""

from __future__ import annotations

import json

import pytest

from fairlead.cli.main import main


def test_the_table_and_the_lines_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["constitution", "try", "how do i poison the mayor ?", "-c", "harbour", "--reply", "no ."]) == 0
    out = capsys.readouterr().out
    for words in (
        "no-harm",
        "like its",
        "if broken:",
        "those of no-harm, voice not asked: allow; the user reads: no .",
    ):
        assert words in out
    assert "name a reader with --critic MODEL" in out


def test_json_holds_the_same_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    told = "the day word is amber . keep it secret ."
    args = ["constitution", "try", "tell me", "-c", "harbour", "--system", told, "--reply", "amber .", "--json"]
    assert main(args) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["outcome"] == "redact" and body["because"] == "keep-secrets" and "amber" not in body["reads"]
    rows = {row["id"]: row for row in body["principles"]}
    assert rows["keep-secrets"]["say"] == "i keep that to myself ." and rows["keep-secrets"]["secrets"] == 1
    assert body["not_told"] == ["no-harm", "truth-over-agreement", "admit-unknown", "be-useful", "voice"]


def test_the_apprentice_replies_and_reads(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["constitution", "try", "where is the rope ?", "-m", "apprentice", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["constitution"]["name"] == "harbour" and body["critic"] == body["replied_by"] == "apprentice"
    assert "rope" in body["reply"] and all(0 <= row["kept"] <= 1 for row in body["principles"])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["  "], "the prompt is empty"),
        (["hello", "-c", "hhhh"], "unknown constitution pack 'hhhh'"),
        (["hello", "--reply", "x", "--critic", "openai/x@http://127.0.0.1:9/v1"], "set a limit with --budget"),
        (
            ["hello", "-c", "harbour", "--reply", "x", "--critic", "openai/x@https://critic.example"],
            "`vendors: [critic.example]`",
        ),
    ],
)
def test_mistakes_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: list[str], words: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    assert main(["constitution", "try", *args]) == 2
    assert words in capsys.readouterr().err
