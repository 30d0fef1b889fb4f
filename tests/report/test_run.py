from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fairlead import stats
from fairlead.errors import InputError, MissingResource
from fairlead.report import read_run, words, write_card
from fairlead.report.run import Effect, Row, run_from
from report import example


def row(value: float | None, low: float, high: float, n: int = 100, missing: int = 0, better: str = "lower") -> Row:
    return Row("m", "", "base", value, low, high, n, missing, better, "j", "l", True)  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------- reading


def test_a_run_folder_is_read_whole(tmp_path: Path) -> None:
    run = read_run(example.make(tmp_path, n=10))
    assert run.layers == example.LAYERS and len(run.measures) == 12
    assert len(run.told) == 12 * 4 * 10
    assert run.told_at("sums", "dpo", "sums-0003") is not None
    effect = run.effect("sums")
    assert effect is not None and (effect.before, effect.after) == ("base", "guard")
    assert run.is_difference("are_you_sure") and not run.is_difference("sums")


def test_what_slips_is_on_the_wrong_side_and_worst_first() -> None:
    body, _ = example.results(n=4)
    lines = [(0.9, "lower"), (0.6, "lower"), (0.5, "lower"), (0.1, "lower")]
    from fairlead.report.run import Told

    told = tuple(Told("sycophancy", "guard", f"c{n}", "scored", v, "", None) for n, (v, _) in enumerate(lines))
    told += tuple(Told("facts", "guard", f"c{n}", "scored", v, "", None) for n, (v, _) in enumerate(lines))
    told += tuple(Told("are_you_sure", "guard", f"c{n}", "scored", v, "", None) for n, v in enumerate((1.0, 0.0, -1.0)))
    told += (
        Told("sycophancy", "base", "c", "scored", 1.0, "", None),
        Told("sums", "guard", "c", "missing", None, "", None),
    )
    run = run_from(body, told)
    assert [item.value for item in run.slipped("sycophancy")] == [0.9, 0.6]
    assert [item.value for item in run.slipped("facts")] == [0.1]
    assert [item.value for item in run.slipped("are_you_sure")] == [1.0]
    assert run.slipped("sums") == []
    assert words.slips(run) == {"sycophancy": 2, "are_you_sure": 1, "facts": 1}


def test_a_folder_without_results_says_so(tmp_path: Path) -> None:
    with pytest.raises(MissingResource, match=r"results\.json: not found"):
        read_run(tmp_path)


def _change(path: str, value: Any) -> Any:
    def change(body: dict[str, Any]) -> None:
        *keys, last = path.split(".")
        target: Any = body
        for key in keys:
            target = target[int(key)] if key.isdigit() else target[key]
        if value is None:
            del target[last]
        else:
            target[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_change("schema", 2), "schema 2 is not known"),
        (_change("layers", []), "`layers` is empty"),
        (_change("measures", None), "key 'measures' is missing"),
        (_change("measures.3.better", "up"), r"measures\[3\]: `better` is 'up'"),
        (_change("measures.2.layer", "ppo"), r"measures\[2\]: layer 'ppo' is not among"),
        (_change("measures.0.low", "x"), r"measures\[0\]: key 'low' is 'x'"),
        (_change("side_effects.1.verdict", "fine"), r"side_effects\[1\]: `verdict` is 'fine'"),
        (_change("constitution.name", None), "key 'name' is missing"),
    ],
)
def test_results_that_do_not_fit_are_refused_by_place(tmp_path: Path, change: Any, told: str) -> None:
    body, lines = example.results(n=4)
    change(body)
    body.setdefault("layers", [])
    with pytest.raises(InputError, match=told):
        read_run(example.write(tmp_path, body, lines))


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    folder = example.make(tmp_path, n=4)
    file = folder / "exchanges" / "sft.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[1][:40]]))
    with pytest.raises(InputError, match=r"sft\.jsonl:2: is no JSON"):
        read_run(folder)
    file.write_text(json.dumps({"measure": "sums", "case": "c", "value": 1, "exchange": {"messages": [], "what": 1}}))
    with pytest.raises(InputError, match=r"sft\.jsonl:1: the exchange cannot be read: .*'what'"):
        read_run(folder)
    (folder / "results.json").write_text("{")
    with pytest.raises(InputError, match=r"results\.json:1: is no JSON"):
        read_run(folder)


