"""The benches run and write what they promise; how fast anything is they say themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.bare import bare_python, environment

pytest.importorskip("torch")
pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[1]


def _run(python: Path, script: str, *arguments: str) -> None:
    command = [str(python), str(ROOT / "bench" / script), *arguments]
    clean = environment(PYTHONPATH=str(ROOT / "src"), OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean)
    assert done.returncode == 0, done.stderr


def test_the_gpu_bench_needs_torch_transformers_and_numpy_alone(tmp_path: Path) -> None:
    python = bare_python(tmp_path / "image", ["torch", "transformers", "numpy"])
    lacking = ("scipy", "peft", "ruamel", "orjson", "pyarrow", "openai")
    looked = f"import importlib.util as u; print([n for n in {lacking} if u.find_spec(n)])"
    found = subprocess.run([python, "-c", looked], capture_output=True, text=True, check=True, env=environment())
    assert found.stdout.strip() == "[]"
    _run(python, "gpu.py", "--smoke", "--out", str(tmp_path / "gpu.json"))
    told = json.loads((tmp_path / "gpu.json").read_text())
    rows = told["rows"]
    assert {"device", "torch", "transformers", "peak_tflops", "bandwidth_gbs"} <= told.keys()
    assert {(r["train"], r["way"]) for r in rows if "train" in r} == {
        (method, way) for method in ("dpo", "sft", "reward") for way in ("packed", "padded")
    }
    assert all(r["rows_per_second"] > 0 and r["tflops"] > 0 for r in rows if "train" in r)
    assert [r["decode"] for r in rows if "decode" in r] == [1, 4]
    assert rows[0]["engine_gradient"] <= 2 * rows[0]["rows_gradient"]
    assert (tmp_path / "gpu.md").read_text().count("|") > 50


def test_what_the_gpu_bench_has_no_time_for_is_told(tmp_path: Path) -> None:
    _run(Path(sys.executable), "gpu.py", "--smoke", "--trl", "--minutes", "0", "--out", str(tmp_path / "late.json"))
    late = json.loads((tmp_path / "late.json").read_text())["rows"]
    assert [r["skipped"].rpartition(": ")[2] for r in late if "skipped" in r] == ["out of time"] * 9


def test_linear_cost_is_measured_at_every_size_and_number_of_replies(tmp_path: Path) -> None:
    _run(Path(sys.executable), "linear.py", "--quick", "--threads", "1", "--out", str(tmp_path / "linear"))
    rows = json.loads((tmp_path / "linear.json").read_text())
    points = [(r["plot"], r["x"], r["counted"]) for r in rows]
    assert [p for p in points if p[0] == "tokens per micro-batch"] == [
        ("tokens per micro-batch", tokens, "packed") for tokens in (512, 1024)
    ]
    assert {p[1:] for p in points if p[0] == "replies per prompt"} == {
        (replies, counted) for replies in (1, 2, 4, 8) for counted in ("packed", "as rows")
    }
    assert all(r["low"] <= r["tokens_per_second"] <= r["high"] for r in rows)
