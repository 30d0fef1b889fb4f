"""Our losses and gradients against TRL's, from numbers that TRL 1.16 itself computed (tests/fixtures/make_trl_parity.py).

The gradients come out of `train_pairs`, `train_kto` and the SFT loss as they train, with plain SGD at rate 1 in the
place of AdamW (which at a small rate would hide a wrong sign), in one micro-batch and in several. Where TRL is
installed, a last test has it compute the fixture again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.fixtures import parity  # noqa: E402
from tests.fixtures.parity import BETA, CASES, FIXTURE  # noqa: E402

from fairlead.engine.layout import Tree  # noqa: E402
from fairlead.engine.logprobs import reply_logprobs, score  # noqa: E402
from fairlead.exchange import Preference, Rated, assistant, user  # noqa: E402
from fairlead.methods import loop, losses, preference, unpaired  # noqa: E402
from fairlead.methods.config import (  # noqa: E402
    CPOConfig,
    DPOConfig,
    IPOConfig,
    KTOConfig,
    ORPOConfig,
    PairwiseConfig,
    SimPOConfig,
    TPOConfig,
)
from fairlead.methods.coupled import coupled_loss  # noqa: E402
from fairlead.methods.loop import StepRecord  # noqa: E402
from fairlead.methods.losses import sft_nll  # noqa: E402
from fairlead.methods.pairs import (  # noqa: E402
    Pairs,
    imitated_reply,
    nll_loss,
    pairs_of,
    preference_loss,
    reply_sums,
    tail_weight,
)
from fairlead.methods.reference import Reference  # noqa: E402
from fairlead.methods.rows import Rows, whole_texts  # noqa: E402

LIMIT = {"float32": 1e-4, "float64": 1e-9}
ONE_BATCH, SEVERAL = 4096, 30  # tokens of a micro-batch

PAIRWISE: dict[str, PairwiseConfig] = {
    "sigmoid": DPOConfig(beta=BETA),
    "hinge": DPOConfig(beta=BETA, loss="hinge"),
    "ipo": IPOConfig(beta=BETA, length="mean"),  # TRL's convention; the equation as printed: see below
    "exo_pair": DPOConfig(beta=BETA, loss="exo", label_smoothing=1e-3),
    "nca_pair": DPOConfig(beta=BETA, loss="nca"),
    "robust": DPOConfig(beta=BETA, loss="robust", label_smoothing=0.1),
    "bco_pair": DPOConfig(beta=BETA, loss="bco_pair"),
    "sppo_hard": DPOConfig(beta=BETA, loss="sppo"),
    "aot": DPOConfig(beta=BETA, loss="aot"),
    "aot_smoothed": DPOConfig(beta=BETA, loss="aot", label_smoothing=0.1),
    "aot_unpaired": DPOConfig(beta=BETA, loss="aot_unpaired"),
    "apo_zero": DPOConfig(beta=BETA, loss="apo_zero"),
    "apo_down": DPOConfig(beta=BETA, loss="apo_down"),
    "discopop": DPOConfig(beta=BETA, loss="discopop", tau=0.05),
    "sigmoid_norm": DPOConfig(beta=BETA, length="mean"),
    "sigmoid_and_sft": DPOConfig(beta=BETA, nll=0.4, nll_mean="tokens"),
    "mpo": DPOConfig(beta=BETA, losses={"sigmoid": 0.8, "bco_pair": 0.2}, nll=1.0, nll_mean="tokens"),
    "mpo_weighted": DPOConfig(beta=BETA, losses={"sigmoid": 0.8, "bco_pair": 0.2}, on_policy=True),
    "many": DPOConfig(
        beta=BETA,
        losses={
            "sigmoid": 1.0,
            "ipo_norm": 0.3,
            "sigmoid_norm": 2.0,
            "hinge": 0.5,
            "aot": 0.7,
            "apo_zero": 1.5,
            "aot_unpaired": 0.9,
        },
    ),
    "ld": DPOConfig(beta=BETA, ld_alpha=0.5),
    "ld_aot": DPOConfig(beta=BETA, loss="aot", ld_alpha=0.5),
    "wpo": DPOConfig(beta=BETA, on_policy=True),
    "wpo_norm": DPOConfig(beta=BETA, length="mean", on_policy=True),
    "forward_kl": DPOConfig(beta=BETA, divergence="forward_kl"),
    "js": DPOConfig(beta=BETA, divergence="js"),
    "alpha": DPOConfig(beta=BETA, divergence="alpha", alpha=0.7),  # TRL's coefficient is 1 - alpha
    "cpo": CPOConfig(beta=BETA, nll=1.0, nll_mean="tokens"),
    "cpo_hinge": DPOConfig(beta=BETA, loss="hinge", reference_free=True),
    "cpo_ipo": IPOConfig(beta=BETA, reference_free=True, length="mean", nll=1.0, nll_mean="tokens"),
    "simpo": SimPOConfig(beta=2.0, gamma=0.7),
    "alphapo": SimPOConfig(beta=2.0, gamma=0.7, alpha=0.25),
    "alphapo_below_0": SimPOConfig(beta=2.0, gamma=0.7, alpha=-0.5),
    "tr_dpo": DPOConfig(beta=BETA, reference="ema", reference_rate=0.6),
    "tr_dpo_reset": DPOConfig(beta=BETA, reference="reset", reference_every=1),
    "bema_dpo": DPOConfig(
        beta=BETA,
        reference="bema",
        reference_every=1,
        reference_lag=3,
        reference_mean_power=0.4,
        reference_bias_power=0.7,
    ),
    "tr_ipo_aot": DPOConfig(beta=BETA, losses={"ipo_norm": 0.5, "aot": 1.0}, reference="ema", reference_rate=0.3),
    "tpo": TPOConfig(beta=BETA, nll=0.7, nll_mean="tokens"),
    "tpo_hinge": TPOConfig(beta=BETA, loss="hinge", nll_mean="tokens"),
    "tpo_ipo": TPOConfig(beta=BETA, loss="ipo", length="mean", nll_mean="tokens"),
    "tpo_l": TPOConfig(beta=2.0, length="mean", gamma=0.5, nll=0.7, nll_mean="tokens"),
}
RATED: dict[str, KTOConfig] = {
    "tr_kto": KTOConfig(beta=BETA, reference="ema"),
    "kto": KTOConfig(beta=BETA, good=1.2, bad=0.9),
    "kto_swapped": KTOConfig(beta=BETA),
    "apo_zero_unpaired": KTOConfig(beta=BETA, loss="apo_zero"),
}
ELSEWHERE = {"sft", "simpo_smoothed", "orpo", "completion", "text"}  # each has a test of its own


@pytest.fixture(scope="module")
def known() -> Iterator[dict[str, np.ndarray]]:
    with np.load(FIXTURE, allow_pickle=False) as file:
        yield dict(file)


def test_every_case_of_trl_has_its_counterpart() -> None:
    assert set(CASES) == set(PAIRWISE) | set(RATED) | ELSEWHERE
    assert FIXTURE.stat().st_size < 300_000


# --------------------------------------------------------------------------------- the same log-probs, the same loss


def stored_pairs(known: dict[str, np.ndarray], config: PairwiseConfig) -> Pairs:
    policy, reference = (torch.from_numpy(known[f"logp/{name}"]) for name in ("policy", "reference"))
    rows, imitated = parity.rows(known), imitated_reply(config)
    tokens = [torch.tensor([len(getattr(r, side)) for r in rows]) for side in ("chosen", "rejected", "gold")]
    ones = torch.ones(len(rows), dtype=torch.float64)
    ref = (reference[:, 0], reference[:, 1]) if config.needs_reference else (None, None)
    chosen, rejected, _ = tokens
    return Pairs(
        policy[:, 0], policy[:, 1], policy[:, imitated], chosen, rejected, tokens[imitated], ones, 0 * ones, *ref
    )


ON_TOKENS = {"bema_dpo", "tr_dpo", "tr_dpo_reset", "tr_ipo_aot", "ld", "ld_aot", "wpo", "wpo_norm", "mpo_weighted"}


@pytest.mark.parametrize("name", sorted(set(PAIRWISE) - ON_TOKENS - {"alpha"}))  # alpha is float32
def test_the_loss_of_the_same_log_probs_is_trls(known: dict[str, np.ndarray], name: str) -> None:
    config = PAIRWISE[name]
    pairs = stored_pairs(known, config)
    loss = preference_loss(pairs, config).mean()
    if isinstance(config, DPOConfig) and config.coupled:
        logp, reference = (torch.from_numpy(known[f"logp/{side}"]) for side in ("policy", "reference"))
        loss = loss + coupled_loss(logp[:, :2], reference[:, :2], config).mean()
    if config.nll:
        loss = loss + config.nll * nll_loss(pairs, config, step_rows=5, step_tokens=int(pairs.imitated_tokens_B.sum()))
    assert loss.item() == pytest.approx(float(known[f"float64/{name}/loss"]), rel=1e-10)


# ---------------------------------------------------------------------------- the same weights, the same gradient


@dataclass(frozen=True)
class Bare:
    """A model as the trainers see one, without a tokenizer: the rows are tokens already."""

    module: Any
    name: str = "parity"
    lineage: str = "wt:parity"
    context: int | None = None
    tokenizer: Any = None

    def with_weights(self, module: Any) -> Bare:
        return Bare(module)


class PlainSGD:
    """Stands in for `loop.Updates`: steps of SGD, the last with learning rate 1 and its gradient kept."""

    last: PlainSGD

    def __init__(self, module: Any, rows: Rows, config: Any, run: Any) -> None:
        PlainSGD.last = self
        self.module, self.run = module.eval(), run
        self.before = parity.flat(module).double()
        self.tensors: dict[str, Any] = {}
        self.on_update = lambda: None
        self.records: list[StepRecord] = []
        self.loss, self.batches, self.sums = 0.0, 0, {}
        self.settled = True

    def finish(self) -> None: ...

    @property
    def done(self) -> int:
        return len(self.records)

    def step(self, loss: Any, batch: Any, sums: dict[str, float]) -> None:
        if batch.step and not self.batches:
            self.before = parity.flat(self.module).double()
        loss.backward()
        self.loss += loss.item()
        self.batches += 1
        for key, value in sums.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
        if batch.last:
            self.gradient = torch.cat([p.grad.flatten() for p in self.module.parameters()])
            last = batch.step + 1 == batch.steps
            torch.optim.SGD(self.module.parameters(), lr=1.0 if last else parity.FIRST_RATE).step()
            self.records.append(
                StepRecord(0, 1, self.loss, 0.0, 1.0, batch.step_rows, batch.step_tokens, 0.0, self.sums)
            )
            self.on_update()
            if not last:
                self.module.zero_grad()
                self.loss, self.batches, self.sums = 0.0, 0, {}


def models(known: dict[str, np.ndarray], case: str, dtype: str) -> tuple[Any, Any]:
    policy, reference = (parity.model(known[name], dtype) for name in ("policy", "reference"))
    return (reference, policy) if CASES[case].swap else (policy, reference)


def rows_of(trees: list[Tree]) -> Rows:
    return Rows(tuple(trees), tuple(range(len(trees))), tuple(f"row {i}" for i in range(len(trees))))


def pair_rows(known: dict[str, np.ndarray]) -> Rows:
    return rows_of([Tree(r.prompt, (r.chosen, r.rejected)) for r in parity.rows(known)])


def triple_rows(known: dict[str, np.ndarray]) -> Rows:
    return rows_of([Tree(r.prompt, (r.chosen, r.rejected, r.gold)) for r in parity.rows(known)])


def compare(known: dict[str, np.ndarray], case: str, dtype: str, loss: float, gradient: Any, step: Any) -> None:
    """Loss, gradient (norm and direction) and the SGD step against TRL's, relative to the gradient's norm."""
    at = f"{dtype}/{case}"
    norm, limit = float(known[f"{at}/norm"]), LIMIT[dtype]
    assert norm > 1e-3, "a gradient of nothing compares with anything"
    assert loss == pytest.approx(float(known[f"{at}/loss"]), rel=limit, abs=limit)
    assert float(gradient.double().norm()) == pytest.approx(norm, rel=limit)
    for ours, theirs in ((gradient, "gradient"), (step, "step")):
        off = parity.projected(ours) - known[f"{at}/{theirs}"]
        assert math.sqrt(float((off**2).mean())) / norm <= limit, f"the {theirs} is another"


def train(
    monkeypatch: pytest.MonkeyPatch, known: dict[str, np.ndarray], case: str, dtype: str, config: Any, tokens: int
) -> PlainSGD:
    """One step of the trainer itself on the fixture's batch, from the policy, against the fixture's reference."""
    policy, reference = models(known, case, dtype)
    steps = 1 if config.reference_pace is None else 2
    config = config.model_copy(update={"steps": steps, "kl_samples": 0, "tokens_per_batch": tokens})

    def against(model: Any, rows: Rows, tokens_per_batch: int, cache: Any, sums: Any = None, what: str = "") -> Any:
        scored = score(reference, rows.trees)
        return (scored.sum_R() if sums is None else sums(scored)).view(len(rows.trees), -1)

    for module in (preference, unpaired):
        monkeypatch.setattr(module, "Updates", PlainSGD)
        monkeypatch.setattr(module, "cached_logprobs", against)
        monkeypatch.setattr(module, "Reference", lambda model, config: standing(reference, model, config))
    for module in (loop, preference, unpaired):  # TRL's order, which KTO's mismatched pairs depend on
        monkeypatch.setattr(module, "step_rows", lambda rows, config: [list(range(len(rows.trees)))] * steps)
    if isinstance(config, PairwiseConfig):
        monkeypatch.setattr(preference, "pair_rows", lambda *_, **__: pair_rows(known))
        monkeypatch.setattr(preference, "triple_rows", lambda *_, **__: triple_rows(known))
        words = [Preference((user(str(i)),), (assistant("a"),), (assistant("b"),)) for i in range(parity.PAIRS)]
        preference.train_pairs(Bare(policy), words, config)
    else:
        rated = parity.rated(known)
        monkeypatch.setattr(unpaired, "rated_rows", lambda *_, **__: rows_of([Tree(p, (y,)) for p, y, _ in rated]))
        thumbs = [Rated((user("?"),), (assistant("a"),), good) for _, _, good in rated]
        unpaired.train_kto(Bare(policy), thumbs, config)
    assert (PlainSGD.last.batches > 1) == (tokens == SEVERAL)
    return PlainSGD.last


def standing(where: Any, policy: Any, config: Any) -> Reference:
    """The reference that follows the policy from the policy's start, and stands somewhere else until it moves."""
    if config.reference_pace is None:
        return Reference(Bare(where), config)
    made = Reference(policy, config)
    made.module.load_state_dict(where.state_dict())
    return made


