"""Scalar heads against the model's own hidden states, one row at a time; what company and padding must not change."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engine.helpers import MODELS, close, forest, gradients, make
from fairlead.engine.heads import ScalarHead, Values, head_values, load_head, new_head, save_head, score_values
from fairlead.engine.layout import Tree, pack

DTYPES = [torch.float64, torch.float32]


def head_of_width(model: Any, bias: bool = True, seed: int = 3) -> ScalarHead:
    head = new_head(model, bias=bias, seed=seed)
    if head.bias is not None:
        head.bias.data.fill_(0.4)
    return head


def masked(trees: list[Tree]) -> list[Tree]:
    """Every second reply has every third token marked; one reply has none."""
    out = []
    for row, tree in enumerate(trees):
        masks = tuple(
            None if (row + i) % 2 else tuple(j % 3 == row % 3 for j in range(len(reply)))
            for i, reply in enumerate(tree.replies)
        )
        out.append(Tree(tree.prompt, tree.replies, masks))
    return out


def naive(model: Any, head: ScalarHead, trees: list[Tree], at: str) -> torch.Tensor:
    """Every branch as its own row through the untouched model; w . h + b written out."""
    values = []
    for tree in trees:
        for number, reply in enumerate(tree.replies):
            hidden = model.base_model(input_ids=torch.tensor([tree.prompt + reply])).last_hidden_state[0]
            mask = tree.masks[number] if tree.masks is not None else None
            marked = [j for j in range(len(reply)) if mask is None or mask[j]]
            places = [len(tree.prompt) + j for j in marked]
            places = {"end": [-1], "marked": places, "before": [p - 1 for p in places]}[at]
            for place in places:
                value = (hidden[place] * head.weight_D).sum()
                values.append(value + head.bias if head.bias is not None else value)
    return torch.stack(values)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("at", ["end", "marked", "before"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["llama-tied", "gpt2-untied"])
def test_values_and_gradients_equal_one_row_at_a_time(name: str, dtype: torch.dtype, at: str, packed: bool) -> None:
    model, trees = make(name, dtype), masked(forest(1))
    both = torch.nn.ModuleDict({"model": model, "head": head_of_width(model)})
    got = head_values(model, both["head"], trees, at=at, packed=packed)  # type: ignore[arg-type]
    weight = torch.linspace(-1, 2, len(got.value_N), dtype=dtype)
    ours = gradients(both, (got.value_N * weight).sum())
    other = make(name, dtype)
    reference = torch.nn.ModuleDict({"model": other, "head": head_of_width(other)})
    expected = naive(other, reference["head"], trees, at)  # type: ignore[arg-type]
    theirs = gradients(reference, (expected * weight).sum())
    close(got.value_N, expected)
    assert ours.keys() == theirs.keys()
    assert {"head.weight_D", "head.bias"} < ours.keys()
    for key in ours:
        close(ours[key], theirs[key])


def test_positions_are_told_reply_by_reply() -> None:
    trees = [
        Tree((1, 2), ((3, 4, 5), (6, 7)), ((True, False, True), (False, False))),
        Tree((8,), ((9,),)),
    ]
    model = make("llama-tied")
    head = head_of_width(model)
    got = head_values(model, head, trees, at="marked")
    assert got.count_R.tolist() == [2, 0, 1]
    assert got.reply_N.tolist() == [0, 0, 2]
    assert [len(part) for part in got.split()] == [2, 0, 1]
    end = head_values(model, head, trees)
    assert (end.count_R.tolist(), end.reply_N.tolist()) == ([1, 1, 1], [0, 1, 2])
    close(got.value_N[1:2], end.value_N[:1])
    # the value of a one-token reply's state is read at the prompt's end
    before = head_values(model, head, trees, at="before")
    alone = model.base_model(input_ids=torch.tensor([[8]])).last_hidden_state[0, -1]  # type: ignore[operator]
    close(before.value_N[-1], head(alone[None])[0])


@pytest.mark.parametrize("name", MODELS)
def test_padding_side_batch_size_and_order_change_nothing(name: str) -> None:
    """float32, at most 1e-5: packed, padded on the left and on the right by transformers itself, in any company."""
    model, trees = make(name, torch.float32).eval(), forest(4, trees=12)
    head = head_of_width(model)
    whole = score_values(model, head, trees)
    rows = [tree.prompt + reply for tree in trees for reply in tree.replies]
    longest = max(map(len, rows))
    for side in ("left", "right"):
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            where = slice(longest - len(row), None) if side == "left" else slice(0, len(row))
            ids[i, where], mask[i, where] = torch.tensor(row), 1
        position = (mask.cumsum(1) - 1).clamp_min(0)
        with torch.no_grad():
            hidden = model.base_model(input_ids=ids, attention_mask=mask, position_ids=position).last_hidden_state  # type: ignore[operator]
        last = torch.full((len(rows),), longest - 1) if side == "left" else mask.sum(1) - 1
        theirs = head(hidden[torch.arange(len(rows)), last])
        assert (whole.value_N - theirs).abs().max() <= 1e-5, side
    order = list(range(12))
    random.Random(0).shuffle(order)
    first = [sum(len(tree.replies) for tree in trees[:row]) for row in range(12)]
    expected = torch.cat([whole.value_N[first[row] : first[row] + len(trees[row].replies)] for row in order])
    for budget in (1, 40, 10_000):
        shuffled = score_values(model, head, [trees[row] for row in order], token_budget=budget)
        assert (shuffled.value_N - expected).abs().max() <= 1e-5


def test_micro_batches_add_up_to_the_whole_gradient() -> None:
    model, trees = make("qwen2-tied"), forest(6, trees=10)
    both = torch.nn.ModuleDict({"model": model, "head": head_of_width(model)})
    whole = gradients(both, head_values(model, both["head"], trees).value_N.square().sum())  # type: ignore[arg-type]
    both.zero_grad()
    for rows in pack(trees, 45):
        head_values(model, both["head"], [trees[row] for row in rows]).value_N.square().sum().backward()  # type: ignore[arg-type]
    for name, parameter in both.named_parameters():
        if parameter.grad is not None:
            close(parameter.grad, whole[name])


def test_a_bfloat16_model_is_read_in_float32() -> None:
    model = make("llama-untied", torch.bfloat16)
    head = head_of_width(model)
    assert head.weight_D.dtype == torch.float32
    hidden = torch.randn(5, 32).to(torch.bfloat16)
    expected = (hidden.double() @ head.weight_D.double() + 0.4).float()
    assert (head(hidden) - expected).abs().max() < 1e-6
    assert head_values(model, head, forest(1)).value_N.dtype == torch.float32


def test_a_new_head_is_the_same_every_time_and_of_the_right_size() -> None:
    model = make("llama-untied", torch.float32)
    first, again, other = new_head(model), new_head(model), new_head(model, seed=1)
    assert torch.equal(first.weight_D, again.weight_D) and not torch.equal(first.weight_D, other.weight_D)
    assert first.bias is None and not new_head(model, seed=None).weight_D.any()
    spread = torch.cat([new_head(model, seed=s).weight_D.detach() for s in range(200)]).std()  # 6,400 draws
    assert float(spread) == pytest.approx(33**-0.5, rel=0.05)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_saved_head_comes_back_bit_for_bit(tmp_path: Path, bias: bool, dtype: torch.dtype) -> None:
    model, trees = make("llama-untied", dtype), forest(1)
    head = head_of_width(model, bias=bias)
    save_head(head, tmp_path / "head.safetensors")
    again = load_head(tmp_path / "head.safetensors", model)
    assert torch.equal(head.weight_D, again.weight_D) and again.weight_D.dtype == dtype
    assert (again.bias is None) is not bias
    assert torch.equal(score_values(model, head, trees).value_N, score_values(model, again, trees).value_N)
    assert [p.name for p in tmp_path.iterdir()] == ["head.safetensors"]


def test_what_is_no_head_or_does_not_fit_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "head.safetensors"
    with pytest.raises(FileNotFoundError, match="lies beside its model"):
        load_head(file)
    save_head(ScalarHead(7), file)
    with pytest.raises(ValueError, match="width 7 on a model of width 32"):
        load_head(file, make("llama-untied"))
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_head(file)
    save_file({"weight_D": torch.zeros(7)}, file)
    with pytest.raises(ValueError, match="not a scalar head"):
        load_head(file)


def test_rows_that_cannot_be_read_are_named() -> None:
    model = make("llama-untied")
    with pytest.raises(ValueError, match="row 1, reply 0: no tokens"):
        head_values(model, new_head(model), [Tree((1,), ((2,),)), Tree((1,), ((),))])
    assert isinstance(score_values(model, new_head(model), []), Values)
