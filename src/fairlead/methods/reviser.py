"""Who writes critiques and revisions: a model asked in the wording of `critique.md` and `revise.md`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fairlead.exchange import Exchange
from fairlead.judges.lineage import Lineage, leaf, merge
from fairlead.judges.prompting import ask_about
from fairlead.judges.transcript import quoted
from fairlead.methods.panel import PrincipleLike
from fairlead.models.protocol import Model, Prompt, Reply, Sampling
from fairlead.models.toolong import where_it_fits


class Reviser(Protocol):
    """Who writes critiques and revisions: one principle for each exchange, answers in the same order."""

    @property
    def name(self) -> str: ...
    @property
    def lineage(self) -> Lineage: ...

    def critique(self, exchanges: Sequence[Exchange], principles: Sequence[PrincipleLike]) -> list[Reply]: ...
    def revise(
        self, exchanges: Sequence[Exchange], principles: Sequence[PrincipleLike], critiques: Sequence[str]
    ) -> list[Reply]: ...


@dataclass(frozen=True, slots=True)
class ModelReviser:
    """A model as reviser, asked in the wording of `critique.md` and `revise.md` (its own, where it brings them)."""

    model: Model
    principles: tuple[PrincipleLike, ...]
    temperature: float | None = 0.0
    max_tokens: int = 256
    critique_tokens: int = 128
    seed: int = 0

    @property
    def name(self) -> str:
        return f"reviser:{self.model.name}"

    @property
    def lineage(self) -> Lineage:
        """The same leaves as critics over this model: who revises by a principle has been optimised towards it."""
        return merge(leaf("critic", model=self.model.lineage, text=p.text) for p in self.principles)

    def critique(self, exchanges: Sequence[Exchange], principles: Sequence[PrincipleLike]) -> list[Reply]:
        asked = [
            ask_about(self.model, "critique", principle=p.text, exchange=item)
            for item, p in zip(exchanges, principles, strict=True)
        ]
        return self._ask(asked, self.critique_tokens)

    def revise(
        self, exchanges: Sequence[Exchange], principles: Sequence[PrincipleLike], critiques: Sequence[str]
    ) -> list[Reply]:
        asked = [
            ask_about(self.model, "revise", principle=p.text, exchange=item, critique=quoted(critique))
            for item, p, critique in zip(exchanges, principles, critiques, strict=True)
        ]
        return self._ask(asked, self.max_tokens)

    def _ask(self, prompts: Sequence[Prompt], max_tokens: int) -> list[Reply]:
        seed = self.seed if "seed" in self.model.capabilities else None
        sampling = Sampling(max_tokens=max_tokens, temperature=self.temperature, seed=seed)

        def ask(fitting: Sequence[Prompt]) -> list[Reply]:
            return [answers[0] for answers in self.model.generate(fitting, sampling)]

        return where_it_fits(ask, prompts, lambda why: Reply((), "error", error=why))
