"""Data parallelism: equal gradients however a step is split, no hang where counts differ, and a way back to one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from engine import parallel_jobs as jobs
from engine.helpers import all_in_float64, forest, keep_float64, make, naive
from fairlead.engine import parallel
from fairlead.engine.checkpoint import weights_hash
from fairlead.engine.layout import Tree, pack
from fairlead.engine.logprobs import reply_logprobs, score
from fairlead.engine.parallel import World
from support import ranks


def world_of(monkeypatch: pytest.MonkeyPatch, rank: int, size: int) -> None:
    monkeypatch.setattr(parallel, "_world", World(rank, size, torch.device("cpu")))


# --------------------------------------------------------------------------------------------------- dealing


def test_shares_are_even_and_complete() -> None:
    sizes = [100, 3, 50, 50, 49, 1, 1, 77, 20]
    for processes in (1, 2, 3, 4, 12):
        shares = parallel.share(sizes, processes)
        assert sorted(row for part in shares for row in part) == list(range(len(sizes)))
        loads = [sum(sizes[row] for row in part) for part in shares]
        assert max(loads) <= max(max(sizes), 4 / 3 * sum(sizes) / processes)
    assert parallel.share(sizes, 3) == parallel.share(sizes, 3)


def test_every_process_gets_as_many_micro_batches_of_whole_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    trees = forest(1, 9)
    budget = max(tree.tokens for tree in trees)
    filled = 0
    for size in (2, 3, 12):
        seen: list[int] = []
        counts = set()
        for rank in range(size):
            world_of(monkeypatch, rank, size)
            dealt = parallel.deal(trees, budget)
            assert all(sum(trees[row].tokens for row in rows) <= budget for rows, _ in dealt)
            seen += [row for rows, weight in dealt if weight for row in rows]
            fillers = [rows for rows, weight in dealt if not weight]
            assert all(trees[row].tokens == min(tree.tokens for tree in trees) for rows in fillers for row in rows)
            filled += len(fillers)
            counts.add(len(dealt))
            world_of(monkeypatch, 0, size)
            assert parallel.deal(trees, budget, rank) == dealt  # any process knows what any other does
        assert sorted(seen) == list(range(9))
        assert len(counts) == 1
    assert filled, "the case that needs filling did not come up"


def test_a_tree_above_the_budget_is_named_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    trees = [Tree((1, 2), ((3,),)), Tree((1,) * 9, ((3,),)), Tree((1, 2), ((3,),))]
    world_of(monkeypatch, 1, 2)
    with pytest.raises(ValueError, match=r"^row 1: its tree has 10 tokens"):
        parallel.deal(trees, 5)


def test_alone_nothing_is_changed(tmp_path: Path) -> None:
    assert (parallel.world().rank, parallel.world().size) == (0, 1)
    trees = forest(2, 5)
    assert parallel.deal(trees, 40) == [(group, 1.0) for group in pack(trees, 40)]
    value = torch.tensor([1.0])
    assert parallel.total(value) is value
    assert parallel.from_first(value) is value
    assert parallel.texts("here") == ["here"]
    with parallel.writing(tmp_path) as mine:
        assert mine
    assert not torch.distributed.is_initialized()


def test_an_incomplete_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_world", None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=r"WORLD_SIZE is 2, but RANK, LOCAL_RANK, .* is not set.*torchrun"):
        parallel.world()


# ------------------------------------------------------------------------------------------------- gradients


def oracle(name: str) -> dict[str, torch.Tensor]:
    """The step's gradient by the model's own forward, a row at a time, all rows in one loss."""
    kind, model_name, trees, _ = jobs.CASES[name]
    assert kind == "pairs"
    model = keep_float64(make(model_name))
    with all_in_float64():
        return _oracle(model, trees)


def _oracle(model: torch.nn.Module, trees: list[Tree]) -> dict[str, torch.Tensor]:
    logp = naive(model, trees)[0]
    sums = torch.stack([part.sum() for part in logp.split([len(r) for t in trees for r in t.replies])]).view(-1, 2)
    margin = sums[:, 0] - 0.7 * sums[:, 1]
    mean = margin.detach().mean()
    torch.nn.functional.softplus(-0.3 * (margin - mean)).mean().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def one_process(name: str) -> tuple[dict[str, torch.Tensor], int, float]:
    module, count, norm = jobs.one_step(*jobs.CASES[name], shard=False)
    return jobs.full_gradients(module), count, norm


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Largest relative distance of any parameter's gradient; float32 ones count a millionth."""
    assert set(ours) == set(theirs)
    scale = {torch.float64: 1.0, torch.float32: 1e-6}
    return max(float((ours[n] - theirs[n]).norm() / theirs[n].norm()) * scale[theirs[n].dtype] for n in theirs)


