"""The loop: equal gradients however a step is split, every row seen, and a stop where numbers stop being numbers."""

from __future__ import annotations

import copy
import itertools
import json
import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from pydantic import ValidationError  # noqa: E402
from tests.methods.trainable import demonstrations, pairs, tiny_model  # noqa: E402

from fairlead.engine.logprobs import reply_logprobs  # noqa: E402
from fairlead.errors import InputError  # noqa: E402
from fairlead.methods.config import Training  # noqa: E402
from fairlead.methods.loop import Run, TrainingStopped, Updates, batches, step_rows  # noqa: E402
from fairlead.methods.losses import chosen_nll, dpo, sft_nll  # noqa: E402
from fairlead.methods.optimiser import learning_rate  # noqa: E402
from fairlead.methods.rows import Rows, exchange_rows, pair_rows, scored_tokens  # noqa: E402

MODEL = tiny_model()


def gradient(rows: Rows, budget: int, method: str) -> tuple[int, torch.Tensor, float]:
    """(micro-batches, gradient of one step over all rows, its loss)."""
    module = copy.deepcopy(MODEL.module)
    config = Training(steps=1, rows_per_step=len(rows.trees), tokens_per_batch=budget)
    made = list(batches(rows, config))
    total = 0.0
    for batch in made:
        logp = reply_logprobs(module, batch.trees)
        if method == "sft":
            loss = sft_nll(logp.logp_N, tokens=batch.step_tokens)
        else:
            sums = logp.sum_R().view(-1, 2)
            # Any fixed reference will do: one that differs by row, so that a mixed-up order would show.
            ref = torch.tensor([[-5.0 - row, -9.0 + row] for row in batch.rows], dtype=torch.float64)
            loss_B = dpo(sums[:, 0], sums[:, 1], ref[:, 0], ref[:, 1], beta=0.3, label_B=0.9)
            loss_B = loss_B + 0.2 * chosen_nll(sums[:, 0], logp.count_R.view(-1, 2)[:, 0])
            loss = loss_B.sum() / batch.step_rows
        loss.backward()
        total += loss.item()
    return len(made), torch.cat([p.grad.flatten() for p in module.parameters()]), total


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_splits_into_micro_batches_give_equal_gradients(method: str) -> None:
    rows = exchange_rows(MODEL, demonstrations(4)) if method == "sft" else pair_rows(MODEL, pairs(4))
    sizes = sorted((tree.tokens for tree in rows.trees), reverse=True)
    assert len(set(map(scored_tokens, rows.trees))) > 1, "rows of one length cannot tell a wrong count from a right one"
    whole, halves, single = sum(sizes), sizes[0] + sizes[1], sizes[0]
    counts, grads, losses = zip(*(gradient(rows, budget, method) for budget in (whole, halves, single)), strict=True)
    assert counts == (1, 2, 4)
    for grad, loss in zip(grads[1:], losses[1:], strict=True):
        assert (grad - grads[0]).abs().max() < 1e-9
        assert loss == pytest.approx(losses[0], abs=1e-9)
    assert grads[0].norm() > 1e-3


def rows_of(n: int) -> Rows:
    return exchange_rows(MODEL, demonstrations(n))


def test_every_row_is_seen_equally_often_and_by_seed() -> None:
    rows = rows_of(10)
    steps = step_rows(rows, Training(epochs=3, rows_per_step=4))
    assert [len(s) for s in steps] == [4] * 7 + [2]
    seen = [row for step in steps for row in step]
    assert [sorted(seen[i : i + 10]) for i in (0, 10, 20)] == [list(range(10))] * 3
    assert steps == step_rows(rows, Training(epochs=3, rows_per_step=4))
    assert steps != step_rows(rows, Training(epochs=3, rows_per_step=4, seed=1))
    assert len(step_rows(rows, Training(steps=9, rows_per_step=4))) == 9
    assert sum(map(len, step_rows(rows, Training(epochs=0.5, rows_per_step=2)))) == 5
    assert [len(s) for s in step_rows(rows, Training(epochs=1, rows_per_step=64))] == [10]


def test_tokens_per_step_fills_steps_by_size() -> None:
    rows = rows_of(12)
    steps = step_rows(rows, Training(epochs=1, tokens_per_step=60))
    totals = [sum(rows.trees[r].tokens for r in step) for step in steps]
    assert all(total >= 60 for total in totals[:-1])
    assert all(sum(rows.trees[r].tokens for r in step[:-1]) < 60 for step in steps)


