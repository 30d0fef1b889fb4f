"""Reward models from comparisons, read top to bottom in `train_reward`.

A row is one prompt with its replies: two of a pair, or K of a ranking, whose pairs all stand in one batch element and
weigh 1/(K choose 2) each (Ouyang et al. 2022, arXiv 2203.02155, section 3.5). So every prompt weighs the same, and no
reply is passed through the model more than once per epoch.

Axes: B pairs of a micro-batch, R replies.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fairlead.engine.forward import causal_lm, head_of
from fairlead.engine.heads import ScalarHead, head_values, new_head, score_values
from fairlead.engine.layout import Tree
from fairlead.errors import InputError
from fairlead.exchange import Preference, Ranking
from fairlead.feedback.rankings import Comparison
from fairlead.judges.lineage import Lineage, rows_learnt
from fairlead.judges.reward_model import RewardModel, calibrate
from fairlead.methods.adapters import adapter_of, merged, starting_point, trainable_copy
from fairlead.methods.config import Training
from fairlead.methods.config_reward import RewardConfig
from fairlead.methods.loop import Batch, Run, StepRecord, Updates, batches, step_rows
from fairlead.methods.losses_reward import bradley_terry, centring, length_pull
from fairlead.methods.resume import resumable
from fairlead.methods.rows import Rows, Trainable, compared_rows, folder_key

log = logging.getLogger(__name__)

CALIBRATION_PAIRS = 2_000  # more would not sharpen two numbers


class Scorer(nn.Module):
    """A language model under a scalar head, as one module: what an optimiser and a checkpoint take."""

    def __init__(self, model: nn.Module, head: ScalarHead) -> None:
        super().__init__()
        self.model, self.head = model, head


@dataclass(frozen=True, slots=True)
class Pair:
    """Two replies of one row by index, the better one first; `weight` is the pair's share of its prompt."""

    better: int
    worse: int
    label: float
    margin: float
    weight: float


