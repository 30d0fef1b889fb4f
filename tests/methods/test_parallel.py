"""The training functions on two processes: the same result as on one, one voice, one saved model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402
from tests.methods import parallel_jobs as jobs  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from fairlead.engine.checkpoint import weights_hash  # noqa: E402
from support import ranks, tiny  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


def apart(ours: Path, theirs: Path) -> float:
    """Largest difference of two saved models' weights."""
    a, b = (load_file(path / "model" / "model.safetensors") for path in (ours, theirs))
    assert set(a) == set(b)
    return max(float((a[n] - b[n]).abs().max()) for n in a)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """What one process makes of it."""
    found = {}
    for method in ("sft", "dpo"):
        folder = tmp_path_factory.mktemp(method)
        found[method] = (folder, jobs.train(method, str(folder), shard=False))
    return found


@pytest.mark.parametrize("method", ["sft", "dpo"])
@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_train_as_one(tmp_path: Path, alone: Any, method: str, shard: bool) -> None:
    first, second = ranks.run(jobs.train, 2, tmp_path, method, str(tmp_path), shard)
    folder, one = alone[method]
    assert first["hash"] == second["hash"] == weights_hash(tmp_path / "model")
    assert apart(tmp_path, folder) < 1e-9
    for ours, theirs in zip(first["records"], one["records"], strict=True):
        assert ours[:2] == pytest.approx(theirs[:2], rel=1e-9)
        assert ours[2:4] == [*theirs[2:4]]
        # Before the first update every margin is 0, and rounding decides which are counted as right.
        names = set(theirs[4]) - ({"accurate"} if ours is first["records"][0] else set())
        assert {n: ours[4][n] for n in names} == pytest.approx({n: theirs[4][n] for n in names}, rel=1e-8, abs=1e-9)
    assert first["records"] == second["records"]
    assert first["sharded"] == second["sharded"] == shard
    if method == "dpo":
        assert first["kl"] == pytest.approx(one["kl"], rel=1e-6)
    # one voice
    steps = len(one["records"])
    assert (first["told"], second["told"]) == ([*range(1, steps + 1)], [])
    assert (first["logged"], second["logged"]) == ([*range(1, steps + 1)], [])
    assert (first["closed"], second["closed"]) == (1, 1)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(1, steps + 1)]
    assert len(list((tmp_path / "cache").glob("*"))) == (method == "dpo") if (tmp_path / "cache").exists() else True
    assert not list((tmp_path / "unfinished").iterdir())
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float64)
    assert weights_hash(loaded) == first["hash"]


