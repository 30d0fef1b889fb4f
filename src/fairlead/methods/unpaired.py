"""Learning from single replies with a thumb up or down: KTO, BCO and APO-zero, read top to bottom in `train_kto`.

Axes: B replies of a micro-batch, S of a step, P of the data set, M mismatched prompt/reply pairs of a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairlead.engine.adapters import Adapter
from fairlead.engine.layout import Tree
from fairlead.engine.logprobs import reply_logprobs, score
from fairlead.errors import InputError
from fairlead.exchange import Rated
from fairlead.methods.adapters import adapter_of, merged, starting_point, trainable_copy
from fairlead.methods.anomalies import Alarm
from fairlead.methods.config import BCOConfig, KTOConfig, RatedConfig
from fairlead.methods.density import density_ratios
from fairlead.methods.drift import drift_alarms, drift_under_way
from fairlead.methods.kl import KL, kl_to_reference
from fairlead.methods.loop import Run, StepRecord, Updates, batches, step_rows
from fairlead.methods.losses_unpaired import apo_zero_unpaired, bco, kto, reference_point, reward_shift
from fairlead.methods.reference import Reference, cached_logprobs
from fairlead.methods.resume import resumable
from fairlead.methods.rows import Rows, Trainable, folder_key, rated_rows

CALLED = ("good", "bad")  # what the two kinds of replies are called in alarms


@dataclass(frozen=True, slots=True)
class Rewarded:
    """A model trained on rated replies, what each step did, what became of the rows, and what to worry about.

    `mismatched_left_out` counts mismatched pairs (KTO's reference point) that did not fit the model's context.
    """

    model: Trainable
    records: tuple[StepRecord, ...]
    good: int
    bad: int
    skipped_too_long: int
    cut: int
    mismatched_left_out: int
    kl: KL | None
    alarms: tuple[Alarm, ...]
    adapter: Adapter | None = None

    def metrics(self) -> dict[str, float]:
        """Means over the last tenth of the steps: rewards (beta x nats) and drifts (nats) of good and bad replies.

        margin        mean reward of good replies minus that of bad ones
        baseline      what rewards are held against: KTO's reference point in nats, BCO's shift in units of reward
        """
        last = self.records[-max(1, len(self.records) // 10) :]

        def mean(name: str, over: str) -> float:
            count = sum(r.sums[over] for r in last)
            return sum(r.sums[name] for r in last) / count if count else math.nan

        good, bad = mean("good_reward", "good"), mean("bad_reward", "bad")
        return {
            "good_reward": good,
            "bad_reward": bad,
            "margin": good - bad,
            "good_drift": mean("chosen_drift", "good"),
            "bad_drift": mean("rejected_drift", "bad"),
            "baseline": mean("baseline", "rows"),
        }


def train_kto(
    model: Trainable,
    rated: Sequence[Rated],
    config: RatedConfig,
    run: Run | None = None,
    *,
    places: Sequence[str] | None = None,
) -> Rewarded:
    """Train a copy of the model on rated replies, by KTO or (with a `BCOConfig`) BCO; the reference is the input
    model, or follows the policy from there.

    What the loss needs to know of a whole step is computed before its micro-batches, without gradient. Raises
    `InputError` naming the rows that do not fit or where only one kind of thumb is given, and `TrainingStopped` where
    the loss or gradient is not a number.
    """
    run = run or Run()
    model = starting_point(model, config)
    rows = rated_rows(model, rated, too_long=config.too_long, places=places)  # refuses what does not fit, by row
    good_P = torch.tensor([rated[i].good for i in rows.source])
    _both_kinds(good_P)
    reference_P = cached_logprobs(model, rows, config.tokens_per_batch, run.cache)[:, 0]
    steps = step_rows(rows, config)
    needs_point = isinstance(config, KTOConfig) and config.loss == "kto"
    strangers = _mismatched(model, rows, steps, config, run) if needs_point else None
    density_P = None
    if isinstance(config, BCOConfig) and config.match:
        density_P = density_ratios(model, rows, good_P, config.match_limits, config.tokens_per_batch)
    policy = trainable_copy(model.module, config)
    updates = Updates(policy, rows, config, run)
    updates.watch = lambda records: drift_under_way(records, config.drift_alarm, CALLED)
    reference = Reference(model, config)
    updates.on_update = lambda: reference.follow(policy, updates.done)
    known, baseline = -1, 0.0  # the step whose statistics are known, and what rewards are held against in it
    facts = (rows.digest, good_P.tolist(), config.model_dump_json())
    with resumable(updates, folder_key("rated", type(config).__name__, model.lineage, *facts)) as start:
        reference.carry(updates)
        for batch in batches(rows, config, start=start):
            at = list(batch.rows)
            if strangers is not None and known != batch.step:  # forward only, on the weights as the step finds them
                baseline = strangers.reference_point(policy, reference, batch.step, config)
            logp = reply_logprobs(policy, batch.trees)
            drift_B = logp.sum_R().detach() - reference_P[at].to(logp.logp_N)
            ratio_B = logp.sum_R() - reference_P[at].to(logp.logp_N)
            if reference.pace is not None:
                ratio_B = logp.sum_R() - score(reference.module, batch.trees, config.tokens_per_batch).sum_R()
            good_B = good_P[at].to(ratio_B.device)
            if isinstance(config, BCOConfig):
                if known != batch.step:
                    members = steps[batch.step]
                    # All of the step's log-probs are at hand; of several processes each has only its own part.
                    whole = len(batch.rows) == batch.step_rows
                    ratio_S = ratio_B.detach().cpu() if whole else _ratios(policy, rows, members, reference_P, config)
                    good_S = good_P[at] if whole else good_P[members]
                    baseline = _running_shift(updates.records, config.beta * ratio_S, good_S)
                loss_B = bco(
                    ratio_B,
                    good_B,
                    beta=config.beta,
                    shift=baseline,
                    good=config.good,
                    bad=config.bad,
                    density_B=None if density_P is None else density_P[at].to(ratio_B),
                )
            elif needs_point:
                loss_B = kto(ratio_B, good_B, beta=config.beta, z=baseline, good=config.good, bad=config.bad)
            else:
                loss_B = apo_zero_unpaired(ratio_B, good_B, beta=config.beta, good=config.good, bad=config.bad)
            known = batch.step
            sums = _metrics(logp.sum_R(), ratio_B, drift_B, good_B, logp.count_R, config.beta, baseline)
            updates.step(loss_B.sum() / batch.step_rows, batch, sums)
    trained = model.with_weights(merged(policy))
    prompts = [tree.prompt for tree in rows.trees]
    return Rewarded(
        model=trained,
        records=tuple(updates.records),
        good=int(good_P.sum()),
        bad=int((~good_P).sum()),
        skipped_too_long=rows.skipped_too_long,
        cut=rows.cut,
        mismatched_left_out=0 if strangers is None else strangers.left_out,
        kl=kl_to_reference(trained, model, prompts, config.kl_samples, config.seed) if config.kl_samples else None,
        alarms=(*_balance_alarm(good_P, config), *drift_alarms(updates.records, config.drift_alarm, CALLED)),
        adapter=adapter_of(policy, model),
    )


# ------------------------------------------------------------------------------------ statistics of a whole step


@dataclass(frozen=True, slots=True)
class Mismatched:
    """Every step's replies under prompts of other rows of that step, and the reference's log-probs of them.

    `first[s]` to `first[s + 1]` are step s's.
    """

    trees: tuple[Tree, ...]
    first: tuple[int, ...]
    reference_M: Tensor
    left_out: int

    def reference_point(self, policy: torch.nn.Module, reference: Reference, step: int, config: RatedConfig) -> float:
        """KTO's z of a step under the policy's and the reference's present weights, nats."""
        part = slice(self.first[step], self.first[step + 1])
        logp_M = score(policy, self.trees[part], config.tokens_per_batch).sum_R()
        reference_M = self.reference_M[part]
        if reference.pace is not None:
            reference_M = score(reference.module, self.trees[part], config.tokens_per_batch).sum_R()
        return reference_point(logp_M - reference_M.to(logp_M))


def _mismatched(
    model: Trainable, rows: Rows, steps: Sequence[Sequence[int]], config: RatedConfig, run: Run
) -> Mismatched:
    """Pair each prompt of a step with the reply of the row before it (the first with the last's), as KTO's authors do.

    So the replies of the mismatched pairs are those of the step. A mixed pair that is longer than the context is left
    out and counted; not all can be, since together they are as long as the rows. A step of one row only, the rest of
    an epoch, borrows the next reply of the data that fits. Raises InputError where there is none.
    """
    trees: list[Tree] = []
    first, left_out, count = [0], 0, len(rows.trees)

    def mixed(row: int, other: int) -> Tree:
        return Tree(rows.trees[row].prompt, rows.trees[other].replies, rows.trees[other].masks)

    def fits(tree: Tree) -> bool:
        return model.context is None or tree.longest <= model.context

    for members in steps:
        for place, row in enumerate(members):
            before = [other for other in (*members[place + 1 :], *members[:place]) if other != row]
            borrowed = (other % count for other in range(row + 1, row + count) if fits(mixed(row, other % count)))
            stranger = before[-1] if before else next(borrowed, None)
            if stranger is None:
                raise InputError(
                    f"{rows.place(row)} is alone in its step, and no other row's reply fits under its prompt, so KTO's "
                    "reference point cannot be had. Shorten it, or change rows_per_step"
                )
            if fits(tree := mixed(row, stranger)):
                trees.append(tree)
            else:
                left_out += 1
        first.append(len(trees))
    strangers = Rows(tuple(trees), tuple(range(len(trees))), tuple(f"mismatched pair {i}" for i in range(len(trees))))
    reference_M = cached_logprobs(model, strangers, config.tokens_per_batch, run.cache)[:, 0]
    return Mismatched(strangers.trees, tuple(first), reference_M, left_out)


def _ratios(
    policy: torch.nn.Module, rows: Rows, members: Sequence[int], reference_P: Tensor, config: RatedConfig
) -> Tensor:
    """Log-ratios [S] of a whole step, nats, without gradient."""
    logp_S = score(policy, [rows.trees[row] for row in members], config.tokens_per_batch).sum_R()
    return logp_S - reference_P[list(members)].to(logp_S)


def _running_shift(records: Sequence[StepRecord], reward_S: Tensor, good_S: Tensor) -> float:
    """BCO's shift: from the mean rewards of good and of bad replies over the steps before and this one.

    The sums lie in the records, so a resumed run goes on with the same numbers. A kind not seen yet has mean 0, where
    all rewards start.
    """
    means = []
    for kind, here in (("good", good_S), ("bad", ~good_S)):
        total = sum(r.sums[f"{kind}_reward"] for r in records) + float(reward_S[here].sum())
        count = sum(r.sums[kind] for r in records) + float(here.sum())
        means.append(total / count if count else 0.0)
    return reward_shift(*means)


# ------------------------------------------------------------------------------------------ metrics and alarms


def _metrics(
    logp_B: Tensor, ratio_B: Tensor, drift_B: Tensor, good_B: Tensor, count_B: Tensor, beta: float, baseline: float
) -> dict[str, float]:
    """Sums over the replies of a micro-batch; drifts are those from the start.

    For the alarms good replies stand as `chosen`, bad ones as `rejected`.
    """
    sums = {"rows": float(len(good_B)), "baseline": baseline * len(good_B)}
    for kind, side, mine_B in (("good", "chosen", good_B), ("bad", "rejected", ~good_B)):
        sums |= {
            kind: float(mine_B.sum()),
            f"{kind}_reward": beta * float(ratio_B.detach()[mine_B].sum()),
            f"{side}_logp": float(logp_B.detach()[mine_B].sum()),
            f"{side}_drift": float(drift_B[mine_B].sum()),
            f"{side}_tokens": float(count_B[mine_B].sum()),
        }
    return sums


def _both_kinds(good_P: Tensor) -> None:
    if bool(good_P.all()) or not bool(good_P.any()):
        kind = "good" if bool(good_P.all()) else "bad"
        raise InputError(
            f"all {len(good_P):,} replies are rated {kind}: nothing says what to prefer. Give both kinds, or imitate "
            "good replies with sft"
        )


def _balance_alarm(good_P: Tensor, config: RatedConfig) -> tuple[Alarm, ...]:
    """The alarm `thumbs-unbalanced`: weights far from what KTO's authors advise (eq. 8), by more than a quarter."""
    good, bad = int(good_P.sum()), int((~good_P).sum())
    ratio = config.good * good / (config.bad * bad)
    if not isinstance(config, KTOConfig) or 0.75 <= ratio <= 5 / 3:
        return ()
    advice = f"good: {config.bad * bad / good:.2g}" if ratio < 1 else f"bad: {config.good * good / bad:.2g}"
    return (
        Alarm(
            "thumbs-unbalanced",
            0,
            ratio,
            f"{good:,} good replies weigh {ratio:.2g} times {bad:,} bad ones; between 1 and 1.33 is advised. "
            f"Set {advice}",
        ),
    )
