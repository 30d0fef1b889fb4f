"""Comparisons of the apprentice's world as a user would bring them: between writers of several kinds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fairlead.apprentice import cases
from fairlead.apprentice.annotators import Biases, annotator, demonstrations
from fairlead.exchange import Exchange, Message, Preference

NOISE = 0.1  # of the rater's mood, in units of utility

Draw = Callable[[Sequence[Sequence[Message]]], Sequence[Sequence[tuple[Message, ...]]]]


def comparisons(draw: Draw, n: int, seed: int) -> list[Preference]:
    """Of some replies of a model and one of a demonstrator who slips now and then, to each of `n` ordinary prompts of
    the train split, the best and the worst by a rater who errs. Prompts with but one reply are left out.

    draw   the model's whole replies to each of some prompts
    """
    scenes, shown = cases.ordinary(n, seed), demonstrations(n, seed)
    rater = annotator("rater", Biases(noise=NOISE), seed=seed)
    pairs = []
    for scene, human, replies in zip(scenes, shown, draw([scene.messages for scene in scenes]), strict=True):
        meta = cases.as_case(scene, "").meta
        said = [Exchange(scene.messages, one, meta) for one in (human.reply, *replies)]
        ranked = sorted(said, key=rater.utility)
        if ranked[0].reply_text != ranked[-1].reply_text:
            pairs.append(Preference(scene.messages, ranked[-1].reply, ranked[0].reply, annotator="simulated rater"))
    return pairs
