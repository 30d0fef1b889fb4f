"""Products by either library: equal to float64 within rounding, and chosen by shape and type alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from engine.helpers import close
from fairlead.engine import dense
from fairlead.engine.dense import linear, matmul, prepare, spare, weight_gradient


@pytest.fixture(autouse=True)
def small_products_count(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """And go to oneDNN wherever it is quick, on Intel's processors too."""
    monkeypatch.setattr(dense, "WORTH", 0)
    monkeypatch.setattr(dense, "_intel", lambda: False)
    for kept in (dense._onednn, dense._packs):
        kept.cache_clear()
    yield
    for kept in (dense._onednn, dense._packs):
        if hasattr(kept, "cache_clear"):  # it was not replaced
            kept.cache_clear()


def test_on_intels_processors_products_are_mkls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dense, "_intel", lambda: True)
    assert dense._onednn() is None and not dense._packs() and spare(1001, torch.empty(0)) == 0
    monkeypatch.undo()
    for said, is_intel in (("vendor_id\t: GenuineIntel\n", True), ("vendor_id\t: AuthenticAMD\n", False)):
        (tmp_path / "cpuinfo").write_text(said)
        monkeypatch.setattr(dense, "CPUINFO", tmp_path / "cpuinfo")
        assert dense._intel() is is_intel
    monkeypatch.setattr(dense, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(dense.platform, "processor", lambda: "Intel64 Family 6 Model 85 Stepping 7, GenuineIntel")
    assert dense._intel()  # as Windows says it


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 7, 5), (64, 32, 16), (33, 129, 65)])
def test_products_of_matrices_and_of_their_transposes(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    M, K, N = sizes
    a, b = torch.randn(M, K).to(dtype), torch.randn(K, N).to(dtype)
    right = (a.double() @ b.double()).to(dtype)
    for left in (a, a.t().contiguous().t()):
        for other in (b, b.t().contiguous().t()):
            got = matmul(left, other)
            assert got.dtype == dtype and got.shape == (M, N)
            torch.testing.assert_close(got, right, rtol=1e-5 if dtype != torch.bfloat16 else 2e-2, atol=1e-4)


@pytest.mark.parametrize("widths", [(5, 9), (9, 5), (90, 5), (7, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_of_a_weight(widths: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    d_y, x = (torch.randn(20, width, dtype=dtype) for width in widths)
    got = weight_gradient(d_y, x)
    assert got.is_contiguous()
    close(got, torch.einsum("mn,mk->nk", d_y, x))


def test_counts_of_rows_recur_and_waste_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "_onednn", lambda: torch.mm)
    counts = range(1, 4097)
    rounded = [rows + spare(rows, torch.empty(0)) for rows in counts]
    assert all(rows <= more < rows + max(32, rows / 15) for rows, more in zip(counts, rounded, strict=True))
    assert len(set(rounded)) <= 16 * 5
    assert [more + spare(more, torch.empty(0)) for more in rounded] == rounded
    assert spare(1001, torch.empty(0, dtype=torch.float64)) == spare(1001, torch.empty(0, device="meta")) == 0
    monkeypatch.setattr(dense, "_onednn", lambda: None)
    assert spare(1001, torch.empty(0)) == 0


def test_slices_and_no_rows() -> None:
    wide = torch.randn(20, 40)
    close(matmul(wide[3:11, 8:24], wide[:16, 1:9]), wide[3:11, 8:24] @ wide[:16, 1:9])
    assert matmul(torch.empty(0, 5), torch.randn(5, 3)).shape == (0, 3)


def test_a_product_that_gradients_flow_through_keeps_them() -> None:
    a, b = torch.randn(9, 8, requires_grad=True), torch.randn(8, 7)
    matmul(a, b).sum().backward()
    assert a.grad is not None
    close(a.grad, b.sum(1).expand(9, 8))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [(), (0,), (1,)])
def test_linear_has_the_gradients_of_the_plain_one(bias: bool, frozen: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, weight, bias_N = torch.randn(2, 9, 12), torch.randn(6, 12), torch.randn(6)
    given = [x, weight, *([bias_N] if bias else [])]
    for number, tensor in enumerate(given):
        tensor.requires_grad_(number not in frozen)
    wanted = [tensor for tensor in given if tensor.requires_grad]
    ours, theirs = linear(*given), F.linear(*given)
    close(ours, theirs)
    grad = torch.randn_like(ours)
    for mine, other in zip(
        torch.autograd.grad(ours, wanted, grad), torch.autograd.grad(theirs, wanted, grad), strict=True
    ):
        close(mine, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("large", [0, 1000, 10**9, -1])
@pytest.mark.parametrize(("bias", "add"), [(False, False), (True, False), (False, True), (True, True)])
def test_a_prepared_map_gives_what_the_plain_one_gives(
    bias: bool, add: bool, large: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`large` of -1: by MKL."""
    monkeypatch.setattr(dense, "WORTH", max(0, large))
    if large < 0:
        monkeypatch.setattr(dense, "_onednn", lambda: None)
        monkeypatch.setattr(dense, "_packs", lambda: False)
    torch.manual_seed(0)
    weight, bias_N = torch.randn(24, 17).to(dtype), torch.randn(24).to(dtype) if bias else None
    product = prepare(weight, bias_N, rows=5)
    assert product.packed == (large < 10**9 and dtype == torch.float32 and dense._packs())
    by_columns = dtype == torch.float32 and large < 0
    assert product.packed or (product.weight_NK.data_ptr() != weight.data_ptr()) == by_columns
    assert product.packed or product.weight_NK.t().is_contiguous() == by_columns
    assert prepare(weight, bias_N, rows=1).weight_NK is weight
    for rows in (1, 2, 5, 300):
        x, add_MN = torch.randn(rows, 17).to(dtype), torch.randn(rows, 24).to(dtype)
        right = F.linear(x.double(), weight.double(), None if bias_N is None else bias_N.double())
        right = right + add_MN.double() if add else right
        before = add_MN.clone()
        got = product(x, add_MN if add else None)
        assert got.dtype == dtype and torch.equal(add_MN, before)
        torch.testing.assert_close(
            got.double(),
            right,
            **({"rtol": 1e-5, "atol": 1e-5} if dtype != torch.bfloat16 else {"rtol": 5e-2, "atol": 5e-2}),
        )


def test_packing_that_is_gone_or_wrong_is_said_and_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if not dense._packs():
        pytest.skip("on this processor nothing is packed anyway")

    def gone(*args: Any) -> torch.Tensor:
        raise RuntimeError("no such operator")

    real = dense._packed
    for packed, said in ((gone, "cannot be packed"), (lambda weight, rows: real(weight + 1, rows), "is wrong")):
        caplog.clear()
        dense._packs.cache_clear()
        monkeypatch.setattr(dense, "_packed", packed)
        with caplog.at_level(logging.WARNING, logger="fairlead"):
            weight = torch.randn(8, 8)
            product = prepare(weight, rows=64)
            assert not product.packed and torch.equal(product(weight), matmul(weight, weight.t()))
        assert said in caplog.text
    monkeypatch.undo()
    dense._packs.cache_clear()


def test_an_operator_that_is_gone_or_wrong_is_said_and_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if dense._onednn() is None:
        pytest.skip("this processor has no AVX-512, so torch's own product is used anyway")

    def gone(*args: Any) -> torch.Tensor:
        raise RuntimeError("no such operator")

    for operator, said in ((gone, "cannot be called"), (lambda a, b, *more: a @ b.t() + 1, "is wrong")):
        caplog.clear()
        dense._onednn.cache_clear()
        monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", operator)
        with caplog.at_level(logging.WARNING, logger="fairlead"):
            a = torch.randn(8, 8)
            assert torch.equal(matmul(a, a), a @ a)
        assert said in caplog.text
    monkeypatch.undo()
    dense._onednn.cache_clear()
