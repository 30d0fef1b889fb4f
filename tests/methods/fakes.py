"""A model, judges and a reviser made of plain functions, with everything they were asked kept for inspection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fairlead.exchange import Exchange, Verdict, assistant
from fairlead.judges.lineage import Lineage, leaf
from fairlead.models.protocol import Prompt, Reply, Sampling


@dataclass(frozen=True)
class Rule:
    id: str
    text: str
    severity: int = 3


@dataclass
class FakeModel:
    """Answers prompt by `say(text, n)`, the n-th reply to it."""

    say: Callable[[str, int], str | Reply]
    name: str = "fake"
    lineage: str = "wt:fake"
    capabilities: frozenset[str] = frozenset({"max_tokens", "temperature", "top_p", "seed"})
    context: int | None = None
    asked: list[tuple[int, Sampling]] = field(default_factory=list)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling = Sampling()) -> list[tuple[Reply, ...]]:  # noqa: B008
        self.asked.append((len(prompts), sampling))
        return [tuple(as_reply(self.say(p[-1].text, i)) for i in range(sampling.n)) for p in prompts]

    def logprobs(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        raise NotImplementedError


def as_reply(said: str | Reply, finish: str = "stop") -> Reply:
    return said if isinstance(said, Reply) else Reply((assistant(said),), finish)  # type: ignore[arg-type]


FAILED = Reply((), "error", error="no connection")


@dataclass
class FakeJudge:
    """P(kept) and P(first better) by plain functions of the reply's text."""

    score: Callable[[str], float | None]
    better: Callable[[str, str], float | None] = lambda first, second: 0.5
    name: str = "fake judge"
    text: str = "be good"
    calls: list[int] = field(default_factory=list)

    @property
    def lineage(self) -> Lineage:
        return leaf("critic", model="wt:fake", text=self.text)

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        self.calls.append(len(exchanges))
        scores = [self.score(e.reply_text) for e in exchanges]
        return [Verdict(s, reason="" if s is not None else "no answer") for s in scores]

    def compare(self, pairs: Sequence[tuple[Exchange, Exchange]]) -> list[float | None]:
        self.calls.append(len(pairs))
        return [self.better(a.reply_text, b.reply_text) for a, b in pairs]


@dataclass
class FakeReviser:
    """Revises by a plain function of (reply, principle id)."""

    change: Callable[[str, str], str | Reply]
    name: str = "fake reviser"
    calls: list[int] = field(default_factory=list)

    @property
    def lineage(self) -> Lineage:
        return leaf("critic", model="wt:fake", text="be good")

    def critique(self, exchanges: Sequence[Exchange], principles: Sequence[Rule]) -> list[Reply]:
        self.calls.append(len(exchanges))
        return [as_reply(f"it breaks {p.id}") for p in principles]

    def revise(
        self, exchanges: Sequence[Exchange], principles: Sequence[Rule], critiques: Sequence[str]
    ) -> list[Reply]:
        assert all(p.id in c for p, c in zip(principles, critiques, strict=True))
        return [as_reply(self.change(e.reply_text, p.id)) for e, p in zip(exchanges, principles, strict=True)]