@pytest.mark.parametrize("dtype", parity.DTYPES)
@pytest.mark.parametrize("name", sorted(PAIRWISE) + sorted(RATED))
def test_gradient_and_step_are_trls(
    monkeypatch: pytest.MonkeyPatch, known: dict[str, np.ndarray], name: str, dtype: str
) -> None:
    if dtype not in CASES[name].dtypes:
        pytest.skip("TRL cannot compute it in this type")
    for tokens in (ONE_BATCH, SEVERAL):
        got = train(monkeypatch, known, name, dtype, (PAIRWISE | RATED)[name], tokens)
        compare(known, name, dtype, got.loss, got.gradient, parity.flat(got.module).double() - got.before)


def test_both_kinds_of_reference_point_are_among_the_cases(
    monkeypatch: pytest.MonkeyPatch, known: dict[str, np.ndarray]
) -> None:
    """One above 0, and one that the clamp holds at 0."""
    points = [
        train(monkeypatch, known, name, "float64", RATED[name], ONE_BATCH).records[0].mean("baseline", "rows")
        for name in ("kto", "kto_swapped")
    ]
    assert min(points) == 0.0 < max(points)


@pytest.mark.parametrize("dtype", parity.DTYPES)
@pytest.mark.parametrize("case", ["completion", "text", "sft"])
def test_sft_on_replies_and_on_whole_texts_is_trls(known: dict[str, np.ndarray], case: str, dtype: str) -> None:
    """TRL's SFT, and the `sft` term of its DPO: the mean over the step's tokens."""
    policy, _ = models(known, case, dtype)
    rows = rows_of([Tree(r.prompt, (r.chosen,)) for r in parity.rows(known)])
    rows = whole_texts(rows) if case == "text" else rows
    logp = reply_logprobs(policy, rows.trees)
    gradient, loss = gradient_of(policy, sft_nll(logp.logp_N, tokens=int(logp.count_R.sum())))
    compare(known, case, dtype, loss, gradient, -gradient)


