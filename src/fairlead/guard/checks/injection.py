"""Orders hidden in what a tool or a search brought back: text of another origin that speaks to the model.

A heuristic: signs of an order (to forget what was said, to do something instead, to keep it from the user, to send
something somewhere) are weighed; `threshold` of them is a finding. It reads messages and parts of origin `tool` and
`retrieved` alone, and reads what of them stands in base64, hex or escapes too (`coded.py`). A score of a classifier can
stand beside it (`score`, P(injection) of a text), or in its place (`words=False`): a check of its own, since a model is
asked elsewhere and later than code. What the words miss is most of what is worded like the text around it;
`docs/guard-checks.md` has the numbers. Definitions of tools (role `system`) are read by the words alone: no classifier
was measured on them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fairlead.exchange import Exchange, Message
from fairlead.guard.checks.coded import coded
from fairlead.guard.checks.decode import View, clean
from fairlead.guard.decision import ALLOW, Decision, Outcome, Span
from fairlead.guard.pieces import Piece, pieces
from fairlead.guard.watch import Ruling, Seen
from fairlead.judges.lineage import Lineage, leaf

UNTRUSTED = frozenset({"tool", "retrieved"})
THRESHOLD = 1.0

_BEFORE = r"(?:previous|prior|above|earlier|preceding|former|existing|original|initial|all|any|your|the)"
_ORDERS = (
    r"(?:instructions?|prompts?|rules?|directions?|directives?|guidelines?|commands?|system message|context|messages?)"
)
# (weight, sign). One of weight 1 is enough.
_SIGNS: tuple[tuple[float, str, str], ...] = (
    (1.0, "forget what was said", rf"\b(?:ignore|disregard|forget|override|bypass|discard|skip|drop)\b(?:\s+\w+){{0,4}}\s+{_BEFORE}(?:\s+\w+){{0,3}}\s+{_ORDERS}"),
    (1.0, "forget everything", r"\b(?:ignore|disregard|forget)\s+(?:everything|all|anything)\s+(?:above|before|that|you|i|we|said|so far|else)"),
    (1.0, "a turn of its own", r"(?:^|\n)\s*(?:<\|?(?:im_start|system|assistant|user|end)\|?>|\[/?(?:INST|SYSTEM)\]|#{2,}\s*(?:system|instructions?)\b|(?:system|assistant)\s*(?:prompt|message)?\s*:\s)"),
    (1.0, "kept from the user", r"\b(?:do not|don't|never|without)\s+(?:tell(?:ing)?|inform(?:ing)?|mention(?:ing)?|alert(?:ing)?|notify(?:ing)?|reveal(?:ing)?|show(?:ing)?)\b(?:\s+\w+){0,4}\s+(?:the\s+)?(?:user|human|anyone|owner)"),
    (1.0, "asks for the instructions", r"\b(?:reveal|print|repeat|output|show|display|send|leak|share)\b(?:\s+\w+){0,4}\s+(?:system prompt|hidden prompt|initial prompt|your (?:instructions|prompt|rules))"),
    (1.0, "sends things off", r"\b(?:send|forward|post|upload|exfiltrate|transmit|e-?mail)\b(?:\s+[\w'’]+){1,8}\s+to\s+(?:https?://|[\w.+-]{1,40}@)"),
    (0.6, "speaks to a model", r"\b(?:you are (?:now|an? (?:ai|assistant|language model|helpful))|as an ai\b|dear (?:ai|assistant)|attention,?\s+(?:ai|assistant)|(?:the )?(?:ai|llm|assistant|chatbot|model)\s+(?:must|should|shall|will now|has to))"),
    (0.6, "a new task", r"\b(?:new|updated|revised|additional|real|actual|next)\s+(?:instructions?|task|directive|objective|orders?)\b\s*(?:is|are|:|-)"),
    (0.6, "instead", r"\b(?:instead|from now on|henceforth)\b[,:]?\s+(?:\w+\s+){0,3}(?:say|answer|respond|reply|write|output|print|tell|act|do|speak|translate)"),
    (0.5, "an answer is laid down", r"\b(?:end|begin|start|finish|preface|append|include|add|insert)\b(?:\s+\w+){0,5}\s+(?:your|the|each|every)\s+(?:response|answer|reply|output|message|summary)"),
    (0.5, "role play", r"\b(?:pretend|act|behave|roleplay|role-play|respond)\s+(?:to be|as if|as though|as an?|like an?)\b"),
    (0.5, "urgent", r"\b(?:important|urgent|attention|critical|mandatory)\b\s*(?:!|:|-)+\s*(?:\w+\s+){0,2}(?:ignore|do|send|reply|respond|answer|click|follow|execute|run|call)"),
    (0.5, "to be run", r"\b(?:execute|run|eval|call|invoke)\b(?:\s+\w+){0,3}\s+(?:code|command|script|function|tool|following|this)\b|(?:^|[\s;`])(?:rm -rf|curl\s+-?\S*\s*https?:|wget\s+https?:|powershell\s|base64 -d)"),
)  # fmt: skip
_COMPILED = tuple((weight, sign, re.compile(pattern, re.I)) for weight, sign, pattern in _SIGNS)


def signs(text: str) -> list[tuple[float, str, int, int]]:
    """(weight, what, start, end) of every sign of an order in a text, and in what of it is written in code."""
    plain = clean(text)
    found = list(_signs(plain))
    for view in coded(plain):
        how = ", ".join(reversed(view.path))
        found += [(weight, f"{what} ({how})", start, end) for weight, what, start, end in _signs(view)]
    return found


def _signs(view: View) -> Iterator[tuple[float, str, int, int]]:
    for weight, what, pattern in _COMPILED:
        for match in pattern.finditer(view.text):
            yield (weight, what, *view.locate(*match.span()))


@dataclass(frozen=True)
class InjectionCheck:
    """Looks at text of other origin, in what is asked (`ask`) and in tool turns of a reply (`decide`)."""

    principle: str = ""
    on_violation: Outcome = "refuse"
    threshold: float = THRESHOLD
    score: Callable[[str], float] | None = None
    score_threshold: float = 0.5
    words: bool = True
    cost: int = 0

    @property
    def name(self) -> str:
        name = "injection" if self.words else "injection-classifier"
        return f"{name}:{self.principle}" if self.principle else name

    @cached_property
    def lineage(self) -> Lineage:
        known: Lineage = getattr(self.score, "lineage", frozenset())
        return leaf("rule", text="guard injection", code=Path(__file__).read_text()) | known

    def ask(self, messages: Sequence[Message]) -> Decision:
        return self._one(messages)

    def decide(self, exchanges: Sequence[Exchange]) -> list[Decision]:
        return [self._one(item.reply) for item in exchanges]

    def watch(self, messages: Sequence[Message]) -> _NothingToRead:
        """A reply on the wire has no turns of tools: nothing of it waits for this check."""
        return _NothingToRead()

    def _one(self, messages: Sequence[Message]) -> Decision:
        spans: list[Span] = []
        why: list[str] = []
        for part in pieces(messages):
            if not self.words and messages[part.at[0]].role == "system":
                continue
            if part.place == "tool_result" or messages[part.at[0]].origin in UNTRUSTED:
                found = self._found(part)
                spans += [span for span, _ in found]
                why += [what for _, what in found]
        if not spans:
            return ALLOW
        return Decision(self.on_violation, self.principle, "; ".join(dict.fromkeys(why)), tuple(spans), self.name)

    def _found(self, part: Piece) -> list[tuple[Span, str]]:
        found = signs(part.text) if self.words else []
        if sum({what: weight for weight, what, _, _ in found}.values()) >= self.threshold:
            return [(Span(part.at, start, end), f"an order in a tool's text: {what}") for _, what, start, end in found]
        if self.score is not None and self.score(part.text) >= self.score_threshold:
            return [(Span(part.at, 0, len(part.text)), "an order in a tool's text, by the classifier")]
        return []


class _NothingToRead:
    """Lets everything go."""

    def feed(self, seen: Seen) -> Ruling:
        return Ruling(safe={seen.channel: 1 << 62})

    def finish(self, choice: int) -> Ruling:
        return Ruling()
