"""A trained reward model as a judge: outcome (one reward per reply) or process (one per step).

It reads the state at the end of a reply, or of each step, through a scalar head on a causal language model. `raw` is
the reward itself, unbounded; `score` is its calibrated place in [0, 1] (see `Calibration`). Its lineage is its weights
and the rows it learnt from, so a copy under another name, in another folder or in an ensemble is the same judge.

On disk: `reward.json`, `head.safetensors`, and `model/` (Hugging Face format) for its body, or `adapter/` (peft format)
alone. An ensemble of several is in `reward_ensemble.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from fairlead.engine import parallel
from fairlead.engine.adapters import Adapter, save_adapter
from fairlead.engine.checkpoint import atomic_folder, save_model, weights_hash
from fairlead.engine.heads import ScalarHead, load_head, save_head, score_values
from fairlead.engine.layout import Tree
from fairlead.errors import InputError
from fairlead.exchange import Exchange, Preference, Verdict
from fairlead.judges.ensemble import fit_logistic
from fairlead.judges.lineage import Leaf, Lineage, leaf
from fairlead.judges.twoway import sigmoid
from fairlead.models.adapted import with_adapter
from fairlead.models.render import Rendered, render_exchange
from fairlead.models.steps import ends_in_tokens

Kind: TypeAlias = Literal["outcome", "process"]
Whole: TypeAlias = Literal["product", "minimum"]

ABOUT, HEAD, BODY, ADAPTER = "reward.json", "head.safetensors", "model", "adapter"
MEMBERS = "ensemble.json"  # in the folder of an ensemble
FORMAT = 1


class Body(Protocol):
    """The language model a head stands on: `LocalModel`, or what trainers take for one."""

    @property
    def name(self) -> str: ...
    @property
    def lineage(self) -> str: ...
    @property
    def context(self) -> int | None: ...
    @property
    def module(self) -> Any: ...
    @property
    def tokenizer(self) -> Any: ...

    def with_weights(self, module: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Calibration:
    """How rewards become probabilities, fitted by logistic regression on labelled pairs (Platt scaling).

    score             sigmoid(slope * reward + offset): P(a reply of this reward is the better one of its pair)
    P(first better)   sigmoid(pair_slope * (first reward - second reward)); a slope of 1 is Bradley and Terry's model
    pairs             it was fitted on, and whether those were held out from training; 0 pairs: the plain sigmoid
    missing           pairs left out of the fit, since a reply had no reward (too long, say)
    """

    slope: float = 1.0
    offset: float = 0.0
    pair_slope: float = 1.0
    pairs: int = 0
    held_out: bool = False
    missing: int = 0


@dataclass(frozen=True, eq=False)
class RewardModel:
    """A judge and a comparer.

    model         the language model under the head, adapters folded in
    head          reads its hidden states
    base          lineage of the model it was trained from: who shares that is related
    trained_on    leaves of the rows, and of whoever labelled them
    separator, whole    process only: what stands between steps, how steps make a reply
    head_seed     the numbers its head started from (reward models are averaged only from one start)
    adapter       its body apart from the base, where that was trained as an adapter
    known         its `weights`, where they were read off its files; opened in another type it is the same judge
    """

    name: str
    model: Body
    head: ScalarHead
    kind: Kind = "outcome"
    calibration: Calibration = Calibration()
    base: str = ""
    trained_on: Lineage = frozenset()
    separator: str = "\n"
    whole: Whole = "product"
    head_seed: int = 0
    adapter: Adapter | None = None
    principle: str = ""
    known: str = ""

    @cached_property
    def weights(self) -> str:
        """16 hex digits over all weights, body and head. They never change in place: training makes a new model."""
        return self.known or _both(weights_hash(self.model.module), weights_hash(self.head))

    @property
    def lineage(self) -> Lineage:
        return leaf("reward", model=self.base, code=self.weights) | self.trained_on

    def __call__(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return self.judge(exchanges)

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """One verdict each, in order. What cannot be read (too long, no reply of the model) has none, with the reason.

        Replies to one prompt are read together and the prompt once; a reward does not depend on its company.
        """
        verdicts: list[Verdict | None] = [None] * len(exchanges)
        by_prompt: dict[tuple[int, ...], list[tuple[int, Rendered]]] = {}
        for row, item in enumerate(exchanges):
            try:
                rendered = self._rendered(item)
            except InputError as error:
                verdicts[row] = self._silent(str(error))
                continue
            by_prompt.setdefault(rendered.prompt, []).append((row, rendered))
        trees = [
            Tree(p, tuple(r.reply for _, r in group), tuple(r.mask for _, r in group)) for p, group in by_prompt.items()
        ]
        at: Literal["end", "marked"] = "marked" if self.kind == "process" else "end"
        read = iter(score_values(self.model.module, self.head, trees, at=at).split())
        for group in by_prompt.values():
            for row, _ in group:
                verdicts[row] = self._verdict(next(read).tolist())
        return [verdict if verdict is not None else self._silent("it was not read") for verdict in verdicts]

    def compare(self, pairs: Sequence[tuple[Exchange, Exchange]]) -> list[float | None]:
        """P(first better) for each pair; None where either has no reward.

        Raises ValueError for a pair that does not answer the same messages: rewards compare within a prompt only.
        """
        for row, (first, second) in enumerate(pairs):
            if first.messages != second.messages:
                raise ValueError(f"pair {row}: the two exchanges answer different messages")
        raws = [verdict.raw for verdict in self.judge([item for pair in pairs for item in pair])]
        return [
            None if a is None or b is None else sigmoid(self.calibration.pair_slope * (a - b))
            for a, b in zip(raws[::2], raws[1::2], strict=True)
        ]

    def save(self, folder: Path | str, *, adapter_only: bool = False) -> Path:
        """Write its folder whole or not at all; `open_reward` gives it back bit for bit.

        Under torchrun all processes call it; where they name the same folder, process 0 writes and the others wait.

        adapter_only    keep the body as the adapter that was trained: small, and needs the base to be opened
        """
        if adapter_only and self.adapter is None:
            raise ValueError(f"{self.name}: all of its weights were trained, so there is no adapter to keep alone")
        where = Path(folder)
        with parallel.writing(where.absolute()) as mine:
            if mine:
                with atomic_folder(where) as fresh:
                    self.write(fresh, adapter_only=adapter_only)
        return where

    def write(self, folder: Path, *, adapter_only: bool = False) -> None:
        """Its files into an empty folder: for who makes folders whole, and waits for nobody."""
        if adapter_only and self.adapter is not None:
            save_adapter(self.adapter, folder / ADAPTER)
        else:
            save_model(self.model.module, self.model.tokenizer, folder / BODY)
        save_head(self.head, folder / HEAD)
        (folder / ABOUT).write_text(json.dumps(self._about(), indent=1), encoding="utf-8")

    def _about(self) -> dict[str, Any]:
        leaves = sorted((dataclasses.asdict(item) for item in self.trained_on), key=lambda d: sorted(d.items()))
        return {
            "format": FORMAT, "kind": self.kind, "weights": self.weights, "base": self.base,
            "head_seed": self.head_seed, "separator": self.separator, "whole": self.whole, "principle": self.principle,
            "calibration": dataclasses.asdict(self.calibration), "trained_on": leaves,
        }  # fmt: skip

    def _rendered(self, item: Exchange) -> Rendered:
        rendered = render_exchange(self.model.tokenizer, item)
        size = len(rendered.prompt) + len(rendered.reply)
        if self.model.context is not None and size > self.model.context:
            raise InputError(f"{size:,} tokens do not fit the reward model's context of {self.model.context:,}")
        if self.kind == "outcome":
            return rendered
        if len(item.reply) != 1:
            raise InputError(f"a reply of {len(item.reply)} turns; steps are read in one assistant turn")
        ends = set(ends_in_tokens(self.model.tokenizer, rendered.reply, item.reply_text, self.separator))
        if not ends:
            raise InputError("a reply without a step")
        return Rendered(rendered.prompt, rendered.reply, tuple(i in ends for i in range(len(rendered.reply))))

    def _verdict(self, read: Sequence[float]) -> Verdict:
        if not all(map(math.isfinite, read)):
            return self._silent("its reward is not a number")
        raw = read[0] if self.kind == "outcome" else reward_of_steps(read, self.whole)
        steps = tuple(sigmoid(value) for value in read) if self.kind == "process" else ()
        score = sigmoid(self.calibration.slope * raw + self.calibration.offset)
        return Verdict(score, raw=raw, steps=steps, principle=self.principle, judge=self.name)

    def _silent(self, reason: str) -> Verdict:
        return Verdict(None, reason=reason, principle=self.principle, judge=self.name)


def _both(body: str, head: str) -> str:
    return hashlib.sha256(f"{body} {head}".encode()).hexdigest()[:16]


def reward_of_steps(logits: Sequence[float], whole: Whole) -> float:
    """A reply's reward from its steps' log-odds, itself a log-odds: that all steps are right, or of the weakest step.

    Lightman et al. 2023 (arXiv 2305.20050, section 2.6 and appendix F) take the product of the probabilities, and
    compare it with the minimum.
    """
    if whole == "minimum":
        return min(logits)
    log_p = min(sum(min(z, 0.0) - math.log1p(math.exp(-abs(z))) for z in logits), -1e-15)  # sum of log sigmoid(z)
    return log_p - math.log(-math.expm1(log_p))


def calibrate(reward: RewardModel, pairs: Sequence[Preference], *, held_out: bool = True) -> RewardModel:
    """The same reward model with probabilities fitted to labelled pairs (see `Calibration`).

    Every reply of a pair counts as the better one with the pair's strength. Raises ValueError where none has rewards.
    """
    verdicts = reward.judge([Exchange(p.messages, reply) for p in pairs for reply in (p.chosen, p.rejected)])
    known = [
        (a.raw, b.raw, pair.strength)
        for pair, a, b in zip(pairs, verdicts[::2], verdicts[1::2], strict=True)
        if a.raw is not None and b.raw is not None
    ]
    if not known:
        reasons = next((f" ({v.reason})" for v in verdicts if v.reason), "")
        raise ValueError(f"{reward.name}: none of {len(pairs)} pairs has rewards to calibrate on{reasons}")
    better = [label for _, _, strength in known for label in (strength, 1.0 - strength)]
    slope, offset = fit_logistic([raw for a, b, _ in known for raw in (a, b)], better)
    # Each pair from both sides: the fit is then symmetric, its offset 0.
    pair_slope, _ = fit_logistic([lead for a, b, _ in known for lead in (a - b, b - a)], better)
    fitted = Calibration(slope, offset, pair_slope, len(known), held_out, len(pairs) - len(known))
    return replace(reward, calibration=fitted)


def open_reward(folder: Path | str, *, base: Any = None, name: str | None = None, **local: Any) -> RewardModel:
    """The reward model in a folder, bit for bit as it was saved.

    base     the model it was trained from, where the folder holds an adapter alone
    local    more for `open_local`: device, dtype, rows

    Raises InputError for a folder that is damaged, is none, or needs another base.
    """
    where = Path(folder)
    about = _read_about(where)
    if (where / ADAPTER).is_dir() and not (where / BODY).is_dir():
        if base is None:
            raise InputError(
                f"{where}: an adapter alone; give the model it was trained on (base=…, {about.get('base')})"
            )
        model = with_adapter(base, where / ADAPTER)
    else:
        from fairlead.models.local import open_local

        model = open_local(str((where / BODY).resolve()), name=name or str(folder), **local)
    try:
        head = load_head(where / HEAD, model.module)
    except (ValueError, FileNotFoundError) as error:
        raise InputError(str(error)) from error
    return _as_written(about, model, head, where, name or str(folder))


def _as_written(about: Mapping[str, Any], model: Any, head: ScalarHead, where: Path, name: str) -> RewardModel:
    try:
        reward = RewardModel(
            name=name,
            model=model,
            head=head,
            kind=about["kind"],
            calibration=Calibration(**about["calibration"]),
            base=about["base"],
            trained_on=frozenset(Leaf(**item) for item in about["trained_on"]),
            separator=about["separator"],
            whole=about["whole"],
            head_seed=about["head_seed"],
            principle=about["principle"],
            known=_both(weights_hash(where / BODY), weights_hash(head)) if (where / BODY).is_dir() else "",
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{where / ABOUT}: cannot be read ({error}); copy the folder again") from error
    if reward.weights != about.get("weights"):
        raise InputError(f"{where}: its weights are not those that {ABOUT} names; copy the whole folder again")
    return reward


def _read_about(where: Path) -> dict[str, Any]:
    if (where / MEMBERS).exists():
        raise InputError(f"{where}: several reward models in an ensemble; reward_ensemble.open_reward_folder opens it")
    try:
        about = json.loads((where / ABOUT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{where / ABOUT}: missing; is this a reward model's folder?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{where / ABOUT}: not JSON ({error}); copy the folder again") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise InputError(f"{where / ABOUT}: not a reward model of format {FORMAT}")
    return about
