"""Rules and other checks of code, as checks of what is asked: of the user's words, and of what tools brought."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fairlead.constitution.schema import Constitution
from fairlead.exchange import Message
from fairlead.guard.checks.injection import InjectionCheck
from fairlead.guard.checks.personal import PersonalData
from fairlead.guard.checks.rules import RulesCheck
from fairlead.guard.decision import ALLOW, Check, Decision, Span
from fairlead.guard.pieces import Piece, pieces
from fairlead.guard.watch import PromptCheck


@dataclass(frozen=True)
class OfPrompts:
    """A check of replies that is shown the conversation. What it finds counts where the principle looks: `prompt` are
    the turns of the user and what stands beside the conversation, `tool_result` what came from tools. What the operator
    wrote and the model said counts not."""

    check: RulesCheck | PersonalData
    places: frozenset[str]

    @property
    def name(self) -> str:
        return f"{self.check.name} (prompt)"

    @property
    def principle(self) -> str:
        return self.check.principle

    @property
    def cost(self) -> int:
        return self.check.cost

    def ask(self, messages: Sequence[Message]) -> Decision:
        hits = [
            (what, place, Span(piece.at, start, end))
            for piece in pieces(messages)
            if (place := self._place(piece, messages)) in self.places
            for what, start, end in self.check.matches(piece.text)
        ]
        if not hits:
            return ALLOW
        why = "; ".join(dict.fromkeys(self.check.says(what, place) for what, place, _ in hits))
        return Decision(self.check.on_violation, self.principle, why, tuple(span for _, _, span in hits), self.name)

    @staticmethod
    def _place(piece: Piece, messages: Sequence[Message]) -> str:
        if piece.place == "tool_result":
            return piece.place
        return "prompt" if messages[piece.at[0]].origin in ("user", "retrieved") else ""


def prompt_checks(checks: Iterable[Check], constitution: Constitution) -> tuple[PromptCheck, ...]:
    """The checks of what is asked: those of principles whose guard looks at `prompt` or `tool_result`, those that stand
    for no principle, and in any case the one that looks for orders in what tools brought."""
    found: list[PromptCheck] = []
    for check in checks:
        guard = constitution[check.principle].guard if check.principle in constitution else None
        places = frozenset() if guard is None else frozenset({"prompt", "tool_result"} & set(guard.at))
        if isinstance(check, RulesCheck | PersonalData):
            if places:
                found.append(OfPrompts(check, places))
        elif isinstance(check, PromptCheck) and (places or guard is None or isinstance(check, InjectionCheck)):
            found.append(check)
    return tuple(found)


def unchecked_prompts(checks: Iterable[PromptCheck], constitution: Constitution) -> tuple[str, ...]:
    """Ids of principles whose guard looks at what is asked, and that none of these checks stands for there."""
    reads = [check for check in checks if getattr(check, "prompt_head", True) is not None]  # and not replies alone
    covered = {getattr(check, "principle", "") for check in reads}
    return tuple(
        p.id for p in constitution.principles if p.guard is not None and "prompt" in p.guard.at and p.id not in covered
    )
