"""A critic: a model that reads one principle and says whether a reply keeps it, or which of two keeps it better.

Where the model has log-probs, P(yes) is the share of the "yes" words against yes and no together, all exchanges in one
batch. Otherwise k sampled answers are counted. An answer that says neither is no verdict, and says so; neither is there
one on what does not fit the model's context. Who needs some verdict at all finds out whether all are missing for that.

Two replies are compared in both orders. A `reasoned` comparison lets the critic think aloud first and reads the
probability behind that (Bai et al. 2022, section 4.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias

from fairlead.exchange import Exchange, Verdict, assistant
from fairlead.judges.check import JudgeCheck
from fairlead.judges.lineage import Lineage, leaf
from fairlead.judges.prompting import ask_about
from fairlead.judges.transcript import quoted, reply_block
from fairlead.judges.twoway import A_B, YES_NO, Read, ask_two_way, sigmoid
from fairlead.models.protocol import Model, Prompt, Reply, Sampling
from fairlead.models.toolong import where_it_fits

HowToCompare: TypeAlias = Literal["template", "pointwise", "reasoned"]


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
    reason_tokens: int = 256,
) -> Critic:
    """A judge and comparer that reads `principle` (its text, or anything with `id` and `text`) through `model`.

    samples     answers drawn per question where the model has no log-probs
    comparer    "template" shows both replies at once, in both orders; "reasoned" does so too and lets the critic write
                down its reasons before it answers; "pointwise" compares two separate judgements
    max_tokens  room for a sampled answer; reasoning models need more
    reason_tokens  room for the reasons of a "reasoned" comparison, which are written greedily where the model can
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}: a critic needs at least one answer per question")
    if comparer not in ("template", "pointwise", "reasoned"):
        raise ValueError(f"comparer is {comparer!r}: use 'template', 'pointwise' or 'reasoned'")
    if reason_tokens < 1:
        raise ValueError(f"reason_tokens is {reason_tokens}: reasons need room for at least one token")
    text, key = (principle, "") if isinstance(principle, str) else (principle.text, principle.id)
    if not text.strip():
        raise ValueError(f"critic{':' + key if key else ''}: the principle has no text to judge by")
    return Critic(
        text, model, key, name or (f"critic:{key}" if key else "critic"), samples, comparer, max_tokens, reason_tokens
    )