# ------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize("n", [20, 200, 3000])
def test_zero_of_n_is_a_one_sided_bound(n: int) -> None:
    found = stats.rate([0.0] * n)
    limit = words.bound(row(0.0, found.low, found.high, n))
    assert limit == pytest.approx(stats.zero_event_bound(n), rel=1e-6)
    assert limit == pytest.approx(3 / n, rel=0.08)
    full = stats.rate([1.0] * n)
    assert words.interval(row(1.0, full.low, full.high, n)) == f"[≥ {1 - stats.zero_event_bound(n):.3f}]"


def test_zero_of_few_clusters_has_a_wider_bound() -> None:
    found = stats.rate([0.0] * 200, [i % 10 for i in range(200)])
    clustered = words.bound(row(0.0, found.low, found.high, 200))
    assert clustered is not None and clustered > 2 * stats.zero_event_bound(200)


def test_no_bound_where_something_is_missing_or_may_be_negative() -> None:
    assert words.interval(row(0.0, 0.0, 0.05, missing=2)) == "[0.00, 0.05]"
    assert words.interval(row(0.0, -0.1, 0.1)) == "[−0.10, 0.10]"
    assert words.interval(row(None, 0.0, 1.0)) == "" and words.value(row(None, 0.0, 1.0)) == "no value"
    assert words.value(None) == "–"


@pytest.mark.parametrize(
    ("change", "low", "high", "verdict", "better", "told"),
    [
        (-0.93, -0.96, -0.89, "better", "lower", "better by 0.93 [0.89, 0.96]"),
        (0.07, 0.02, 0.12, "worse", "lower", "worse by 0.07 [0.02, 0.12]"),
        (-0.07, -0.12, -0.02, "worse", "higher", "worse by 0.07 [0.02, 0.12]"),
        (0.5, 0.4, 0.6, "better", "higher", "better by 0.50 [0.40, 0.60]"),
        (0.01, -0.02, 0.03, "cannot tell", "lower", "cannot tell: between 0.03 worse and 0.02 better"),
        (0.04, 0.01, 0.08, "cannot tell", "lower", "cannot tell: between 0.01 and 0.08 worse"),
        (0.04, 0.01, 0.08, "cannot tell", "higher", "cannot tell: between 0.01 and 0.08 better"),
        (0.0, 0.0, 0.0, "cannot tell", "higher", "cannot tell: no case differs"),
        (None, -1.0, 1.0, "cannot tell", "higher", "cannot tell: no case was scored in both"),
    ],
)
def test_verdicts_in_words(change: float | None, low: float, high: float, verdict: Any, better: str, told: str) -> None:
    assert words.verdict(Effect("m", "a", "b", change, low, high, verdict), better, long=True) == told


def test_numbers_have_no_negative_zero() -> None:
    assert (words.number(-0.001), words.number(-0.5), words.signed(0.2), words.signed(-0.2)) == (
        "0.00", "−0.50", "+0.20", "−0.20",
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------- card


def test_the_card_has_the_table_and_stays_markdown(tmp_path: Path) -> None:
    body, lines = example.results(n=20)
    body["model"] = "</h1><script>alert(1)</script> [x](javascript:1) | `a`\n# head"
    card = write_card(example.write(tmp_path, body, lines))
    assert card == tmp_path / "model" / "README.md"
    text = card.read_text(encoding="utf-8")
    assert text.count("\n| ") == 14 and "harmful compliance ↓" in text
    assert "<script>" not in text and "\n# head" not in text and "\\[x\\](javascript" in text
    assert len({line.count(" | ") for line in text.splitlines() if line.startswith("| ")}) == 1
