"""SFT and DPO end to end on a tiny model: what they learn from, what they leave alone, and what they refuse."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tests.methods.trainable import Tiny, demonstrations, pairs, tiny_model, weights  # noqa: E402

from fairlead.engine.logprobs import reply_logprobs, score  # noqa: E402
from fairlead.errors import InputError  # noqa: E402
from fairlead.exchange import Exchange, Message, Preference, Text, ToolCall, ToolResult, assistant, exchange, user  # noqa: E402
from fairlead.methods.config import DPOConfig, SFTConfig  # noqa: E402
from fairlead.methods.kl import kl_to_reference  # noqa: E402
from fairlead.methods.loop import Run, StepRecord  # noqa: E402
from fairlead.methods.losses import sft_nll  # noqa: E402
from fairlead.methods.preference import chosen_drift_alarm, train_dpo  # noqa: E402
from fairlead.methods.rows import exchange_rows, pair_rows  # noqa: E402
from fairlead.methods.sft import train_sft  # noqa: E402

SFT = SFTConfig(epochs=2, rows_per_step=4, lr=3e-3)
DPO = DPOConfig(epochs=2, rows_per_step=4, lr=1e-3, beta=0.3, kl_samples=0)


@pytest.fixture
def model() -> Tiny:
    return tiny_model()


# ---------------------------------------------------------------------------------------------------- SFT


def test_sft_learns_the_replies_and_leaves_the_input_model(model: Tiny) -> None:
    before = weights(model).clone()
    got = train_sft(model, demonstrations(), SFTConfig(epochs=15, rows_per_step=4, lr=1e-2))
    assert torch.equal(weights(model), before)
    assert got.final_loss < 0.5 * got.records[0].loss
    assert got.model.lineage != model.lineage
    rows = exchange_rows(model, demonstrations())
    assert score(got.model.module, rows.trees).logp_N.mean() > score(model.module, rows.trees).logp_N.mean() + 1


def test_sft_loss_is_on_the_reply_alone(model: Tiny) -> None:
    """Against a naive loss over one row: the mean log-prob of the reply's tokens and its end, nothing of the prompt."""
    rows = exchange_rows(model, demonstrations(1))
    tree = rows.trees[0]
    ids = torch.tensor([[*tree.prompt, *tree.replies[0]]])
    logp = model.module(ids).logits.log_softmax(-1)[0]
    at = range(len(tree.prompt) - 1, ids.shape[1] - 1)
    naive = -sum(logp[i, ids[0, i + 1]] for i in at) / len(tree.replies[0])
    ours = sft_nll(reply_logprobs(model.module, [tree]).logp_N, tokens=len(tree.replies[0]))
    assert ours.item() == pytest.approx(naive.item(), abs=1e-10)
    assert tree.replies[0][-1] == model.tokenizer.eos_token_id


def test_tool_results_inside_a_reply_are_not_learnt(model: Tiny) -> None:
    call = Message("assistant", (Text("let me see"), ToolCall("1", "look", '{"at": "boat"}')))
    result = Message("tool", (ToolResult("1", (Text("the boat is blue"),)),))
    row = Exchange((user("what colour is the boat ?"),), (call, result, assistant("blue")))
    (tree,) = exchange_rows(model, [row]).trees
    assert tree.masks is not None and tree.masks[0] is not None
    learnt = [t for t, counts in zip(tree.replies[0], tree.masks[0], strict=True) if counts]
    assert "the boat is blue" not in model.tokenizer.decode(learnt)
    assert "blue" in model.tokenizer.decode(learnt)


def test_rows_that_do_not_fit_are_refused_by_row(model: Tiny) -> None:
    long = [*demonstrations(2), exchange("the boat " * 100, "yes"), exchange("a ?", "no " * 200)]
    with pytest.raises(
        InputError, match=r"2 rows do not fit the context of 128 tokens of tiny: row 2 \(\d+ tokens\), row 3"
    ):
        train_sft(model, long, SFT)
    with pytest.raises(InputError, match=r"d\.jsonl:7"):
        train_sft(model, long, SFT, places=["d.jsonl:1", "d.jsonl:2", "d.jsonl:7", "d.jsonl:8"])
    got = train_sft(model, long, SFT.model_copy(update={"too_long": "skip"}))
    assert (got.rows, got.skipped_too_long) == (2, 2)
    with pytest.raises(InputError, match=r"1 rows do not fit.*even without their prompts"):
        train_sft(model, long, SFT.model_copy(update={"too_long": "cut"}))
    cut = train_sft(model, long[:3], SFT.model_copy(update={"too_long": "cut"}))
    assert (cut.rows, cut.cut) == (3, 1)
    with pytest.raises(InputError, match="no rows"):
        train_sft(model, [], SFT)


