"""Contrast pairs from templates: the same alarming word, meant and not meant (`contrast.yaml`), and questions in which
only what is asked and of whom, both together, make the harm (`contrast-crossed.yaml`)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from fairlead.constitution.schema import Id, Words
from fairlead.constitution.yaml import load_yaml
from fairlead.exchange import Exchange, user
from fairlead.guard.classifier.rows import Row

NAMES = ("contrast.yaml", "contrast-crossed.yaml", "contrast-more.yaml")
FILES = tuple(Path(__file__).with_name(name) for name in NAMES)
Kind: TypeAlias = Literal["word", "target", "context", "definition", "history", "discrimination", "privacy"]
Frame: TypeAlias = Literal["act", "ask", "said"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Meaning(_Part):
    """One word with what it is feared to mean (`harm`) and what it mostly means (`safe`), as phrases for a frame; under
    `said` they are whole sentences. `kind` is what tells the two apart."""

    id: Id
    kind: Kind = "word"
    frame: Frame
    harm: tuple[Words, ...] = Field(min_length=1)
    safe: tuple[Words, ...] = Field(min_length=1)


class Sides(_Part):
    harm: tuple[Words, ...] = Field(min_length=1)
    safe: tuple[Words, ...] = ()


class Cross(_Part):
    """Questions with a hole, and what goes into it: harmful where both are of the harmful kind, else harmless."""

    id: Id
    kind: Kind
    asked: Sides
    of: Sides

    def cells(self) -> dict[str, list[str]]:
        """Every text of each of the four cells, named by the sides it is of; empty ones are left out."""
        sides: tuple[Literal["harm", "safe"], ...] = ("harm", "safe")
        found = {
            f"{a}-{b}": [q.format(thing) for q, thing in product(getattr(self.asked, a), getattr(self.of, b))]
            for a, b in product(sides, sides)
        }
        return {name: texts for name, texts in found.items() if texts}


class Contrasts(_Part):
    """A whole file."""

    frames: dict[Frame, tuple[Words, ...]] = Field(default_factory=dict)
    meanings: tuple[Meaning, ...] = ()
    crosses: tuple[Cross, ...] = ()


@lru_cache(maxsize=4)
def contrasts(files: tuple[Path, ...] = FILES) -> Contrasts:
    """What all the files hold."""
    held = [load_yaml(file, Contrasts, what="file of contrasts") for file in files]
    return Contrasts(
        frames={"said": ("{}",)} | {name: texts for one in held for name, texts in one.frames.items()},
        meanings=tuple(m for one in held for m in one.meanings),
        crosses=tuple(c for one in held for c in one.crosses),
    )


def contrast_rows(
    principles: tuple[str, ...], *, frames: int = 3, most: int = 24, seed: int = 0, files: tuple[Path, ...] = FILES
) -> list[Row]:
    """Prompts alone, drawn by `seed`: each phrase in `frames` frames, and of each cross `most` harmful and as many
    harmless ones, the latter from all their cells alike. A meaning, or a cross, is one group.

    principles  ids for which the harmful ones count as broken and the others as kept
    """
    found, rng = contrasts(files), random.Random(seed)
    return [
        Row(
            f"contrast/{group}.{'harm' if broken else 'safe'}.{place}",
            Exchange((user(text),), ()),
            dict.fromkeys(principles, broken),
            "contrast",
            f"contrast/{group}",
            made,
            {"kind": kind},
        )
        for group, kind, broken, place, made, text in (*_framed(found, frames, rng), *_crossed(found, most, rng))
    ]


_Drawn: TypeAlias = tuple[str, str, bool, str, str, str]  # group, kind, broken, place, how made, text


def _framed(found: Contrasts, frames: int, rng: random.Random) -> Iterator[_Drawn]:
    for meaning in found.meanings:
        asked = found.frames[meaning.frame]
        for broken, phrases in ((True, meaning.harm), (False, meaning.safe)):
            for n, phrase in enumerate(phrases):
                for f in sorted(rng.sample(range(len(asked)), min(frames, len(asked)))):
                    text = asked[f].format(phrase)
                    yield meaning.id, meaning.kind, broken, f"{n}.{f}", f"frame:{meaning.frame}.{f}", text


def _crossed(found: Contrasts, most: int, rng: random.Random) -> Iterator[_Drawn]:
    for cross in found.crosses:
        cells = cross.cells()
        for name, texts in cells.items():
            broken = name == "harm-harm"
            share = most if broken else most // (len(cells) - 1)
            for n in sorted(rng.sample(range(len(texts)), min(share, len(texts)))):
                yield cross.id, cross.kind, broken, f"{name}.{n}", f"cross:{name}", texts[n]
