"""The measure of a voice given by samples: judged by those of them that nobody was shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairlead.constitution import load
from fairlead.constitution.voice import held_out, with_samples
from fairlead.exchange import exchange
from fairlead.judges.lineage import Ledger, OptimisedJudge
from fairlead.judges.voice import voice_of
from fairlead.measures.audit import audit_for
from fairlead.measures.bank import World
from fairlead.measures.general import General
from support.brand import ALIEN, PASSAGES, write_brand


@pytest.mark.parametrize("bank", [General(), World()])
def test_samples_judge_the_voice_of_any_model_and_no_reader_is_needed(tmp_path: Path, bank: General | World) -> None:
    made = with_samples(load(write_brand(tmp_path)))
    judge = audit_for(bank, made)["voice"]
    assert judge.name == "rule:voice" and judge.lineage == voice_of(held_out(made)).lineage
    own, alien = judge.judge([exchange("q", PASSAGES[0]), exchange("q", ALIEN)])
    assert own.score == 1.0 and alien.score == 0.0
    assert "voice" not in audit_for(General(), load("hhh"))  # as before: without samples only a reader can tell


def test_training_on_the_shown_half_does_not_spoil_the_held_out_half_as_evidence(tmp_path: Path) -> None:
    from fairlead.judges.critic import critic
    from support.reader import Reader

    made = with_samples(load(write_brand(tmp_path)))
    ledger = Ledger()
    ledger.enter("base")
    ledger.enter("sft")
    reading = critic(made["v"], Reader(lambda text: True))
    ledger.record("sft", "train", reading.name, reading.lineage)
    judge = audit_for(General(), made)["voice"]
    assert ledger.evidence("voice", judge.name, judge.lineage, layer="sft")
    ledger.record("sft", "train", judge.name, judge.lineage)  # optimised itself, it is no evidence
    with pytest.raises(OptimisedJudge):
        ledger.evidence("voice", judge.name, judge.lineage, layer="sft")
