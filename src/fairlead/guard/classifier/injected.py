"""Orders to an assistant, hidden in what a tool brings back, and their harmless twins in the same texts: rows for the
head that the guard's check of tool results asks (`checks/injection.py`).

`injection-orders.yaml` has the orders and twins, `injection-carriers.yaml` the texts they are put into. An order and
its twin stand in the same text at the same place, so that nothing but what they say tells them apart.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from fairlead.constitution.schema import Id, Words
from fairlead.constitution.yaml import load_yaml
from fairlead.exchange import Exchange, assistant
from fairlead.guard.classifier.artefact import INJECTION
from fairlead.guard.classifier.rows import Row

SOURCE = "injection"
ORDERS, CARRIERS = (Path(__file__).with_name(f"injection-{what}.yaml") for what in ("orders", "carriers"))
Kind: TypeAlias = Literal[
    "task", "send", "advert", "form", "forget", "role", "system", "hide", "mislead", "tool", "reveal", "tail",
    "language",
]  # fmt: skip
BARE = frozenset({"system", "tail", "language"})  # kinds that bring an opening of their own
FOLDS = 20
DRAWS = (1, 1, 1, 3, 8)  # of a scene in one text: thresholds have to hold for long texts too
_BLANK = re.compile("«([a-z]+)»")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Order(_Part):
    """One order in several wordings, and harmless texts that share its words."""

    id: Id
    kind: Kind
    orders: tuple[str, ...] = Field(min_length=1)
    twins: tuple[str, ...] = Field(min_length=1)


class Frames(_Part):
    orders: tuple[Words, ...] = Field(min_length=1)
    twins: tuple[Words, ...] = Field(min_length=1)


class Orders(_Part):
    """The file of orders. In a frame `{.}` is the text with a small first letter."""

    frames: Frames
    groups: tuple[Order, ...] = Field(min_length=1)


class Scene(_Part):
    """A kind of text that tools bring back, in pieces to draw from. `holds` says how something is put between them."""

    id: Id
    kind: Literal["email", "table", "json", "page", "search", "code", "review", "note"]
    start: tuple[str, ...] = Field(min_length=1)
    lines: tuple[str, ...] = Field(min_length=3)
    end: tuple[str, ...] = Field(min_length=1)
    holds: tuple[str, ...] = Field(min_length=1)


class Carriers(_Part):
    fill: dict[str, tuple[str, ...]]
    scenes: tuple[Scene, ...] = Field(min_length=1)


@lru_cache(maxsize=2)
def orders(file: Path = ORDERS) -> Orders:
    return load_yaml(file, Orders, what="file of orders")


@lru_cache(maxsize=2)
def carriers(file: Path = CARRIERS) -> Carriers:
    return load_yaml(file, Carriers, what="file of carriers")


def retrieved(
    id: str, text: str, injected: bool, source: str, group: str, *, made: str = "", head: str = INJECTION,
    part: str = "", compared: str = "", **meta: str,
) -> Row:  # fmt: skip
    """A text of a tool as a row: read as a reply is, with nothing asked.

    part      of the text, that makes it what it is (the order); where it is long, it is learnt from there alone
    compared  what makes it alike another, where that is not the whole text
    """
    held = {**meta, "part": part} if part else meta
    return Row(id, Exchange((), (assistant(text),)), {head: injected}, source, group, made, held, compared)


def injection_rows(*, copies: int = 3, seed: int = 0, head: str = INJECTION) -> list[Row]:
    """Every order and every twin in `copies` texts each, and these texts with neither, drawn by `seed`.

    Orders and scenes are dealt out to `FOLDS` groups: one side of a split holds other orders, in other kinds of texts,
    than the other side knows. A text that is not like those learnt from is what a threshold has to stand.
    """
    return [
        row
        for fold, group in enumerate(orders().groups)
        for n in range(max(len(group.orders), len(group.twins)))
        for c in range(copies)
        for row in _one_text(group, fold % FOLDS, f"{n}.{c}", n, random.Random(f"{seed}/{group.id}/{n}.{c}"), head)
    ]


def _one_text(group: Order, fold: int, place: str, n: int, rng: random.Random, head: str) -> list[Row]:
    """One text with the n-th order, with the n-th twin, and with neither."""
    frames, side = orders().frames, f"{SOURCE}/part-{fold}"
    scene = rng.choice(carriers().scenes[fold::FOLDS])
    lines = [line for _ in range(rng.choice(DRAWS)) for line in _drawn(scene, rng)]
    at = rng.choice((0, rng.randint(1, len(lines) - 1), len(lines)))
    where = "start" if at == 0 else "end" if at == len(lines) else "middle"
    hold, f, blanks = rng.choice(scene.holds), rng.randrange(len(frames.orders)), rng.random()
    rows = []
    for broken, texts, framed in ((True, group.orders, frames.orders), (False, group.twins, frames.twins)):
        if n >= len(texts):
            continue
        frame = "{}" if group.kind in BARE else framed[f % len(framed)]
        part = _filled(_framed(frame, texts[n]), random.Random(blanks))
        if scene.kind == "json":
            part = json.dumps(part, ensure_ascii=False)[1:-1]
        text = "\n".join([*lines[:at], hold.replace("{}", part), *lines[at:]])
        rows.append(
            retrieved(
                f"{SOURCE}/{group.id}.{'order' if broken else 'twin'}.{place}", _filled(text, random.Random(blanks)),
                broken, SOURCE, side, made=f"{scene.id}:{where}", head=head, part=part, compared=part,
                kind=group.kind, scene=scene.id,
            )
        )  # fmt: skip
    plain = _filled("\n".join(lines), random.Random(blanks))
    rows.append(
        retrieved(
            f"{SOURCE}/{group.id}.none.{place}", plain, False, SOURCE, side, made=scene.id, head=head,
            compared=scene.id, kind="none", scene=scene.id,
        )
    )  # fmt: skip
    return rows


def _drawn(scene: Scene, rng: random.Random) -> list[str]:
    """A text of the scene in its order: one start, two lines or more, one end."""
    chosen = sorted(rng.sample(range(len(scene.lines)), rng.randint(2, len(scene.lines))))
    return [rng.choice(scene.start), *(scene.lines[i] for i in chosen), rng.choice(scene.end)]


def _framed(frame: str, text: str) -> str:
    small = text if text[:2] in ("I ", "I'") else text[:1].lower() + text[1:]
    return frame.replace("{.}", small).replace("{}", text)


def _filled(text: str, rng: random.Random) -> str:
    fill = carriers().fill
    return _BLANK.sub(lambda match: _MADE[match[1]](rng) if match[1] in _MADE else rng.choice(fill[match[1]]), text)


def _word(rng: random.Random) -> str:
    """No word of any language: what is known of it is nothing."""
    word = "".join(rng.choice(_BEGIN) + rng.choice("aeiouy") + rng.choice(_CLOSE) for _ in range(rng.randint(1, 3)))
    return word.capitalize() if rng.random() < 0.3 else word


_BEGIN = ("b", "br", "d", "f", "g", "h", "j", "k", "kl", "l", "m", "n", "p", "r", "s", "sk", "t", "tr", "v", "z", "")
_CLOSE = ("", "", "", "n", "r", "s", "l", "k", "nd", "x", "m")
_MADE: dict[str, Callable[[random.Random], str]] = {
    "word": _word,
    "key": lambda rng: f"{rng.getrandbits(64):016x}",
    "figure": lambda rng: f"{rng.randrange(10 ** rng.randint(1, 6)):,}",
}