@pytest.fixture(scope="module")
def expected() -> dict[str, tuple[dict[str, torch.Tensor], int, float]]:
    return {name: one_process(name) for name in jobs.CASES}


def check(folder: Path, size: int, found: list[Any], expected: Any, counts: dict[str, int]) -> None:
    for name, count in counts.items():
        grads, _, norm = expected[name]
        got = [load_file(folder / f"{name}-{rank}.st") for rank in range(size)]
        assert distance(got[0], grads) < 1e-12, name
        assert all(torch.equal(got[0][n], g[n]) for g in got for n in grads), f"{name}: processes differ"
        assert [f[name]["count"] for f in found] == [count] * size
        assert [f[name]["norm"] for f in found] == [pytest.approx(norm, rel=1e-6 if name == "head" else 1e-12)] * size


def test_one_process_agrees_with_the_rows_one_by_one(expected: Any) -> None:
    assert {name: count for name, (_, count, _) in expected.items()} == {
        "even": 4, "whole": 1, "uneven": 3, "one row": 1, "head": 3, "lora": 3, "experts": 3
    }  # fmt: skip
    for name in ("even", "uneven", "one row", "experts"):
        assert distance(expected[name][0], oracle(name)) < 1e-9
    assert distance(expected["even"][0], expected["whole"][0]) < 1e-12


@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_give_the_gradient_of_one(tmp_path: Path, expected: Any, shard: bool) -> None:
    """2x2 against 1x4, and counts of micro-batches that differ: the one with less to do fills in and nothing hangs."""
    counts = {"even": 2, "whole": 1, "uneven": 2, "one row": 1, "head": 2, "lora": 2, "experts": 2}
    found = ranks.run(jobs.gradients, 2, tmp_path, str(tmp_path), list(jobs.CASES), shard)
    check(tmp_path, 2, found, expected, counts)


def test_four_processes_give_the_gradient_of_one(tmp_path: Path, expected: Any) -> None:
    """4x1 against 1x4; three processes have a real row too few in the second case."""
    found = ranks.run(jobs.gradients, 4, tmp_path, str(tmp_path), ["even", "one row"], False)
    check(tmp_path, 4, found, expected, {"even": 1, "one row": 1})


@pytest.mark.full
def test_four_processes_split_weights(tmp_path: Path, expected: Any) -> None:
    names = list(jobs.CASES)
    found = ranks.run(jobs.gradients, 4, tmp_path, str(tmp_path), names, True)
    check(tmp_path, 4, found, expected, dict.fromkeys(names, 1))


def test_missing_gradients_and_types(tmp_path: Path) -> None:
    for bucket in (1, 30, 32_000_000):
        first, second = ranks.run(jobs.sums, 2, tmp_path / str(bucket), bucket)
        assert first == second == [[3.0] * 3, [2.0] * 3, [7.0] * 3, [9.0] * 3, None]


def test_16_bit_gradients_are_rounded_once(tmp_path: Path) -> None:
    assert ranks.run(jobs.small_beside_large, 4, tmp_path) == [[260.0] * 16] * 4


# ----------------------------------------------------------------------------------------- telling, scoring, back


def test_processes_tell_each_other(tmp_path: Path) -> None:
    first, second = ranks.run(jobs.conversation, 2, tmp_path)
    assert first == second | {"expected": first["expected"]}
    assert second["texts"] == ["", "é"]
    assert second["told"] == second["expected"]
    assert second["nothing"]
    assert second["total"] == [[3, 20]]
    assert second["errors"] == [
        "processes 1 have another data than process 0; every process must be started with the same program, data and "
        "settings"
    ]
    assert second["weight"] == [1.0] * 6


