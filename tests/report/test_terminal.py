from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from fairlead.report.run import Run, read_run, run_from
from fairlead.report.terminal import closing, print_table, table
from report import example


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(example.make(tmp_path_factory.mktemp("run")))


def printed(run: Run, width: int, *, terminal: bool = True) -> list[str]:
    out = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None, legacy_windows=False)
    print_table(run, out)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue().splitlines()


def test_plain_lines_hold_everything(run: Run) -> None:
    lines = printed(run, 40, terminal=False)
    (harm,) = [line for line in lines if line.startswith("harmful compliance ↓")]
    assert harm.count("[") == 5 and "no-harm" in harm and "better by 0.92" in harm and "[≤ 0.0" in harm
    assert any("cannot tell" in line for line in lines) and all(line == line.rstrip() for line in lines)
    assert lines[0].split() == ["base", "sft", "dpo", "guard"]


def test_columns_line_up(run: Run) -> None:
    rows = [line.plain for line in table(run, None)]
    assert len({line.index("0.") for line in rows[1:]}) == 1
    assert rows[0].index("base") == rows[1].index("0.")


@pytest.mark.parametrize("width", [200, 150, 120, 100, 80, 60, 40])
def test_it_fits_the_window(run: Run, width: int) -> None:
    lines = table(run, width)
    assert max(line.cell_len for line in lines) <= width or width == 40
    text = "\n".join(line.plain for line in lines)
    for title in ("harmful compliance", "right answers given up", "sums"):
        assert title in text
    assert "0.00 [≤" in text or width < 80


def test_what_is_left_out_first_is_least_missed(run: Run) -> None:
    assert "dpo" in table(run, 120)[0].plain and "[0.02, 0.08]" not in table(run, 120)[1].plain
    assert "dpo" not in table(run, 80)[0].plain and "guard" in table(run, 80)[0].plain


def test_the_closing_lines(run: Run) -> None:
    text = "\n".join(line.plain for line in closing(run))
    assert "What got worse: over-refusal, sums." in text
    assert "Cannot be told at this n: facts." in text
    assert "exchanges (report, section 4)." in text
    assert "Not measured: inner alignment" in text and "Not independent evidence (*): voice." in text


def test_a_short_run_names_what_it_did_not_measure() -> None:
    body, _ = example.results(n=10)
    body["measures"] = [row for row in body["measures"] if row["measure"] != "sums"]
    body["not_measured"] = ["tool use"]
    text = "\n".join(line.plain for line in closing(run_from(body)))
    assert "Not measured: sums, tool use, inner alignment" in text and "What slips through" not in text


def test_one_layer_has_no_verdicts() -> None:
    body, _ = example.results(n=10, layers=("base",))
    assert "cannot tell" not in "\n".join(line.plain for line in table(run_from(body), None))


def test_names_cannot_steer_the_terminal(run: Run) -> None:
    body, _ = example.results(n=10)
    for row in body["measures"]:
        row["principle"] = "\x1b[2Jgone\u202e"
    out = "\n".join(printed(run_from(body), 300))
    assert "\x1b[2J" not in out and "\u202e" not in out and "⟦U+001B⟧[2Jgone⟦U+202E⟧" in out


def test_a_terminal_without_arrows_gets_letters(run: Run, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w", encoding="ascii") as file:
        print_table(run, Console(file=file, width=200))
    text = (tmp_path / "out").read_text(encoding="ascii")
    assert "harmful compliance v" in text and "[< 0.0" in text