@dataclass(frozen=True, slots=True)
class Compared:
    """One pair, asked in both orders. `p` is P(first is better), the mean over the orders.

    `p_shown_first` and `p_shown_second` are the same probability read with the first reply shown as A and as B; their
    difference is what the position alone did. `answers` were sampled where the model has no log-probs, `unreadable` of
    them named neither reply; `cut` chains of thought ended at their limit.
    """

    p: float | None
    p_shown_first: float | None = None
    p_shown_second: float | None = None
    reason: str = ""
    answers: int = 0
    unreadable: int = 0
    cut: int = 0

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
    reason_tokens: int = 256

    @property
    def lineage(self) -> Lineage:
        return leaf("critic", model=self.model.lineage, text=self.text)

    def __call__(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return self.judge(exchanges)

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """P(the reply keeps the principle) for each exchange; `raw` is its log-odds (nats)."""
        prompts = [ask_about(self.model, "judge", principle=self.text, exchange=item) for item in exchanges]
        return [self.verdict(read) for read in self.read(prompts)]

    def read(self, prompts: Sequence[Prompt]) -> list[Read]:
        """Answers yes or no to questions in the wording of `judge`."""
        return ask_two_way(self.model, prompts, YES_NO, samples=self.samples, max_tokens=self.max_tokens)

    def verdict(self, read: Read) -> Verdict:
        """An answer as this critic's verdict."""
        return Verdict(read.p, raw=read.log_odds, reason=read.reason, principle=self.principle, judge=self.name)

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
        shown = [both for first, second in pairs for both in ((first, second), (second, first))]
        if self.comparer == "reasoned":
            reads, cut = self._reasoned(shown)
        else:
            reads, cut = self._choose([self._compare_prompt("compare", *both) for both in shown]), [False] * len(shown)
        return [_both_orders(reads[i], reads[i + 1], cut[i] + cut[i + 1]) for i in range(0, len(reads), 2)]

    def _choose(self, prompts: Sequence[Prompt]) -> list[Read]:
        return ask_two_way(self.model, prompts, A_B, samples=self.samples, max_tokens=self.max_tokens)

    def _reasoned(self, shown: Sequence[tuple[Exchange, Exchange]]) -> tuple[list[Read], list[bool]]:
        """The answer behind the critic's own reasons, and whether these were cut off at their limit.

        Who writes no reasons (nothing at all, an error, a refusal) gives no answer either: one read without them would
        be another kind of label under the same name.
        """
        can = self.model.capabilities
        sampling = Sampling(
            max_tokens=self.reason_tokens if "max_tokens" in can else None,
            temperature=0.0 if "temperature" in can else None,
        )

        def think(fitting: Sequence[Prompt]) -> list[Reply]:
            return [replies[0] for replies in self.model.generate(fitting, sampling)]

        prompts = [self._compare_prompt("reason", *both) for both in shown]
        thoughts = where_it_fits(think, prompts, lambda why: Reply((), "error", error=why))
        reads = [Read(None, reason=why) for why in map(_no_reasons, thoughts)]
        rows = [i for i, read in enumerate(reads) if not read.reason]
        asked: list[Prompt] = [
            (*prompts[i], assistant(quoted(thoughts[i].text.strip())), *self._compare_prompt("conclude", *shown[i]))
            for i in rows
        ]
        for i, read in zip(rows, self._choose(asked), strict=True):
            reads[i] = read
        return reads, [reply.finish == "length" for reply in thoughts]

    def _compare_prompt(self, name: str, shown_first: Exchange, shown_second: Exchange) -> Prompt:
        return ask_about(
            self.model,
            name,
            principle=self.text,
            exchange=shown_first,
            first=reply_block(shown_first.reply),
            second=reply_block(shown_second.reply),
        )

    def _compare_pointwise(self, pairs: Sequence[tuple[Exchange, Exchange]]) -> list[Compared]:
        """P(first better) from the two replies' own log-odds: Bradley-Terry with the critic's logits as strengths."""
        flat = [item for pair in pairs for item in pair]
        reads = self.read([ask_about(self.model, "judge", principle=self.text, exchange=item) for item in flat])
        result = []
        for first, second in zip(reads[0::2], reads[1::2], strict=True):
            known = first.log_odds is not None and second.log_odds is not None
            result.append(
                Compared(
                    sigmoid((first.log_odds or 0.0) - (second.log_odds or 0.0)) if known else None,
                    reason="" if known else first.reason or second.reason,
                    answers=first.answers + second.answers,
                    unreadable=first.unreadable + second.unreadable,
                )
            )
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


def _no_reasons(thought: Reply) -> str:
    """Why a chain of thought is none; "" where it is one."""
    if thought.finish in ("error", "filter", "refusal"):
        return f"the critic gave no reasons: {thought.error or thought.finish}"
    return "" if thought.text.strip() else "the critic gave no reasons: an empty answer"


def _both_orders(forward: Read, backward: Read, cut: int) -> Compared:
    """The mean over both orders. One unreadable order leaves nothing: half an answer would keep the position bias."""
    answers, unreadable = forward.answers + backward.answers, forward.unreadable + backward.unreadable
    as_a, as_b = forward.estimate, backward.estimate
    if as_a is None or as_b is None:
        reason = forward.reason or backward.reason
        return Compared(None, reason=reason, answers=answers, unreadable=unreadable, cut=cut)
    return Compared((as_a + 1.0 - as_b) / 2.0, as_a, 1.0 - as_b, "", answers, unreadable, cut)
