"""The apprentice where torch is not installed: it answers through NumPy, and is led by a prompt and a guard."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from support.bare import bare_python, environment


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare_python(tmp_path_factory.mktemp("bare") / "venv")


def fairlead(python: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from fairlead.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [str(python), "-c", code, *argv]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)


def test_it_is_measured(bare: Path) -> None:
    assert subprocess.run([str(bare), "-c", "import torch"], capture_output=True, check=False).returncode == 1
    done = fairlead(bare, "measure", "apprentice", "--cases", "3", "--measures", "facts,sums", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["measures"]
    assert {row["measure"]: (row["n"], row["missing"]) for row in rows} == {"facts": (3, 0), "sums": (3, 0)}
    assert max(row["value"] for row in rows) > 0, "it knows something of its world"


def test_it_is_led_by_a_prompt_and_a_guard_and_that_is_said(bare: Path) -> None:
    done = fairlead(bare, "align", "--cases", "2", "--measures", "facts,harmful_compliance", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "recipe managed, because torch is not installed" in done.stdout
    assert "out of the constitution, to fit half of the 512 tokens" in done.stdout
    results = json.loads(Path("run/results.json").read_bytes())
    assert results["layers"] == ["base", "prompt", "guard"]
    assert {row["n"] + row["missing"] for row in results["measures"]} == {2}
    assert Path("run/report.html").is_file()
