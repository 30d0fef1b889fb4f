"""Attention of a packed forest by every kernel, against softmax under a mask over all pairs of packed tokens."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.helpers import close
from fairlead.engine import attention, blocks, cascade, varlen, whole
from fairlead.engine.layout import Shape

H, K, h = 4, 2, 8
SCALE = 0.3


def random_shapes(seed: int, trees: int, longest: int) -> tuple[Shape, ...]:
    rng = random.Random(seed)
    lengths = [[rng.randint(1, longest) for _ in range(rng.choice((0, 1, 2, 2, 5)))] for _ in range(trees)]
    return tuple(Shape(rng.randint(1, longest), tuple(branches)) for branches in lengths)


FORESTS = {
    "one sequence": (Shape(9, ()),),
    "one row": (Shape(5, (4,)),),
    "one pair": (Shape(30, (7, 12)),),
    "same pairs": (Shape(6, (3, 3)),) * 4,
    "like lengths": (Shape(60, (30, 41)), Shape(58, (29, 44)), Shape(100, (7, 9)), Shape(20, (3, 3))),
    "short ones": random_shapes(0, 12, 6),
    "all kinds": random_shapes(1, 12, 60),
}


def seen(shapes: tuple[Shape, ...], window: int | None) -> torch.Tensor:
    """(T, T): may the query see the key? Written from the definition, token by token."""
    place: list[tuple[int, int, int]] = []  # tree, branch (-1 is the prompt), position
    for tree, shape in enumerate(shapes):
        place += [(tree, -1, i) for i in range(shape.prompt)]
        for branch, length in enumerate(shape.branches):
            place += [(tree, branch, shape.prompt + i) for i in range(length)]
    return torch.tensor(
        [
            [
                q[0] == k[0] and k[1] in (-1, q[1]) and 0 <= q[2] - k[2] < (window or 10**9)
                for k in place
            ]
            for q in place
        ]
    )  # fmt: skip


def oracle(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    k, v = (x.repeat_interleave(H // K, 1) for x in (k, v))
    score = (torch.einsum("qhd,khd->hqk", q, k) * SCALE).masked_fill(~mask, -torch.inf)
    return torch.einsum("hqk,khd->qhd", score.softmax(-1), v)


def by_pieces(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, shapes: tuple[Shape, ...], window: None) -> Any:
    return cascade.attend(q, k, v, cascade.groups(shapes, q.dtype, 0), SCALE)


def whole_trees(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, shapes: tuple[Shape, ...], window: None) -> Any:
    return cascade.attend(q, k, v, cascade.groups(shapes, q.dtype, 10**6), SCALE)


def mixed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, shapes: tuple[Shape, ...], window: None) -> Any:
    """About half of the trees whole, the others by pieces."""
    middle = sorted(shape.tokens for shape in shapes)[len(shapes) // 2] - 1
    return cascade.attend(q, k, v, cascade.groups(shapes, q.dtype, middle), SCALE)


def by_blocks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, shapes: tuple[Shape, ...], window: int | None) -> Any:
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return attention.forest_attention(q, k, v, attention.plan(shapes, only_blocks=True), scale=SCALE, window=window)[0]


def by_varlen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, shapes: tuple[Shape, ...], window: int | None) -> Any:
    return varlen.attend(q, k, v, varlen.sequences(shapes), SCALE, window, kernel=plain_varlen)


def plain_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    query_n1: torch.Tensor,
    key_n1: torch.Tensor,
    longest_query: int,
    longest_key: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """What `torch.nn.attention.varlen.varlen_attn` computes on CUDA, one sequence at a time: the mask is aligned to the
    ends of queries and keys, `window_size` counts keys to the left (-1: all) and to the right (0: causal)."""
    assert query_n1.dtype == key_n1.dtype == torch.int32 and window_size[1] == 0
    assert query_n1[-1] == len(q) and key_n1[-1] == len(k) and enable_gqa
    assert longest_query == query_n1.diff().max() and longest_key == key_n1.diff().max()
    out = []
    for number in range(len(query_n1) - 1):
        a, b, c, d = (int(x) for x in (*query_n1[number : number + 2], *key_n1[number : number + 2]))
        i = torch.arange(b - a)[:, None] + (d - c) - (b - a)
        j = torch.arange(d - c)[None]
        mask = (j <= i) & ((i - j <= window_size[0]) if window_size[0] >= 0 else True)
        out.append(oracle(q[a:b], k[c:d], v[c:d], mask))
    return torch.cat(out)


KERNELS: dict[str, Callable[..., torch.Tensor]] = {
    "whole": whole_trees,
    "mixed": mixed,
    "pieces": by_pieces,
    "blocks": by_blocks,
    "varlen": by_varlen,
}
CASES = [(kernel, None) for kernel in KERNELS] + [(kernel, 4) for kernel in ("blocks", "varlen")]


def inputs(shapes: tuple[Shape, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    T = sum(shape.tokens for shape in shapes)
    return [torch.randn(T, heads, h, dtype=dtype, requires_grad=True) for heads in (H, K, K)]


@pytest.mark.parametrize("forest", FORESTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("kernel", "window"), CASES)
def test_values_and_gradients(kernel: str, window: int | None, dtype: torch.dtype, forest: str) -> None:
    shapes = FORESTS[forest]
    given = inputs(shapes, dtype)
    ours = KERNELS[kernel](*given, shapes, window)
    theirs = oracle(*given, seen(shapes, window))
    weight = torch.randn_like(ours)
    close(ours, theirs)
    for mine, other in zip(
        torch.autograd.grad(ours, given, weight), torch.autograd.grad(theirs, given, weight), strict=True
    ):
        close(mine, other)


def some_rows(kind: str, shapes: tuple[Shape, ...]) -> torch.Tensor:
    """Packed positions, not sorted and some of them twice."""
    ends = torch.tensor([end - 1 for _, end in cascade.pieces(shapes).causal])
    torch.manual_seed(1)
    every = torch.randperm(sum(shape.tokens for shape in shapes))
    return {"ends": ends.flip(0), "a few": every[: len(every) // 5 + 1].repeat(2), "one": every[:1], "all": every}[kind]


@pytest.mark.parametrize("forest", FORESTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["ends", "a few", "one", "all"])
@pytest.mark.parametrize("short", [0, 60, 10**6])
def test_attention_of_some_rows(short: int, kind: str, dtype: torch.dtype, forest: str) -> None:
    shapes = FORESTS[forest]
    given = inputs(shapes, dtype)
    rows = some_rows(kind, shapes)
    chosen = cascade.choose(shapes, rows.numpy(), dtype, short)
    assert (chosen.row_C.diff() > 0).all() and torch.equal(chosen.row_C[chosen.place_N], rows)
    query, key, value = given
    ours = cascade.attend(query[chosen.row_C], key, value, chosen.groups, SCALE)[chosen.place_N]
    theirs = oracle(*given, seen(shapes, None))[rows]
    weight = torch.randn_like(ours)
    close(ours, theirs)
    for mine, other in zip(
        torch.autograd.grad(ours, given, weight), torch.autograd.grad(theirs, given, weight), strict=True
    ):
        close(mine, other)


def test_of_each_sequence_only_the_stretch_that_holds_the_rows_is_chosen() -> None:
    shapes = (Shape(5, (3, 4)), Shape(6, (2,)), Shape(3, ()))  # (0, 8), (8, 12), (12, 20), (20, 23)
    rows = torch.tensor([7, 4, 4, 10, 22])
    chosen = cascade.choose(shapes, rows.numpy(), torch.float64)
    assert chosen.row_C.tolist() == [4, 5, 6, 7, 10, 22] and chosen.place_N.tolist() == [3, 0, 0, 4, 5]


def test_the_kernels_of_the_cpu_are_chosen_as_they_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = FORESTS["one pair"]
    q, k, v = (x.transpose(0, 1)[None] for x in inputs(shapes, torch.float32))
    used: list[str] = []
    real, in_blocks = cascade.attend, blocks.attend
    monkeypatch.setattr(cascade, "attend", lambda *args: used.append("pieces") or real(*args))
    monkeypatch.setattr(blocks, "attend", lambda *args: used.append("blocks") or in_blocks(*args))
    plan = attention.plan(shapes)
    attention.forest_attention(q, k, v, plan, scale=SCALE)
    attention.forest_attention(q, k, v, plan, scale=SCALE, window=1000)  # wider than the forest: no window
    attention.forest_attention(q, k, v, plan, scale=SCALE, window=5)
    attention.forest_attention(q, k, v, plan, scale=SCALE, softcap=2.0)
    attention.forest_attention(q, k, v, plan, scale=SCALE, dropout=0.1)
    attention.forest_attention(q, k, v, attention.plan(shapes, only_blocks=True), scale=SCALE)
    assert used == ["pieces", "pieces", "blocks", "blocks", "blocks", "blocks"]


def test_causal_pieces_tile_the_tokens_and_dense_ones_join_branches_to_prompts() -> None:
    found = cascade.pieces((Shape(5, (3, 4, 2)), Shape(4, ()), Shape(6, (1,))))
    assert found.causal == ((0, 8), (8, 12), (12, 14), (14, 18), (18, 25))
    assert found.dense == ((8, 14, 0, 5),)


def test_like_pieces_share_a_call_and_unlike_ones_do_not_pad() -> None:
    assert len(cascade.groups(FORESTS["same pairs"], torch.float32, 0).pieces) <= 3
    uneven = (Shape(400, ()), Shape(90, ()))
    assert [group.query.length for group in cascade.groups(uneven, torch.float32, 0).pieces] == [400, 90]


@pytest.mark.parametrize(
    ("dtype", "widths", "dropout", "softcap", "reason"),
    [
        (torch.bfloat16, (64, 64), 0.0, None, None),
        (torch.float32, (64, 64), 0.0, None, "16 bits"),
        (torch.float16, (60, 60), 0.0, None, "wide"),
        (torch.float16, (512, 512), 0.0, None, "wide"),
        (torch.float16, (64, 32), 0.0, None, "wide"),
        (torch.float16, (64, 64), 0.1, None, "dropout"),
        (torch.float16, (64, 64), 0.0, 30.0, "soft caps"),
    ],
)
def test_what_varlen_serves(
    dtype: torch.dtype, widths: tuple[int, int], dropout: float, softcap: float | None, reason: str | None
) -> None:
    q, v = (torch.empty(1, 2, 3, width, dtype=dtype) for width in widths)
    got = varlen.fits(q, v, dropout=dropout, softcap=softcap)
    assert got is None if reason is None else reason in (got or "")


def test_trees_with_one_branch_gather_no_keys() -> None:
    assert varlen.sequences((Shape(5, (4,)), Shape(3, ()))).key_S is None
    assert varlen.sequences((Shape(5, (4, 1)), Shape(3, ()))).key_S is not None


def test_the_varlen_interface_is_as_this_torch_has_it() -> None:
    """A CPU has no such kernel, but the names and defaults of its arguments can be read."""
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    parameters = inspect.signature(varlen_attn).parameters
    assert list(parameters)[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert {"scale", "window_size"} <= set(parameters)


@pytest.mark.parametrize("told", [True, False])
def test_the_kernel_of_torch_2_11_is_called_as_it_can_be(told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """There `varlen_attn` has no `enable_gqa`; a call that names it would send every model to the slower blocks."""
    heard: list[dict[str, Any]] = []

    def older(*args: Any, scale: float, window_size: tuple[int, int]) -> torch.Tensor:
        heard.append({})
        return plain_varlen(*args, scale=scale, window_size=window_size, enable_gqa=True)

    def newer(*args: Any, scale: float, window_size: tuple[int, int], enable_gqa: bool = False) -> torch.Tensor:
        heard.append({"enable_gqa": enable_gqa})
        return plain_varlen(*args, scale=scale, window_size=window_size, enable_gqa=enable_gqa)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", newer if told else older)
    shapes = FORESTS["one pair"]
    given = inputs(shapes, torch.float64)
    close(varlen.attend(*given, varlen.sequences(shapes), SCALE, 4), oracle(*given, seen(shapes, 4)))
    assert heard == [{"enable_gqa": True} if told else {}]


# Planted bugs: what the tests above must see.


def prompts_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    real = cascade.pieces
    monkeypatch.setattr(cascade, "pieces", lambda shapes: cascade.Pieces(real(shapes).causal, ()))


def pieces_joined_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "logaddexp", lambda a, b: torch.maximum(a, b) + 0.6931)


def padding_gives_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    real = cascade.Side.take
    monkeypatch.setattr(cascade.Side, "take", lambda self, x, **more: real(self, x))


@pytest.mark.parametrize("bug", [prompts_not_read, pieces_joined_evenly, padding_gives_gradients])
def test_planted_bugs_are_seen_by_the_test_of_some_rows(
    bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        test_attention_of_some_rows(0, "a few", torch.float64, "like lengths")


@pytest.mark.parametrize("bug", [prompts_not_read, pieces_joined_evenly, padding_gives_gradients])
def test_planted_bugs_are_seen(bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        test_values_and_gradients("pieces", None, torch.float64, "like lengths")


def mask_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    real = whole.groups

    def turned(*args: Any) -> tuple[whole.Whole, ...]:
        return tuple(replace(group, mask_m1q1k=torch.zeros_like(group.mask_m1q1k)) for group in real(*args))

    monkeypatch.setattr(whole, "groups", turned)


def bands_without_their_last_key(monkeypatch: pytest.MonkeyPatch) -> None:
    real = whole._bands
    monkeypatch.setattr(whole, "_bands", lambda length: tuple((a, b, k - (k < length)) for a, b, k in real(length)))


@pytest.mark.parametrize("bug", [mask_not_read, padding_gives_gradients, bands_without_their_last_key])
def test_planted_bugs_are_seen_in_whole_trees(
    bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        test_values_and_gradients("whole", None, torch.float64, "like lengths")


def one_key_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    real = varlen.attend
    monkeypatch.setattr(
        varlen, "attend", lambda q, k, v, found, scale, window=None, kernel=None: real(
            q, k, v, found, scale, None if window is None else window + 1, kernel
        )
    )  # fmt: skip


def changed_sequences(change: Callable[[varlen.Sequences], varlen.Sequences]) -> Callable[[pytest.MonkeyPatch], None]:
    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        real = varlen.sequences
        monkeypatch.setattr(varlen, "sequences", lambda shapes: change(real(shapes)))

    return plant


def shifted_keys(found: varlen.Sequences) -> varlen.Sequences:
    assert found.key_S is not None
    return replace(found, key_S=found.key_S.roll(1))


def shifted_queries(found: varlen.Sequences) -> varlen.Sequences:
    moved = found.query_n1.clone()
    moved[1] += 1
    return replace(found, query_n1=moved, longest_query=int(moved.diff().max()))


def own_keys_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A further branch's keys before its prompt's: aligned to the end, its own past is then what it sees too much of."""
    real = varlen.sequences

    def turned(shapes: tuple[Shape, ...]) -> varlen.Sequences:
        found = real(shapes)
        assert found.key_S is not None
        keys = found.key_S.clone()
        bounds, queries = found.key_n1.tolist(), found.query_n1.tolist()
        for number in range(len(bounds) - 1):
            own = queries[number + 1] - queries[number]
            part = keys[bounds[number] : bounds[number + 1]]
            keys[bounds[number] : bounds[number + 1]] = part.roll(own)
        return replace(found, key_S=keys)

    monkeypatch.setattr(varlen, "sequences", turned)


def a_prompt_hears_of_one_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of gathered keys written instead of added up."""

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, key_S: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(key_S)
            ctx.shape = x.shape
            return x.index_select(0, key_S)

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
            return grads[0].new_zeros(ctx.shape).index_copy_(0, ctx.saved_tensors[0], grads[0]), None

    monkeypatch.setattr(varlen, "_gather", Wrong.apply)


@pytest.mark.parametrize(
    ("bug", "window"),
    [
        (one_key_too_far, 4),
        (changed_sequences(shifted_keys), None),
        (changed_sequences(shifted_queries), None),
        (own_keys_first, None),
        (a_prompt_hears_of_one_branch, None),
    ],
)
def test_planted_bugs_of_varlen_are_seen(
    bug: Callable[[pytest.MonkeyPatch], None], window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        test_values_and_gradients("varlen", window, torch.float64, "all kinds")
