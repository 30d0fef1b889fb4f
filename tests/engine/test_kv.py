"""The decoder's cache: what it holds survives every change of its sizes, in memory that is taken once."""

from __future__ import annotations

import pytest
import torch

from engine.helpers import close
from fairlead.engine import kv
from fairlead.engine.kv import Cache, room

L, B, K, G, H = 3, 5, 2, 3, 8  # layers, rows, key heads, query heads to each, width


def cache(length: int = 16, most: int = 96, dtype: torch.dtype = torch.float32) -> Cache:
    made = Cache(L, B, K, G, H, length, most, torch.empty(0, dtype=dtype))
    for layer in made.layers:
        layer.copy_(torch.randn(layer.shape))
    return made


def test_a_new_cache_is_empty_and_of_the_dtype() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        made = Cache(L, B, K, G, H, 16, 96, torch.empty(0, dtype=dtype))
        assert made.length == 16 and len(made.layers) == L
        for layer in made.layers:
            assert layer.shape == (2, B, K, 16, H) and layer.dtype == dtype and not layer.any()


@pytest.mark.parametrize("rows", [None, [0, 3], [4], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize("lengths", [(32,), (16,), (8,), (96, 8, 64), (7, 96)])
def test_what_it_holds_survives_other_sizes(lengths: tuple[int, ...], rows: list[int] | None) -> None:
    torch.manual_seed(0)
    made = cache()
    before = [layer.clone() for layer in made.layers]
    kept = 16
    for number, length in enumerate(lengths):
        made.resize(length, torch.tensor(rows) if rows is not None and number == 0 else None)
        kept = min(kept, length)
    assert made.length == lengths[-1]
    for old, new in zip(before, made.layers, strict=True):
        old = old if rows is None else old[:, rows]
        assert torch.equal(new[:, :, :, :kept], old[:, :, :, :kept])
        assert not new[:, :, :, kept:].any()


def test_layers_lie_end_to_end_in_memory_that_is_taken_once() -> None:
    made = cache()
    taken = {memory.data_ptr() for memory in made._memory}
    assert len(taken) == L + 1 and all(pointer % 64 == 0 for pointer in taken)
    for length in (32, 96, 48):
        made.resize(length)
        assert all(layer.is_contiguous() for layer in made.layers)
        assert len({layer.data_ptr() for layer in made.layers} & taken) == L


def test_rows_at_are_where_keys_and_values_stand() -> None:
    made, position_B = cache(), torch.tensor([0, 3, 15, 7, 8])
    new = torch.randn(B, 2, K, H)
    for length in (16, 32):
        made.resize(length)
        made.write(made.views[1][0], made.rows_at(position_B), new.view(-1, H))
        for row, position in enumerate(position_B.tolist()):
            assert torch.equal(made.layers[1][:, row, :, position], new[row])


def test_prompts_are_placed_also_where_they_are_padded_beyond_the_cache() -> None:
    made, prompts = cache(), torch.randn(L, 2, 2, K, 20, H)
    before = [layer.clone() for layer in made.layers]
    made.place(torch.tensor([3, 1, 0]), prompts, torch.tensor([1, 0, 1]))
    for old, new, prompt in zip(before, made.layers, prompts, strict=True):
        for row, source in ((3, 1), (1, 0), (0, 1)):
            assert torch.equal(new[:, row], prompt[:, source, :, :16])
        assert torch.equal(new[:, [2, 4]], old[:, [2, 4]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("large", [0, 2**30])
def test_values_are_mixed_as_one_by_one(large: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(kv, "BAGS", large)
    made = cache(dtype=dtype)
    for length, rows in ((16, None), (32, None), (32, torch.tensor([1, 2, 4]))):
        made.resize(length, rows)
        assert (made._bags is not None) == (dtype == torch.float32 and not large)
        for layer, (_, _, shown) in zip(made.layers, made.views, strict=True):
            weights = torch.randn(layer.shape[1], K * G, length, dtype=dtype).softmax(-1)
            values = layer[1].double().repeat_interleave(G, 1)
            right = (weights.double()[:, :, :, None] * values).sum(2).flatten(1)
            got = made.mixed(weights, shown)
            assert got.dtype == dtype
            if dtype == torch.bfloat16:
                torch.testing.assert_close(got.double(), right, atol=2e-2, rtol=2e-2)
            else:
                close(got, right)


def test_room_is_enough_and_little_more() -> None:
    for needed in range(1, 3000):
        assert needed <= room(needed) < needed + needed / kv.SPARE + kv.SPARE
    assert len({room(needed) for needed in range(1, 257)}) <= 17  # few lengths, so that few are copied to
