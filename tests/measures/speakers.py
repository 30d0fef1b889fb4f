"""Models made of one function from the conversation to what is said, with everything they were asked kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fairlead.exchange import assistant
from fairlead.models.protocol import Prompt, Reply, Sampling
from fairlead.models.toolong import TooLong


@dataclass
class Speaker:
    """Says `say(prompt)`, a text or a whole reply, `n` times."""

    say: Callable[[Prompt], str | Reply]
    name: str = "speaker"
    lineage: str = "wt:speaker"
    capabilities: frozenset[str] = frozenset({"max_tokens", "temperature", "seed"})
    context: int | None = None
    prompts: Mapping[str, str] | None = None
    batches: list[tuple[int, Sampling]] = field(default_factory=list)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling = Sampling()) -> list[tuple[Reply, ...]]:  # noqa: B008
        self.batches.append((len(prompts), sampling))
        return [tuple(as_reply(self.say(prompt)) for _ in range(sampling.n)) for prompt in prompts]

    def logprobs(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        raise NotImplementedError


@dataclass
class Weigher(Speaker):
    """A model with log-probs: `weigh(prompt text, continuation)` in nats."""

    weigh: Callable[[str, str], float] = lambda prompt, text: -1.0
    capabilities: frozenset[str] = frozenset({"max_tokens", "temperature", "logprobs"})
    questions: list[str] = field(default_factory=list)

    def logprobs(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        self.batches.append((len(prompts), Sampling()))
        self.questions += [prompt[-1].text for prompt in prompts]
        return [
            [self.weigh(prompt[-1].text, text) for text in texts]
            for prompt, texts in zip(prompts, continuations, strict=True)
        ]


@dataclass
class Narrow(Weigher):
    """A model with room for so many characters; says which prompts are longer, all at once or one at a time."""

    room: int = 100
    one_by_one: bool = False

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling = Sampling()) -> list[tuple[Reply, ...]]:  # noqa: B008
        self._measure(prompts)
        return super().generate(prompts, sampling)

    def logprobs(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        self._measure(prompts)
        return super().logprobs(prompts, continuations)

    def _measure(self, prompts: Sequence[Prompt]) -> None:
        longer = [prompt for prompt in prompts if len(prompt[-1].text) > self.room]
        if longer:
            told = longer[:1] if self.one_by_one else longer
            raise TooLong("prompt: too long", [(prompt, f"{len(prompt[-1].text)} characters") for prompt in told])


def as_reply(said: str | Reply) -> Reply:
    return said if isinstance(said, Reply) else Reply((assistant(said),), "stop")


def failed(error: str = "server gone") -> Reply:
    return Reply((), "error", error=error)


def always(text: str) -> Speaker:
    return Speaker(lambda prompt: text)
