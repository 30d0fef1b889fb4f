"""Our side of `vs_trl.py`: one run of one method in one process, through the functions that `fairlead train` calls."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from memory import peak, reset_peak
from transformers import LlamaForCausalLM  # noqa: F401  (loaded before memory is counted, as on the other side)

from fairlead.engine.heads import ScalarHead
from fairlead.exchange import Exchange, Message, Preference
from fairlead.methods import preference as preferences
from fairlead.methods import reward as rewards
from fairlead.methods.config import DPOConfig, SFTConfig
from fairlead.methods.config_reward import RewardConfig
from fairlead.methods.loop import Run, StepRecord, step_rows
from fairlead.methods.rows import exchange_rows, pair_rows
from fairlead.methods.sft import train_sft
from fairlead.models import open_model

SETTINGS: dict[str, Any] = {
    "rows_per_step": 8,
    "lr": 1e-4,
    "warmup": 0.0,
    "schedule": "constant",
    "weight_decay": 0.0,
    "betas": (0.9, 0.99),
    "grad_clip": 1.0,
    "seed": 0,
}


def run(method: str, folder: Path, *, steps: int | None, check: bool) -> dict[str, Any]:
    """Train on all rows in the order of our own shuffle. `steps` cuts the run short; `check` returns the token ids."""
    values = [_preference(row) for row in json.loads((folder / "rows.json").read_text(encoding="utf-8"))]
    exchanges = [Exchange(value.messages, value.chosen) for value in values]
    times: list[float] = []
    losses: list[float] = []
    reference = [0.0]
    own = preferences.cached_logprobs

    def timed(*args: Any) -> torch.Tensor:
        began = time.perf_counter()
        result = own(*args)
        reference[0] += time.perf_counter() - began
        return result

    def progress(record: StepRecord) -> None:
        now = time.perf_counter()
        if not times:
            times.append(now - record.seconds)
        times.append(now)
        losses.append(record.loss)

    before = reset_peak()
    model: Any = open_model(str(folder / "model"), device="cpu", dtype="float32")
    length: dict[str, Any] = {"epochs": 1} if steps is None else {"steps": steps}
    sft, dpo = SFTConfig(**SETTINGS, **length), DPOConfig(**SETTINGS, **length, kl_samples=0)
    rows = exchange_rows(model, exchanges) if method == "sft" else pair_rows(model, values)
    if method == "dpo":
        with patch.object(preferences, "cached_logprobs", timed):
            preferences.train_dpo(model, values, dpo, Run(progress=progress))
    elif method == "sft":
        train_sft(model, exchanges, sft, Run(progress=progress))
    else:
        plain = RewardConfig(**SETTINGS, **length, margin=0.0, centre=0.0)  # TRL's loss: no margins, no centring
        train_reward(model, values, plain, torch.load(folder / "reward" / "score.pt"), Run(progress=progress))
    return {
        "seconds": [b - a for a, b in pairwise(times)],
        "reference_seconds": reference[0],
        "rows": len(values),
        "tokens": sum(len(tree.prompt) + len(reply) for tree in rows.trees for reply in tree.replies),
        "peak_bytes": peak() - before,
        "losses": losses,
        "share": len(losses) * SETTINGS["rows_per_step"] / len(values),
        "order": [row for step in step_rows(rows, SFTConfig(**SETTINGS, epochs=1)) for row in step],
        "ids": [[[*tree.prompt, *reply] for reply in tree.replies] for tree in rows.trees] if check else [],
        "versions": {"torch": torch.__version__},
    }


def train_reward(model: Any, values: list[Preference], config: RewardConfig, score_1D: torch.Tensor, run: Run) -> None:
    """Our trainer from the head that TRL starts from, without the calibration after the last step: TRL has none."""

    def head(body: Any, **_: Any) -> ScalarHead:
        made = ScalarHead(score_1D.shape[1])
        made.weight_D.data.copy_(score_1D[0])
        return made

    plain = patch.object(rewards, "calibrated_on", lambda reward, *_, **__: reward)
    with patch.object(rewards, "new_head", head), plain:
        rewards.train_reward(model, values, config, run)


def _preference(row: dict[str, Any]) -> Preference:
    prompt = tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"])
    return Preference(prompt, *((Message("assistant", row[side]),) for side in ("chosen", "rejected")))
