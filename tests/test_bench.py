"""The benches run and write what they promise; how fast anything is they say themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytest.importorskip("torch")
pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[1]
# What a bare GPU image lacks: everything that fairlead asks for, but for torch, transformers, numpy and what these bring.
BARE = """
import runpy, sys
from importlib.machinery import PathFinder
class Present(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {absent!r} else PathFinder.find_spec(name, path, target)
sys.meta_path[:] = [Present if finder is PathFinder else finder for finder in sys.meta_path]
sys.argv = {argv!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
IMPORTED = {"ruamel-yaml": "ruamel", "vl-convert-python": "vl_convert"}


def _absent() -> set[str]:
    ours = {canonicalize_name(Requirement(text).name) for text in requires("fairlead") or ()}
    kept, waiting = set(), ["torch", "transformers", "numpy"]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in kept:
            kept.add(name)
            try:
                needed = [Requirement(text) for text in requires(name) or ()]
            except ImportError:
                continue
            waiting += [r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return {IMPORTED.get(name, name.replace("-", "_")) for name in ours - kept}


def _run(script: str, *arguments: str, absent: set[str] | None = None) -> str:
    argv = [str(ROOT / "bench" / script), *arguments]
    start = ["-c", BARE.format(absent=absent, argv=argv)] if absent else argv
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'bench'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *start], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_gpu_bench_needs_torch_transformers_and_numpy_alone(tmp_path: Path) -> None:
    absent = _absent()
    assert {"scipy", "peft", "ruamel", "openai", "pytest"} <= absent
    assert not {"torch", "numpy", "transformers", "safetensors", "tokenizers"} & absent
    _run("gpu.py", "--smoke", "--out", str(tmp_path / "gpu.json"), absent=absent)
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
    _run("gpu.py", "--smoke", "--minutes", "0", "--out", str(tmp_path / "late.json"))
    late = json.loads((tmp_path / "late.json").read_text())["rows"]
    assert len([r for r in late if "out of time" in r.get("skipped", "")]) == 8, "what there was no time for is told"


def test_linear_cost_is_measured_at_every_size_and_number_of_replies(tmp_path: Path) -> None:
    _run("linear.py", "--quick", "--threads", "1", "--out", str(tmp_path / "linear"))
    rows = json.loads((tmp_path / "linear.json").read_text())
    points = [(r["plot"], r["x"], r["counted"]) for r in rows]
    assert [p for p in points if p[0] == "tokens per micro-batch"] == [
        ("tokens per micro-batch", tokens, "packed") for tokens in (512, 1024)
    ]
    assert {p[1:] for p in points if p[0] == "replies per prompt"} == {
        (replies, counted) for replies in (1, 2, 4, 8) for counted in ("packed", "as rows")
    }
    assert all(r["low"] <= r["tokens_per_second"] <= r["high"] for r in rows)