def gradient_of(model: Any, loss: Any) -> tuple[Any, float]:
    model.zero_grad()
    loss.backward(retain_graph=True)
    return torch.cat([p.grad.flatten() for p in model.parameters()]), loss.item()


# ------------------------------------------------------------------------------------ where we differ on purpose


@pytest.mark.parametrize("dtype", parity.DTYPES)
def test_orpo_imitates_the_reply_where_trl_imitates_the_prompt_too(
    monkeypatch: pytest.MonkeyPatch, known: dict[str, np.ndarray], dtype: str
) -> None:
    config = ORPOConfig(odds=0.25, nll_mean="tokens")
    policy, _ = models(known, "orpo", dtype)
    trees = pair_rows(known)
    logp = reply_logprobs(policy, trees.trees)
    labels = preference.labels_of([Preference((), (), ())] * parity.PAIRS, trees, config)
    odds = preference_loss(pairs_of(logp, range(parity.PAIRS), labels, None, config), config).mean()
    texts = reply_logprobs(policy, whole_texts(rows_of([Tree(t.prompt, t.replies[:1]) for t in trees.trees])).trees)
    whole = sft_nll(texts.logp_N, tokens=len(texts.logp_N))
    theirs, loss = gradient_of(policy, odds + whole)
    compare(known, "orpo", dtype, loss, theirs, -theirs)  # their convention, from our parts

    ours = train(monkeypatch, known, "orpo", dtype, config, ONE_BATCH).gradient
    replies = reply_logprobs(policy, [Tree(t.prompt, t.replies[:1]) for t in trees.trees])
    reply, _ = gradient_of(policy, sft_nll(replies.logp_N, tokens=len(replies.logp_N)))
    text, _ = gradient_of(policy, whole)
    off = (ours - (theirs - text + reply)).norm() / ours.norm()
    assert off < LIMIT[dtype]  # ours: the same but for the prompt
    assert (ours - theirs).norm() > 0.1 * ours.norm()