def test_a_run_is_a_function_of_its_seed(model: Tiny) -> None:
    first, again = (train_sft(model, demonstrations(), SFT) for _ in range(2))
    other = train_sft(model, demonstrations(), SFT.model_copy(update={"seed": 1}))
    assert torch.equal(weights(first.model), weights(again.model))  # type: ignore[arg-type]
    assert not torch.equal(weights(first.model), weights(other.model))  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- DPO


def test_a_pair_is_one_tree_with_its_prompt_once(model: Tiny) -> None:
    (tree,) = pair_rows(model, pairs(1)).trees
    assert len(tree.replies) == 2
    assert tree.prompt == exchange_rows(model, [Exchange(pairs(1)[0].messages, pairs(1)[0].chosen)]).trees[0].prompt


def test_dpo_first_step_has_the_known_loss_and_direction(model: Tiny) -> None:
    got = train_dpo(model, pairs(), DPOConfig(steps=2, rows_per_step=8, lr=1e-3, beta=0.3, warmup=0, kl_samples=0))
    first, second = got.records
    assert first.loss == pytest.approx(math.log(2), abs=1e-9)
    assert (first.sums["margin"], first.sums["accurate"]) == (pytest.approx(0, abs=1e-9), 4)
    assert second.loss < first.loss


def test_dpo_learns_the_preferences(model: Tiny) -> None:
    before = weights(model).clone()
    got = train_dpo(model, pairs(), DPOConfig(epochs=12, rows_per_step=4, lr=3e-3, beta=0.3, kl_samples=32))
    assert torch.equal(weights(model), before)
    assert got.metrics()["accuracy"] == 1.0
    assert got.metrics()["margin"] > 0.5
    assert got.metrics()["chosen_drift"] > got.metrics()["rejected_drift"]
    assert got.kl is not None and got.kl.n == 32 and got.kl.value > 0
    assert got.pairs == 8


def test_swapped_labels_learn_the_opposite(model: Tiny) -> None:
    turned = [dataclasses.replace(p, chosen=p.rejected, rejected=p.chosen) for p in pairs()]
    ahead = train_dpo(model, pairs(), DPO)
    back = train_dpo(model, turned, DPO)
    rows = pair_rows(model, pairs())

    def gain(m: object) -> float:
        sums = score(m.module, rows.trees).sum_R().view(-1, 2)  # type: ignore[attr-defined]
        return float((sums[:, 0] - sums[:, 1]).mean())

    assert gain(back.model) < gain(model) < gain(ahead.model)


def test_ties_pull_nothing_apart_and_are_counted(model: Tiny) -> None:
    # Two steps: AdamW makes full steps of gradients that are rounding, so a third would follow noise.
    two = DPO.model_copy(update={"epochs": None, "steps": 2})
    got = train_dpo(model, pairs(strength=0.5), two)
    assert got.ties == 8
    assert math.isnan(got.metrics()["accuracy"])
    assert abs(got.metrics()["margin"]) < 1e-6
    assert abs(train_dpo(model, pairs(strength=0.9), two).metrics()["margin"]) > 1e-2
    assert got.records[0].grad_norm < 1e-9


def test_the_nll_term_keeps_the_chosen_log_prob_up(model: Tiny) -> None:
    bare = train_dpo(model, pairs(), DPO)
    held = train_dpo(model, pairs(), DPO.model_copy(update={"nll": 1.0}))
    assert held.metrics()["chosen_drift"] > bare.metrics()["chosen_drift"]


