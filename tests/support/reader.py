"""A reading model that answers by rule: a critic whose verdicts a test decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fairlead.exchange import assistant
from fairlead.models.protocol import Prompt, Reply, Sampling


@dataclass
class Reader:
    """Says what `says` answers to the text of the question: True is yes (or A), False is no (or B), a str itself.

    It has no log-probs, so a critic counts its answers. `asked` holds every question.
    """

    says: Callable[[str], bool | str]
    name: str = "reader"
    lineage: str = "wt:reader"
    context: int | None = None
    capabilities: frozenset[str] = frozenset({"max_tokens", "temperature", "seed"})
    asked: list[str] = field(default_factory=list)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling = Sampling()) -> list[tuple[Reply, ...]]:  # noqa: B008
        out = []
        for prompt in prompts:
            text = prompt[-1].text
            self.asked.append(text)
            said = self.says(text)
            yes, no = ("A", "B") if "=== reply A ===" in text else ("yes", "no")
            answer = said if isinstance(said, str) else yes if said else no
            out.append(tuple(Reply((assistant(answer),), "stop") for _ in range(sampling.n)))
        return out

    def logprobs(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        raise NotImplementedError
