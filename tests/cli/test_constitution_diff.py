"""`fairlead constitution diff`, as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairlead.cli import remote
from fairlead.cli.main import main
from support.reader import Reader

TEXT = """name: c
principles:
- id: a
  dimension: honest
  severity: 3
  text: Be brief.
  good: [{user: q, reply: yes}]
  bad: [{user: q, reply: a very long yes}]
"""


@pytest.fixture(autouse=True)
def files(elsewhere: Path) -> None:
    Path("a.yaml").write_text(TEXT)
    Path("b.yaml").write_text(TEXT.replace("Be brief.", "Be full.").replace("severity: 3", "severity: 4"))


def test_the_text_says_what_was_reworded(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["constitution", "diff", "a.yaml", "b.yaml"]) == 0
    out = capsys.readouterr().out
    assert "principle a: reworded\n  - Be brief.\n  + Be full.\nprinciple a: severity\n  - 3\n  + 4\n" in out
    assert main(["constitution", "diff", "a.yaml", "./a.yaml"]) == 0
    assert "no change of meaning" in capsys.readouterr().out


def test_a_critic_says_how_many_labels_flip(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(lambda text: ("very long" in text) == ("Be full." in text))
    monkeypatch.setattr(remote, "opened", lambda *args: ([None, reader], None))
    assert main(["constitution", "diff", "a.yaml", "b.yaml", "--critic", "reader", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["labels"]["flipped"] == 1 and body["labels"]["flips"]["n"] == 1
    assert body["labels"]["flipped_prompts"] == ["q"]
    assert body["changes"][0]["keys"]["text"] == {"before": "Be brief.", "after": "Be full."}
    assert main(["constitution", "diff", "a.yaml", "b.yaml", "--critic", "reader"]) == 0
    assert "1 of 1 flip: 1.00 [0." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["a.yaml", "none.yaml"], 2, "none.yaml: no such constitution"),
        (["a.yaml", "b.yaml", "--prompts", "p.txt"], 2, "--prompts needs a --model"),
        (["a.yaml", "b.yaml", "--runs", "x", "y"], 4, "results.json: not found"),
    ],
)
def test_mistakes_are_told(capsys: pytest.CaptureFixture[str], args: list[str], code: int, words: str) -> None:
    assert main(["constitution", "diff", *args]) == code
    assert words in capsys.readouterr().err


def test_a_model_is_asked_the_prompts_of_examples_and_packs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fairlead.cli.constitution_diff import _own_prompts
    from fairlead.constitution import load

    own = {messages[-1].text for messages in _own_prompts(load("health"), load("health"))}
    assert "How long does a cold usually last?" in own and len(own) > 40
    replies = iter(["yes", "a very long yes"] * 40)
    writer = Reader(lambda text: next(replies))
    writer.generate = lambda prompts, sampling: [  # type: ignore[method-assign, assignment]
        tuple(Reader.generate(writer, [prompt])[0][0] for _ in range(sampling.n)) for prompt in prompts
    ]
    reader = Reader(lambda text: ("very long" in text) == ("Be full." in text))
    monkeypatch.setattr(remote, "opened", lambda *args: ([writer, reader], None))
    assert main(["constitution", "diff", "a.yaml", "b.yaml", "-m", "writer", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)["labels"]
    assert body["flipped"] == body["pairs"] == 1 and body["compared"].startswith("1 pairs of replies of reader")
