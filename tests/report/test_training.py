"""What was trained with, and base and product side by side: what the page says of them, and what it does not let through."""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.report import example

from fairlead.report.beside import SHOWN, beside
from fairlead.report.html import render
from fairlead.report.run import Run, read_run
from fairlead.report.training import curves, labels, rewards
from fairlead.report.words import title

HOSTILE = "<script>alert(1)</script>"
STEPS = [
    {"step": n, "reward": n / 8, "kl": 0.1 * n, "length": 12.0, **({"reward.liked": 0.5, "reward.right": 1.0} if n > 6 else {})}
    for n in range(1, 9)
]  # fmt: skip


def run(n: int = 20, layers: tuple[str, ...] = example.LAYERS, shared: bool = False, **more: Any) -> Run:
    """`shared`: facts are asked in the prompts of the sums, as measures that read the same replies do."""
    results, lines = example.results(n=n, layers=layers)
    if shared:
        sums = {(line["layer"], line["case"].partition("-")[2]): line for line in lines if line["measure"] == "sums"}
        for line in lines:
            if line["measure"] == "facts":
                line["exchange"] = sums[line["layer"], line["case"].partition("-")[2]]["exchange"]
    with tempfile.TemporaryDirectory() as folder:
        return read_run(example.write(Path(folder), results | more, lines))


def test_the_curves_of_a_layer_and_where_a_late_reward_begins() -> None:
    ((layer, drawn),) = curves(run(training={"ppo": STEPS}))
    assert layer == "ppo"
    found = {curve.title: curve for curve in drawn}
    assert list(found) == ["reward", "liked", "right", "KL to the start", "length"]
    assert (found["reward"].first, found["reward"].last, found["reward"].since) == ("0.12", "1.00", 1)
    assert found["liked"].since == 7 and found["liked"].steps == 8
    assert found["liked"].svg.count('class="zero"') == 1 and 'class="zero"' not in found["reward"].svg
    points = re.search(r'points="([^"]+)"', found["reward"].svg)
    assert points is not None
    xs, ys = zip(*(map(float, point.split(",")) for point in points[1].split()), strict=True)
    assert list(xs) == sorted(xs) and list(ys) == sorted(ys, reverse=True), "up is more"


def test_a_single_reward_is_drawn_once_and_what_is_no_number_not_at_all() -> None:
    steps = [{"step": 1, "reward": 0.1, "reward.only": 0.1, "kl": None}, {"step": 2, "reward": 0.2, "reward.only": 0.2}]
    ((_, drawn),) = curves(run(training={"grpo": steps}))
    assert [curve.title for curve in drawn] == ["reward"]
    assert curves(run()) == [] and curves(run(training={"grpo": []})) == []


def test_reward_models_and_labels_are_told() -> None:
    accuracy = {"scorer": "reward", "pairs": "all", "value": 0.875, "low": 0.8, "high": 0.93, "n": 1200}
    row = {
        "name": "liked", "kind": "reward", "summary": "8 rankings", "lineage": "0123456789abcdef",
        "optimised_by": ["ppo", "late"], "accuracy": [accuracy],
    }  # fmt: skip
    (found,) = rewards(run(rewards=[row]))
    assert found["by"] == "ppo, late" and found["accuracy"] == [("reward", "all", "0.875", "[0.800, 0.930]", "1,200")]
    stages = [{"layer": "sft", "kind": "sft", "summary": "", "labels": {"simulated demonstrations": 1000}}]
    assert labels(run(stages=stages)) == [("sft", "simulated demonstrations", "1,000")]
    page = render(run(rewards=[row], stages=stages, training={"ppo": STEPS}, simulated=["sft: made up"], smoke=True))
    for text in ("optimised by ppo, late", "simulated demonstrations", "Reinforcement learning: ppo", "sft: made up",
                 "A smoke run"):  # fmt: skip
        assert text in page


def test_side_by_side_takes_each_measure_in_turn_and_no_prompt_twice() -> None:
    one = run(layers=("base", "sft"), shared=True)
    measures = [name for name in one.measures if name in ("facts", "sums", "voice")]
    one = replace(one, rows=tuple(row for row in one.rows if row.measure in measures))
    found = beside(one, hide_text=False)
    assert len(found) == SHOWN and [pair.title for pair in found[:2]] == [title(name) for name in measures[:2]]
    prompts = [" ".join(turn.text for turn in pair.asked) for pair in found]
    assert len(set(prompts)) == len(prompts)
    assert all(pair.first and pair.last for pair in found)
    hidden = beside(one, hide_text=True)
    assert all("characters)" in turn.text for pair in hidden for turn in (*pair.asked, *pair.first, *pair.last))


def test_one_layer_has_nothing_beside_it() -> None:
    one = run(n=5, layers=("base",))
    assert beside(one, hide_text=False) == []
    assert "so there is nothing beside it" in render(one)


def test_hostile_text_stays_text() -> None:
    row = {"name": HOSTILE, "kind": "reward", "summary": HOSTILE, "optimised_by": [HOSTILE], "accuracy": []}
    stages = [{"layer": HOSTILE, "kind": HOSTILE, "summary": HOSTILE, "labels": {HOSTILE: 1}}]
    steps = [{"step": 1, "reward": 0.1, f"reward.{HOSTILE}": 1.0, "reward.b": 0.0}]
    page = render(run(rewards=[row], stages=stages, training={HOSTILE: steps}, simulated=[HOSTILE]))
    assert HOSTILE not in page and "&lt;script&gt;alert(1)" in page
