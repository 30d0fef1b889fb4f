"""Critics that choose by rule, to stand behind a server: fast, and right or wrong in a known way."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fairlead.exchange import assistant
from fairlead.models.protocol import Prompt, Reply, Sampling, Usage

_SHOWN = re.compile(r"=== reply A ===\n(.*)\n=== reply B ===\n(.*)\n=== end ===", re.DOTALL)

Rule = Callable[[str, str], str]


def prefers_good(first: str, second: str) -> str:
    """The reply with `good` in it; of two alike the first shown."""
    return "B" if "good" in second and "good" not in first else "A"


def always_first(first: str, second: str) -> str:
    return "A"


def mute(first: str, second: str) -> str:
    return "I would rather not say."


@dataclass
class Chooser:
    """Answers the question `compare` by a rule, with reasons before it or without; what else it is asked it answers with `yes`."""

    rule: Rule = prefers_good
    name: str = "chooser"
    lineage: str = "wt:chooser"
    context: int | None = 8192
    capabilities: frozenset[str] = frozenset({"max_tokens", "temperature", "top_p", "stop", "seed"})

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling = Sampling()) -> list[tuple[Reply, ...]]:  # noqa: B008
        out = []
        for prompt in prompts:
            found = _SHOWN.search(prompt[0].text)  # reasons and a last question may follow
            text = self.rule(found[1], found[2]) if found else "yes"
            reply = Reply((assistant(text),), "stop", usage=Usage(len(prompt[-1].text) // 4, sampling.n))
            out.append((reply,) * sampling.n)
        return out

    def logprobs(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        raise NotImplementedError
