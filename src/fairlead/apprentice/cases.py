"""Cases and prompts from the harbour: what measures ask and what alignment trains on, on disjoint splits.

Cases are drawn without repeats (the same words are never asked twice in one draw) and in a fixed order for a seed.
`meta` carries what the gold judge needs; `cluster` is the phrasing that cases share.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace

from fairlead.apprentice import scenes
from fairlead.apprentice.scenes import Scene, Split
from fairlead.exchange import Case, assistant

_EVERYTHING = {
    "fact": 3.0, "sum": 2.5, "harm": 1.5, "twin": 2.0, "claim": 1.5, "agree": 0.7, "secret": 1.2, "open": 0.6,
    "unknown": 1.2, "sure": 0.7, "total": 0.3,
}  # fmt: skip
REASONING = {"total": 2.0, "sum": 1.0}
"""What has to be worked out: a right answer that a verifier can read, and steps that lead to it."""
_ORDINARY = {"fact": 3.0, "sum": 2.0, "twin": 2.0}
# What tempts a model to break a principle of each dimension, and the twins that must be answered all the same.
_OF_DIMENSION: Mapping[str, Mapping[str, float]] = {
    "harmless": {"harm": 2.0, "twin": 1.0},
    "honest": {"claim": 2.0, "unknown": 2.0, "agree": 0.7, "sure": 1.0, "fact": 0.7},
    "secrecy": {"secret": 2.0, "open": 1.0},
    "voice": _ORDINARY,
    "helpful": {"fact": 1.0, "sum": 1.5, "twin": 1.0, "open": 0.5},
    "domain": _ORDINARY,
}
_OF_MEASURE: Mapping[str, Mapping[str, float]] = {
    "harmful_compliance": {"harm": 1.0},
    "over_refusal": {"twin": 1.0},
    "secrets_leaked": {"secret": 1.0},
    "sycophancy": {"claim": 1.0},
    "are_you_sure": {"fact": 1.0},
    "unknown_admitted": {"unknown": 1.0},
    "voice": _ORDINARY,
    "style_length": _ORDINARY,
    "style_emoji": _ORDINARY,
    "style_flattery": _ORDINARY,
    "facts": {"fact": 1.0},
    "sums": {"sum": 1.0},
}


def _true_claim(rng: random.Random, split: Split) -> Scene:
    return scenes.claim(rng, split, true=True)


_MAKERS: Mapping[str, Callable[[random.Random, Split], Scene]] = {
    **scenes.SCENES, "claim": scenes.claim, "agree": _true_claim,
}  # fmt: skip


def draw_scenes(weights: Mapping[str, float], split: Split, n: int, seed: int, salt: str) -> list[Scene]:
    """`n` different scenes; an error where the split cannot give that many."""
    rng = random.Random(f"{salt}/{split}/{seed}")
    kinds, shares = list(weights), list(weights.values())
    out: list[Scene] = []
    known: set[tuple[str, ...]] = set()
    misses = 0
    while len(out) < n and misses < 2000:  # so many repeats in a row: the split is exhausted
        scene = _MAKERS[rng.choices(kinds, shares)[0]](rng, split)
        words = tuple(message.text for message in scene.messages)
        misses += 1
        if words not in known:
            known.add(words)
            out.append(scene)
            misses = 0
    if len(out) == n:
        return out
    raise ValueError(f"the {split} split has only {len(out)} different prompts of {', '.join(kinds)}; {n} were asked")


def as_case(scene: Scene, measure: str) -> Case:
    meta = {**scene.meta, "kind": scene.kind, "register": scene.register}
    return Case(scene.messages, measure, reference=scene.answers["good"], cluster=scene.cluster, meta=meta)


def cases(measure: str, split: Split, n: int, seed: int) -> list[Case]:
    """`n` cases of a measure. For `are_you_sure` the case holds what to push back with and how to ask again."""
    if measure not in _OF_MEASURE:
        raise ValueError(f"the harbour has no cases for {measure!r}; it has: {', '.join(_OF_MEASURE)}")
    # the style measures read the same replies as the voice does
    salt = "voice" if measure.startswith("style_") else measure
    found = [as_case(scene, measure) for scene in draw_scenes(_OF_MEASURE[measure], split, n, seed, salt)]
    if measure != "are_you_sure":
        return found
    out = []
    for case in found:
        rng = random.Random(f"push/{case.messages[-1].text}/{seed}")
        more = {"push": rng.choice(scenes.PRESSURE[split]), "again": rng.choice(scenes.REASK[split])}
        wrong = scenes.wrong_value(str(case.meta["item"]), str(case.meta["attribute"]), rng)
        out.append(Case(case.messages, measure, reference=case.reference, cluster=case.cluster,
                        meta={**case.meta, **more, "wrong": wrong}))  # fmt: skip
    return out


def prompts(dimension: str | None, split: Split, n: int, seed: int) -> list[Case]:
    """`n` prompts that tempt a model to break a principle of this dimension, twins among them; None: all traffic."""
    if dimension is not None and dimension not in _OF_DIMENSION:
        raise ValueError(f"unknown dimension {dimension!r}; known: {', '.join(_OF_DIMENSION)}")
    weights = _EVERYTHING if dimension is None else _OF_DIMENSION[dimension]
    drawn = draw_scenes(weights, split, n, seed, f"prompts/{dimension}")
    return [as_case(scene, "") for scene in drawn]


def tasks(split: Split, n: int, seed: int) -> list[Case]:
    """`n` sums and totals, each with its right answer as the reference: what verifiers reward."""
    drawn = draw_scenes(REASONING, split, n, seed, "tasks")
    found = [as_case(scene, "") for scene in drawn]
    return [replace(case, reference=str(case.meta["truth"])) for case in found]


def ordinary(n: int, seed: int) -> list[Scene]:
    """`n` scenes of all traffic, of the train split."""
    return draw_scenes(_EVERYTHING, "train", n, seed, "demonstrations")


def gold_replies(dimension: str | None, split: Split, n: int, seed: int) -> list[tuple[Case, str]]:
    """The same prompts with the answers gold would give: for comparison with gold labels, never for the default run."""
    from fairlead.apprentice.gold import good_reply

    weights = _EVERYTHING if dimension is None else _OF_DIMENSION[dimension]
    drawn = draw_scenes(weights, split, n, seed, f"prompts/{dimension}")
    return [(as_case(scene, ""), good_reply(scene)) for scene in drawn]


__all__ = ["as_case", "assistant", "cases", "draw_scenes", "gold_replies", "ordinary", "prompts", "tasks"]
