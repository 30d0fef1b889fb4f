"""A plan's judges, opened: reward stages of the run, judges by name, or the constitution as a reader understands it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from fairlead.errors import InputError
from fairlead.exchange import Exchange, Verdict
from fairlead.judges.lineage import Lineage, lineage_hash
from fairlead.judges.named import open_judge
from fairlead.judges.protocol import Judge
from fairlead.stack.context import Built, Context
from fairlead.stack.identity import digest
from fairlead.stack.plan_data import Term
from fairlead.stack.stages.asked import ASKED_AS
from fairlead.stack.stages.data import principle_key

READ = ("constitution", "critic")  # judges that a model reads for: all principles (of a dimension), or one by its id
Role: TypeAlias = Literal["reward", "cost"]


@dataclass(frozen=True, slots=True)
class Judging:
    """A judge of a plan that is not open yet: `identity` and `lineage` are known without its weights."""

    term: Term
    role: Role
    identity: str
    lineage: Lineage
    open: Callable[[], Judge]


@dataclass(frozen=True, slots=True)
class Read:
    """A judge as a term reads it: about some prompts alone, by its score, or by what it holds to be broken.

    About other prompts it says 0 of every reply, which pulls nowhere: the term asks for that, so it is not missing.
    """

    judge_: Judge
    on: str
    value: Literal["raw", "score", "broken"]

    @property
    def name(self) -> str:
        return self.judge_.name

    @property
    def lineage(self) -> Lineage:
        return self.judge_.lineage

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        mine = [i for i, item in enumerate(exchanges) if self.on in ("all", item.meta.get(ASKED_AS))]
        found = iter(self.judge_.judge([exchanges[i] for i in mine]) if mine else ())
        asked = set(mine)
        return [
            self._as(next(found)) if i in asked else Verdict(0.0, raw=0.0, reason="not asked here", judge=self.name)
            for i in range(len(exchanges))
        ]

    def _as(self, verdict: Verdict) -> Verdict:
        if self.value == "raw" or verdict.score is None:
            return verdict
        score = verdict.score if self.value == "score" else 1.0 - verdict.score
        return replace(verdict, score=score, raw=score)


def judging(term: Term, role: Role, below: Built, ctx: Context, reader: str = "base") -> Judging:
    """What a term means here. Raises InputError for a judge that there is none of, or that needs --oracle."""
    value: Literal["raw", "score", "broken"] = "score" if term.calibrated else "raw"
    reward = ctx.rewards.get(term.judge)
    opened: Callable[[], Judge]
    if reward is not None:
        lineage, identity = reward.lineage, reward.identity
        opened = partial(_reward, reward.folder, term.judge, ctx)
    elif reads(term):
        judge, who = _constitution(term, below, ctx, reader)
        lineage, value = judge.lineage, "broken" if role == "cost" else "score"
        identity = digest([who, principle_key(principles_of(term, ctx))])
        opened = partial(_itself, judge)
    else:
        named = open_judge(term.judge, oracle=ctx.oracle)
        lineage, identity = named.lineage, lineage_hash(named.lineage)
        opened = partial(_itself, named)
    if value == "raw" and term.on == "all":
        return Judging(term, role, identity, lineage, opened)
    return Judging(term, role, identity, lineage, lambda: cast(Judge, Read(opened(), term.on, value)))


def _reward(folder: Path, name: str, ctx: Context) -> Judge:
    from fairlead.judges.reward_ensemble import open_reward_folder

    ctx.settle_numerics()
    return open_reward_folder(folder, name=name)


def _itself(judge: Judge) -> Judge:
    return judge


def check(term: Term, rewards: Sequence[str], ctx: Context) -> None:
    """Refuse what `judging` would, before any work; `rewards` are the earlier reward stages by name."""
    if term.judge in rewards:
        return
    if reads(term):
        principles_of(term, ctx)
        return
    if term.calibrated:
        raise InputError(f"judge {term.column!r}: calibrated belongs to a reward stage; a judge by name has its score")
    try:
        open_judge(term.judge, oracle=ctx.oracle)
    except InputError as error:
        known = f"; reward stages before it: {', '.join(rewards)}" if rewards else ""
        raise InputError(f"{error}{known}") from None


def reads(term: Term) -> bool:
    """Whether somebody has to read principles for this judge."""
    return term.judge.partition(":")[0] in READ


def principles_of(term: Term, ctx: Context) -> Sequence[Any]:
    """The principles that `constitution[:DIMENSION]` or `critic:PRINCIPLE` means."""
    head, _, wanted = term.judge.partition(":")
    every = ctx.constitution.principles
    if head == "critic":
        found, known, what = [p for p in every if p.id == wanted], [p.id for p in every], "principle"
    else:
        found = [p for p in every if not wanted or p.dimension == wanted]
        known, what = list(dict.fromkeys(p.dimension for p in every)), "principle of dimension"
    if not found:
        raise InputError(
            f"judge {term.judge}: the constitution {ctx.constitution.name!r} has no {what} {wanted!r}; it has "
            f"{', '.join(known)}"
        )
    return found


def _constitution(term: Term, below: Built, ctx: Context, reader: str) -> tuple[Judge, str]:
    """(the lowest of the reader's verdicts on each principle, identity of the reader)."""
    from fairlead.judges.critic import critic
    from fairlead.judges.ensemble import minimum

    who, model = ctx.critic(reader, below)
    critics = [critic(principle, model) for principle in principles_of(term, ctx)]
    return minimum(critics, name=term.column), who
