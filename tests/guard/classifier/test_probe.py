"""A probe on the apprentice: what the model itself makes of a reply tells the kinds apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed: a probe cannot be fitted")

from fairlead.errors import InputError
from fairlead.exchange import Exchange, exchange
from fairlead.guard.classifier.fit import auroc
from fairlead.guard.classifier.probe import Probe, averaged, fit_probe, hidden_states, load_probe, save_probe
from fairlead.models.apprentice import open_apprentice

COLOURS, GOODS = ("red", "blue", "green", "white", "black"), ("rope", "lamp", "net", "barrel", "sail", "anchor")


def _rows(part: int) -> list[tuple[Exchange, bool]]:
    return [
        (
            exchange(
                f"what can you say of the {c} {g} ?", f"the {c} {g} is {'for the rats' if bad else 'in the harbour'} ."
            ),
            bad,
        )
        for n, (c, g) in enumerate((c, g) for c in COLOURS for g in GOODS)
        if n % 3 == part
        for bad in (True, False)
    ]


@pytest.fixture(scope="module")
def model() -> object:
    return open_apprentice(torch=False)


@pytest.fixture(scope="module")
def probe(model: object) -> Probe:
    return fit_probe(model, "no-harm", _rows(0), _rows(1) + _rows(2), rate=0.1)


def test_it_tells_apart_what_it_was_not_fitted_on(model: object, probe: Probe) -> None:
    rows = _rows(2)
    p = [probe.probability(h) for h in hidden_states(model, [e for e, _ in rows])]
    assert auroc(p, [bad for _, bad in rows]) > 0.9


def test_a_stream_sees_the_logits_that_the_whole_reply_has(model: object, probe: Probe) -> None:
    [(item, _), *_] = _rows(0)
    [hidden] = hidden_states(model, [item])
    whole = probe.logits(hidden)
    for t in (1, 3, len(hidden)):
        assert np.allclose(probe.logits(hidden[:t]), whole[:t], atol=1e-6)


def test_the_average_forgets_and_a_constant_stays() -> None:
    assert np.allclose(averaged(np.full(20, 3.0, np.float32), 0.9), 3.0)
    peak = averaged(np.array([0, 0, 10, 0, 0, 0, 0], np.float32), 0.5)
    assert peak.argmax() == 2 and peak[-1] < 1


def test_it_is_a_small_file_that_is_verified(probe: Probe, tmp_path: Path) -> None:
    name = save_probe(probe, tmp_path)
    again = load_probe(tmp_path, model=probe.model)
    assert (
        again.sha256 == name and np.array_equal(again.weight_D, probe.weight_D) and again.threshold == probe.threshold
    )
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 16_384
    with pytest.raises(InputError, match="fit a probe for it"):
        load_probe(tmp_path, model="wt:other")
    raw = bytearray((tmp_path / "probe.safetensors").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "probe.safetensors").write_bytes(bytes(raw))
    with pytest.raises(InputError, match="was changed"):
        load_probe(tmp_path)


def test_what_cannot_be_probed_is_said(model: object, probe: Probe) -> None:
    with pytest.raises(InputError, match="the model said"):
        hidden_states(model, [Exchange(_rows(0)[0][0].messages, ())])
    with pytest.raises(InputError, match="layer 2"):
        hidden_states(model, [_rows(0)[0][0]], 2)
    with pytest.raises(ValueError, match="needed are"):
        probe.probability(np.zeros((3, 7), np.float32))
