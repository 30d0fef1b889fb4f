"""Learning from pairs of replies: DPO and its kin, IPO, SimPO, ORPO, CPO, TPO, read top to bottom in `train_pairs`.

Axes: B pairs of a micro-batch, S pairs of a step, P pairs of the data set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from fairlead.engine.adapters import Adapter
from fairlead.engine.logprobs import reply_logprobs, score
from fairlead.errors import InputError
from fairlead.exchange import Preference
from fairlead.methods.adapters import adapter_of, merged, starting_point, trainable_copy
from fairlead.methods.anomalies import Alarm
from fairlead.methods.config import DPOConfig, PairwiseConfig
from fairlead.methods.coupled import Slopes, slopes_of_step
from fairlead.methods.drift import (
    Drift,
    chosen_drift_alarm,
    drift_alarms,
    drift_under_way,
    preference_metrics,
    probe,
    probe_alarms,
)
from fairlead.methods.kl import KL, kl_to_reference
from fairlead.methods.loop import Run, StepRecord, Updates, batches, step_rows
from fairlead.methods.pairs import (
    Pairs,
    imitated_reply,
    labels_of,
    nll_loss,
    pairs_of,
    preference_loss,
    reply_sums,
    reward_margin,
    tail_weight,
    weighted,
)
from fairlead.methods.reference import Reference, cached_logprobs
from fairlead.methods.resume import resumable
from fairlead.methods.rows import Rows, Trainable, folder_key, pair_rows, reply_tokens, triple_rows

__all__ = ["Alarm", "Preferred", "chosen_drift_alarm", "train_dpo", "train_pairs"]


@dataclass(frozen=True, slots=True)
class Preferred:
    """A model trained on preferences, what each step did, what became of the rows, and what to worry about.

    `drift` is measured after training, and only where the loss reads no reference; elsewhere the records hold it.
    """

    model: Trainable
    records: tuple[StepRecord, ...]
    pairs: int
    ties: int
    identical: int
    skipped_too_long: int
    cut: int
    kl: KL | None
    alarms: tuple[Alarm, ...]
    drift: Drift | None = None
    adapter: Adapter | None = None

    def metrics(self) -> dict[str, float]:
        """Means over the last tenth of the steps: margin, accuracy, log-probs and drifts of both sides (nats).

        Without a reference the drifts are those of `drift`, after the last step.
        """
        last = self.records[-max(1, len(self.records) // 10) :]
        sums = {name: sum(r.sums[name] for r in last) for name in last[0].sums}
        names = ("margin", "chosen_logp", "rejected_logp", "chosen_drift", "rejected_drift")
        means = {name: sums[name] / sums["pairs"] for name in names if name in sums}
        if self.drift is not None:
            means |= {"chosen_drift": self.drift.chosen, "rejected_drift": self.drift.rejected}
        return means | {"accuracy": sums["accurate"] / sums["decided"] if sums["decided"] else math.nan}


def train_pairs(
    model: Trainable,
    preferences: Sequence[Preference],
    config: PairwiseConfig,
    run: Run | None = None,
    *,
    places: Sequence[str] | None = None,
) -> Preferred:
    """Train a copy of the model on the pairs, by the loss that `config` means; the input model is left as it was.

    Where the loss reads a reference, it is the model as it comes in, or follows the policy from there. A tie (strength
    0.5) is kept as a soft label: it pulls the two replies' rewards together. Raises `InputError` naming the rows that
    do not fit, and `TrainingStopped` where the loss or gradient is not a number.
    """
    run = run or Run()
    model = starting_point(model, config)
    preferences, places, identical = without_identical(preferences, places, config)
    of = triple_rows if config.reads_gold else pair_rows
    rows = of(model, preferences, too_long=config.too_long, places=places)  # refuses what does not fit, by row
    labels = labels_of(preferences, rows, config)
    start_PR = _start(model, rows, config, run) if config.needs_reference else None
    policy = trainable_copy(model.module, config)
    updates = Updates(policy, rows, config, run)
    reference = Reference(model, config)
    updates.on_update = lambda: reference.follow(policy, updates.done)
    updates.watch = lambda records: drift_under_way(records, config.drift_alarm)
    imitated_tokens = [reply_tokens(tree)[imitated_reply(config)] for tree in rows.trees]
    steps = step_rows(rows, config)
    slopes: Slopes | None = None  # of the step under way, where its loss couples all its pairs
    facts = (rows.digest, labels.strength_P.tolist(), labels.margin_P.tolist(), config.model_dump_json())
    with resumable(updates, folder_key("pairs", type(config).__name__, model.lineage, *facts)) as start:
        reference.carry(updates)
        for batch in batches(rows, config, start=start):
            logp = reply_logprobs(policy, batch.trees, collision=weighted(config))
            pairs = pairs_of(logp, batch.rows, labels, _held_to(reference, start_PR, batch.rows, rows, config), config)
            loss = preference_loss(pairs, config).sum() / batch.step_rows
            if isinstance(config, DPOConfig) and config.coupled:
                if slopes is None or slopes.step != batch.step:
                    members = steps[batch.step]
                    reference_SR = _held_to(reference, start_PR, members, rows, config)
                    assert reference_SR is not None  # a coupled loss reads one
                    slopes = slopes_of_step(policy, rows, members, batch.step, reference_SR, config)
                loss = loss + slopes.share(batch, pairs)
            if config.nll:
                step_tokens = sum(imitated_tokens[row] for row in steps[batch.step])
                loss = loss + config.nll * nll_loss(pairs, config, step_rows=batch.step_rows, step_tokens=step_tokens)
            updates.step(loss, batch, _metrics(pairs, None if start_PR is None else start_PR[list(batch.rows)], config))
    trained = model.with_weights(merged(policy))
    drift = None if config.needs_reference else probe(trained, model, rows, config.tokens_per_batch)
    return Preferred(
        model=trained,
        records=tuple(updates.records),
        pairs=len(rows.trees),
        ties=labels.ties,
        identical=identical,
        skipped_too_long=rows.skipped_too_long,
        cut=rows.cut,
        kl=_kl(trained, model, rows, config),
        alarms=drift_alarms(updates.records, config.drift_alarm)
        if drift is None
        else probe_alarms(drift, updates.done, config.drift_alarm),
        drift=drift,
        adapter=adapter_of(policy, model),
    )


train_dpo = train_pairs


def _held_to(
    reference: Reference, start_PR: Tensor | None, members: Sequence[int], rows: Rows, config: PairwiseConfig
) -> Tensor | None:
    """The reference's log-probs of the pairs of these rows: known from the start, or read anew where it moves."""
    if start_PR is None or reference.pace is None:
        return None if start_PR is None else start_PR[list(members)]
    scored = score(reference.module, [rows.trees[row] for row in members], config.tokens_per_batch)
    return reply_sums(scored, tail_weight(config)).view(len(members), -1)


