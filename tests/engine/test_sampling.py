from __future__ import annotations

import numpy as np
import pytest
import torch

from fairlead.engine import counter, sampling
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
    token, *_ = choose(logits.repeat(count, 1), how, uniform)
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
        token, logp, _ = choose(logits.clone(), how, torch.full((6,), 0.4))
        whole = torch.log_softmax(logits / (how.temperature or 1.0), -1)
        torch.testing.assert_close(logp, whole.gather(1, token[:, None])[:, 0])


def test_log_probs_of_improbable_draws_are_exact_too() -> None:
    logits = torch.tensor([[0.0, -30.0, -60.0, -80.0]] * 3)
    edges = logits[0].double().softmax(-1).cumsum(-1)
    uniform = torch.tensor([0.5, float(edges[0]), 1.0 - 2.0**-53], dtype=torch.float64)
    token, logp, _ = choose(logits.clone(), Choice(), uniform)
    assert token.tolist()[:2] == [0, 1] and token[2] != 0
    torch.testing.assert_close(logp.double(), logits.double().log_softmax(-1).gather(1, token[:, None])[:, 0])


def test_the_edges_of_the_uniform_stay_in_the_vocabulary() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]] * 2)
    token, *_ = choose(logits, Choice(), torch.tensor([0.0, 1.0 - 2.0**-53], dtype=torch.float64))
    assert token.tolist() == [1, 2]


def test_what_the_cut_kept_is_told() -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0]] * 3, dtype=torch.float64)
    uniform = torch.tensor([0.1, 0.5, 0.9])
    for how, kept in ((Choice(0.5, top_k=2), [1, 3]), (Choice(1.0, top_p=0.7), [1, 3])):
        token, logp, cut = choose(logits.clone(), how, uniform)
        p = (logits[0] / how.temperature).softmax(-1)
        assert cut is not None
        torch.testing.assert_close(cut, (p[token] / p[kept].sum()).log())
        torch.testing.assert_close(logp, p[token].log())
    for how in (Choice(), Choice(top_k=4), Choice(top_p=1.0), Choice(0.0, top_k=2)):
        assert choose(logits.clone(), how, uniform).cut_B is None


@pytest.mark.parametrize("size", [8192, 5003, 1792])
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_a_large_vocabulary_is_searched_as_if_it_were_cumulated(
    size: int, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 200
    generator = torch.Generator().manual_seed(size)
    logits = spread * torch.randn(rows, size, generator=generator, dtype=torch.float64)
    logits[:, ::3] = -torch.inf
    uniform = torch.rand(rows, generator=generator, dtype=torch.float64)
    uniform[:2] = torch.tensor([0.0, 1 - 2.0**-53])
    p = logits.softmax(-1).numpy()
    cdf = p.cumsum(-1)
    expected = (cdf <= cdf[:, -1:] * uniform.numpy()[:, None]).sum(-1)
    expected[1] = np.flatnonzero(p[1])[-1]  # the product above may round to the total
    got = choose(logits.clone(), Choice(), uniform)
    assert rows * size >= sampling.DIRECT and got.token_B.tolist() == expected.tolist()
    assert (p[np.arange(rows), got.token_B] > 0).all()
    torch.testing.assert_close(got.logp_B, logits.log_softmax(-1).gather(1, got.token_B[:, None])[:, 0])
    monkeypatch.setattr(sampling, "DIRECT", rows * size + 1)
    assert choose(logits.clone(), Choice(), uniform).token_B.tolist() == expected.tolist()


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95, 0.9999])
def test_top_p_keeps_the_same_tokens_whether_all_are_sorted_or_a_few(
    top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = (3 * torch.randn(20, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).softmax(-1)
    few = sampling._cut(p, Choice(top_p=top_p))
    monkeypatch.setattr(sampling, "SORTED", 500)
    whole = sampling._cut(p, Choice(top_p=top_p))
    assert torch.equal(few, whole)
    for row, kept in zip(p.numpy(), (whole > 0).numpy(), strict=True):
        order = np.argsort(-row)
        needed = int((row[order].cumsum() < top_p * row.sum()).sum()) + 1  # the fewest that hold top_p of the mass
        assert set(np.flatnonzero(kept)) == set(order[:needed])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"temperature": -1}, "temperature"), ({"temperature": float("nan")}, "temperature"), ({"top_k": 0}, "top_k")]
    + [({"top_p": p}, "top_p") for p in (0.0, 1.5)],
)
def test_settings_that_make_no_sense(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Choice(**settings)  # type: ignore[arg-type]