@dataclass(frozen=True, slots=True)
class Rewarded:
    """A reward model, what each step did, what became of the rows. `identical`: pairs of equal replies, left out."""

    model: RewardModel
    records: tuple[StepRecord, ...]
    prompts: int
    pairs: int
    ties: int
    identical: int
    skipped_too_long: int
    cut: int

    def metrics(self) -> dict[str, float]:
        """Means over the last tenth of the steps: loss and margin per pair, accuracy, the rewards' mean and spread."""
        last = self.records[-max(1, len(self.records) // 10) :]
        s = {name: sum(r.sums[name] for r in last) for name in last[0].sums}
        mean = s["reward"] / s["replies"]
        return {
            "loss": s["bt"] / s["prompts"],
            "margin": s["margin"] / s["pairs"],
            "accuracy": s["accurate"] / s["decided"] if s["decided"] else math.nan,
            "reward_mean": mean,
            "reward_std": math.sqrt(max(s["reward_squared"] / s["replies"] - mean * mean, 0.0)),
        }


@dataclass(frozen=True, slots=True)
class Compared:
    """Comparisons as a model reads them: where training starts, the rows in it and their pairs, what was left out."""

    model: Trainable
    kept: tuple[Comparison, ...]
    rows: Rows
    pairs: tuple[tuple[Pair, ...], ...]
    identical: int

    def key(self, config: RewardConfig) -> str:
        """A name for what training on them under these settings gives."""
        return folder_key("reward", self.model.lineage, self.rows.digest, list(self.pairs), config.model_dump_json())


def compared(
    model: Trainable, preferences: Sequence[Comparison], config: RewardConfig, places: Sequence[str] | None
) -> Compared:
    """Raises `InputError` naming the rows that do not fit or compare nothing."""
    model = starting_point(model, config)
    distinct, names, identical = without_identical(preferences, places)
    rows = compared_rows(model, distinct, too_long=config.too_long, places=names)
    kept = tuple(distinct[i] for i in rows.source)
    return Compared(model, kept, rows, tuple(pairs_of(row) for row in kept), identical)


def train_reward(
    model: Trainable,
    preferences: Sequence[Comparison],
    config: RewardConfig,
    run: Run | None = None,
    *,
    places: Sequence[str] | None = None,
    held_out: Sequence[Comparison] = (),
    labelled_by: Lineage = frozenset(),
    name: str = "reward",
) -> Rewarded:
    """Train a reward model from a copy of the model under a fresh head; the model is left as it was.

    held_out       comparisons to calibrate on (at most 2,000 pairs of either); else it is calibrated on those it learnt
    labelled_by    lineage of who made the labels: a reward model distilled from a critic is no independent judge of it

    Raises `InputError` naming the rows that do not fit, and `TrainingStopped` where the loss or gradient is no number.
    """
    data = compared(model, preferences, config, places)
    return fitted(data, config, run or Run(), held_out=held_out, labelled_by=labelled_by, name=name)


def fitted(
    data: Compared,
    config: RewardConfig,
    run: Run,
    *,
    held_out: Sequence[Comparison] = (),
    labelled_by: Lineage = frozenset(),
    name: str = "reward",
) -> Rewarded:
    """`train_reward` of comparisons that are read already."""
    rows, pairs = data.rows, data.pairs
    scorer = new_scorer(data.model, config, seed=config.head_seed)
    updates = Updates(scorer, rows, config, run)
    pull = LengthPull(scorer, rows, config)
    with resumable(updates, data.key(config)) as start:
        for batch in batches(rows, config, start=start):
            loss, sums = comparison_loss(scorer, batch, [pairs[row] for row in batch.rows], config, pull)
            updates.step(loss, batch, sums)
    learnt = rows_learnt(data.kept)
    reward = finished(scorer, data.model, name=name, trained_on=learnt | labelled_by, head_seed=config.head_seed)
    flat = [pair for row in pairs for pair in row]
    return Rewarded(
        model=calibrated_on(reward, held_out or data.kept, held_out=bool(held_out)),
        records=tuple(updates.records),
        prompts=len(rows.trees),
        pairs=len(flat),
        ties=sum(pair.label == 0.5 for pair in flat),
        identical=data.identical,
        skipped_too_long=rows.skipped_too_long,
        cut=rows.cut,
    )


def comparison_loss(
    scorer: Scorer, batch: Batch, pairs: Sequence[Sequence[Pair]], config: RewardConfig, pull: LengthPull | None = None
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of one micro-batch, its share of the step's mean over prompts, and sums for the record."""
    reward_R = head_values(scorer.model, scorer.head, batch.trees).value_N
    first = np.cumsum([0, *(len(tree.replies) for tree in batch.trees)])
    flat = [(int(start), pair) for start, row in zip(first, pairs, strict=False) for pair in row]

    def numbers(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=reward_R.dtype, device=reward_R.device)

    better_B = reward_R[[start + pair.better for start, pair in flat]]
    worse_B = reward_R[[start + pair.worse for start, pair in flat]]
    label_B, weight_B = numbers([p.label for _, p in flat]), numbers([p.weight for _, p in flat])
    margin_B = config.margin * numbers([p.margin for _, p in flat])
    bt_B = bradley_terry(better_B, worse_B, label_B=label_B, margin_B=margin_B)
    loss_B = bt_B + config.centre * centring(better_B, worse_B) if config.centre else bt_B
    loss = (weight_B * loss_B).sum() / batch.step_rows
    if config.length:
        if pull is None:
            raise ValueError("config.length is a penalty of the whole step: give its LengthPull")
        loss = loss + config.length * pull(batch, reward_R)
    lead_B, seen_R = (better_B - worse_B).detach(), reward_R.detach().double()
    decided_B = label_B != 0.5
    hit_B = (lead_B > 0).to(lead_B) + 0.5 * (lead_B == 0).to(lead_B)
    return loss, {
        "prompts": float(len(batch.trees)),
        "pairs": float(len(flat)),
        "decided": float(decided_B.sum()),
        "accurate": float((hit_B * decided_B).sum()),
        "margin": float(lead_B.sum()),
        "bt": float((weight_B * bt_B).detach().sum()),
        "replies": float(len(seen_R)),
        "reward": float(seen_R.sum()),
        "reward_squared": float(seen_R.square().sum()),
    }


class LengthPull:
    """The length penalty of a step, cut to its micro-batches.

    The penalty is a statistic of the whole step, so its rewards are scored first, without gradients; each micro-batch
    then adds derivative times reward. Costs a forward pass per step, and only where `config.length` asks for it.
    """

    def __init__(self, scorer: Scorer, rows: Rows, config: RewardConfig) -> None:
        self.scorer, self.rows, self.config = scorer, rows, config
        self.step = -1
        self.steps = step_rows(rows, config) if config.length else []
        self.penalty = 0.0
        self.pull: dict[int, torch.Tensor] = {}

    def __call__(self, batch: Batch, reward_R: torch.Tensor) -> torch.Tensor:
        """This micro-batch's share of the squared correlation: the right gradient, and values that add up to it."""
        if batch.step != self.step:
            self._look(self.steps[batch.step])
            self.step = batch.step
        pull_R = torch.cat([self.pull[row] for row in batch.rows]).to(reward_R)
        slope = (pull_R * reward_R).sum()
        return slope - slope.detach() + self.penalty * len(batch.rows) / batch.step_rows

    def _look(self, members: Sequence[int]) -> None:
        trees = [self.rows.trees[row] for row in members]
        read = score_values(self.scorer.model, self.scorer.head, trees, self.config.tokens_per_batch)
        counts = [len(tree.replies) for tree in trees]
        prompt_R = torch.repeat_interleave(torch.arange(len(trees)), torch.tensor(counts))
        self.penalty, pull_R = length_pull(read.value_N.double(), _lengths(trees), prompt_R)
        # A step across the border of two epochs may hold a row twice; both places then have the same derivative.
        self.pull = dict(zip(members, torch.split(pull_R, counts), strict=True))


def _lengths(trees: Sequence[Tree]) -> torch.Tensor:
    """Tokens of each reply, its end of turn included."""
    return torch.tensor([float(len(reply)) for tree in trees for reply in tree.replies])


# --------------------------------------------------------------------------------------- body and head


def new_scorer(model: Trainable, config: Training, *, seed: int, bias: bool = False) -> Scorer:
    """What a reward model or value function trains: the body as `config` says, and all of a fresh head.

    No bias for comparisons, whose loss does not see it: Adam would blow its rounding noise up to full steps.
    """
    body = trainable_copy(model.module, config)
    unembed, embedding = head_of(body), causal_lm(body).get_input_embeddings()  # type: ignore[operator]
    if unembed.weight_VD is not embedding.weight:
        unembed.weight_VD.requires_grad_(False)  # it is not in the loss: without a gradient it must not decay either
    if unembed.bias_V is not None:
        unembed.bias_V.requires_grad_(False)
    return Scorer(body, new_head(body, bias=bias, seed=seed))


def finished(scorer: Scorer, model: Trainable, **more: Any) -> RewardModel:
    """The judge that was trained from `model`: adapters folded in, and kept beside."""
    adapter = adapter_of(scorer.model, model)
    body = merged(scorer.model)
    for tensor in (*body.parameters(), *scorer.head.parameters()):
        tensor.requires_grad_(tensor.is_floating_point())
    return RewardModel(model=model.with_weights(body), head=scorer.head, base=model.lineage, adapter=adapter, **more)


# ------------------------------------------------------------------------------------------- the rows


def pairs_of(row: Comparison) -> tuple[Pair, ...]:
    """The pairs of one prompt's replies, which together weigh 1. Pairs of equal replies say nothing: left out."""
    if isinstance(row, Preference):
        return (Pair(0, 1, row.strength, row.margin or 0.0, 1.0),) if row.chosen != row.rejected else ()
    order = row.order
    found = [
        (order[i], order[j])
        for i in range(len(order))
        for j in range(i + 1, len(order))
        if row.replies[order[i]] != row.replies[order[j]]
    ]
    return tuple(Pair(better, worse, 1.0, 0.0, 1.0 / len(found)) for better, worse in found)


def as_preferences(rows: Sequence[Comparison]) -> Iterator[Preference]:
    """Every pair on its own, for what knows no rankings."""
    for row in rows:
        replies = row.replies if isinstance(row, Ranking) else (row.chosen, row.rejected)
        for pair in pairs_of(row):
            if isinstance(row, Preference):
                yield row
            else:
                yield Preference(row.messages, replies[pair.better], replies[pair.worse], principle=row.principle)


def without_identical(
    rows: Sequence[Comparison], places: Sequence[str] | None
) -> tuple[list[Comparison], list[str], int]:
    """The rows with something to compare, their places, and how many pairs had two equal replies."""
    names = list(places) if places is not None else [f"row {i}" for i in range(len(rows))]
    if len(names) != len(rows):
        raise ValueError(f"{len(rows)} rows but {len(names)} places")
    for name, row in zip(names, rows, strict=True):
        if isinstance(row, Ranking) and len(row.replies) < 2:
            raise InputError(f"{name}: a ranking of {len(row.replies)} replies compares nothing; give at least 2")
    pairs = [pairs_of(row) for row in rows]
    whole = [math.comb(len(row.replies), 2) if isinstance(row, Ranking) else 1 for row in rows]
    identical = sum(whole) - sum(map(len, pairs))
    kept = [i for i, found in enumerate(pairs) if found]
    if rows and not kept:
        raise InputError(f"all {identical:,} pairs have two identical replies: there is nothing to learn")
    return [rows[i] for i in kept], [names[i] for i in kept], identical


def some_pairs(rows: Sequence[Comparison]) -> list[Preference]:
    """At most 2,000 pairs, spread evenly over the rows: to calibrate on, to scale by."""
    pairs = list(as_preferences(rows))
    if len(pairs) > CALIBRATION_PAIRS:
        pairs = [pairs[i] for i in np.linspace(0, len(pairs) - 1, CALIBRATION_PAIRS).astype(int)]
    return pairs


def calibrated_on(reward: RewardModel, rows: Sequence[Comparison], *, held_out: bool) -> RewardModel:
    """Calibrated on some pairs of these rows; where it can read none of them, as it is, said in the log."""
    try:
        return calibrate(reward, some_pairs(rows), held_out=held_out)
    except ValueError as error:
        log.warning("%s; its score is the plain sigmoid of its reward", error)
        return reward