def test_ipo_takes_whole_log_ratios_where_trl_takes_them_per_token(known: dict[str, np.ndarray]) -> None:
    pairs = stored_pairs(known, IPOConfig(beta=BETA))
    assert pairs.ref_chosen_B is not None and pairs.ref_rejected_B is not None
    c, r = pairs.chosen_B - pairs.ref_chosen_B, pairs.rejected_B - pairs.ref_rejected_B
    printed = ((c - r - 1 / (2 * BETA)) ** 2).mean().item()
    per_token = ((c / pairs.chosen_tokens_B - r / pairs.rejected_tokens_B - 1 / (2 * BETA)) ** 2).mean().item()
    assert preference_loss(pairs, IPOConfig(beta=BETA)).mean().item() == pytest.approx(printed, rel=1e-12)
    assert float(known["float64/ipo/loss"]) == pytest.approx(per_token, rel=1e-10)
    assert printed != pytest.approx(per_token, rel=0.01)


def test_simpo_with_soft_labels_keeps_the_margin_on_the_side_that_wins(known: dict[str, np.ndarray]) -> None:
    config = SimPOConfig(beta=2.0, gamma=0.7)
    pairs = stored_pairs(known, config)
    c, r = pairs.chosen_B / pairs.chosen_tokens_B, pairs.rejected_B / pairs.rejected_tokens_B
    z = 2.0 * (c - r) - 0.7
    theirs = (-0.8 * torch.nn.functional.logsigmoid(z) - 0.2 * torch.nn.functional.logsigmoid(-z)).mean()
    assert theirs.item() == pytest.approx(float(known["float64/simpo_smoothed/loss"]), rel=1e-10)
    # a tie: theirs is at rest where chosen leads by the margin, ours where neither leads
    score_B = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    half = torch.full((1,), 0.5, dtype=torch.float64)
    losses.soft(partial(losses.simpo, beta=2.0, gamma=0.7), score_B, torch.zeros(1), half).sum().backward()
    assert score_B.grad is not None and abs(score_B.grad.item()) < 1e-12


