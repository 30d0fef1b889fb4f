"""What was paid for is kept: whatever ends a batch, the replies that had come are there and not asked for again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fairlead.errors import MissingResource
from fairlead.exchange import assistant, user
from fairlead.models import OutOfBudget, Reply, Sampling
from fairlead.stack.remember import Remembering


class Remote:
    """Answers in order, says so one by one, and ends as told before the prompt `stop`."""

    name = "remote"

    def __init__(self, end: BaseException | None = None) -> None:
        self.end, self.asked = end, list[str]()

    def generate(self, prompts: Any, sampling: Any = Sampling(), *, on_replies: Any) -> list[tuple[Reply, ...]]:  # noqa: B008
        done = []
        for row, (message,) in enumerate(prompts):
            if message.text == "stop" and self.end is not None:
                raise self.end
            self.asked.append(message.text)
            finish: Any = "error" if message.text == "bad" else "stop"
            done.append((Reply((assistant(message.text.upper()),), finish),))
            on_replies(row, done[-1])
        return done


ASKED = [[user(text)] for text in ("one", "bad", "two", "stop", "three")]


def texts(replies: list[tuple[Reply, ...]]) -> list[str]:
    return [reply.text for (reply,) in replies]


@pytest.mark.parametrize(
    "end", [KeyboardInterrupt(), MissingResource("401"), OutOfBudget("empty"), RuntimeError("dead")], ids=repr
)
def test_whatever_ends_a_batch_nothing_that_came_is_asked_again(end: BaseException, tmp_path: Path) -> None:
    first: Any = Remote(end)
    with pytest.raises(type(end)):
        Remembering(first, tmp_path / "kept.jsonl").generate(ASKED)
    assert first.asked == ["one", "bad", "two"]
    second: Any = Remote()
    assert texts(Remembering(second, tmp_path / "kept.jsonl").generate(ASKED)) == ["ONE", "BAD", "TWO", "STOP", "THREE"]
    assert second.asked == ["bad", "stop", "three"], "an error is asked again, an answer is not"


def test_a_line_cut_off_by_a_kill_costs_its_own_prompt_alone(tmp_path: Path) -> None:
    file = tmp_path / "kept.jsonl"
    model: Any = Remote()
    Remembering(model, file).generate(ASKED[:1])
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:40])
    Remembering(model, file).generate(ASKED[2:3])
    again: Any = Remote()
    assert texts(Remembering(again, file).generate([ASKED[0], ASKED[2]])) == ["ONE", "TWO"] and again.asked == []


def test_another_sampling_is_another_question(tmp_path: Path) -> None:
    model: Any = Remote()
    kept = Remembering(model, tmp_path / "kept.jsonl")
    kept.generate(ASKED[:1], Sampling(seed=1))
    kept.generate(ASKED[:1], Sampling(seed=2))
    assert model.asked == ["one", "one"]
