"""What a change of text does to labels, against a loop of our own, and to the measures of two runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fairlead.constitution import Constitution, load
from fairlead.errors import InputError, MissingResource
from fairlead.exchange import assistant, exchange
from fairlead.models.protocol import Prompt, Reply, Sampling
from fairlead.stack.diffing import Pair, check_runs, drawn_pairs, example_pairs, label_changes, run_changes
from support.reader import Reader


def constitution(**texts: str) -> Constitution:
    """One principle per id; `name__severity` sets the weight."""
    rows = []
    for key, text in texts.items():
        id, _, severity = key.partition("__")
        rows.append({"id": id, "dimension": "honest", "severity": int(severity or 3), "text": text})
    return Constitution.model_validate({"name": "c", "principles": rows})


def pairs(n: int) -> list[Pair]:
    return [Pair(exchange(f"q{i}", f"short {i}"), exchange(f"q{i}", f"long long {i}"), f"q{i}") for i in range(n)]


def says(text: str) -> bool:
    """Keeps "Be brief." where the reply is short, "Be full." where it is long; any other principle always."""
    long = "long long" in text
    return not long if "Be brief." in text else long if "Be full." in text else True


def test_a_reversed_principle_flips_every_label_and_a_reworded_one_none() -> None:
    reader = Reader(says)
    turned = label_changes(constitution(a="Be brief."), constitution(a="Be full."), pairs(20), reader)
    assert turned.flipped == 20 and turned.flips is not None and turned.flips.value == 1.0
    assert turned.flips.low < 1.0 == turned.flips.high and turned.flipped_prompts[0] == "q0"
    same = label_changes(constitution(a="Be brief."), constitution(a="Please: Be brief."), pairs(20), reader)
    assert same.flipped == 0 and same.moved == 0.0 and same.flips is not None and same.flips.high < 0.2


def test_labels_are_log_odds_weighted_by_severity() -> None:
    before, after = constitution(a__5="Be brief.", b__1="Be full."), constitution(a__1="Be brief.", b__5="Be full.")
    found = label_changes(before, after, pairs(1), Reader(says))

    def p(brief: int, full: int) -> float:  # by hand: verdicts 1 and 0 count as log 1 and log 0.001
        mean = (brief + full) / 2
        lead = (brief - full) / mean * (math.log(1.0) - math.log(0.001))
        return 1 / (1 + math.exp(-lead))

    assert found.flipped == 1 and found.moved == pytest.approx(p(5, 1) - p(1, 5))


def test_a_tie_is_no_flip_and_a_silent_critic_gives_no_label() -> None:
    found = label_changes(constitution(a="Be kind."), constitution(a="Be full."), pairs(3), Reader(says))
    assert (found.ties, found.flipped) == (3, 0)
    found = label_changes(constitution(a="Be brief."), constitution(a="Be odd."), pairs(3),
                          Reader(lambda text: "hm" if "Be odd." in text else says(text)))  # fmt: skip
    assert found.unlabelled == 3 and found.flips is None and found.moved is None


def test_a_principle_in_the_same_words_is_read_once() -> None:
    reader = Reader(says)
    label_changes(constitution(a="Be brief.", b="Be kind."), constitution(a="Be full.", b="Be kind."), pairs(2), reader)
    assert len(reader.asked) == 3 * 4


def test_pairs_come_from_examples_of_one_prompt_or_from_a_model_that_says_two_things() -> None:
    row = {"id": "a", "dimension": "honest", "severity": 3, "text": "A.",
           "good": [{"user": "q", "reply": "yes"}, {"user": "r", "reply": "yes"}],
           "bad": [{"user": "q", "reply": "no"}]}  # fmt: skip
    made = Constitution.model_validate({"name": "c", "principles": [row]})
    assert [(p.first.reply_text, p.second.reply_text) for p in example_pairs(made, made)] == [("yes", "no")]

    class Two(Reader):
        def generate(self, prompts: list[Prompt], sampling: Sampling = Sampling()) -> list[tuple[Reply, ...]]:  # type: ignore[override]  # noqa: B008
            assert sampling.n == 2 and sampling.temperature == 1.0
            said = [("one", "two") if prompt[-1].text == "q" else ("one", "one ") for prompt in prompts]
            return [tuple(Reply((assistant(text),), "stop") for text in two) for two in said]

    asked = [exchange("q", "").messages, exchange("r", "").messages]
    drawn, same = drawn_pairs(Two(says), asked)
    assert len(drawn) == 1 and same == 1 and drawn[0].cluster == "q"


def run_folder(folder: Path, values: list[float], **row: Any) -> Path:
    (folder / "exchanges").mkdir(parents=True)
    body = {"measure": "facts", "principle": "", "layer": "sft", "value": sum(values) / len(values), "low": 0.0,
            "high": 1.0, "n": len(values), "missing": 0, "better": "higher", "judge": "rule", "lineage": "l",
            "evidence": True, **row}  # fmt: skip
    (folder / "results.json").write_text(json.dumps({"schema": 1, "layers": ["base", "sft"], "measures": [body]}))
    lines = [
        {
            "measure": "facts",
            "case": f"c{i}",
            "cluster": f"c{i}",
            "status": "scored",
            "value": v,
            "score": v,
            "reason": "",
        }
        for i, v in enumerate(values)
    ]
    (folder / "exchanges" / "sft.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_two_runs_are_compared_on_the_cases_of_their_products(tmp_path: Path) -> None:
    a, b = run_folder(tmp_path / "a", [0.0] * 30), run_folder(tmp_path / "b", [1.0] * 20 + [0.0] * 10)
    (effect,), apart = run_changes(a, b)
    assert effect.verdict == "better" and effect.change == pytest.approx(2 / 3) and effect.n == 30 and apart == []
    other = run_folder(tmp_path / "c", [1.0] * 30, lineage="other")
    assert run_changes(a, other) == ([], ["facts: judged by rule and by rule, which are not the same judge"])


def test_runs_are_of_the_constitutions_that_are_compared(tmp_path: Path) -> None:
    """Else another recipe's effect would be told as that of a reworded principle."""
    folders = []
    for name, recipe in (("harbour", "managed"), ("hhh", "constitutional")):
        folder = run_folder(tmp_path / name, [1.0] * 3)
        body = json.loads((folder / "results.json").read_text())
        body |= {"constitution": {"name": name, "sha256": load(name).sha256}, "recipe": recipe, "seed": 0, "model": "m"}
        (folder / "results.json").write_text(json.dumps(body))
        folders.append(folder)
    told = check_runs((folders[0], folders[1]), (load("harbour"), load("hhh")))
    assert told == ["the runs differ in recipe too (managed, constitutional): a change may come from that"]
    with pytest.raises(InputError, match="hhh went by a constitution 'hhh' of another content than 'harbour'"):
        check_runs((folders[0], folders[1]), (load("harbour"), load("harbour")))


def test_folders_that_are_no_runs_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingResource, match=r"results\.json: not found"):
        run_changes(tmp_path, tmp_path)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(InputError, match="is not the folder of a run"):
        run_changes(tmp_path, tmp_path)