def test_process_0_writes_what_all_name(tmp_path: Path) -> None:
    first, second = ranks.run(jobs.writes, 2, tmp_path, str(tmp_path))
    assert (first["done"], second["done"]) == ([True, True], [True, False])
    assert (tmp_path / "own-1").read_text() == "1"
    assert first["seen"] == second["seen"] == "0"
    assert first["failed"] == "full"
    assert "another process could not write it" in second["failed"]


@pytest.mark.parametrize("shard", [False, True])
def test_scores_are_shared_out_and_come_back_in_order(tmp_path: Path, shard: bool) -> None:
    ranks.run(jobs.scores, 2, tmp_path, str(tmp_path), shard)
    plain = score(keep_float64(make("llama-untied")), forest(3, 7), 30, temperature=0.7, entropy=True)
    for rank in (0, 1):
        got = load_file(tmp_path / f"{rank}.st")
        torch.testing.assert_close(got["logp"], plain.logp_N, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(got["entropy"], plain.entropy_N, rtol=1e-12, atol=1e-12)
        assert torch.equal(got["reply"], plain.reply_N)
        assert torch.equal(got["count"], plain.count_R)


@pytest.mark.parametrize("name", ["llama-tied", "gpt2-untied"])
def test_split_weights_come_back_whole_and_one_process_loads_them(tmp_path: Path, name: str) -> None:
    found = ranks.run(jobs.there_and_back, 2, tmp_path, str(tmp_path), name)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    logp = float(reply_logprobs(loaded, jobs.EVEN).logp_N.detach().sum())
    for got in found:
        assert got["plain"]
        assert got["before"] == got["after"] == weights_hash(loaded)
        assert got["tied"] == ("untied" not in name)
        assert got["logp"] == pytest.approx(logp, rel=1e-6)
    rows = {n: (found[0]["parts"][n][0], found[1]["parts"][n][0]) for n in found[0]["parts"]}
    whole = dict(make(name, torch.float32).named_parameters())
    assert all(a + b == len(whole[n]) and a >= b and a < len(whole[n]) for n, (a, b) in rows.items()), rows


def test_frozen_weights_under_adapters_stay_where_they_are(tmp_path: Path) -> None:
    found = ranks.run(jobs.under_adapters, 2, tmp_path)
    # The same step on one process.
    module = jobs.adapted(make("llama-untied"))
    for _ in (0, 1):  # both processes had all the rows
        reply_logprobs(module, jobs.EVEN).logp_N.sum().backward()
    torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-2).step()
    logp = float(reply_logprobs(module, jobs.EVEN).logp_N.detach().sum())
    for got in found:
        assert got["split"] == got["trainable"] == [n for n, p in module.named_parameters() if p.requires_grad]
        assert got["own"] and not got["left"]
        assert got["logp"] == pytest.approx(logp, rel=1e-6)


def test_what_cannot_be_split_says_why(tmp_path: Path) -> None:
    frozen, held, bare = ranks.run(jobs.refusals, 2, tmp_path)[0]
    assert "nothing in it is trainable" in frozen
    assert "keeps a parameter as `seen` beside its place" in held and "shard: false" in held
    assert "no transformers model inside" in bare


# ---------------------------------------------------------------------------------------------------- the end


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are read from Linux's /proc")
@pytest.mark.parametrize("shard", [False, True])
def test_no_thread_of_the_group_is_left_when_the_interpreter_ends(tmp_path: Path, shard: bool) -> None:
    for before, after in ranks.run(jobs.leaves, 2, tmp_path, str(tmp_path), shard):
        assert before and not after


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes_end_well_whatever_a_thread_of_the_group_still_does() -> None:
    """Exit code 0 by the interpreter's own end. Where the thread outlives it, this aborts every time (27 of 27)."""
    path = os.pathsep.join([str(ranks.ROOT / "src"), str(ranks.ROOT / "tests"), *sys.path])
    done = subprocess.run(
        [sys.executable, str(ranks.ROOT / "tests/engine/ending.py"), "3"],
        capture_output=True, text=True, timeout=600, env={**os.environ, "PYTHONPATH": path}, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["[0, 0]"] * 3, done.stdout + done.stderr[-3000:]
