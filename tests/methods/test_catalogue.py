"""Every method by name: its settings work as they stand, its trainer exists, and none of it needs torch to be listed."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from fairlead.methods import config, config_reward
from fairlead.methods.catalogue import METHODS
from fairlead.methods.config import DPOConfig, PairwiseConfig, RatedConfig, SFTConfig, TPOConfig
from fairlead.methods.config_reward import ProcessConfig, RewardConfig, RewardEnsembleConfig

DATA = {
    "exchanges": SFTConfig,
    "pairs": PairwiseConfig,
    "triples": TPOConfig,
    "rated": RatedConfig,
    "comparisons": RewardConfig,
    "steps": ProcessConfig,
}


@pytest.mark.parametrize("name", METHODS)
def test_the_settings_of_a_name_can_train(name: str) -> None:
    method = METHODS[name]
    made = method.settings({"epochs": 2, "rows_per_step": 16})
    assert isinstance(made, DATA[method.data]) and made.epochs == 2
    assert 0 < method.lr < 1e-3 and method.summary
    with pytest.raises(ValidationError):
        method.settings({"epochs": 2, "steps": 5})


def test_names_differ_in_what_they_mean() -> None:
    meant = [(method.config.__name__, method.settings({}).model_dump_json()) for method in METHODS.values()]
    assert len(set(meant)) == len(meant)


def test_a_name_s_settings_may_be_overridden() -> None:
    made = METHODS["cdpo"].settings({"label_smoothing": 0.3})
    assert isinstance(made, DPOConfig) and made.label_smoothing == 0.3


def test_every_configuration_has_a_name() -> None:
    files = (config, config_reward)
    classes = {c for file in files for _, c in inspect.getmembers(file, inspect.isclass)}
    known = {c for c in classes if issubclass(c, tuple(DATA.values()))}
    assert {method.config for method in METHODS.values()} == known - {PairwiseConfig, RatedConfig}


def test_a_penalty_belongs_to_one_way_of_joining() -> None:
    assert RewardEnsembleConfig(combine="uncertainty", penalty=0.1).penalty == 0.1
    with pytest.raises(ValidationError, match="penalty belongs to combine: uncertainty; combine is worst"):
        RewardEnsembleConfig(combine="worst", penalty=0.1)
    with pytest.raises(ValidationError):
        RewardEnsembleConfig(members=1)


def test_every_loss_of_dpo_s_family_has_a_name() -> None:
    losses = {getattr(m.settings({}), "loss", None) for m in METHODS.values() if m.config is DPOConfig}
    assert losses == set(DPOConfig.model_fields["loss"].annotation.__args__)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", METHODS)
def test_the_trainer_takes_model_rows_config_and_run(name: str) -> None:
    pytest.importorskip("torch")
    parameters = list(inspect.signature(METHODS[name].train).parameters)
    assert parameters[0] == "model" and parameters[2:5] == ["config", "run", "places"]


def test_listing_them_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from fairlead.methods.catalogue import METHODS; "
        "print(len([m.settings({}) for m in METHODS.values()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(len(METHODS)), done.stderr


def test_every_method_stands_in_the_index_of_papers() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "papers.md").read_text()
    missing = [name for name in METHODS if f"`{name}`" not in page]
    assert not missing
