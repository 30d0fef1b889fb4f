"""Dense products in float32 on the CPU, by the faster of the two libraries that torch brings.

`@` and `F.linear` go to MKL, which leaves AVX-512 unused on processors that are not Intel's; oneDNN uses it everywhere.
Measured on one Zen 5 core: 107 against 245 GFLOP/s for activations times weights, 106 against 170 for gradients of
weights. On Intel's own both reach the same (158 on one core of a Xeon), and oneDNN's preparation for every new shape is
only lost: steps of DPO are 15% to 25% quicker by MKL there, in two thirds of the memory. Which library computes a
product depends on the processor and the shapes alone, so a run repeats bit for bit.

Axes: M rows, K inner, N columns.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

log = logging.getLogger(__name__)

# A call into oneDNN costs about 10 µs more than one into MKL: below so many multiplications that is not won back.
WORTH = 500_000
FEW = 4  # rows, of which fewer do not win back what it costs to lay a weight out anew
CPUINFO = Path("/proc/cpuinfo")


def matmul(a_MK: torch.Tensor, b_KN: torch.Tensor) -> torch.Tensor:
    """a @ b of two matrices, either of them possibly a transposed view.

    Where gradients are to flow through it, it is torch's own product; `linear` is the quick one that has gradients.
    """
    wanted = torch.is_grad_enabled() and (a_MK.requires_grad or b_KN.requires_grad)
    if a_MK.dtype == torch.float32 == b_KN.dtype and a_MK.device.type == "cpu" and not wanted:
        rows, inner = a_MK.shape
        if rows * inner * b_KN.shape[1] >= WORTH:
            product = _onednn()
            if product is not None:
                return product(a_MK, b_KN.t())
    return a_MK @ b_KN


def weight_gradient(d_y_MN: torch.Tensor, x_MK: torch.Tensor) -> torch.Tensor:
    """d_y.T @ x, the gradient of a weight (N, K).

    oneDNN wants the left matrix row by row, and copies d_y for it. The other way round x and the result are copied.
    """
    (rows, wide), inner = d_y_MN.shape, x_MK.shape[1]
    if not _quick(d_y_MN) or rows * wide <= rows * inner + inner * wide:
        return matmul(d_y_MN.t(), x_MK)
    return matmul(x_MK.t(), d_y_MN).t().contiguous()


def spare(rows: int, like: torch.Tensor) -> int:
    """Rows to add to so many like `like`, so that products of that many rows are likely to have been met before.

    oneDNN prepares itself for every shape it meets, and remembers: 0.3 to 1.4 ms and 0.5 MB each, for some twenty in a
    batch whose counts of tokens are new. Rounded up to five binary digits and to 32 (about 2% more), counts recur. (To
    16 it is no quicker on a few hundred tokens, and takes 20 to 40 MB more.)
    """
    if not _quick(like):
        return 0
    return -rows % (1 << max(rows.bit_length() - 5, 5))


def linear(x: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None) -> torch.Tensor:
    """F.linear with gradients, by `matmul` where that is faster."""
    if weight_NK.dtype != torch.float32 or not _quick(x):
        return F.linear(x, weight_NK, bias_N)
    return _linear(x, weight_NK, bias_N)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight_NK)
        ctx.biased = bias_N is not None
        y = matmul(x.reshape(-1, x.shape[-1]), weight_NK.t())
        if bias_N is not None:
            y += bias_N
        return y.view(*x.shape[:-1], len(weight_NK))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight_NK = ctx.saved_tensors
        grad_MN = grads[0].reshape(-1, len(weight_NK))
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        d_x = matmul(grad_MN, weight_NK).view_as(x) if needs_x else None
        d_weight = weight_gradient(grad_MN, x.reshape(-1, x.shape[-1])) if needs_weight else None
        return d_x, d_weight, grad_MN.sum(0) if needs_bias else None


_linear: Callable[..., torch.Tensor] = _Linear.apply  # torch leaves it untyped


@dataclass(frozen=True, slots=True)
class Prepared:
    """A linear map without gradients, laid out once for many products: x (M, K) -> x @ weight.T + bias (M, N).

    weight_NK   the weight itself, or a copy in the order in which the library reads it (where `packed` oneDNN's own),
                which later changes of the weight do not reach
    """

    weight_NK: torch.Tensor
    bias_N: torch.Tensor | None = None
    packed: bool = False

    def __call__(self, x_MK: torch.Tensor, add_MN: torch.Tensor | None = None) -> torch.Tensor:
        """The product, and `add_MN` on top in the same pass."""
        if self.packed:
            return _packed_product(x_MK, self.weight_NK, self.bias_N, add_MN)
        if x_MK.dtype != torch.float32 or x_MK.device.type != "cpu":
            y_MN = F.linear(x_MK, self.weight_NK, self.bias_N)
        elif self.bias_N is None and add_MN is not None and x_MK.shape[0] * self.weight_NK.numel() < WORTH:
            return torch.addmm(add_MN, x_MK, self.weight_NK.t())
        else:
            y_MN = matmul(x_MK, self.weight_NK.t())
            y_MN = y_MN if self.bias_N is None else y_MN.add_(self.bias_N)
        return y_MN if add_MN is None else y_MN.add_(add_MN)


def prepare(weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None, *, rows: int) -> Prepared:
    """The map for products of about so many rows, laid out for the library that computes them.

    Packed for oneDNN where they are large and the processor has AVX-512: measured on one Zen 5 core with 64 rows, 13%
    off the products of a small model, a third with 16. For MKL, where it does all products, by columns: on a Xeon up to
    a half off with 16 rows, nothing to a fifth with 64, which makes decoding 3% to 12% quicker on one core.
    """
    if weight_NK.dtype != torch.float32 or weight_NK.device.type != "cpu" or rows < FEW:
        return Prepared(weight_NK, bias_N)
    if _onednn() is None:
        return Prepared(weight_NK.detach().t().contiguous().t(), bias_N)
    if rows * weight_NK.numel() < WORTH or not _packs():
        return Prepared(weight_NK, bias_N)
    return Prepared(_packed(weight_NK.detach(), rows), bias_N, packed=True)


def _packed(weight_NK: torch.Tensor, rows: int) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_NK, rows)
    return packed


def _packed_product(
    x_MK: torch.Tensor, packed_NK: torch.Tensor, bias_N: torch.Tensor | None, add_MN: torch.Tensor | None
) -> torch.Tensor:
    y: torch.Tensor
    if add_MN is None:
        y = torch.ops.mkldnn._linear_pointwise(x_MK, packed_NK, bias_N, "none", [], "")
    else:
        y = torch.ops.mkldnn._linear_pointwise.binary(x_MK, add_MN, packed_NK, bias_N, "add")
    return y


@cache
def _packs() -> bool:
    """Whether weights can be packed; as undocumented as `_onednn`, and checked as that is."""
    if _onednn() is None:
        return False
    ramp = torch.arange(35, dtype=torch.float32)
    x, weight, bias, add = ramp.view(5, 7), ramp[:21].view(3, 7), ramp[:3], ramp[:15].view(5, 3)
    try:
        packed = _packed(weight, 5)
        right = all(
            torch.equal(_packed_product(x, packed, b, a), F.linear(x, weight, b) + (0 if a is None else a))
            for b in (None, bias)
            for a in (None, add)
        )
    except (AttributeError, RuntimeError, TypeError) as error:
        log.warning("oneDNN's weights cannot be packed (%s): decoding is slower than it could be", error)
        return False
    if not right:
        log.warning("oneDNN's product with packed weights is wrong on this machine: decoding without it, slower")
    return right


def _quick(x: torch.Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu" and _onednn() is not None


def _intel() -> bool:
    """Whether this is a processor of Intel's, for which MKL is written; where nothing says so it is not."""
    try:
        said = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        said = platform.processor()
    return "GenuineIntel" in said


@cache
def _onednn() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """a (M, K), b (N, K) -> a @ b.T by oneDNN, or None where torch's own product (MKL's) is as fast or faster.

    The operator is torch's own but undocumented (torch.compile emits it), so its answer is checked once.
    """
    available: Callable[[], bool] = torch.backends.mkldnn.is_available
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not available() or _intel():
        return None

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
        return y

    ramp = torch.arange(35, dtype=torch.float32).view(5, 7)
    try:
        right = torch.equal(product(ramp, ramp), ramp @ ramp.t()) and torch.equal(
            product(ramp.t(), ramp.t()), ramp.t() @ ramp
        )
    except (AttributeError, RuntimeError, TypeError) as error:
        log.warning("oneDNN's matrix product cannot be called (%s): using torch's own, slower on this processor", error)
        return None
    if not right:
        log.warning("oneDNN's matrix product is wrong on this machine: using torch's own, slower on this processor")
        return None
    return product
