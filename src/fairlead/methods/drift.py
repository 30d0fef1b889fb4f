"""What a run on preferences must be watched for: whether the log-probs of good and bad replies go where they should.

Every method here can lower its loss by lowering the good replies' log-probs, as long as the bad ones' fall faster
(Pal et al. 2024, arXiv 2402.13228; Razin et al. 2024, arXiv 2410.08847). Nothing in the loss shows it, so it is
measured and raised by name. Axes: B pairs. Log-probs are in nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fairlead.engine.logprobs import score
from fairlead.methods.anomalies import WINDOW, Alarm
from fairlead.methods.loop import StepRecord
from fairlead.methods.rows import Rows, Trainable

PROBED = 128  # pairs on which a method without a reference is compared with the model that came in


@dataclass(frozen=True, slots=True)
class Drift:
    """How far the log-probs of good and bad replies moved from the input model's: nats per reply and per token."""

    chosen: float
    rejected: float
    chosen_per_token: float
    rejected_per_token: float
    pairs: int


def preference_metrics(
    policy_chosen_B: Tensor,
    policy_rejected_B: Tensor,
    ref_chosen_B: Tensor | None,
    ref_rejected_B: Tensor | None,
    *,
    margin_B: Tensor,
    label_B: Tensor,
    chosen_tokens_B: Tensor,
    rejected_tokens_B: Tensor,
) -> dict[str, float]:
    """Sums over the pairs of a micro-batch: divide by the step's `pairs` (accuracy: by `decided`) after adding up.

    margin            implicit reward of chosen over rejected, as the loss sees it
    accurate          pairs whose margin has the label's sign; ties among the labels (0.5) are not `decided`
    chosen_logp, rejected_logp       summed reply log-prob under the policy, nats
    chosen_drift, rejected_drift     the same minus the reference's: negative where the policy moved away from it; only
                                     where there is a reference
    chosen_tokens, rejected_tokens   to divide drifts by
    """
    decided_B = label_B != 0.5
    # A margin of exactly zero decides nothing: it counts half, so an untrained policy scores 0.5 and not 0.
    accurate_B = (margin_B > 0).to(margin_B.dtype) + 0.5 * (margin_B == 0).to(margin_B.dtype)
    chosen_B, rejected_B = policy_chosen_B.detach(), policy_rejected_B.detach()
    sums: dict[str, Tensor] = {
        "decided": decided_B.sum(),
        "margin": margin_B.sum(),
        "accurate": (accurate_B * decided_B).sum(),
        "chosen_logp": chosen_B.sum(),
        "rejected_logp": rejected_B.sum(),
        "chosen_tokens": chosen_tokens_B.sum(),
        "rejected_tokens": rejected_tokens_B.sum(),
    }
    if ref_chosen_B is not None and ref_rejected_B is not None:
        sums["chosen_drift"] = (chosen_B - ref_chosen_B).sum()
        sums["rejected_drift"] = (rejected_B - ref_rejected_B).sum()
    return {"pairs": float(margin_B.numel())} | {name: float(value) for name, value in sums.items()}