def test_a_reference_that_moves_is_one_on_all_processes(tmp_path: Path) -> None:
    first, second = ranks.run(jobs.moving, 2, tmp_path)
    assert first == second
    for ours, theirs in zip(first, jobs.moving(), strict=True):
        assert ours["norms"] == pytest.approx(theirs["norms"], rel=1e-9)
        for here, there in zip(ours["records"], theirs["records"], strict=True):
            assert here == pytest.approx(there, rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("method", ["kto", "bco"])
@pytest.mark.parametrize("shard", [False, True])
def test_statistics_of_a_step_are_of_all_its_rows(tmp_path: Path, method: str, shard: bool) -> None:
    """KTO's reference point and BCO's shift, though no process has all the rows of a step."""
    one = jobs.rated(method, shard=False)
    first, second = ranks.run(jobs.rated, 2, tmp_path, method, shard)
    assert first == second
    assert first["norms"] == pytest.approx(one["norms"], rel=1e-9)
    for ours, theirs in zip(first["records"], one["records"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-9)
    assert any(abs(baseline) > 1e-3 for *_, baseline in one["records"])


@pytest.mark.parametrize("shard", [False, True])
def test_the_routers_loss_is_of_the_whole_step(tmp_path: Path, shard: bool) -> None:
    one = jobs.mixed(shard=False)
    first, second = ranks.run(jobs.mixed, 2, tmp_path, shard)
    assert first == second
    assert first["norms"] == pytest.approx(one["norms"], rel=1e-9)
    for ours, theirs in zip(first["records"], one["records"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)
    assert all(loss > 0.5 for *_, loss in one["records"])


@pytest.mark.parametrize("shard", [False, True])
def test_a_reward_model_is_trained_and_saved_once(tmp_path: Path, shard: bool) -> None:
    one = jobs.rewarded(str(tmp_path / "one"), shard=False)
    first, second = ranks.run(jobs.rewarded, 2, tmp_path / "two", str(tmp_path / "two"), shard)
    assert first == second
    assert first["head"] == pytest.approx(one["head"], rel=1e-7, abs=1e-9)
    assert first["loss"] == pytest.approx(one["loss"], rel=1e-9)
    assert weights_hash(tmp_path / "two" / "reward" / "model") == first["body"]
    ours, theirs = (sorted(p.name for p in (tmp_path / n).rglob("*")) for n in ("two", "one"))
    assert set(ours) - set(theirs) == {"0.json", "1.json", "0.log", "1.log"}


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Every method's last gradient on one process, about one row to a micro-batch."""
    folder = tmp_path_factory.mktemp("alone")
    told = jobs.last_gradients(str(folder), shard=False)
    assert all(min(found["counts"]) > 2 for found in told.values()), told
    return folder, told


@pytest.mark.parametrize(("size", "shard"), [(2, False), (2, True), (4, False)])
def test_every_kind_of_method_has_the_gradient_of_one_process(
    tmp_path: Path, one_by_one: tuple[Path, dict[str, Any]], size: int, shard: bool
) -> None:
    """Splits 1x4 against 2x2 and 4x1, with adapters and heads too: the gradient itself, which AdamW would rescale."""
    found = ranks.run(jobs.last_gradients, size, tmp_path, str(tmp_path), shard)
    folder, told = one_by_one
    for name, expected in told.items():
        theirs = load_file(folder / f"{name}-0.st")
        for rank in range(size):
            assert max(found[rank][name]["counts"]) <= (4 // size) + (size == 2), name
            assert found[rank][name]["losses"] == pytest.approx(expected["losses"], rel=1e-6), name
            ours = load_file(tmp_path / f"{name}-{rank}.st")
            assert ours.keys() == theirs.keys()
            for part, grad in theirs.items():
                limit = 1e-9 if grad.dtype == torch.float64 else 1e-5
                assert float((ours[part] - grad).norm()) <= limit * float(grad.norm()) + 1e-12, (name, part)
        assert sum(float(grad.norm()) ** 2 for grad in theirs.values()) ** 0.5 > 1e-3, name


def test_processes_with_other_data_are_refused(tmp_path: Path) -> None:
    for said in ranks.run(jobs.unlike, 2, tmp_path):
        assert "processes 1 have another data, model or settings than process 0" in said


@pytest.mark.parametrize("row", [0, 5])
def test_a_loss_that_is_no_number_stops_all_and_is_kept(tmp_path: Path, row: int) -> None:
    found = ranks.run(jobs.not_a_number, 2, tmp_path / "out", str(tmp_path / "kept"), row)
    for got in found:
        assert "stopped at step 2: the loss is nan" in got["error"]
        assert f"d.jsonl:{row}" in got["error"]
        assert (got["unchanged"], got["done"]) == (True, 1)
    (file,) = (tmp_path / "kept").glob("stopped-*.json")
    assert str(file) in found[0]["error"] and str(file) in found[1]["error"]
    kept = json.loads(file.read_text())
    assert kept["step"] == 2
    assert f"d.jsonl:{row}" in [r["place"] for r in kept["rows"]]
    assert 1 <= len(kept["rows"]) < 8
    assert [p.name for p in (tmp_path / "kept" / "training-some-run").iterdir()] == ["step-00000001"]


SCRIPT = """
import sys
from fairlead.engine import parallel
from fairlead.exchange import Preference, assistant, user
from fairlead.methods.config import DPOConfig
from fairlead.methods.preference import train_dpo
from fairlead.models import open_model

model = open_model(sys.argv[1])
assert parallel.world().size == 2
pairs = [Preference((user(f"what is {i} ?"),), (assistant("yes " * (1 + i)),), (assistant("no"),)) for i in range(5)]
config = DPOConfig(epochs=1, rows_per_step=3, lr=1e-3, tokens_per_batch=60, kl_samples=2, shard=sys.argv[3] == "shard")
train_dpo(model, pairs, config).model.save(sys.argv[2])
"""


@pytest.mark.full
@pytest.mark.parametrize("shard", ["whole", "shard"])
def test_under_torchrun(tmp_path: Path, shard: str) -> None:
    """The real launcher, a real script, FSDP2 on the CPU; a single process loads what it saved."""
    tiny.folder(tmp_path / "base")
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(tmp_path / "script.py"), str(tmp_path / "base"), str(tmp_path / "trained"), shard,
    ]  # fmt: skip
    path = os.pathsep.join([str(ROOT / "src"), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "trained")
    base: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    moved = [float((a - b).detach().abs().max()) for a, b in zip(loaded.parameters(), base.parameters(), strict=True)]
    assert all(0 < far < 0.1 for far in moved)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "script.py", "trained"]