def test_batches_can_start_in_the_middle() -> None:
    rows, config = rows_of(10), Training(epochs=2, rows_per_step=3)
    whole = list(batches(rows, config))
    assert list(batches(rows, config, start=2)) == [b for b in whole if b.step >= 2]


def test_a_row_larger_than_the_budget_is_named() -> None:
    with pytest.raises(InputError, match=r"row \d: \d+ tokens, but tokens_per_batch is 5"):
        list(batches(rows_of(4), Training(tokens_per_batch=5)))


def test_learning_rate() -> None:
    linear = Training(lr=0.1, warmup=0.2)
    rates = [learning_rate(linear, i, 10) for i in range(10)]
    assert rates[:3] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1])
    assert all(a > b > 0 for a, b in itertools.pairwise(rates[2:]))
    assert rates[-1] == pytest.approx(0.1 / 8)
    assert {learning_rate(Training(lr=0.1, warmup=0, schedule="constant"), i, 4) for i in range(4)} == {0.1}
    cosine = Training(lr=0.1, warmup=0, schedule="cosine")
    assert learning_rate(cosine, 5, 10) == pytest.approx(0.05)


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": 1, "steps": 5},
        {"rows_per_step": 4, "tokens_per_step": 100},
        {"lr": 0},
        {"lr": -1e-4},
        {"lr": math.nan},
        {"lr": 3},
        {"epochs": 0},
        {"steps": 0},
        {"warmup": 1.0},
        {"betas": (1.0, 0.9)},
        {"grad_clip": 0},
        {"weight_decay": -0.1},
        {"tokens_per_batch": 0},
        {"learning_rate": 1e-4},
    ],
)
def test_degenerate_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Training(**bad)  # type: ignore[arg-type]


def updates(config: Training, rows: Rows, **run: object) -> Updates:
    return Updates(copy.deepcopy(MODEL.module), rows, config, Run(**run))  # type: ignore[arg-type]


def test_a_loss_that_is_not_a_number_stops_with_step_and_rows() -> None:
    rows = exchange_rows(MODEL, demonstrations(4), places=[f"data.jsonl:{i}" for i in range(1, 5)])
    config = Training(epochs=1, rows_per_step=2, lr=1e-3)
    loop = updates(config, rows)
    made = list(batches(rows, config))
    parameter = next(iter(loop.parameters.values()))
    loop.step(parameter.sum() * 0 + 1.0, made[0])
    before = copy.deepcopy(loop.module.state_dict())
    with pytest.raises(
        TrainingStopped, match=r"step 2: the loss is nan.*2 rows \(data\.jsonl:\d, data\.jsonl:\d\).*lr"
    ):
        loop.step(parameter.sum() * math.nan, made[1])
    assert all(torch.equal(before[name], value) for name, value in loop.module.state_dict().items())


def test_a_gradient_that_is_not_a_number_stops_before_the_weights_change() -> None:
    rows, config = rows_of(2), Training(epochs=1, rows_per_step=2, lr=1e-3)
    loop = updates(config, rows)
    (batch,) = batches(rows, config)
    parameter = next(iter(loop.parameters.values()))
    before = copy.deepcopy(loop.module.state_dict())
    with pytest.raises(TrainingStopped, match=r"step 1: the gradient's norm is .* on 2 rows \(row"):
        loop.step(torch.sqrt((parameter * 0).sum()), batch)  # finite value 0, infinite slope
    assert all(torch.equal(before[name], value) for name, value in loop.module.state_dict().items())


