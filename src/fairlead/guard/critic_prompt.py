"""A critic of what is asked: a model that reads one principle and says whether the request could be met within it.

It reads the conversation before the model does, so a request that is refused costs no reply; of every other one it
puts off the first byte by its own time. A request that reads as harmless can still be answered badly: the checks of
replies are not spared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fairlead.constitution.schema import Constitution
from fairlead.exchange import Exchange, Message
from fairlead.guard.decision import Decision, Outcome
from fairlead.judges.critic import Critic, critic
from fairlead.judges.lineage import Lineage
from fairlead.judges.prompting import ask_about
from fairlead.models.access import vendor
from fairlead.models.protocol import Model, Prompt

QUESTION = "judge_request"


@dataclass(frozen=True)
class PromptCritic:
    """`judge` below `threshold` is a request that its principle cannot meet.

    It says that something is wrong and not where: what would be painted over is refused.
    """

    judge: Critic
    on_violation: Outcome = "refuse"
    threshold: float = 0.5
    deadline: float = 0.0
    cost: int = 2

    @property
    def name(self) -> str:
        return f"{self.judge.name} (prompt) < {self.threshold:g}"

    @property
    def principle(self) -> str:
        return self.judge.principle

    @property
    def lineage(self) -> Lineage:
        return self.judge.lineage

    @property
    def sends_to(self) -> str:
        """The host that reads what is asked; "" for a model in this process, or in a network of one's own."""
        return vendor(self.judge.model)

    def question(self, messages: Sequence[Message]) -> Prompt:
        """What the model is asked about these messages."""
        asked = Exchange(tuple(messages), ())
        return ask_about(self.judge.model, QUESTION, principle=self.judge.text, exchange=asked)

    def ask(self, messages: Sequence[Message]) -> Decision:
        """What to do with what is asked. A critic that gives no verdict has failed."""
        if not any(message.role == "user" for message in messages):
            return Decision("allow", self.principle, "", (), self.name)  # nobody asks for anything
        [read] = self.judge.read([self.question(messages)])
        verdict = self.judge.verdict(read)
        if verdict.score is None:
            return Decision("failed", self.principle, verdict.reason or "gave no verdict", (), self.name)
        if verdict.score >= self.threshold:
            return Decision("allow", self.principle, "", (), self.name)
        outcome: Outcome = "escalate" if self.on_violation == "escalate" else "refuse"
        evidence = f"scored {verdict.score:.2f}, below {self.threshold:g}"
        return Decision(outcome, self.principle, evidence, (), self.name)


def prompt_critics(
    constitution: Constitution, model: Model | None, *, thresholds: Mapping[str, float] | None = None
) -> tuple[PromptCritic, ...]:
    """A critic for each principle whose guard looks at `prompt`. None without a model, nor where that has a wording of
    its own without this question (the apprentice, which was never taught it)."""
    own = getattr(model, "prompts", None)
    if model is None or (own and QUESTION not in own):
        return ()
    return tuple(
        PromptCritic(critic(p, model), p.guard.on_violation, (thresholds or {}).get(p.id, 0.5))
        for p in sorted(constitution.principles, key=lambda p: -p.severity)
        if p.guard is not None and "prompt" in p.guard.at
    )
