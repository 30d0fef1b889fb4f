"""A historic recipe from the command line to the report, in small; and the options that bring people's labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from fairlead.cli.main import main
from support import tiny
from support.world import descendant


def test_instructgpt_in_small_from_the_command_to_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base and the product stand side by side, the labels are called simulated, the reward's curve is drawn."""
    model = descendant(tmp_path / "model")
    argv = [
        "align",
        "--model",
        str(model),
        "--recipe",
        "instructgpt",
        "--smoke",
        "--measures",
        "sums",
        "--threads",
        "1",
    ]
    assert main([*argv, "--out", "run", "--cache", "cache"]) == 0
    out = capsys.readouterr().out
    assert "smoke: at most" in out and "instructgpt recipe" in out
    assert "simulated: sft: demonstrations" in out and "simulated: reward: comparisons" in out
    results = json.loads(Path("run/results.json").read_bytes())
    assert results["smoke"] is True and results["layers"] == ["base", "sft", "ppo"]
    assert [one["optimised_by"] for one in results["rewards"]] == [["ppo"]]
    assert 0 < len(results["training"]["ppo"]) <= 8
    page = Path("run/report.html").read_text(encoding="utf-8")
    beside = page[page.index('id="beside"') : page.index('id="method"')]
    assert beside.count('<article class="case">') == 8 and beside.count("<h4>base") == beside.count("<h4>ppo") == 8
    for text in ("Labels that nobody gave", "A smoke run", "Reward models", "Reinforcement learning: ppo", "KL to the"):
        assert text in page, text


@pytest.mark.full
@pytest.mark.parametrize("recipe", ["instructgpt", "constitutional-rl", "online", "safe", "r1", "r1-aligned-first"])
def test_every_historic_recipe_runs_in_small_on_the_apprentice(recipe: str) -> None:
    argv = ["align", "--recipe", recipe, "--smoke", "--out", "run", "--cache", "cache"]
    assert main(argv) == 0
    results = json.loads(Path("run/results.json").read_bytes())
    assert results["training"] and results["rewards"] and Path("run/model/model.safetensors").is_file()


def test_what_a_recipe_lacks_elsewhere_is_said_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.folder(tmp_path / "model")
    argv = ["align", "--model", str(model), "--recipe", "instructgpt", "--out", "run"]
    assert main(argv) == 2
    assert "layer 'sft' imitates people: give a file of conversations with --demonstrations" in capsys.readouterr().err
    Path("demos.jsonl").write_text('{"prompt": "say a", "completion": "a"}\n')
    assert main([*argv, "--demonstrations", "demos.jsonl"]) == 2
    assert "give a file with --preferences" in capsys.readouterr().err
    assert not Path("run").exists()
