"""Where a step's experience comes from: prompts in a fixed order, replies from a sampler, scores from the judges.

Prompts are shared out over the processes of a run; each draws and judges its own, and all hear of all. The order of
the prompts is a function of the seed: shuffled epochs laid end to end, of which each step takes the next.

Axes: P prompts, R replies, K objectives.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch

from fairlead.engine import parallel
from fairlead.engine.layout import Tree
from fairlead.engine.sampling import Choice
from fairlead.errors import InputError
from fairlead.exchange import Exchange
from fairlead.judges.protocol import Comparer
from fairlead.judges.twoway import sigmoid
from fairlead.methods import advantages
from fairlead.methods.config_policy import PolicyConfig
from fairlead.methods.experience import Experience, experience_of
from fairlead.methods.learner import Learner, whole_policy
from fairlead.methods.loop import TrainingStopped, Updates
from fairlead.methods.policy_terms import rewards_of_step
from fairlead.methods.reference import Reference
from fairlead.methods.rewards import Objective, at_step, score, spared
from fairlead.methods.rollouts import Asked, Drawing, Drawn, LocalSampler, MixtureSampler, Sampler, exchange_of
from fairlead.methods.rows import Rows, Trainable
from fairlead.models.render import render_prompt

log = logging.getLogger(__name__)

REPLIES, GREEDY, OTHER, CLOSING = range(4)  # what is drawn, each from random numbers of its own
ROUND = 1_000_003  # added to a step's number for each round of other prompts in it, for random numbers of their own


def prompts_as_read(
    model: Trainable, prompts: Sequence[Exchange], config: PolicyConfig, places: Sequence[str] | None
) -> Rows:
    """The prompts as the policy reads them, refused by name where a whole reply would not fit behind one.

    With `too_long: skip` those are left out and counted.
    """
    names = list(places) if places is not None else [f"prompt {i}" for i in range(len(prompts))]
    if len(names) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but {len(names)} places")
    trees, source, misfits = [], [], []
    for row, prompt in enumerate(prompts):
        tree = Tree(tuple(render_prompt(model.tokenizer, prompt.messages)), ())
        if model.context is not None and len(tree.prompt) + config.max_tokens > model.context:
            misfits.append(f"{names[row]} ({len(tree.prompt):,} tokens)")
            continue
        trees.append(tree)
        source.append(row)
    if misfits and config.too_long != "skip":
        raise InputError(
            f"{len(misfits):,} prompts leave no room for replies of {config.max_tokens:,} tokens in the context of "
            f"{model.context:,} of {model.name}: {', '.join(misfits[:5])}. Shorten them, lower max_tokens, or leave "
            "them out (too_long: skip, counted)"
        )
    if not trees:
        raise InputError("there are no prompts to learn on")
    return Rows(tuple(trees), tuple(source), tuple(names[row] for row in source), skipped_too_long=len(misfits))


@dataclass(frozen=True, slots=True)
class Batch:
    """What one process drew and judged: per prompt its replies, their raw scores, and what else was asked for.

    `counts` is what the sampler counted while it drew (`told`, where it has one), by name.
    """

    groups: list[list[Drawn]]
    raw: list[list[list[float]]]
    greedy: list[tuple[Drawn, list[float]]]
    wins: list[float]
    reasons: dict[str, str]
    seconds: float
    counts: dict[str, float]


class Source:
    """Experience, step by step. A context manager: drawing ahead runs in a thread that ends with it."""

    def __init__(
        self,
        sampler: Sampler,
        learner: Learner,
        reference: Reference | None,
        model: Trainable,
        prompts: Sequence[Exchange],
        asked: Rows,
        objectives: Sequence[Objective],
        config: PolicyConfig,
        updates: Updates,
        steps: int,
    ) -> None:
        self.sampler, self.learner, self.reference, self.model = sampler, learner, reference, model
        self.prompts, self.asked, self._objectives, self.config = prompts, asked, objectives, config
        self.updates, self.steps = updates, steps
        self._copy: torch.nn.Module | None = None
        self._silent: set[str] = set()  # objectives whose first missing score was told
        self._pool = ThreadPoolExecutor(1) if config.asynchronous else None
        self._ahead: dict[int, tuple[Future[Batch], int]] = {}
        if (config.advantage == "nash" or config.explore) and getattr(sampler, "turns", 1) > 1:
            raise InputError(
                f"{sampler.name}: the other reply of each pair is drawn in one turn, by another model; nash and "
                "explore go with replies of one turn"
            )
        if Choice(config.temperature, top_k=config.top_k, top_p=config.top_p).cuts(len(model.tokenizer)):
            log.warning(
                "top_p or top_k: replies come from what is left of the distribution, but every log-prob is of the "
                "whole, so ratios, the KL and the gradient are off by the kept mass, and tokens that were cut are "
                "never learnt from. Draw without them where you can"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def objectives(self, step: int) -> Sequence[Objective]:
        """As they count in this step."""
        return at_step(self._objectives, step % ROUND, self.steps)

    def ahead(self, step: int) -> None:
        """Begin to draw a step's replies with the weights as they are now."""
        assert self._pool is not None
        version = self._refresh()
        asked = self._next(self.config.prompts_per_step, int(self.updates.extra.get("taken", 0.0)))
        self._ahead[step] = (self._pool.submit(self._draw, step, self._mine(asked)), version)

    def take(self, step: int) -> Experience:
        """The step's experience. Raises TrainingStopped where not one reply has a reward."""
        config, began = self.config, time.perf_counter()
        start = int(self.updates.extra.get("taken", 0.0))
        asked = self._next(config.prompts_per_step, start)
        if step in self._ahead:
            future, version = self._ahead.pop(step)
            batch = future.result()
        else:
            version = self._refresh()
            batch = self._draw(step, self._mine(asked))
        made = self._together(step, asked, batch, version, start + len(asked))
        for name, reason in batch.reasons.items():
            if name not in self._silent:
                log.warning("objective %s has no score for some replies; the first because: %s", name, reason)
                self._silent.add(name)
        rounds = 0
        while config.resample > rounds and (made_more := self._resampled(step, made, rounds, version)) is not None:
            made, rounds = made_more, rounds + 1
        if bool(rewards_of_step(made, self.objectives(step), config).more["reward_R"].isnan().all()):
            why = "; ".join(f"{name}: {reason}" for name, reason in batch.reasons.items()) or "no reason given"
            raise TrainingStopped(
                f"training stopped at step {step + 1}: not one of {made.replies} replies has a reward ({why})"
            )
        told = {
            "gather_seconds": time.perf_counter() - began,
            "draw_seconds": batch.seconds,
            "staleness": float(self.updates.done - version),
        }
        return made.with_more(told | ({"resampled_rounds": float(rounds)} if config.resample else {}))

    def closing(self) -> Experience:
        """Replies of the weights as they are now, to the prompts that would come next; nobody judges them."""
        start = int(self.updates.extra.get("taken", 0.0))
        asked, version = self._next(self.config.prompts_per_step, start), self._refresh()
        groups = self.sampler.draw(self._mine(asked), self._how(self.steps, CLOSING))
        silent = [[[math.nan] * len(self._objectives) for _ in group] for group in groups]
        groups, raw, _ = _of_all(Batch(groups, silent, [], [], {}, 0.0, {}), len(asked))
        return self._experience(
            asked, groups, [one for table in raw for one in table], self._rows(asked), version, start
        )

    # ------------------------------------------------------------------------------------ prompts and weights

    def _next(self, count: int, start: int) -> list[Asked]:
        """The prompts at these places of the stream. Their place names them for the random numbers."""
        found = []
        for place in range(start, start + count):
            row = place_of(self.config.seed, len(self.asked.trees), place)
            prompt = replace(self.prompts[self.asked.source[row]], reply=())
            found.append(Asked(self.asked.trees[row].prompt, prompt, place))
        return found

    def _mine(self, asked: Sequence[Asked]) -> list[Asked]:
        here = parallel.world()
        return list(asked[here.rank :: here.size])

    def _refresh(self) -> int:
        policy = whole_policy(self.learner, self.model.module, self._copy)
        self._copy = policy if policy is not self.learner.policy else None
        self.sampler.refresh(policy, self.updates.done)
        return self.updates.done

    # ------------------------------------------------------------------------------------ drawing and judging

    def _how(self, step: int, what: int, **more: Any) -> Drawing:
        c = self.config
        seed = int(np.random.SeedSequence([c.seed % 2**63, step, what]).generate_state(1, np.uint64)[0] >> np.uint64(1))
        n = 1 if c.advantage == "nash" or c.explore else c.replies
        return replace(Drawing(n, c.max_tokens, c.temperature, c.top_p, c.top_k, c.stop, seed), **more)

    def _draw(self, step: int, asked: Sequence[Asked]) -> Batch:
        """Replies and scores of this process's prompts."""
        c, began, before = self.config, time.perf_counter(), self._counted()
        groups = self.sampler.draw(asked, self._how(step, REPLIES))
        if c.advantage == "nash" or c.explore:
            others = self._others(step, asked)
            groups = [[*mine, *other] for mine, other in zip(groups, others, strict=True)]
        seconds = time.perf_counter() - began
        flat = [exchange_of(one, drawn) for one, group in zip(asked, groups, strict=True) for drawn in group]
        objectives = self.objectives(step)
        scores = score(objectives, flat)
        raw = iter(scores.raw_RK.tolist())
        tables = [[next(raw) for _ in group] for group in groups]
        greedy: list[tuple[Drawn, list[float]]] = []
        if c.advantage == "remax":
            firsts = self.sampler.draw(asked, self._how(step, GREEDY, n=1, temperature=0.0, top_p=None, top_k=None))
            judged = score(objectives, [exchange_of(one, d[0]) for one, d in zip(asked, firsts, strict=True)])
            greedy = [(d[0], values) for d, values in zip(firsts, judged.raw_RK.tolist(), strict=True)]
        wins = self._wins(objectives, flat, scores.raw_RK) if c.advantage == "nash" else []
        counts = {name: count - before[name] for name, count in self._counted().items()}
        return Batch(groups, tables, greedy, wins, scores.reasons, seconds, counts)

    def _counted(self) -> dict[str, float]:
        """What the sampler has counted so far, as the log calls it; episodes count, a plain decoder does not."""
        told: Any = getattr(self.sampler, "told", None)
        return {} if told is None else {f"episodes.{name}": float(count) for name, count in told().items()}

    def _others(self, step: int, asked: Sequence[Asked]) -> list[list[Drawn]]:
        """The second reply of each pair: the reference's (XPO), or the mixture's (Nash-MD)."""
        assert self.reference is not None
        how = self._how(step, OTHER, n=1)
        if self.config.explore:
            other = LocalSampler(self.model.tokenizer)
            other.refresh(self.reference.module, 0)
            return other.draw(asked, how)
        policy = self._copy if self._copy is not None else self.learner.policy
        mixture: Sampler = MixtureSampler(self.model.tokenizer, policy, self.reference.module, self.config.nash_mix)
        return mixture.draw(asked, how)

    def _wins(self, objectives: Sequence[Objective], flat: Sequence[Exchange], raw_RK: torch.Tensor) -> list[float]:
        """P(the policy's reply is better), by a judge that compares or by the difference of the rewards."""
        rewards = [(k, one) for k, one in enumerate(objectives) if one.role == "reward" and one.weight]
        if len(rewards) == 1 and isinstance(judge := rewards[0][1].judge, Comparer):
            pairs = list(zip(flat[::2], flat[1::2], strict=True))
            found, _ = spared(judge.compare, pairs, rewards[0][1].column)
            return [math.nan if p is None else p for p in found]
        total = sum(one.weight * raw_RK[:, k] for k, one in rewards)
        assert isinstance(total, torch.Tensor)
        return [math.nan if math.isnan(gap) else sigmoid(gap) for gap in (total[::2] - total[1::2]).tolist()]

    # -------------------------------------------------------------------------------------- all together

    def _together(self, number: int, asked: Sequence[Asked], batch: Batch, version: int, taken: int) -> Experience:
        """The whole step, out of what every process drew of it."""
        groups, raw, batches = _of_all(batch, len(asked))
        size, rows = len(batches), self._rows(asked)
        step = self._experience(asked, groups, [values for table in raw for values in table], rows, version, taken)
        if self.config.advantage == "remax":
            greedy = [batches[i % size].greedy[i // size] for i in range(len(asked))]
            own = self._experience(
                asked, [[d] for d, _ in greedy], [values for _, values in greedy], rows, version, taken
            )
            step = step.with_more(greedy_P=rewards_of_step(own, self.objectives(number), self.config).more["reward_R"])
        if self.config.advantage == "nash":
            wins = [batches[i % size].wins[i // size] for i in range(len(asked))]
            step = step.with_more(win_P=torch.tensor(wins, dtype=torch.float64))
        return step.with_more({name: sum(one.counts[name] for one in batches) for name in batch.counts})

    def _experience(
        self,
        asked: Sequence[Asked],
        groups: Sequence[Sequence[Drawn]],
        raw: Sequence[Sequence[float]],
        rows: Sequence[int],
        version: int,
        taken: int,
    ) -> Experience:
        raw_RK = torch.tensor(raw, dtype=torch.float64).view(-1, len(self._objectives))
        return replace(experience_of(asked, groups, raw_RK, version=version, taken=taken), rows=tuple(rows))

    def _rows(self, asked: Sequence[Asked]) -> list[int]:
        return [place_of(self.config.seed, len(self.asked.trees), one.key) for one in asked]

    def _resampled(self, step: int, made: Experience, rounds: int, version: int) -> Experience | None:
        """Groups with nothing to say replaced by those of the next prompts that have; None where all speak."""
        informative = self._informative(step, made)
        silent = [i for i, speaks in enumerate(informative) if not speaks]
        if not silent:
            return None
        asked = self._next(len(silent), made.taken)
        batch = self._draw((rounds + 1) * ROUND + step, self._mine(asked))
        fresh = self._together(step, asked, batch, version, made.taken + len(asked))
        speaking = [i for i, speaks in enumerate(self._informative(step, fresh)) if speaks]
        return _replaced(made, fresh, dict(zip(silent, speaking, strict=False)))

    def _informative(self, number: int, step: Experience) -> list[bool]:
        bare = self.config.model_copy(update={"overlong": None})  # replies that differ in length alone say nothing
        shaped = rewards_of_step(step, self.objectives(number), bare)
        found: list[bool] = advantages.signal(shaped.more["reward_R"], step.group_R).informative_P.tolist()
        return found


def _replaced(made: Experience, fresh: Experience, places: dict[int, int]) -> Experience:
    """`made` with some of its groups exchanged for some of `fresh`."""

    def spans(step: Experience) -> list[tuple[slice, slice]]:
        sizes = [len(tree.replies) for tree in step.trees]
        ends = np.cumsum([0, *sizes]).tolist()
        tokens = np.cumsum([0, *step.count_R.tolist()]).tolist()
        return [(slice(a, b), slice(tokens[a], tokens[b])) for a, b in pairwise(ends)]

    both = [
        (fresh, places[i], spans(fresh)[places[i]]) if i in places else (made, i, spans(made)[i])
        for i in range(len(made.trees))
    ]
    return replace(
        made,
        trees=tuple(step.trees[i] for step, i, _ in both),
        rows=tuple(step.rows[i] for step, i, _ in both),
        count_R=torch.cat([step.count_R[replies] for step, _, (replies, _) in both]),
        sampler_N=torch.cat([step.sampler_N[tokens] for step, _, (_, tokens) in both]),
        raw_RK=torch.cat([step.raw_RK[replies] for step, _, (replies, _) in both]),
        ended_R=torch.cat([step.ended_R[replies] for step, _, (replies, _) in both]),
        taken=fresh.taken,
        told={name: count + fresh.told[name] for name, count in made.told.items()},  # so far they are counts
    )


def _of_all(batch: Batch, count: int) -> tuple[list[list[Drawn]], list[list[list[float]]], list[Batch]]:
    """Replies and scores of the `count` prompts that were shared out, in order; and what each process has of them."""
    batches = [batch] if parallel.world().size == 1 else [_unpacked(text) for text in parallel.texts(_packed(batch))]
    size = len(batches)
    groups = [batches[i % size].groups[i // size] for i in range(count)]
    return groups, [batches[i % size].raw[i // size] for i in range(count)], batches


def place_of(seed: int, rows: int, place: int) -> int:
    """The row at a place of the endless stream of shuffled epochs."""
    epoch, at = divmod(place, rows)
    return int(_shuffled(seed, rows, epoch)[at])


@lru_cache(maxsize=4)  # neighbours ask for the same epoch, of prompts and of pretraining rows
def _shuffled(seed: int, rows: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed % 2**63, rows, epoch]).permutation(rows)


def _packed(batch: Batch) -> str:
    def body(drawn: Drawn) -> list[Any]:
        return [drawn.tokens, drawn.logprobs, drawn.finish, drawn.mask]

    return json.dumps(
        {
            "groups": [[body(drawn) for drawn in group] for group in batch.groups],
            "raw": batch.raw,
            "greedy": [[body(drawn), values] for drawn, values in batch.greedy],
            "wins": batch.wins,
            "reasons": batch.reasons,
            "seconds": batch.seconds,
            "counts": batch.counts,
        }
    )


def _unpacked(text: str) -> Batch:
    """What another process drew; its messages stay there, where they were judged."""
    told = json.loads(text)

    def drawn(body: Sequence[Any]) -> Drawn:
        tokens, logprobs, finish, mask = body
        return Drawn(tuple(tokens), tuple(logprobs), finish, (), None if mask is None else tuple(mask))

    return Batch(
        [[drawn(body) for body in group] for group in told["groups"]],
        told["raw"],
        [(drawn(body), values) for body, values in told["greedy"]],
        told["wins"],
        told["reasons"],
        told["seconds"],
        told["counts"],
    )
