"""A critic: a model that reads one principle and says whether a reply keeps it, or which of two keeps it better.

Where the model has log-probs, P(yes) is the share of the "yes" words against yes and no together, all exchanges in one
batch. Otherwise k sampled answers are counted. An answer that says neither is no verdict, and says so; neither is there
one on what does not fit the model's context. Who needs some verdict at all finds out whether all are missing for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias

from fairlead.exchange import Exchange, Verdict
from fairlead.judges.check import JudgeCheck
from fairlead.judges.lineage import Lineage, leaf
from fairlead.judges.prompting import ask_about
from fairlead.judges.transcript import reply_block
from fairlead.judges.twoway import A_B, YES_NO, Read, ask_two_way, sigmoid
from fairlead.models.protocol import Model, Prompt

HowToCompare: TypeAlias = Literal["template", "pointwise"]


class HasText(Protocol):
    """What a critic needs of a principle: its words, and the id its verdicts carry."""

    @property
    def id(self) -> str: ...
    @property
    def text(self) -> str: ...


def critic(
    principle: str | HasText,
    model: Model,
    *,
    name: str = "",
    samples: int = 5,
    comparer: HowToCompare = "template",
    max_tokens: int = 16,
) -> Critic:
    """A judge and comparer that reads `principle` (its text, or anything with `id` and `text`) through `model`.

    samples     answers drawn per question where the model has no log-probs
    comparer    "template" shows both replies at once, in both orders; "pointwise" compares two separate judgements
    max_tokens  room for a sampled answer; reasoning models need more
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}: a critic needs at least one answer per question")
    if comparer not in ("template", "pointwise"):
        raise ValueError(f"comparer is {comparer!r}: use 'template' or 'pointwise'")
    text, key = (principle, "") if isinstance(principle, str) else (principle.text, principle.id)
    if not text.strip():
        raise ValueError(f"critic{':' + key if key else ''}: the principle has no text to judge by")
    return Critic(text, model, key, name or (f"critic:{key}" if key else "critic"), samples, comparer, max_tokens)


@dataclass(frozen=True, slots=True)
class Compared:
    """One pair, asked in both orders. `p` is P(first is better), the mean over the orders.

    `p_shown_first` and `p_shown_second` are the same probability read with the first reply shown as A and as B; their
    difference is what the position alone did.
    """

    p: float | None
    p_shown_first: float | None = None
    p_shown_second: float | None = None
    reason: str = ""

    @property
    def position_bias(self) -> float | None:
        """How much being shown first adds to P(better), in [-1, 1]; 0 for a fair reader."""
        if self.p_shown_first is None or self.p_shown_second is None:
            return None
        return self.p_shown_first - self.p_shown_second


@dataclass(frozen=True, eq=False)
class Critic:
    """Judge and comparer in one. Build it with `critic(principle, model)`."""

    text: str
    model: Model
    principle: str = ""
    name: str = "critic"
    samples: int = 5
    comparer: HowToCompare = "template"
    max_tokens: int = 16

    @property
    def lineage(self) -> Lineage:
        return leaf("critic", model=self.model.lineage, text=self.text)

    def __call__(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return self.judge(exchanges)

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """P(the reply keeps the principle) for each exchange; `raw` is its log-odds (nats)."""
        prompts = [ask_about(self.model, "judge", principle=self.text, exchange=item) for item in exchanges]
        reads = ask_two_way(self.model, prompts, YES_NO, samples=self.samples, max_tokens=self.max_tokens)
        return [
            Verdict(read.p, raw=read.log_odds, reason=read.reason, principle=self.principle, judge=self.name)
            for read in reads
        ]

    def compare(self, pairs: Sequence[tuple[Exchange, Exchange]]) -> list[float | None]:
        """P(the first of each pair is better), position bias averaged out; None where the model did not say."""
        return [item.p for item in self.compare_in_detail(pairs)]

    def compare_in_detail(self, pairs: Sequence[tuple[Exchange, Exchange]]) -> list[Compared]:
        """Both orders of every pair, in one batch; see `Compared.position_bias` and `mean_position_bias`."""
        for index, (first, second) in enumerate(pairs):
            if first.messages != second.messages:
                raise ValueError(f"pair {index}: the two exchanges answer different messages and cannot be compared")
        if self.comparer == "pointwise":
            return self._compare_pointwise(pairs)
        prompts: list[Prompt] = []
        for first, second in pairs:
            prompts += [self._compare_prompt(first, second), self._compare_prompt(second, first)]
        reads = ask_two_way(self.model, prompts, A_B, samples=self.samples, max_tokens=self.max_tokens)
        return [_both_orders(reads[2 * i], reads[2 * i + 1]) for i in range(len(pairs))]

    def _compare_prompt(self, shown_first: Exchange, shown_second: Exchange) -> Prompt:
        return ask_about(
            self.model,
            "compare",
            principle=self.text,
            exchange=shown_first,
            first=reply_block(shown_first.reply),
            second=reply_block(shown_second.reply),
        )

    def _compare_pointwise(self, pairs: Sequence[tuple[Exchange, Exchange]]) -> list[Compared]:
        """P(first better) from the two replies' own log-odds: Bradley-Terry with the critic's logits as strengths."""
        verdicts = self.judge([item for pair in pairs for item in pair])
        result = []
        for i in range(len(pairs)):
            first, second = verdicts[2 * i], verdicts[2 * i + 1]
            if first.raw is None or second.raw is None:
                result.append(Compared(None, reason=first.reason or second.reason))
            else:
                result.append(Compared(sigmoid(first.raw - second.raw)))
        return result

    def as_check(self, deadline: float | None = None, *, threshold: float = 0.5) -> JudgeCheck:
        """This critic as a check of the guard: broken below `threshold`, failed after `deadline` seconds."""
        return JudgeCheck(self, principle=self.principle, deadline=deadline, threshold=threshold)

    def renamed(self, name: str) -> Critic:
        """The same critic under another printed name; its lineage stays."""
        return replace(self, name=name)


def mean_position_bias(compared: Sequence[Compared]) -> float | None:
    """Mean of what being shown first adds to P(better), over the pairs asked in both orders; None without any."""
    biases = [item.position_bias for item in compared if item.position_bias is not None]
    return sum(biases) / len(biases) if biases else None


def _both_orders(forward: Read, backward: Read) -> Compared:
    """The mean over both orders. One unreadable order leaves nothing: half an answer would keep the position bias."""
    if forward.p is None or backward.p is None:
        return Compared(None, reason=forward.reason or backward.reason)
    as_a, as_b = forward.p, 1.0 - backward.p
    return Compared((as_a + as_b) / 2.0, p_shown_first=as_a, p_shown_second=as_b)