def probe(trained: Trainable, before: Trainable, rows: Rows, tokens_per_batch: int) -> Drift:
    """The drift of a method that needs no reference: both models on up to `PROBED` pairs, evenly spread."""
    count = len(rows.trees)
    trees = [rows.trees[i * count // min(count, PROBED)] for i in range(min(count, PROBED))]
    now, was = (score(m.module, trees, tokens_per_batch) for m in (trained, before))
    moved = (now.sum_R() - was.sum_R()).view(len(trees), -1).sum(0).tolist()  # chosen, rejected, and a gold reply
    tokens = now.count_R.view(len(trees), -1).sum(0).tolist()
    return Drift(moved[0] / len(trees), moved[1] / len(trees), moved[0] / tokens[0], moved[1] / tokens[1], len(trees))


def drift_alarms(
    records: Sequence[StepRecord], limit: float, called: tuple[str, str] = ("chosen", "rejected")
) -> tuple[Alarm, ...]:
    """The alarms `chosen-log-prob-falls` and `rejected-log-prob-rises`, each raised at the first step that shows it.

    Read off a running mean over eight steps, in nats per token against the reference; `limit` is positive. The second
    is raised only where the rejected replies gained no less than the chosen ones: that is learning to say them.
    `called` is what the two kinds of replies are called in the messages.
    """
    return (*chosen_drift_alarm(records, limit, called), *_rejected_drift_alarm(records, limit, called))


def drift_under_way(
    records: Sequence[StepRecord], limit: float, called: tuple[str, str] = ("chosen", "rejected")
) -> tuple[Alarm, ...]:
    """The same two of a run under way, by its last eight steps; nothing before there are so many."""
    last = records[-WINDOW:]
    if len(last) < WINDOW or "chosen_drift" not in last[0].sums:
        return ()
    chosen, rejected = _per_token(last, "chosen"), _per_token(last, "rejected")
    return _alarms(len(records), chosen, rejected, None, limit, called)


def chosen_drift_alarm(
    records: Sequence[StepRecord], limit: float, called: tuple[str, str] = ("chosen", "rejected")
) -> tuple[Alarm, ...]:
    """The alarm `chosen-log-prob-falls`: the chosen replies went down together with the rejected ones."""
    for end, window in _windows(records):
        drift = _per_token(window, "chosen")
        if drift < -limit:
            return (_falls(end, drift, _per_token(records[-WINDOW:], "chosen"), limit, called),)
    return ()


def _rejected_drift_alarm(records: Sequence[StepRecord], limit: float, called: tuple[str, str]) -> tuple[Alarm, ...]:
    for end, window in _windows(records):
        rejected = _per_token(window, "rejected")
        if rejected > limit and rejected >= _per_token(window, "chosen"):
            return (_rises(end, rejected, _per_token(window, "chosen"), limit, called),)
    return ()


def probe_alarms(drift: Drift, steps: int, limit: float) -> tuple[Alarm, ...]:
    """The same two alarms from a `probe` after the last step."""
    chosen = drift.chosen_per_token
    return _alarms(steps, chosen, drift.rejected_per_token, chosen, limit, ("chosen", "rejected"))


def _alarms(
    step: int, chosen: float, rejected: float, now: float | None, limit: float, called: tuple[str, str]
) -> tuple[Alarm, ...]:
    falls = (_falls(step, chosen, now, limit, called),) if chosen < -limit else ()
    rises = (_rises(step, rejected, chosen, limit, called),) if rejected > limit and rejected >= chosen else ()
    return (*falls, *rises)


def _windows(records: Sequence[StepRecord]) -> list[tuple[int, Sequence[StepRecord]]]:
    ends = range(min(WINDOW, len(records)), len(records) + 1) if records else ()
    return [(end, records[max(0, end - WINDOW) : end]) for end in ends]


def _per_token(window: Sequence[StepRecord], side: str) -> float:
    tokens = sum(r.sums[f"{side}_tokens"] for r in window)
    return sum(r.sums[f"{side}_drift"] for r in window) / tokens if tokens else 0.0


def _falls(step: int, drift: float, now: float | None, limit: float, called: tuple[str, str]) -> Alarm:
    """`now` is the drift at the end; None while the run is under way."""
    more = "Raise nll or beta" if called[0] == "chosen" else "Raise beta"
    if now is None:
        how = ": the model is unlearning good replies too"
    elif now < -limit:
        how = f", and by {-now:.3f} at the end: the model is unlearning good replies too"
    elif now < 0:
        how = f", but by no more than {-now:.3f} at the end: the model unlearnt good replies too, for a while"
    else:
        how = f", but stands {now:.3f} above the start's at the end: the model unlearnt good replies too, for a while"
    return Alarm(
        "chosen-log-prob-falls",
        step,
        drift,
        f"the {called[0]} replies' log-prob fell by {-drift:.3f} nats per token at step {step} (limit {limit})"
        f"{how}. {more}, or lower lr",
    )


def _rises(step: int, rejected: float, chosen: float, limit: float, called: tuple[str, str]) -> Alarm:
    return Alarm(
        "rejected-log-prob-rises",
        step,
        rejected,
        f"the {called[1]} replies' log-prob rose by {rejected:.3f} nats per token at step {step} (limit {limit}), the "
        f"{called[0]} ones' by {chosen:.3f}: the model is learning to say what it should not. Look at the labels, or "
        "lower lr",
    )