def test_length_desensitised_sums_count_the_tail_half(known: dict[str, np.ndarray]) -> None:
    """Against a loop over tokens."""
    policy, _ = models(known, "ld", "float64")
    trees = pair_rows(known).trees
    got = reply_sums(reply_logprobs(policy, trees), tail_weight(PAIRWISE["ld"])).tolist()
    for row, tree in enumerate(trees):
        shared = min(map(len, tree.replies))
        for side, reply in enumerate(tree.replies):
            logits = policy(torch.tensor([tree.prompt + reply])).logits[0].log_softmax(-1)
            each = [logits[len(tree.prompt) - 1 + i, token].item() for i, token in enumerate(reply)]
            naive = sum(each[:shared]) + 0.5 * sum(each[shared:])
            assert got[2 * row + side] == pytest.approx(naive, abs=1e-9)


# --------------------------------------------------------------------------------------------- where TRL is installed


def test_trl_still_computes_what_the_fixture_holds(known: dict[str, np.ndarray]) -> None:
    pytest.importorskip("trl", reason="TRL is not installed: the fixture is compared as it stands")
    from tests.fixtures.make_trl_parity import make

    made = make({name: known[name] for name in parity.first_inputs()})
    assert set(made) == set(known)
    for name, value in made.items():
        limit = 1e-5 if name.startswith("float32") else 1e-10
        assert np.allclose(value, known[name], rtol=limit, atol=limit * (np.abs(known[name]).max() + 1)), name
