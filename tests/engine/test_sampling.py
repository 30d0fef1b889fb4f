from __future__ import annotations

import numpy as np
import pytest
import torch

from fairlead.engine import counter
from fairlead.engine.sampling import Choice, choose


def test_uniforms_depend_on_their_names_alone() -> None:
    several = counter.uniforms(counter.streams(5, [0, 1, 2], [0, 0, 1]), [4, 4, 9])
    alone = [counter.uniforms(counter.streams(5, p, s), t)[0] for p, s, t in ((0, 0, 4), (1, 0, 4), (2, 1, 9))]
    assert several.tolist() == alone
    assert counter.uniforms(counter.streams(6, 0, 0), 4)[0] != several[0]
    assert counter.streams(-1, 0, 0) == counter.streams(2**64 - 1, 0, 0)


def test_uniforms_are_uniform_and_unrelated() -> None:
    drawn = counter.uniforms(counter.streams(0, np.arange(200)[:, None], np.arange(20)).reshape(-1, 1), np.arange(10))
    assert drawn.min() >= 0 and drawn.max() < 1
    counts = np.histogram(drawn, bins=20, range=(0, 1))[0]
    expected = drawn.size / 20
    assert float(((counts - expected) ** 2 / expected).sum()) < 45  # chi-squared, 19 degrees of freedom, p about 0.001
    for axis in (0, 1):
        shifted = np.roll(drawn, 1, axis)
        assert abs(float(np.corrcoef(drawn.ravel(), shifted.ravel())[0, 1])) < 0.02
    assert len(np.unique(drawn)) == drawn.size


def frequencies(how: Choice, logits: torch.Tensor, count: int = 40_000) -> torch.Tensor:
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    token, _ = choose(logits.repeat(count, 1), how, uniform)
    return torch.bincount(token, minlength=len(logits)) / count


def test_tokens_come_at_their_probabilities() -> None:
    logits = torch.tensor([0.0, 1.0, -torch.inf, 2.0, -1.0], dtype=torch.float64)
    for temperature in (0.5, 1.0, 2.0):
        got = frequencies(Choice(temperature), logits)
        torch.testing.assert_close(got, (logits / temperature).softmax(-1).float(), atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("how", "kept"),
    [
        (Choice(1.0, top_k=2), [1, 3]),
        (Choice(1.0, top_p=0.6), [3]),
        (Choice(1.0, top_p=0.7), [1, 3]),
        (Choice(1.0, top_k=3, top_p=0.999), [0, 1, 3]),
        (Choice(1.0, top_k=99, top_p=1.0), [0, 1, 2, 3]),
    ],
)
def test_cuts_keep_the_right_tokens_and_renormalise(how: Choice, kept: list[int]) -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0], dtype=torch.float64)  # 0.09 0.24 0.03 0.64
    expected = torch.zeros(4)
    expected[kept] = logits[kept].softmax(-1).float()
    torch.testing.assert_close(frequencies(how, logits), expected, atol=2e-4, rtol=0)


def test_the_log_prob_is_that_of_the_whole_distribution_at_the_temperature() -> None:
    logits = torch.randn(6, 9, dtype=torch.float64)
    for how in (Choice(0.7), Choice(0.7, top_k=1), Choice(0.7, top_p=0.3), Choice(0.0)):
        token, logp = choose(logits.clone(), how, torch.full((6,), 0.4))
        whole = torch.log_softmax(logits / (how.temperature or 1.0), -1)
        torch.testing.assert_close(logp, whole.gather(1, token[:, None])[:, 0])


def test_the_edges_of_the_uniform_stay_in_the_vocabulary() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]] * 2)
    token, _ = choose(logits, Choice(), torch.tensor([0.0, 1.0 - 2.0**-53], dtype=torch.float64))
    assert token.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"temperature": -1}, "temperature"), ({"temperature": float("nan")}, "temperature"), ({"top_k": 0}, "top_k")]
    + [({"top_p": p}, "top_p") for p in (0.0, 1.5)],
)
def test_settings_that_make_no_sense(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Choice(**settings)  # type: ignore[arg-type]
