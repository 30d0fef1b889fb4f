"""What the terminal prints."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fairlead.cli.align import heading
from fairlead.cli.terminal import Terminal, duration


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.42, "0.4 s"), (38.4, "38 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_are_in_words_people_use(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_finished_stage_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().done("sft", "1,150 prompts revised", 38.0)
    Terminal().done("dpo", "1,024 pairs", None)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("sft         1,150 prompts revised") and first.endswith("38 s")
    assert second.endswith("cached")


def test_with_json_lines_leave_standard_output_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal(quiet_out=True).say("hello")
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "hello\n"


def test_progress_without_a_terminal_is_quiet_when_short(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal().progress("training") as advance:
        for done in range(1, 100):
            advance(done, 100)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_long_work_says_how_far_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from fairlead.cli import terminal

    monkeypatch.setattr(terminal, "PLAIN_EVERY_S", 0.0)
    with Terminal().progress("training") as advance:
        advance(50, 100)
        advance(60, 100)
    assert "training: 60 of 100, about" in capsys.readouterr().err


def test_what_was_done_before_says_nothing_of_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed job of 100 that stands at 90 and does one in a second has 9 seconds left, not a tenth of one."""
    from fairlead.cli import terminal

    clock = iter((0.0, 0.0, 1.0))
    monkeypatch.setattr(terminal, "PLAIN_EVERY_S", 0.0)
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    with Terminal().progress("labels") as advance:
        advance(90, 100)
        advance(91, 100)
    assert "labels: 91 of 100, about 9.0 s left" in capsys.readouterr().err


@pytest.mark.parametrize(("shown", "typed", "asked"), [(1, 1, True), (1, 0, False), (0, 1, False), (1, None, False)])
def test_a_question_needs_somebody_who_sees_it_and_can_answer(
    shown: bool, typed: bool | None, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: bool(shown)))
    keyboard = None if typed is None else SimpleNamespace(closed=False, isatty=lambda: bool(typed))
    monkeypatch.setattr("sys.stdin", keyboard)
    assert Terminal().answers is asked


def test_the_heading_names_what_runs() -> None:
    line = heading("apprentice", "harbour", "constitutional", 0, 2)
    assert line.startswith("apprentice · harbour constitution · constitutional recipe")
    assert line.endswith("seed 0 · 2 cores")
