"""The front door: exit codes, plain words for errors, and commands that stay quick."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fairlead import __version__
from fairlead.cli import doctor
from fairlead.cli.main import main
from fairlead.errors import BudgetReached, CannotTell, InputError, MissingResource


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Callable[[], int]:
    """`fairlead doctor` failing with this error."""

    def fail() -> dict[str, object]:
        raise error

    monkeypatch.setattr(doctor, "examine", fail)
    return lambda: main(["doctor"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("a.yaml:3: wrong"), 2),
        (CannotTell("n is 3; 40 would tell"), 3),
        (MissingResource("no server"), 4),
        (BudgetReached("5 USD are spent"), 5),
        (OSError(errno.ENOSPC, "No space left on device"), 4),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 4),
        (MemoryError(), 4),
        (ZeroDivisionError("division by zero"), 70),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_kind_of_error_has_its_code_and_no_traceback(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising(monkeypatch, error)() == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err and captured.err.strip() and not captured.out


def test_an_internal_error_says_that_it_is_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, KeyError("x"))()
    assert "fault in Fairlead" in capsys.readouterr().err


def test_debug_shows_the_traceback_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, InputError("wrong"))
    with pytest.raises(InputError):
        main(["doctor", "--debug"])
    with pytest.raises(InputError):
        main(["--debug", "doctor"])


@pytest.mark.parametrize("argv", [["nonsense"], ["align", "--nonsense"], ["align", "--cases", "0"], ["measure"]])
def test_a_wrong_command_line_is_wrong_input(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fairlead {__version__}\n"


@pytest.mark.parametrize("argv", [["--help"], ["align", "--help"], ["train", "dpo", "--help"], ["measure", "-h"]])
def test_help_is_there_for_every_command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    assert "Usage" in capsys.readouterr().out


def run(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", code], env=env, cwd=cwd, capture_output=True, text=True, check=False)


HEAVY = "('torch', 'transformers', 'scipy', 'numpy', 'pyarrow', 'openai', 'anthropic', 'rich')"


def test_help_imports_nothing_heavy(elsewhere: Path) -> None:
    done = run(
        "import sys; from fairlead.cli.main import main; main(['--help'])\n"
        f"print([m for m in {HEAVY} if m in sys.modules])",
        elsewhere,
    )
    assert done.stdout.splitlines()[-1] == "[]" and done.stderr == ""


def test_doctor_speaks_without_torch_and_never_shows_a_key(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    done = run(
        "import sys; import support.no_torch\nfrom fairlead.cli.main import main; sys.exit(main(['doctor']))",
        elsewhere,
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'fairlead[train]'" in done.stdout
    assert "sk-very-secret" not in done.stdout and "OPENAI_API_KEY     set" in done.stdout


def test_doctor_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fairlead"] == __version__ and set(found["keys"].values()) <= {True, False}


def test_doctor_live_says_why_a_model_does_not_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--live", "./nowhere"]) == 4
    assert "did not answer" in capsys.readouterr().out


def test_a_reader_that_left_is_no_error(elsewhere: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = f"{sys.executable} -m fairlead.cli.main constitution schema | head -1"
    done = subprocess.run(["bash", "-c", command], env=env, cwd=elsewhere, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "{" and done.stderr == ""
