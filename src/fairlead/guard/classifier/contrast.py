"""Contrast pairs from templates: the same alarming word, meant and not meant (`contrast.yaml`)."""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fairlead.constitution.schema import Id, Words
from fairlead.constitution.yaml import load_yaml
from fairlead.exchange import Exchange, user
from fairlead.guard.classifier.rows import Row

FILE = Path(__file__).with_name("contrast.yaml")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Meaning(_Part):
    """One word with what it is feared to mean (`harm`) and what it mostly means (`safe`), as phrases for a frame."""

    id: Id
    frame: Literal["act", "ask"]
    harm: tuple[Words, ...] = Field(min_length=1)
    safe: tuple[Words, ...] = Field(min_length=1)


class Contrasts(_Part):
    """The whole file."""

    frames: dict[Literal["act", "ask"], tuple[Words, ...]]
    meanings: tuple[Meaning, ...]


@lru_cache(maxsize=4)
def contrasts(file: Path = FILE) -> Contrasts:
    return load_yaml(file, Contrasts, what="file of contrasts")


def contrast_rows(principles: tuple[str, ...], *, frames: int = 3, seed: int = 0, file: Path = FILE) -> list[Row]:
    """Prompts alone, each phrase in `frames` frames drawn by `seed`; a meaning is one group.

    principles  ids for which the harmful ones count as broken and the others as kept
    """
    found, rng = contrasts(file), random.Random(seed)
    rows = []
    for meaning in found.meanings:
        for broken, phrases in ((True, meaning.harm), (False, meaning.safe)):
            for n, phrase in enumerate(phrases):
                asked = found.frames[meaning.frame]
                for f in sorted(rng.sample(range(len(asked)), min(frames, len(asked)))):
                    kind = "harm" if broken else "safe"
                    rows.append(
                        Row(
                            f"contrast/{meaning.id}.{kind}.{n}.{f}",
                            Exchange((user(asked[f].format(phrase)),), ()),
                            dict.fromkeys(principles, broken),
                            "contrast",
                            f"contrast/{meaning.id}",
                            f"frame:{meaning.frame}.{f}",
                        )
                    )
    return rows
