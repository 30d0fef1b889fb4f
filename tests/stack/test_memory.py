"""What a training is reckoned to hold, against sums by hand."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from fairlead.stack.memory import footprint, peak_resident  # noqa: E402


class Sized:
    """The sizes of a model as transformers names them."""

    def __init__(self, **sizes: int) -> None:
        self.__dict__.update(sizes)


def module(config: object | None, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    made = torch.nn.Linear(10, 100, bias=False).to(dtype)  # 1,000 parameters
    made.config = config
    return made


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_full_weights(dtype: torch.dtype, width: int) -> None:
    found = footprint(module(Sized(num_hidden_layers=2, hidden_size=8, intermediate_size=16), dtype), 50)
    assert (found.weights, found.gradients, found.moments) == (2000 * width, 1000 * width, 2000 * width)
    assert found.activations == 2 * (8 * 8 + 4 * 16) * 50 * width
    assert found.total == 5000 * width + found.activations


def test_adapters_hold_no_second_copy_of_the_weights() -> None:
    found = footprint(module(Sized(n_layer=1, n_embd=8)), 1, trained=10)
    assert (found.weights, found.gradients, found.moments) == (4 * 1010, 40, 80)
    assert found.activations == (8 * 8 + 4 * 32) * 4  # GPT-2's inner width is four times its width


@pytest.mark.parametrize("config", [None, Sized(hidden_size=8)])
def test_unknown_sizes_are_not_guessed(config: object | None) -> None:
    found = footprint(module(config), 50)
    assert found.activations is None and found.total == 5000 * 4


def test_the_peak_grows_with_what_is_held() -> None:
    before = peak_resident()
    assert before is not None
    held = torch.ones(50_000_000)
    after = peak_resident()
    assert after is not None and after >= 200_000_000 and after >= before
    del held
