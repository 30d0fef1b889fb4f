"""How far a trained model moved from its reference: KL(policy || reference), from the policy's own samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fairlead.engine.decode import generate
from fairlead.engine.layout import Tree
from fairlead.engine.logprobs import score
from fairlead.methods.rows import Trainable
from fairlead.models.render import frame


@dataclass(frozen=True, slots=True)
class KL:
    """An estimate in nats per reply: mean over n sampled replies, and its standard error."""

    value: float
    error: float
    n: int


def kl_to_reference(
    policy: Trainable,
    reference: Trainable,
    prompts: Sequence[tuple[int, ...]],
    n: int,
    seed: int,
    *,
    longest: int = 128,
) -> KL:
    """KL(policy || reference) in nats per reply, over replies of at most `longest` tokens (or the context's end).

    The plain estimator log pi(y) - log ref(y), y drawn from pi at temperature 1 without truncation of its
    distribution: the fixed replies of a data set would estimate something else. One reply to each of n prompts, drawn
    evenly. A sample mean may come out below 0; KL itself cannot.
    """
    generator = np.random.default_rng(seed)
    chosen = generator.choice(len(prompts), size=n, replace=n > len(prompts))
    asked = [prompts[i] for i in chosen.tolist()]
    stops = sorted(frame(policy.tokenizer).stops)
    drawn = generate(policy.module, asked, n=1, max_tokens=longest, temperature=1.0, eos_ids=stops, seed=seed)
    trees = [Tree(tuple(p), (tuple(c[0].tokens),)) for p, c in zip(asked, drawn, strict=True)]
    # Every process of several scores all of its own samples: they need not agree with another's to the last token.
    now, was = (score(model.module, trees, 16_384).sum_R() for model in (policy, reference))
    ratio = (now - was).double().numpy()
    error = float(ratio.std(ddof=1) / math.sqrt(len(ratio))) if len(ratio) > 1 else math.nan
    return KL(float(ratio.mean()), error, len(ratio))
