"""Process reward models from replies whose steps are labelled, read top to bottom in `train_process_reward`.

The head reads the token that completes each step and says how likely the step is right (Lightman et al. 2023, arXiv
2305.20050). Replies are encoded whole, as a policy says them, so that a step's reward has its place among the policy's
own tokens.

Axes: N labelled steps of a micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fairlead.engine.heads import head_values
from fairlead.engine.layout import Tree
from fairlead.errors import InputError
from fairlead.exchange import Exchange, Stepped, assistant
from fairlead.judges.lineage import Lineage, rows_learnt
from fairlead.judges.protocol import Judge
from fairlead.judges.reward_model import RewardModel
from fairlead.methods.adapters import starting_point
from fairlead.methods.config_reward import ProcessConfig
from fairlead.methods.loop import Batch, Run, StepRecord, Updates, batches
from fairlead.methods.losses_reward import step_bce
from fairlead.methods.resume import resumable
from fairlead.methods.reward import Scorer, finished, new_scorer
from fairlead.methods.rows import Rows, TooLong, Trainable, exchange_rows, folder_key
from fairlead.models.steps import ends_in_text, ends_in_tokens
from fairlead.stats import Interval, rate


@dataclass(frozen=True, slots=True)
class Supervised:
    """A process reward model, what each step of training did, and what became of the rows.

    labelled, unlabelled    steps of the replies with and without a label
    """

    model: RewardModel
    records: tuple[StepRecord, ...]
    rows: int
    labelled: int
    unlabelled: int
    skipped_too_long: int
    cut: int

    def metrics(self) -> dict[str, float]:
        """Means over the last tenth of the optimiser steps: loss, and accuracy over labelled steps that are no ties."""
        last = self.records[-max(1, len(self.records) // 10) :]
        decided = sum(r.sums["decided"] for r in last)
        accurate = sum(r.sums["accurate"] for r in last)
        loss = sum(r.loss * r.sums["labelled"] for r in last) / sum(r.sums["labelled"] for r in last)
        return {"loss": loss, "accuracy": accurate / decided if decided else math.nan}


def train_process_reward(
    model: Trainable,
    replies: Sequence[Stepped],
    config: ProcessConfig,
    run: Run | None = None,
    *,
    places: Sequence[str] | None = None,
    labelled_by: Lineage = frozenset(),
    name: str = "process reward",
) -> Supervised:
    """Train a process reward model from a copy of the model under a fresh head; the model is left as it was.

    Steps without a label are read by later ones and have no loss of their own. Raises `InputError` naming the rows that
    do not fit or have no labelled step, and `TrainingStopped` where the loss or gradient is no number.
    """
    run = run or Run()
    model = starting_point(model, config)
    rows, labels = stepped_rows(model, replies, config.separator, too_long=config.too_long, places=places)
    scorer = new_scorer(model, config, seed=config.head_seed, bias=True)
    updates = Updates(scorer, rows, config, run)
    key = folder_key("process reward", model.lineage, rows.digest, labels, config.model_dump_json())
    with resumable(updates, key) as start:
        for batch in batches(rows, config, start=start):
            loss, sums = step_loss(scorer, batch, [labels[row] for row in batch.rows])
            updates.step(loss, batch, sums)
    reward = finished(
        scorer,
        model,
        name=name,
        kind="process",
        trained_on=rows_learnt([replies[i] for i in rows.source]) | labelled_by,
        separator=config.separator,
        whole=config.whole,
        head_seed=config.head_seed,
    )
    return Supervised(
        model=reward,
        records=tuple(updates.records),
        rows=len(rows.trees),
        labelled=sum(map(len, labels)),
        unlabelled=sum(replies[i].labels.count(None) for i in rows.source),
        skipped_too_long=rows.skipped_too_long,
        cut=rows.cut,
    )


def step_loss(scorer: Scorer, batch: Batch, labels: Sequence[Sequence[float]]) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of one micro-batch, its share of the optimisation step's mean over labelled steps, and sums."""
    logit_N = head_values(scorer.model, scorer.head, batch.trees, at="marked").value_N
    label_N = torch.tensor([label for row in labels for label in row], dtype=logit_N.dtype, device=logit_N.device)
    seen_N = logit_N.detach()
    hit_N = torch.where(seen_N == 0, 0.5, ((seen_N > 0) == (label_N > 0.5)).to(seen_N))
    decided_N = label_N != 0.5
    return step_bce(logit_N, label_N, steps=batch.step_tokens), {
        "labelled": float(len(label_N)),
        "decided": float(decided_N.sum()),
        "accurate": float((hit_N * decided_N).sum()),
    }


def stepped_rows(
    model: Trainable,
    replies: Sequence[Stepped],
    separator: str,
    *,
    too_long: TooLong = "refuse",
    places: Sequence[str] | None = None,
) -> tuple[Rows, list[tuple[float, ...]]]:
    """One tree per reply, its mask True where a labelled step ends; and the labels of those steps, row by row.

    So a row's scored tokens are its labelled steps, and the loop's token counts count those.
    """
    names = list(places) if places is not None else [f"row {i}" for i in range(len(replies))]
    whole = [_joined(reply, separator, name) for reply, name in zip(replies, names, strict=True)]
    rows = exchange_rows(model, whole, too_long=too_long, places=names)
    trees, labels = [], []
    for tree, source, name in zip(rows.trees, rows.source, rows.places, strict=True):
        text = whole[source].reply_text
        try:
            ends = ends_in_tokens(model.tokenizer, tree.replies[0], text, separator)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        known = {end: label for end, label in zip(ends, replies[source].labels, strict=True) if label is not None}
        mask = tuple(i in known for i in range(len(tree.replies[0])))
        trees.append(Tree(tree.prompt, tree.replies, (mask,)))
        labels.append(tuple(known[end] for end in ends if end in known))
    return Rows(tuple(trees), rows.source, rows.places, rows.skipped_too_long, rows.cut), labels


def _joined(reply: Stepped, separator: str, name: str) -> Exchange:
    text = separator.join(reply.steps)
    if len(ends_in_text(text, separator)) != len(reply.steps):
        raise InputError(
            f"{name}: joined by {separator!r}, its {len(reply.steps)} steps are {len(ends_in_text(text, separator))}: "
            "a step is empty or holds the separator; choose another separator"
        )
    if all(label is None for label in reply.labels):
        raise InputError(f"{name}: no step has a label: there is nothing to learn from")
    return Exchange(reply.messages, (assistant(text),))


def step_accuracy(judge: Judge, replies: Sequence[Stepped], *, separator: str = "\n") -> Interval:
    """How often the judge puts a step on its label's side of one half, clustered by reply; ties among labels apart.

    A step the judge has nothing to say on counts half. Raises ValueError where no step is decided.
    """
    items = [_joined(reply, separator, f"row {i}") for i, reply in enumerate(replies)]
    hits: list[float] = []
    clusters: list[int] = []
    for row, (reply, verdict) in enumerate(zip(replies, judge.judge(items), strict=True)):
        steps: Sequence[float] = verdict.steps or (0.5,) * len(reply.steps)
        for p, label in zip(steps, reply.labels, strict=True):
            if label is not None and label != 0.5:
                hits.append(0.5 if p == 0.5 else float((p > 0.5) == (label > 0.5)))
                clusters.append(row)
    if not hits:
        raise ValueError("no step has a label on either side of one half")
    return rate(hits, clusters)
