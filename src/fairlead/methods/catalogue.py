"""Every method that trains on fixed data, by name: what it learns from, its settings, and the function that trains.

Free of torch, so that a command line can list and check them anywhere; `Method.train` imports what it needs when it is
first asked for. Several names may stand for one configuration with other defaults: they are the settings under which
a method is known, and any of them may be overridden.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fairlead.methods.config import (
    BCOConfig,
    CPOConfig,
    DPOConfig,
    IPOConfig,
    KTOConfig,
    ORPOConfig,
    SFTConfig,
    SimPOConfig,
    TPOConfig,
    Training,
)
from fairlead.methods.config_reward import ProcessConfig, RewardConfig, RewardEnsembleConfig, WarmConfig


@dataclass(frozen=True, slots=True)
class Method:
    """A method by name.

    data      what its train function takes: exchanges, pairs (of `Preference`), triples (the same, each with a gold
              reply), rated (`Rated`), comparisons (`Preference` or `Ranking`) or steps (`Stepped`). The last two make a
              judge, not a model that answers
    config    its settings
    defaults  those under which the name is known, where they differ from the configuration's own
    where     module:function of `train(model, rows, config, run, places=...)`
    lr        a usual learning rate at a billion parameters
    """

    summary: str
    data: Literal["exchanges", "pairs", "triples", "rated", "comparisons", "steps"]
    config: type[Training]
    where: str
    lr: float
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, given: Mapping[str, Any]) -> Training:
        """The configuration under these settings. Raises pydantic's `ValidationError` for those that cannot work."""
        return self.config(**{**self.defaults, **given})

    @property
    def train(self) -> Callable[..., Any]:
        """The function that trains; imports torch."""
        module, name = self.where.split(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return function


_SFT = "fairlead.methods.sft:train_sft"
_PAIRS = "fairlead.methods.preference:train_pairs"
_RATED = "fairlead.methods.unpaired:train_kto"
_REWARD = "fairlead.methods.reward:train_reward"
_ENSEMBLE = "fairlead.methods.reward_members:train_ensemble"
_WARM = "fairlead.methods.reward_members:train_warm"
_PROCESS = "fairlead.methods.process:train_process_reward"


def _dpo(summary: str, **defaults: Any) -> Method:
    return Method(summary, "pairs", DPOConfig, _PAIRS, 5e-6, defaults)


METHODS: Mapping[str, Method] = {
    "sft": Method("imitate the replies of conversations", "exchanges", SFTConfig, _SFT, 2e-5),
    "dpo": _dpo("direct preference optimisation"),
    "tr-dpo": _dpo("DPO against a reference that follows the policy", reference="ema"),
    "ipo": Method("identity preference optimisation", "pairs", IPOConfig, _PAIRS, 5e-6),
    "kto": Method("thumbs up and down against a reference point", "rated", KTOConfig, _RATED, 5e-6),
    "simpo": Method("mean log-prob as reward, no reference", "pairs", SimPOConfig, _PAIRS, 8e-7),
    "alphapo": Method(
        "SimPO with another shape of reward", "pairs", SimPOConfig, _PAIRS, 8e-7, {"beta": 2.5, "alpha": 0.25}
    ),
    "orpo": Method("imitation and an odds ratio in one stage, no reference", "pairs", ORPOConfig, _PAIRS, 8e-6),
    "cpo": Method("reference-free DPO and imitation", "pairs", CPOConfig, _PAIRS, 5e-6),
    "tpo": Method("pairs without a reference, and imitation of a gold reply", "triples", TPOConfig, _PAIRS, 5e-7),
    "tpo-l": Method(
        "TPO per token, with a margin",
        "triples",
        TPOConfig,
        _PAIRS,
        5e-7,
        {"length": "mean", "beta": 2.0, "gamma": 0.5},
    ),
    "bco": Method("thumbs up and down as a binary classifier", "rated", BCOConfig, _RATED, 5e-6),
    "cdpo": _dpo("DPO where a share of labels is wrong", label_smoothing=0.1),
    "robust-dpo": _dpo("DPO, unbiased where a share of labels is wrong", loss="robust", label_smoothing=0.1),
    "slic": _dpo("hinge on the reward margin", loss="hinge"),
    "ln-dpo": _dpo("DPO per token", length="mean", beta=5.0),
    "ld-dpo": _dpo("DPO in which surplus length counts half", ld_alpha=0.5),
    "f-dpo": _dpo("DPO kept near the reference by Jensen-Shannon divergence", divergence="js"),
    "exo": _dpo("reverse KL to the labels", loss="exo", label_smoothing=1e-3),
    "discopop": _dpo("log-ratio modulated loss, found by a language model", loss="discopop"),
    "nca": _dpo("noise-contrastive alignment", loss="nca"),
    "sppo": _dpo("self-play preference optimisation, hard labels", loss="sppo"),
    "bco-pair": _dpo("binary classifier on pairs", loss="bco_pair"),
    "wpo": _dpo("DPO with pairs weighted by the policy's own odds", on_policy=True),
    "apo-zero": _dpo("anchored: chosen up, rejected down", loss="apo_zero"),
    "apo-down": _dpo("anchored: both down, rejected further", loss="apo_down"),
    "aot": _dpo("distributional preference, paired", loss="aot"),
    "aot-unpaired": _dpo("distributional preference, unpaired", loss="aot_unpaired"),
    "mpo": _dpo("mixed: DPO, a binary classifier and imitation", losses={"sigmoid": 0.8, "bco_pair": 0.2}, nll=1.0),
    "apo-zero-unpaired": Method(
        "anchored, on thumbs up and down", "rated", KTOConfig, _RATED, 5e-6, {"loss": "apo_zero"}
    ),
    "reward": Method("a reward model, from pairs and rankings", "comparisons", RewardConfig, _REWARD, 1e-5),
    "reward-ensemble": Method(
        "several reward models as one judge", "comparisons", RewardEnsembleConfig, _ENSEMBLE, 1e-5
    ),
    "warm": Method("one reward model of several ones' averaged weights", "comparisons", WarmConfig, _WARM, 1e-5),
    "process-reward": Method("a reward for each step of a reply", "steps", ProcessConfig, _PROCESS, 1e-5),
}