def test_identical_pairs_are_counted_and_kept_skipped_or_refused(model: Tiny) -> None:
    same = Preference((user("a ?"),), (assistant("yes"),), (assistant("yes"),))
    rows = [*pairs(4), same]
    skipped = train_dpo(model, rows, DPO)
    assert (skipped.pairs, skipped.identical) == (4, 1)
    kept = train_dpo(model, rows, DPO.model_copy(update={"identical": "keep"}))
    assert (kept.pairs, kept.identical) == (5, 1)
    with pytest.raises(InputError, match=r"1 pairs have two identical replies, the first at row 4"):
        train_dpo(model, rows, DPO.model_copy(update={"identical": "refuse"}))
    with pytest.raises(InputError, match="all 1 pairs"):
        train_dpo(model, [same], DPO)


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_the_size_of_micro_batches_does_not_change_the_result(model: Tiny, method: str) -> None:
    def train(tokens: int) -> Tiny:
        more = {"tokens_per_batch": tokens, "nll": 0.3} if method == "dpo" else {"tokens_per_batch": tokens}
        if method == "sft":
            return train_sft(model, demonstrations(), SFT.model_copy(update=more)).model  # type: ignore[return-value]
        return train_dpo(model, pairs(), DPO.model_copy(update=more)).model  # type: ignore[return-value]

    whole, pieces = weights(train(4096)), weights(train(60))
    assert (whole - weights(model)).abs().max() > 1e-3
    assert (whole - pieces).abs().max() < 1e-7


def test_skipped_rows_do_not_shift_the_labels(model: Tiny) -> None:
    """A pair left out for its length must not hand its label to its neighbour."""
    long = Preference((user("the boat " * 100),), (assistant("yes"),), (assistant("no"),), strength=1.0)
    config = DPO.model_copy(update={"too_long": "skip"})
    got = train_dpo(model, [long, *pairs(8, strength=0.5)], config)
    assert (got.skipped_too_long, got.ties, got.pairs) == (1, 8, 8)


def test_reference_log_probs_are_cached_by_weights_and_data(
    model: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(cache=tmp_path)
    first = train_dpo(model, pairs(), DPO, run)
    (file,) = tmp_path.glob("reference-*.npy")
    written = file.stat().st_mtime_ns
    again = train_dpo(model, pairs(), DPO, run)
    assert file.stat().st_mtime_ns == written
    assert torch.equal(weights(first.model), weights(again.model))  # type: ignore[arg-type]
    train_dpo(dataclasses.replace(model, lineage="wt:other"), pairs(), DPO, run)
    train_dpo(model, pairs(6), DPO, run)
    assert len(list(tmp_path.glob("reference-*.npy"))) == 3
    file.write_bytes(file.read_bytes()[:-9])
    with caplog.at_level(logging.WARNING):
        mended = train_dpo(model, pairs(), DPO, run)
    assert "is damaged" in caplog.text
    assert torch.equal(weights(first.model), weights(mended.model))  # type: ignore[arg-type]


def record(step: int, drift: float) -> StepRecord:
    return StepRecord(step, 20, 0.5, 1.0, 1e-3, 4, 40, 0.1, {"chosen_drift": drift, "chosen_tokens": 40.0})


def test_falling_chosen_log_probs_raise_a_named_alarm() -> None:
    assert chosen_drift_alarm([record(i, -1.0) for i in range(20)], 0.1) == ()
    (alarm,) = chosen_drift_alarm([record(i, -1.0 * i) for i in range(20)], 0.1)
    assert (alarm.name, alarm.step) == ("chosen-log-prob-falls", 9)
    assert alarm.value == pytest.approx(-4.5 / 40, rel=0.01)
    assert "nll" in alarm.message
    assert chosen_drift_alarm([record(0, -40.0)], 0.1)[0].step == 1


def test_kl_is_zero_between_a_model_and_itself(model: Tiny) -> None:
    prompts = [tree.prompt for tree in pair_rows(model, pairs()).trees]
    got = kl_to_reference(model, model, prompts, 8, seed=0, longest=8)
    assert got.value == pytest.approx(0, abs=1e-9)
    moved = tiny_model(seed=1)
    assert kl_to_reference(moved, model, prompts, 64, seed=0, longest=8).value > 0.05
