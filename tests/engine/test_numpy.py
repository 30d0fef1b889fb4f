"""The engine against the forward pass in NumPy, which was written from the architecture and shares no code with it.

Both run the same weights; the oracle always in float64, so that what is measured is the engine's own error: 1e-9 for
every value in float64, 1e-5 in norm in float32.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.helpers import close, keep_float64, llama
from fairlead import apprentice
from fairlead.apprentice import forward
from fairlead.engine import logprobs
from fairlead.engine.layout import Tree
from fairlead.engine.logprobs import reply_logprobs, score, score_next, score_positions

DTYPES = [torch.float64, torch.float32]
TEMPERATURE = 0.7


class ExactRotary(torch.nn.Module):
    """transformers computes rotary angles in float32 even in a float64 model, which leaves noise of 1e-6."""

    def __init__(self, theta: float, width: int) -> None:
        super().__init__()
        self.rate = theta ** (-torch.arange(width // 2, dtype=torch.float64) * 2 / width)

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angle = position_ids[..., None].double() * self.rate
        both = torch.cat([angle, angle], dim=-1)
        return both.cos(), both.sin()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Llamas with tied and untied heads, with and without grouped keys, and the weights that are shipped."""
    where = tmp_path_factory.mktemp("llamas")
    made = {"shipped": apprentice.path()}
    for name, tied, groups in [("tied", True, 4), ("grouped", False, 2), ("one-group", True, 1)]:
        torch.manual_seed(3)
        llama(tied, num_key_value_heads=groups).save_pretrained(where / name)  # type: ignore[operator]
        made[name] = where / name
    return made


def opened(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    from transformers import LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(folder.absolute(), dtype=dtype).eval()
    if dtype == torch.float64:
        config = model.config
        model.model.rotary_emb = ExactRotary(config.rope_parameters["rope_theta"], config.head_dim)
        keep_float64(model)
    return model  # type: ignore[no-any-return]


NAMES = ["tied", "grouped", "one-group", "shipped"]
each_model = pytest.mark.parametrize("name", NAMES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def trees_for(folder: Path, seed: int = 1) -> list[Tree]:
    """A forest over the whole vocabulary; one tree with masked tokens."""
    rng = random.Random(seed)
    count = forward.load(folder, np.float64).head_VD.shape[0]

    def some() -> tuple[int, ...]:
        return tuple(rng.randrange(count) for _ in range(rng.randint(1, 12)))

    forest = [Tree(some(), tuple(some() for _ in range(branches))) for branches in (1, 3, 2, 1, 4)]
    return [*forest, Tree(some(), ((1, 2, 3, 4), (5, 6)), ((False, True, True, False), None))]


def after(weights: forward.Weights, ids: tuple[int, ...], temperature: float = 1.0) -> Any:
    """Log-probs [T, V] of what follows each token of one row, by NumPy."""
    states, _ = forward.hidden(weights, np.array([ids]))
    return forward.log_softmax(forward.logits(weights, states[0]) / temperature)


def oracle(folder: Path, trees: list[Tree], temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies of every scored reply token, one reply after the other."""
    weights = forward.load(folder, np.float64)
    logps: list[float] = []
    entropies: list[float] = []
    for tree in trees:
        for number, reply in enumerate(tree.replies):
            mask = tree.masks[number] if tree.masks is not None else None
            table = after(weights, tree.prompt + reply, temperature)
            for place, token in enumerate(reply):
                if mask is None or mask[place]:
                    row = table[len(tree.prompt) - 1 + place]
                    logps.append(row[token])
                    entropies.append(-(np.exp(row) * row).sum())
    return torch.tensor(logps, dtype=torch.float64), torch.tensor(entropies, dtype=torch.float64)


def same(ours: torch.Tensor, theirs: torch.Tensor, dtype: torch.dtype) -> None:
    assert ours.dtype == dtype
    close(ours, theirs.to(dtype))


@pytest.mark.parametrize("packed", [True, False])
@each_dtype
@each_model
def test_reply_logprobs(folders: dict[str, Path], name: str, dtype: torch.dtype, packed: bool) -> None:
    model, trees = opened(folders[name], dtype), trees_for(folders[name])
    with torch.no_grad():
        got = reply_logprobs(model, trees, temperature=TEMPERATURE, entropy=True, chunk=7, packed=packed)
    logp_N, entropy_N = oracle(folders[name], trees, TEMPERATURE)
    assert got.entropy_N is not None
    same(got.logp_N, logp_N, dtype)
    same(got.entropy_N, entropy_N, dtype)


@each_dtype
@each_model
def test_score(folders: dict[str, Path], name: str, dtype: torch.dtype) -> None:
    trees = trees_for(folders[name], seed=2)
    got = score(opened(folders[name], dtype), trees, token_budget=30)
    same(got.logp_N, oracle(folders[name], trees)[0], dtype)


@each_dtype
@each_model
def test_score_next(folders: dict[str, Path], name: str, dtype: torch.dtype) -> None:
    """Three options after every branch, several micro-batches."""
    folder, weights = folders[name], forward.load(folders[name], np.float64)
    trees = [Tree(tree.prompt, tree.replies) for tree in trees_for(folder, seed=3)]
    rows = [tree.prompt + reply for tree in trees for reply in tree.replies]
    rng = random.Random(4)
    options = [rng.sample(range(weights.head_VD.shape[0]), 3) for _ in rows]
    got = score_next(opened(folder, dtype), trees, options, token_budget=30)
    wanted = np.array([after(weights, ids)[-1][list(row)] for ids, row in zip(rows, options, strict=True)])
    same(got, torch.from_numpy(wanted), dtype)


@each_dtype
def test_score_positions(folders: dict[str, Path], dtype: torch.dtype) -> None:
    folder, weights = folders["grouped"], forward.load(folders["grouped"], np.float64)
    prompts, options = [(1, 2, 3), (4,), (5, 6)], [(7, 8), (8, 9), (7, 7)]
    got = score_positions(opened(folder, dtype), prompts, options)
    wanted = np.array([after(weights, ids)[-1][list(row)] for ids, row in zip(prompts, options, strict=True)])
    same(got, torch.from_numpy(wanted), dtype)


# Planted errors, each far below what eyes or greedy text would notice: the comparison must see them.


def angle(model: Any) -> None:
    """Positions of half the rotary angles, off by a millionth."""
    model.model.rotary_emb.rate[0] *= 1 + 1e-6


def epsilon(model: Any) -> None:
    """The last norm's epsilon, off by 1e-7."""
    model.model.norm.variance_epsilon += 1e-7


@pytest.mark.parametrize("fault", [angle, epsilon])
def test_small_errors_are_seen_in_float64(folders: dict[str, Path], fault: Callable[[Any], None]) -> None:
    model, trees = opened(folders["grouped"], torch.float64), trees_for(folders["grouped"])
    fault(model)
    with pytest.raises(AssertionError):
        close(score(model, trees).logp_N, oracle(folders["grouped"], trees)[0])


def test_half_precision_would_be_seen_in_float32(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    real = logprobs.logits
    monkeypatch.setattr(logprobs, "logits", lambda head, hidden: real(head, hidden.bfloat16()))
    trees = trees_for(folders["grouped"])
    with pytest.raises(AssertionError):
        close(
            score(opened(folders["grouped"], torch.float32), trees).logp_N, oracle(folders["grouped"], trees)[0].float()
        )
