"""A critic of what is asked: its question, its decisions, and for which principles and models there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from fairlead.constitution.schema import Constitution
from fairlead.exchange import Message, assistant, exchange, system, user
from fairlead.guard.audit.review import review
from fairlead.guard.critic_prompt import PromptCritic, prompt_critics
from fairlead.guard.decision import Decision
from fairlead.guard.plan import plan
from fairlead.guard.watch import PromptCheck
from fairlead.models.apprentice import open_apprentice
from fairlead.models.protocol import Prompt
from guard.helpers import ScriptedModel


def written(at: str = "[prompt, reply]", on_violation: str = "refuse") -> Constitution:
    from ruamel.yaml import YAML

    return Constitution.model_validate(
        YAML(typ="safe").load(
            "name: small\nprinciples:\n"
            "  - {id: no-sinking, dimension: harmless, severity: 5, text: Do not help to sink anything.,\n"
            f"     guard: {{at: {at}, on_violation: {on_violation}, say: I sink nothing.}}}}\n"
            "  - {id: be-kind, dimension: helpful, severity: 2, text: Be kind.}\n"
        )
    )


def scripted(answer: str) -> tuple[ScriptedModel, list[str]]:
    asked: list[str] = []

    def say(prompt: Prompt) -> str:
        text = prompt[-1].text
        asked.append(text)
        return "no" if "sink the boat" in text and answer == "judge" else "yes" if answer == "judge" else answer

    return ScriptedModel(say, capabilities=frozenset({"max_tokens", "temperature", "seed"})), asked


def test_it_asks_whether_the_request_can_be_met_within_the_principle() -> None:
    model, asked = scripted("judge")
    [check] = prompt_critics(written(), model)
    assert isinstance(check, PromptCheck) and check.principle == "no-sinking" and check.cost == 2
    talk = (system("you are a clerk"), user("hello"), assistant("hello"), user("help me sink the boat"))
    refused = check.ask(talk)
    assert (refused.outcome, refused.principle) == ("refuse", "no-sinking") and "below 0.5" in refused.evidence
    assert refused.check == "critic:no-sinking (prompt) < 0.5" and not refused.spans
    assert check.ask(talk[:2]).outcome == "allow"
    assert "Do not help to sink anything." in asked[0] and "help me sink the boat" in asked[0]
    assert "=== reply ===" not in asked[0] and asked[0].rstrip().endswith("Answer with one word, yes or no.")


def test_an_answer_that_is_none_has_failed() -> None:
    [check] = prompt_critics(written(), scripted("perhaps")[0])
    said = check.ask((user("hello"),))
    assert said.outcome == "failed" and said.evidence


@pytest.mark.parametrize(
    ("on_violation", "outcome"),
    [("refuse", "refuse"), ("redact", "refuse"), ("revise", "refuse"), ("escalate", "escalate")],
)
def test_what_it_cannot_place_is_refused(on_violation: str, outcome: str) -> None:
    [check] = prompt_critics(written(on_violation=on_violation), scripted("no")[0])
    assert check.ask((user("hello"),)).outcome == outcome


def test_the_threshold_is_the_principles_own() -> None:
    model, _ = scripted("no")
    [strict] = prompt_critics(written(), model, thresholds={"no-sinking": 0.01})
    assert isinstance(strict, PromptCritic) and strict.threshold == 0.01 and "< 0.01" in strict.name
    assert strict.ask((user("hello"),)).outcome == "refuse"  # every answer read was a no


@pytest.mark.parametrize("at", ["[reply]", "[tool_result]", "[reply, tool_call]"])
def test_only_where_the_principle_looks_at_what_is_asked(at: str) -> None:
    assert prompt_critics(written(at), scripted("no")[0]) == ()


def test_without_a_model_and_with_one_that_was_never_taught_the_question_there_is_none() -> None:
    assert prompt_critics(written(), None) == () == prompt_critics(written(), open_apprentice(torch=False))


@dataclass(frozen=True)
class Sure:
    """A check of what is asked that is in doubt where it reads `perhaps`."""

    name: str = "sure"
    principle: str = "no-sinking"
    cost: int = 1
    settles_prompts: bool = True

    def ask(self, messages: Sequence[Message]) -> Decision:
        doubtful = "perhaps" in messages[-1].text
        return Decision("allow", self.principle, "doubtful" if doubtful else "")


@pytest.mark.parametrize("settles", [True, False])
def test_guard_check_asks_it_as_a_proxy_does(settles: bool) -> None:
    model, asked = scripted("judge")
    checks = (*prompt_critics(written(), model), Sure(settles_prompts=settles))
    rows = [exchange("hello", "hello"), exchange("perhaps sink the boat", "no")]
    first, second = review(rows, plan([], {}), prompts=checks)
    assert first.outcome == "allow" and (second.outcome, second.where) == ("refuse", "asked")
    assert (len(asked) == model.calls * 5) and model.calls == (1 if settles else 2)
