"""What the release of replies needs to know before any request comes: made once from the checks of a constitution."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from fairlead.exchange import Message
from fairlead.guard.decision import Check
from fairlead.guard.policy import ROUNDS, Policy
from fairlead.guard.revise import Reviser
from fairlead.guard.watch import Sharing, StreamCheck, Watch, Weighing, Whole, Windowed
from fairlead.judges.protocol import Judge

WIRE: Mapping[str, frozenset[str]] = {  # places of a constitution as places of the wire
    "reply": frozenset({"reply", "refusal", "citation"}),
    "reasoning": frozenset({"reasoning"}),
    "tool_call": frozenset({"tool_call"}),
}
DEADLINES: Mapping[int, float] = {0: 5.0, 1: 0.5, 2: 20.0}
DEAR = 16


@dataclass(frozen=True, slots=True)
class Followed:
    """One check, as a release follows it.

    start     makes its watch; None for a model, which is asked
    policy    of its principle
    weighs    it may answer a doubt
    model     what it shares with other checks, which are asked together (None: nothing)
    asleep    it is asked on another check's doubt alone
    window    characters between two questions (0: one question about the whole alternative), `context` before them
    deadline  seconds for one question; of code, for all that it does in one request
    identity  what its verdicts may be kept under: name and lineage
    """

    check: Check
    name: str
    principle: str
    cost: int
    policy: Policy
    start: Callable[[tuple[Message, ...]], Watch] | None
    weighs: bool = False
    model: Hashable = None
    asleep: bool = False
    window: int = 0
    context: int = 0
    deadline: float = 0.0
    identity: str = ""


@dataclass(frozen=True, slots=True)
class BestOf:
    """Of `n` candidates the one that `judge` scores highest, by `score` in [0, 1].

    The outside option: where none reaches `threshold`, the principle's `say` is what the user reads. It holds for one
    candidate too (`n` = 1, where a format has no more). In `shadow` the first candidate leaves, and what would have
    been done is counted.
    """

    judge: Judge
    n: int
    threshold: float
    principle: str = ""
    deadline: float = 20.0
    shadow: bool = False

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"best-of-n with n = {self.n}: there is nothing to choose from below 1")
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"the threshold of best-of-n is {self.threshold}: a score lies in [0, 1]")


@dataclass(frozen=True)
class Plan:
    """All checks in order, and what follows from them.

    rounds    how often one alternative is revised and looked at again
    budget    seconds that one request may wait upon models all together; what is late then has failed
    dear      questions to models of cost 2 (critics) and revisions that one request may ask, on what is asked and on
              the reply together
    opaque    what no check can read: dropped, or passed and counted as not scanned
    top_logprobs  what the model might have said instead, which no check reads: dropped, or passed and counted
    unknown   an event without a name ends the stream, or is dropped; it never leaves
    sha256    of the constitution, `classifier` of the classifier: verdicts are kept under them
    """

    followed: tuple[Followed, ...]
    policies: Mapping[str, Policy]
    revise: Reviser | None = None
    best: BestOf | None = None
    rounds: int = ROUNDS
    budget: float = 60.0
    dear: int = DEAR
    opaque: Literal["drop", "pass"] = "drop"
    unknown: Literal["stop", "drop"] = "stop"
    sha256: str = ""
    classifier: str = ""
    top_logprobs: bool = False
    buffered: frozenset[str] = field(default_factory=frozenset)
    models: tuple[int, ...] = ()
    codes: tuple[int, ...] = ()
    shadowed: tuple[str, ...] = ()

    def policy(self, principle: str) -> Policy:
        return self.policies.get(principle) or Policy()

    def targets(self, asker: int, ask: str) -> tuple[int, ...]:
        """The models that a doubt of one check means: those it names, or the dearer ones of the principle it names."""
        cost = self.followed[asker].cost
        return tuple(
            i
            for i in self.models
            if i != asker
            and (self.followed[i].name == ask or (self.followed[i].principle == ask and self.followed[i].cost > cost))
        )


def plan(
    checks: Sequence[Check],
    policies: Mapping[str, Policy],
    *,
    deadlines: Mapping[int, float] = DEADLINES,
    shadow: bool = False,
    revise: Reviser | None = None,
    best: BestOf | None = None,
    rounds: int = ROUNDS,
    budget: float = 60.0,
    dear: int = DEAR,
    opaque: Literal["drop", "pass"] = "drop",
    unknown: Literal["stop", "drop"] = "stop",
    sha256: str = "",
    classifier: str = "",
    top_logprobs: bool = False,
) -> Plan:
    """Checks in the order of their cost. A check may say its own `deadline` (s), else `deadlines` has it by cost.

    Models of a principle for which a cheaper check answers doubts are asked on its doubt alone; every other model is
    asked about every reply.
    """
    ordered = sorted(checks, key=lambda check: check.cost)
    asked_for = {name for check in ordered for name in getattr(check, "asks", ())}
    askers = {(name, check.cost) for check in ordered for name in getattr(check, "asks", ())}
    followed = tuple(_followed(check, policies, deadlines, asked_for, askers, shadow) for check in ordered)
    held = frozenset(
        place
        for one in followed
        if one.policy.stream == "buffer" and not one.policy.shadow
        for at in one.policy.at
        for place in WIRE.get(at, ())
    )
    if best is not None:
        held = frozenset().union(*WIRE.values())
    return Plan(
        followed,
        dict(policies),
        revise=revise,
        best=best,
        rounds=rounds,
        budget=budget,
        dear=dear,
        opaque=opaque,
        unknown=unknown,
        top_logprobs=top_logprobs,
        sha256=sha256,
        classifier=classifier,
        buffered=held,
        models=tuple(i for i, one in enumerate(followed) if one.start is None),
        codes=tuple(i for i, one in enumerate(followed) if one.start is not None),
        shadowed=tuple(dict.fromkeys(one.principle or one.name for one in followed if one.policy.shadow)),
    )


def _followed(
    check: Check,
    policies: Mapping[str, Policy],
    deadlines: Mapping[int, float],
    asked_for: set[str],
    askers: set[tuple[str, int]],
    shadow: bool,
) -> Followed:
    policy = policies.get(check.principle) or Policy()
    if shadow and not policy.shadow:
        policy = replace(policy, shadow=True)
    if check.cost == 0:
        start = check.watch if isinstance(check, StreamCheck) else partial(Whole, check)
        deadline = float(getattr(check, "deadline", 0.0) or deadlines.get(0, math.inf))
        return Followed(check, check.name, check.principle, 0, policy, start, deadline=deadline)
    windowed = policy.stream == "window" and isinstance(check, Windowed)
    asleep = check.name in asked_for or any(name == check.principle and cost < check.cost for name, cost in askers)
    return Followed(
        check, check.name, check.principle, check.cost, policy, None,
        weighs=isinstance(check, Weighing),
        model=check.model if isinstance(check, Sharing) else None,
        asleep=asleep,
        window=int(check.window) if windowed else 0,  # type: ignore[attr-defined]
        context=int(check.context) if windowed else 0,  # type: ignore[attr-defined]
        deadline=float(getattr(check, "deadline", 0.0) or deadlines.get(check.cost, 20.0)),
        identity=_identity(check),
    )  # fmt: skip


def _identity(check: Check) -> str:
    """Under which its verdicts are kept: the same judge says another thing where it may be in doubt."""
    asks = ",".join(sorted(getattr(check, "asks", ())))
    return f"{check.name}\0{','.join(sorted(leaf.hash for leaf in check.lineage))}\0{asks}"


def required(plan: Plan) -> dict[str, list[str]]:
    """By place of the wire, the names of the checks that look there and that nothing passes without."""
    found: dict[str, list[str]] = {}
    for one in plan.followed:
        if not one.policy.shadow and not one.asleep:
            for at in one.policy.at:
                for place in WIRE.get(at, ()):
                    found.setdefault(place, []).append(one.name)
    return found
