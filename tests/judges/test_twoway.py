"""Two-way answers read off the alternatives to a first token."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fairlead.exchange import assistant, user
from fairlead.judges.twoway import A_B, YES_NO, ask_two_way
from fairlead.models import open_model
from fairlead.models.capabilities import Record, write_record
from fairlead.models.protocol import Alternative, CapabilityError, Prompt, Reply, Sampling
from support.fakes import Faulty, Told

Answer = Callable[[str, Sampling], Reply]
ASKED = [(user("is the pier open ?"),)]


def reply(text: str, **probabilities: float) -> Reply:
    """An answer, and what its first token might have been: `_` stands for a space before the word."""
    top = tuple(Alternative(token.replace("_", " "), math.log(p)) for token, p in probabilities.items())
    return Reply((assistant(text),), "stop", top_logprobs=(top,) if top else None)


@dataclass
class Teller:
    """A model that tells alternatives."""

    answer: Answer
    capabilities: frozenset[str] = frozenset({"max_tokens", "temperature", "top_logprobs", "alternatives"})
    asked: list[tuple[str, Sampling]] = field(default_factory=list)
    name: str = "teller"
    lineage: str = "teller"
    context: None = None

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[tuple[Reply, ...]]:
        self.asked += [(prompt[-1].text, sampling) for prompt in prompts]
        return [tuple(self.answer(prompt[-1].text, sampling) for _ in range(sampling.n)) for prompt in prompts]


def test_the_first_token_tells_the_odds_in_one_answer() -> None:
    model = Teller(lambda q, s: reply("Yes.", Yes=0.5, _yes=0.1, No=0.2, well=0.2))
    [read] = ask_two_way(model, ASKED, YES_NO)
    assert read.p == pytest.approx(0.6 / 0.8) and read.log_odds == pytest.approx(math.log(3))
    assert [sampling.n for _, sampling in model.asked] == [1] and model.asked[0][1].top_logprobs == 20


def test_an_option_that_is_not_told_is_at_most_as_likely_as_the_last_that_is() -> None:
    [read] = ask_two_way(Teller(lambda q, s: reply("no", no=0.9, nope=0.01)), ASKED, YES_NO)
    assert read.p == pytest.approx(0.01 / 0.91)


@pytest.mark.parametrize(
    "first",
    [
        reply("Let me think: yes", Let=0.9, Yes=0.1),  # reasons first: its first token is no answer
        reply("yes", perhaps=1.0),  # a token of another split
        reply("A better reply is a", A=1.0),  # not one of these options
        reply("yes"),  # tells nothing
    ],
)
def test_where_the_first_token_is_no_answer_all_answers_are_counted(first: Reply) -> None:
    model = Teller(lambda q, s: first if s.top_logprobs else reply("no"))
    [read] = ask_two_way(model, ASKED, YES_NO, samples=3)
    assert [sampling.n for _, sampling in model.asked] == [1, 2]
    assert read.answers == 3 and read.log_odds is not None and read.log_odds < 0


def test_only_the_silent_prompts_are_asked_again() -> None:
    prompts = [(user("a ?"),), (user("b ?"),), (user("c ?"),)]
    model = Teller(lambda q, s: reply("b") if q == "b ?" else reply("A", A=0.75, B=0.25))
    reads = ask_two_way(model, prompts, A_B, samples=2)
    assert [round(read.p or 0, 3) for read in reads] == [0.75, 0.0, 0.75]
    assert [question for question, _ in model.asked] == ["a ?", "b ?", "c ?", "b ?"]


def test_a_refusal_is_no_verdict_whatever_its_first_token() -> None:
    said = Reply((assistant("no"),), "filter", top_logprobs=((Alternative("no", -0.1),),))
    [read] = ask_two_way(Teller(lambda q, s: said), ASKED, YES_NO)
    assert read.p is None and "did not answer" in read.reason


def test_a_server_that_refuses_after_all_is_counted() -> None:
    def answer(question: str, sampling: Sampling) -> Reply:
        if sampling.top_logprobs is not None:
            error = CapabilityError("no top_logprobs here")
            error.capability = "top_logprobs"
            raise error
        return reply("yes")

    model = Teller(answer)
    [read] = ask_two_way(model, ASKED, YES_NO, samples=4)
    assert (read.p, read.answers) == (1.0, 4)


def test_a_compatible_server_is_relied_on_once_a_record_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with Faulty(Told(capabilities=frozenset({"max_tokens", "top_logprobs"})), lambda i, body: None) as server:
        spec = f"openai/echo@{server.url}/v1"
        assert "alternatives" not in open_model(spec).capabilities
        record = Record("echo", f"{server.url}/v1", "chat", "2026-11-26", can=("top_logprobs",))
        write_record(record, tmp_path / "runs" / ".cache" / "capabilities")
        model = open_model(spec)
        assert "alternatives" in model.capabilities
        [read] = ask_two_way(model, ASKED, YES_NO)
        assert server.count == 1 and read.p is not None and read.answers == 0
