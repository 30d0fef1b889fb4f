"""Learning from pairs of replies: direct preference optimisation, read top to bottom in `train_dpo`.

Axes: B pairs of a micro-batch, R replies (2 per pair: chosen, rejected).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fairlead.engine.adapters import Adapter
from fairlead.engine.logprobs import reply_logprobs
from fairlead.errors import InputError
from fairlead.exchange import Preference
from fairlead.methods.adapters import adapter_of, merged, starting_point, trainable_copy
from fairlead.methods.config import DPOConfig
from fairlead.methods.kl import KL, kl_to_reference
from fairlead.methods.loop import Run, StepRecord, Updates, batches
from fairlead.methods.losses import chosen_nll, dpo, preference_metrics
from fairlead.methods.reference import cached_logprobs
from fairlead.methods.resume import resumable
from fairlead.methods.rows import Trainable, folder_key, pair_rows


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something a run should not have done, by name: what was seen, when first, and what to do."""

    name: str
    step: int
    value: float
    message: str


@dataclass(frozen=True, slots=True)
class Preferred:
    """A model trained on preferences, what each step did, what became of the rows, and what to worry about."""

    model: Trainable
    records: tuple[StepRecord, ...]
    pairs: int
    ties: int
    identical: int
    skipped_too_long: int
    cut: int
    kl: KL | None
    alarms: tuple[Alarm, ...]
    adapter: Adapter | None = None

    def metrics(self) -> dict[str, float]:
        """Means over the last tenth of the steps: margin, accuracy, log-probs and drifts of both sides (nats)."""
        last = self.records[-max(1, len(self.records) // 10) :]
        sums = {name: sum(r.sums[name] for r in last) for name in last[0].sums}
        names = ("margin", "chosen_logp", "rejected_logp", "chosen_drift", "rejected_drift")
        means = {name: sums[name] / sums["pairs"] for name in names}
        return means | {"accuracy": sums["accurate"] / sums["decided"] if sums["decided"] else math.nan}


def train_dpo(
    model: Trainable,
    preferences: Sequence[Preference],
    config: DPOConfig,
    run: Run | None = None,
    *,
    places: Sequence[str] | None = None,
) -> Preferred:
    """Train a copy of the model on the pairs; the reference is the model as it comes in, and is left as it was.

    A tie (strength 0.5) is kept as a soft label: it pulls the two replies' rewards together. Raises `InputError`
    naming the rows that do not fit, and `TrainingStopped` where the loss or gradient is not a number.
    """
    run = run or Run()
    model = starting_point(model, config)
    preferences, places, identical = _without_identical(preferences, places, config)
    rows = pair_rows(model, preferences, too_long=config.too_long, places=places)  # refuses what does not fit, by row
    reference = cached_logprobs(model, rows, config.tokens_per_batch, run.cache)  # once, before the first update
    strength = torch.tensor([preferences[i].strength for i in rows.source], dtype=reference.dtype)
    policy = trainable_copy(model.module, config)
    updates = Updates(policy, rows, config, run)
    key = folder_key("dpo", model.lineage, rows.digest, strength.tolist(), config.model_dump_json())
    with resumable(updates, key) as start:
        for batch in batches(rows, config, start=start):
            logp = reply_logprobs(policy, batch.trees)
            chosen_B, rejected_B = logp.sum_R().view(-1, 2).unbind(1)
            pairs = list(batch.rows)
            ref_chosen_B, ref_rejected_B = reference[pairs].to(chosen_B).unbind(1)
            label_B = strength[pairs].to(chosen_B)
            loss_B = dpo(chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, beta=config.beta, label_B=label_B)
            if config.nll:
                loss_B = loss_B + config.nll * chosen_nll(chosen_B, logp.count_R.view(-1, 2)[:, 0])
            sums = preference_metrics(
                chosen_B, rejected_B, ref_chosen_B, ref_rejected_B, beta=config.beta, label_B=label_B
            )
            sums["chosen_tokens"] = float(logp.count_R.view(-1, 2)[:, 0].sum())
            updates.step(loss_B.sum() / batch.step_rows, batch, sums)
    trained = model.with_weights(merged(policy))
    prompts = [tree.prompt for tree in rows.trees]
    return Preferred(
        model=trained,
        records=tuple(updates.records),
        pairs=len(rows.trees),
        ties=int((strength == 0.5).sum()),
        identical=identical,
        skipped_too_long=rows.skipped_too_long,
        cut=rows.cut,
        kl=kl_to_reference(trained, model, prompts, config.kl_samples, config.seed) if config.kl_samples else None,
        alarms=chosen_drift_alarm(updates.records, config.drift_alarm),
        adapter=adapter_of(policy, model),
    )


def chosen_drift_alarm(records: Sequence[StepRecord], limit: float) -> tuple[Alarm, ...]:
    """The alarm `chosen-log-prob-falls`: DPO lowered the chosen replies together with the rejected ones.

    Read off a running mean over eight steps, in nats per chosen token against the reference; `limit` is positive.
    """
    for end in range(1, len(records) + 1):
        window = records[max(0, end - 8) : end]
        tokens = sum(r.sums["chosen_tokens"] for r in window)
        drift = sum(r.sums["chosen_drift"] for r in window) / tokens
        if drift < -limit and (end >= 8 or end == len(records)):
            final = records[-8:]
            now = sum(r.sums["chosen_drift"] for r in final) / sum(r.sums["chosen_tokens"] for r in final)
            message = (
                f"the chosen replies' log-prob fell by {-drift:.3f} nats per token at step {end} (limit {limit}), "
                f"{-now:.3f} at the end: the model is unlearning good replies too. Raise nll or beta, or lower lr"
            )
            return (Alarm("chosen-log-prob-falls", end, drift, message),)
    return ()


def _without_identical(
    preferences: Sequence[Preference], places: Sequence[str] | None, config: DPOConfig
) -> tuple[Sequence[Preference], Sequence[str], int]:
    """The pairs to train on, their places, and how many had two identical replies."""
    names = list(places) if places is not None else [f"row {i}" for i in range(len(preferences))]
    if len(names) != len(preferences):
        raise ValueError(f"{len(preferences)} pairs but {len(names)} places")
    same = [i for i, pair in enumerate(preferences) if pair.chosen == pair.rejected]
    if same and config.identical == "refuse":
        raise InputError(
            f"{len(same):,} pairs have two identical replies, the first at {names[same[0]]}: they say nothing about "
            "which is better. Take them out, or set identical: skip"
        )
    if not same or config.identical == "keep":
        return preferences, names, len(same)
    kept = sorted(set(range(len(preferences))) - set(same))
    if not kept:
        raise InputError(f"all {len(same):,} pairs have two identical replies: there is nothing to learn")
    return [preferences[i] for i in kept], [names[i] for i in kept], len(same)
