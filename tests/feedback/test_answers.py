"""Answers kept by content: asked once, whatever happens between."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fairlead.errors import MissingResource
from fairlead.exchange import user
from fairlead.feedback.answers import Answers, Dry, Remembered
from fairlead.models import Sampling
from fairlead.models.protocol import Prompt, Reply
from support.fakes import Echo


def prompts(*words: str) -> list[Prompt]:
    return [(user(word),) for word in words]


class Scored(Echo):
    def logprobs(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        self.asked += [(prompt[-1].text, Sampling()) for prompt in prompts]
        return [[float(len(text)) if "odd" not in prompt[-1].text else float("nan") for text in texts]
                for prompt, texts in zip(prompts, continuations, strict=True)]  # fmt: skip


def test_a_question_is_asked_once_and_its_repeats_are_told_apart(tmp_path: Path) -> None:
    model = Echo()
    first = Remembered(model, Answers(tmp_path / "a.sqlite"))  # type: ignore[arg-type]
    got = first.generate(prompts("x", "y", "x"), Sampling(n=2))
    assert [[r.text for r in replies] for replies in got] == [["x #0", "x #1"], ["y #0", "y #1"], ["x #0", "x #1"]]
    assert len(model.asked) == 2
    later = Remembered(model, Answers(tmp_path / "a.sqlite"))  # type: ignore[arg-type]  # another process
    assert later.generate(prompts("y", "x"), Sampling(n=2)) == [got[1], got[0]]
    assert len(model.asked) == 2
    later.generate(prompts("x"), Sampling(n=3))
    Remembered(model, later._answers, take=1).generate(prompts("x"), Sampling(n=2))  # type: ignore[arg-type]
    assert len(model.asked) == 4
    assert later.name == "echo" and getattr(later, "prompts", None) is None


def test_log_probs_are_kept_and_what_is_no_number_is_not(tmp_path: Path) -> None:
    model = Scored()
    kept = Remembered(model, Answers(tmp_path / "a.sqlite"))  # type: ignore[arg-type]
    for _ in range(2):
        got = kept.logprobs(prompts("x", "odd"), [["yes", "no"], ["yes", "no"]])
        assert got[0] == [3.0, 2.0]
    assert [text for text, _ in model.asked] == ["x", "odd", "odd"]


def test_errors_are_not_kept_and_answers_before_a_failure_are(tmp_path: Path) -> None:
    class Dying(Echo):
        tells = True

        def generate(self, prompts: Any, sampling: Any = Sampling(), *, on_replies: Any = None) -> Any:  # noqa: B008
            for row, replies in enumerate(super().generate(prompts, sampling)):
                if "die" in prompts[row][-1].text:
                    raise MissingResource("gone")
                if "bad" not in prompts[row][-1].text:
                    on_replies(row, replies)
            return [(Reply((), "error", error="no"),) if "bad" in prompt[-1].text else () for prompt in prompts]

    answers = Answers(tmp_path / "a.sqlite")
    model = Dying()
    kept = Remembered(model, answers)  # type: ignore[arg-type]
    with pytest.raises(MissingResource):
        kept.generate(prompts("x", "bad", "y", "die", "z"))
    assert len(answers) == 2
    model.asked.clear()
    assert kept.generate(prompts("x", "y", "bad"))[2][0].finish == "error"
    assert [text for text, _ in model.asked] == ["bad"]


def test_a_dry_model_notes_and_asks_nothing(tmp_path: Path) -> None:
    model, answers = Echo(), Answers(tmp_path / "a.sqlite")
    Remembered(model, answers).generate(prompts("known"), Sampling(max_tokens=8))  # type: ignore[arg-type]
    dry = Dry(model)  # type: ignore[arg-type]
    got = Remembered(dry, answers, keep=False).generate(prompts("known", "new"), Sampling(max_tokens=8))  # type: ignore[arg-type]
    assert [prompt[0].text for prompt, _ in dry.asked] == ["new"] and len(model.asked) == 1
    assert got[0][0].text == "known #0" and len(got[1][0].text) >= 24
    assert len(answers) == 1
    dry.logprobs(prompts("a"), [["yes", "no"]])
    assert len(dry.asked) == 3


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MissingResource, match="answers cannot be kept"):
        Answers(tmp_path / "file" / "a.sqlite")
