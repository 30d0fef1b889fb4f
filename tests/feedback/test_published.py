"""The published files themselves, where they are at hand: what is in them is known, so it is asserted exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairlead.errors import InputError
from fairlead.feedback.formats import read_demonstrations, read_preferences
from fairlead.feedback.split import split_by_group


@pytest.fixture
def shared_data() -> Path:
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"published data not at hand: {folder}")
    return folder


def test_hh_rlhf(shared_data: Path) -> None:
    got = read_preferences(shared_data / "hh-rlhf")
    assert got.report.files[0].format == "hh-rlhf"
    assert (len(got), got.report.identical, got.report.empty_replies) == (1156, 0, 4)
    assert all(row.messages[-1].role == "user" for row in got.rows)


def test_pandalm(shared_data: Path) -> None:
    got = read_preferences(shared_data / "pandalm")
    assert got.report.files[0].format == "pandalm"
    assert (len(got), len(set(got.groups)), sum(r.strength == 1.0 for r in got.rows)) == (512, 85, 410)


def test_llmbar(shared_data: Path) -> None:
    got = read_preferences(shared_data / "llmbar" / "LLMBar")
    assert {f.format for f in got.report.files} == {"llmbar"}
    assert (len(got), got.report.ties, got.report.identical) == (419, 0, 0)
    assert len(read_preferences(shared_data / "llmbar" / "Processed")) == 466


def test_alpaca_eval(shared_data: Path) -> None:
    with pytest.raises(InputError, match="preference' is null"):
        read_preferences(shared_data / "alpaca-eval")
    got = read_preferences(shared_data / "alpaca-eval", skip_bad_rows=True)
    assert {f.format for f in got.report.files} == {"alpaca-eval"}
    assert (len(got), got.report.skipped, got.report.ties) == (8046, 4, 68)
    train, held = split_by_group(got.groups, share=0.2, seed=0)
    assert not {got.groups[i] for i in train} & {got.groups[i] for i in held}
    assert 0.15 < len(held) / len(got) < 0.25


def test_coconot(shared_data: Path) -> None:
    got = read_preferences(shared_data / "coconot" / "coconot_pref.jsonl.gz")
    assert got.report.files[0].format == "prompt/chosen/rejected"
    assert len(got) == 927
    with pytest.raises(InputError, match="every reply is empty"):
        read_demonstrations(shared_data / "coconot" / "coconot_eval.jsonl.gz")