@pytest.mark.parametrize("spike", [None, 50.0])
def test_a_gradient_far_longer_than_usual_stops_where_that_is_asked_for(tmp_path: Path, spike: float | None) -> None:
    rows, config = rows_of(2), Training(steps=30, rows_per_step=2, lr=1e-3, spike=spike)
    loop = updates(config, rows, checkpoint=tmp_path)
    parameter = next(iter(loop.parameters.values()))

    def train() -> None:
        for batch in batches(rows, config):
            loud = {5: 1e3, 25: 1e3}.get(batch.step, 1.0)  # at step 6 nothing is usual yet
            loop.step(loud * parameter.sum(), batch)

    if spike is None:
        train()
        assert loop.done == 30
        return
    with pytest.raises(TrainingStopped, match=r"step 26: .* 1e\+03 times the usual .*spike: 50.*The batch is saved in"):
        train()
    assert loop.done == 25 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_the_batch_that_stopped_a_run_is_kept_and_named(tmp_path: Path, what: str) -> None:
    rows = exchange_rows(MODEL, demonstrations(6), places=[f"data.jsonl:{i}" for i in range(1, 7)])
    config = Training(epochs=1, rows_per_step=3, lr=1e-3, tokens_per_batch=max(t.tokens for t in rows.trees))
    loop = updates(config, rows, checkpoint=tmp_path)
    made = list(batches(rows, config))
    members = step_rows(rows, config)[1]
    parameter = next(iter(loop.parameters.values()))
    with pytest.raises(TrainingStopped) as stopped:
        for batch in made:
            bad = batch.step == 1 and (what == "gradient" or batch is made[-2])
            loss = parameter.sum() * 0 + 1.0
            if bad:
                loss = parameter.sum() * math.nan if what == "loss" else torch.sqrt((parameter * 0).sum())
            loop.step(loss, batch)
    (file,) = tmp_path.iterdir()
    assert f"The batch is saved in {file}" in str(stopped.value)
    kept = json.loads(file.read_text())
    expected = list(made[-2].rows) if what == "loss" else members
    assert [r["row"] for r in kept["rows"]] == expected
    assert [r["place"] for r in kept["rows"]] == [f"data.jsonl:{row + 1}" for row in expected]
    assert [tuple(r["prompt"]) for r in kept["rows"]] == [rows.trees[row].prompt for row in expected]
    assert [tuple(map(tuple, r["replies"])) for r in kept["rows"]] == [rows.trees[row].replies for row in expected]
    assert kept["step"] == 2 and what in kept["what"]
    assert [before["loss"] for before in kept["before"]] == [pytest.approx(loop.records[0].loss)]


def test_a_batch_that_cannot_be_kept_is_said(tmp_path: Path) -> None:
    rows, config = rows_of(2), Training(epochs=1, rows_per_step=2, lr=1e-3)
    (tmp_path / "file").write_text("in the way")
    for folder, said in ((None, "No checkpoint folder is given"), (tmp_path / "file", "The batch could not be saved")):
        loop = updates(config, rows, checkpoint=folder)
        (batch,) = batches(rows, config)
        with pytest.raises(TrainingStopped, match=f"the loss is nan.*{said}"):
            loop.step(next(iter(loop.parameters.values())).sum() * math.nan, batch)


def test_loggers_hear_of_every_step() -> None:
    class Heard:
        def __init__(self) -> None:
            self.steps: list[tuple[int, dict[str, float]]] = []

        def log(self, step: int, metrics: dict[str, float]) -> None:
            self.steps.append((step, dict(metrics)))

        def close(self) -> None: ...

    heard = (Heard(), Heard())
    rows, config = rows_of(4), Training(epochs=1, rows_per_step=2, lr=1e-3)
    loop = updates(config, rows, loggers=heard)
    for batch in batches(rows, config):
        logp = reply_logprobs(loop.module, batch.trees)
        loop.step(sft_nll(logp.logp_N, tokens=batch.step_tokens), batch, {"long": 3.0})
    assert heard[0].steps == heard[1].steps
    assert [step for step, _ in heard[0].steps] == [1, 2]
    _, metrics = heard[0].steps[1]
    record = loop.records[1]
    assert metrics["loss"] == record.loss and metrics["lr"] == record.lr and metrics["tokens"] == record.tokens
    assert metrics["long"] == 1.5, "a sum is told per row"
    assert metrics["tokens_per_second"] == pytest.approx(record.tokens / record.seconds)


def test_gradients_are_clipped_and_progress_is_told() -> None:
    told: list[int] = []
    rows, config = rows_of(4), Training(epochs=1, rows_per_step=2, lr=1e-3, grad_clip=0.5)
    loop = updates(config, rows, progress=lambda record: told.append(record.step))
    for batch in batches(rows, config):
        logp = reply_logprobs(loop.module, batch.trees)
        loop.step(100 * sft_nll(logp.logp_N, tokens=batch.step_tokens), batch, {"n": 2.0})
    assert told == [0, 1]
    assert loop.records[0].grad_norm > 0.5
    assert loop.records[0].mean("n", "n") == 1.0
    assert loop.done == 2
