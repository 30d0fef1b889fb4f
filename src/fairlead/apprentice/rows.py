"""A row of the base model's reading: one chat and the turns in it that are learnt, and a scene to make one of."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from fairlead.apprentice import scenes
from fairlead.apprentice.scenes import Scene
from fairlead.exchange import Message


@dataclass(frozen=True, slots=True)
class Row:
    """One chat; `learnt` are the indices of the assistant turns that carry loss."""

    messages: tuple[Message, ...]
    learnt: tuple[int, ...]


def row(*messages: Message) -> Row:
    return Row(messages, (len(messages) - 1,))


def drawn_scene(rng: random.Random, weights: Mapping[str, float]) -> Scene:
    """A scene of the train split, its kind drawn by weight."""
    kind = rng.choices(list(weights), list(weights.values()))[0]
    return scenes.SCENES[kind](rng, "train")
