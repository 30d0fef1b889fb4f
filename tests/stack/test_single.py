"""One training stage alone, on two processes: one folder comes out of it, and it is that of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402
from tests.stack import single_jobs as jobs  # noqa: E402

from support import ranks, tiny  # noqa: E402

CASES: dict[str, dict[str, Any]] = {
    "dpo": {"kl_samples": 2, "shard": True},
    "sft": {"lora": {"rank": 2}},
    "reward-ensemble": {"members": 2},
}


@pytest.mark.parametrize("name", CASES)
def test_two_processes_leave_one_whole_folder(tmp_path: Path, name: str) -> None:
    tiny.folder(tmp_path / "base")
    rows = [{"prompt": f"what is {i} ?", "chosen": "yes " * (1 + i % 3), "rejected": "no"} for i in range(6)]
    if name == "sft":
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {"epochs": 1, "rows_per_step": 3, "lr": 1e-3, **CASES[name]}
    (one,) = ranks.run(jobs.stage, 1, tmp_path / "one", str(tmp_path), name, settings)
    found = ranks.run(jobs.stage, 2, tmp_path / "two", str(tmp_path), name, settings)
    assert found[0]["there"] == found[1]["there"] == one["there"]
    ours, theirs = (tmp_path / f"{name}-{n}" for n in (2, 1))
    weights = sorted(p.relative_to(theirs) for p in theirs.rglob("*.safetensors"))
    assert weights and weights == sorted(p.relative_to(ours) for p in ours.rglob("*.safetensors"))
    for file in weights:
        a, b = load_file(ours / file), load_file(theirs / file)
        assert max(float((a[n] - b[n]).abs().max()) for n in b) < 1e-4, file  # float32 under Adam
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"base", "pairs.jsonl", "one", "two", f"{name}-1", f"{name}-2"}, "and nothing else"
