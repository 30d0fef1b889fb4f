"""`fairlead train grpo --turns`: tools of a file and a user between the policy's turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fairlead import models  # noqa: E402
from fairlead.cli.main import main  # noqa: E402
from fairlead.exchange import assistant  # noqa: E402
from fairlead.models import Reply  # noqa: E402
from fairlead.stack import samplers  # noqa: E402

SHOP = """
PRICES = {"lamp": "57", "rope": "23"}
def price(item):
    return PRICES[item]
TOOLS = {"price": price}
EMPTY, WRONG, NUMBER = {}, {"price": "57"}, 3
def again(so_far):
    from fairlead.exchange import user
    said = sum(message.role == "user" for message in so_far.reply)
    return None if said else [user("and tomorrow ?")]
"""
GIVEN = [
    "train", "grpo", "--model", "apprentice", "--prompts", "asked.jsonl", "--reward", "mentions", "--steps", "2",
    "--prompts-per-step", "2", "--replies", "2", "--max-tokens", "48", "--lr", "1e-5", "--threads", "1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def data(elsewhere: Path) -> None:
    Path("shop.py").write_text(SHOP)
    rows = [
        {
            "messages": [
                {"role": "system", "content": "tool : price ."},
                {"role": "user", "content": f"what does the {item} cost today ?"},
            ],
            "answer": price,
        }
        for item, price in (("lamp", "57"), ("rope", "23"))
    ]
    Path("asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def steps_of(out: str) -> list[dict[str, Any]]:
    return [json.loads(line)["told"] for line in Path(out, "steps.jsonl").read_text().splitlines()]


def test_tools_of_a_file_answer_and_a_user_asks_again(elsewhere: Path) -> None:
    turns = ["--turns", "4", "--partner", "shop.py:TOOLS", "--calls", "apprentice"]
    assert main([*GIVEN, *turns, "--partner", "shop.py:again", "--out", "out"]) == 0
    told = steps_of("out")
    assert sum(step["episodes.calls"] for step in told) >= 8 and sum(step["episodes.bad_calls"] for step in told) == 0
    assert sum(step["episodes.turns"] for step in told) >= 24  # a call, its answer's telling, and after the user's word
    report = json.loads(Path("out", "train.json").read_text())
    assert report["turns"] == 4 and report["partners"] == ["shop.py:TOOLS", "shop.py:again"]
    assert main([*GIVEN, *turns, "--out", "alone"]) == 0
    assert steps_of("alone")[0]["reward"] > 0.7  # it tells what the tool said; without one it cannot know
    assert sum(step["episodes.turns"] for step in steps_of("alone")) < sum(step["episodes.turns"] for step in told)
    assert main([*GIVEN, *turns, "--dry-run"]) == 0


def test_a_model_plays_the_user(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Scripted:
        name, lineage, capabilities = "scripted", "wt:scripted", frozenset({"max_tokens"})

        def generate(self, prompts: Any, sampling: Any) -> list[list[Reply]]:
            assert sampling.seed is None
            asked.extend(prompt[-1].text for prompt in prompts)
            return [[Reply((assistant("and tomorrow ?"),), "stop")] for _ in prompts]

    real = models.open_model
    monkeypatch.setattr(
        models, "open_model", lambda spec, **more: Scripted() if spec == "scripted" else real(spec, **more)
    )
    assert main([*GIVEN, "--turns", "2", "--partner", "user:scripted", "--out", "out"]) == 0
    assert len(asked) >= 8 and all("what does the" in text for text in asked)
    assert [step["episodes.turns"] for step in steps_of("out")] == [8, 8]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--partner", "shop.py:TOOLS"], "--partner: a reply of one turn has nobody to answer it; give --turns"),
        (["--calls", "tagged"], "--calls: a reply of one turn"),
        (["--turns", "2"], "--turns 2: who speaks between them?"),
        (["--turns", "2", "--partner", "shop.py:TOOLS"], "runs tool calls; name the form they are written in"),
        (["--turns", "2", "--partner", "shop.py:again", "--calls", "json"], "--calls json: there are none, apprentice"),
        (["--turns", "2", "--partner", "shop.py:NONE"], "shop.py defines no NONE"),
        (["--turns", "2", "--partner", "shop.py:EMPTY"], "the dictionary is empty"),
        (["--turns", "2", "--partner", "shop.py:WRONG"], "'price' is no function by a name"),
        (["--turns", "2", "--partner", "shop.py:NUMBER"], "is int; a dictionary of functions"),
        (["--turns", "2", "--partner", "shop.py"], "write user:MODEL, or FILE.py:NAME"),
        (["--turns", "2", "--partner", "none.py:TOOLS"], "there is no file none.py"),
        (["--turns", "2", "--partner", "broken.py:TOOLS"], "broken.py cannot be loaded: SyntaxError"),
        (
            ["--turns", "2", "--partner", "user:openai/gpt-6-sol"],
            "nothing bounds what that costs; say the most with --budget",
        ),
        (["--budget", "5 USD"], "--budget: nobody at a provider is asked here"),
        (["--turns", "0"], "--turns"),
    ],
)
def test_what_does_not_fit(given: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.py").write_text("def :")
    assert main([*GIVEN, *given, "--out", "no"]) == 2
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error and not Path("no").exists()


def test_another_file_is_another_run(elsewhere: Path) -> None:
    first = samplers._First([], ["shop.py:TOOLS", "user:apprentice"]).name
    Path("shop.py").write_text(SHOP.replace("57", "58"))
    assert samplers._First([], ["shop.py:TOOLS", "user:apprentice"]).name != first