def _start(model: Trainable, rows: Rows, config: PairwiseConfig, run: Run) -> Tensor:
    """Reply log-probs [P, 2] of the model that comes in: once, before the first update."""
    tail = tail_weight(config)
    if tail == 1.0:
        return cached_logprobs(model, rows, config.tokens_per_batch, run.cache)
    weighed = partial(reply_sums, tail=tail)
    return cached_logprobs(model, rows, config.tokens_per_batch, run.cache, weighed, f"tail {tail}")


def _metrics(pairs: Pairs, start_BR: Tensor | None, config: PairwiseConfig) -> dict[str, float]:
    """Drifts are those from the start, also where the reference moves."""
    start = None if start_BR is None else start_BR.to(pairs.chosen_B)
    return preference_metrics(
        pairs.chosen_B,
        pairs.rejected_B,
        None if start is None else start[:, 0],
        None if start is None else start[:, 1],
        margin_B=reward_margin(pairs, config),
        label_B=pairs.label_B,
        chosen_tokens_B=pairs.chosen_tokens_B,
        rejected_tokens_B=pairs.rejected_tokens_B,
    )


def _kl(trained: Trainable, model: Trainable, rows: Rows, config: PairwiseConfig) -> KL | None:
    if not config.kl_samples:
        return None
    return kl_to_reference(trained, model, [tree.prompt for tree in rows.trees], config.kl_samples, config.seed)


def without_identical(
    preferences: Sequence[Preference], places: Sequence[str] | None, config: PairwiseConfig
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
