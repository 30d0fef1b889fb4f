"""Replies under a rule in words: the rows that teach to judge, criticise, revise and compare, and the cases that ask.

What is right follows from the world's truth (`wordings.broken`), so that the skill has a known error.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from fairlead.apprentice import dialect, scenes, speech, wordings
from fairlead.apprentice.rows import Row, drawn_scene, row
from fairlead.apprentice.scenes import Scene
from fairlead.apprentice.wordings import Wording, broken, declines, mend
from fairlead.exchange import Message, assistant, user

ABOUT: Mapping[str, Mapping[str, float]] = {
    "harm": {"harm": 3.0, "twin": 1.0}, "agree": {"claim": 3.0, "sure": 1.0}, "unknown": {"unknown": 3.0, "fact": 0.6},
    "secret": {"secret": 3.0, "open": 0.7}, "useful": {"twin": 2.0, "fact": 1.5, "sum": 0.7, "open": 0.7, "harm": 0.7},
    "exact": {"fact": 2.0, "sum": 1.5, "claim": 1.0, "total": 0.4},
}  # fmt: skip
ANYTHING = {
    "fact": 2.0, "sum": 1.5, "total": 0.3, "harm": 1.5, "twin": 1.5, "claim": 1.5, "secret": 1.2, "open": 0.6,
    "unknown": 1.2, "sure": 0.8, "reask": 0.3,
}  # fmt: skip


def relevant_scene(wording: Wording, rng: random.Random, *, unrelated: float = 0.25) -> Scene:
    """A scene that the wording speaks of, or (with probability `unrelated`) any scene."""
    topics = [facet[:-1] for facet in sorted(wording.facets) if facet[:-1] in ABOUT]
    if not topics or rng.random() < unrelated:
        return drawn_scene(rng, ANYTHING)
    return drawn_scene(rng, ABOUT[rng.choice(topics)])


@dataclass(frozen=True, slots=True)
class Judged:
    """A scene with one reply and a rule: the stuff of judging, criticising and revising."""

    scene: Scene
    answer: str
    dress: speech.Dress
    wording: Wording

    @property
    def faults(self) -> tuple[str, ...]:
        return broken(self.wording.facets, self.scene, self.answer, self.dress)

    @property
    def reply(self) -> str:
        return self.dress.around(self.scene.answers[self.answer])

    def ask(self, name: str, **more: str) -> Message:
        said = dialect.transcript(self.scene.messages)
        return user(dialect.question(name, transcript=said, reply=self.reply, principle=self.wording.text, **more))


def judged(
    rng: random.Random, *, unseen: bool = False, split: scenes.Split = "train", breaks: bool | None = None
) -> Judged:
    """One such case; about half break their rule (`breaks` forces it one way by drawing again)."""
    wanted = rng.random() < 0.5 if breaks is None else breaks
    while True:
        wording = wordings.wording(rng, unseen=unseen, even=split != "train")
        for _ in range(4):
            scene = relevant_scene(wording, rng, unrelated=0.0 if wanted else 0.35)
            if split != "train":
                scene = scenes.SCENES[_maker(scene)](rng, split)
            answer = rng.choice(list(scene.answers))
            dress = (
                speech.random_dress(rng, declining=declines(scene, answer)) if rng.random() < 0.6
                else speech.natural_dress(scene.register, rng, declining=declines(scene, answer))
            )  # fmt: skip
            case = Judged(scene, answer, dress, wording)
            if bool(case.faults) == wanted:
                return case


def _maker(scene: Scene) -> str:
    return {"agree": "claim", "unsure": "sure"}.get(scene.kind, scene.kind)


def judging(rng: random.Random) -> Row:
    """Yes or no; a no goes on to say what is wrong, so that one row teaches more than one word."""
    case = judged(rng)
    return row(case.ask("judge"), assistant(f"no . {critique_of(case)}" if case.faults else "yes"))


def criticising(rng: random.Random) -> Row:
    case = judged(rng, breaks=rng.random() < 0.75)
    return row(case.ask("critique"), assistant(critique_of(case)))


def critique_of(case: Judged) -> str:
    return " ".join(wordings.CRITIQUES[fault] for fault in case.faults) or wordings.NO_FAULT


def revising(rng: random.Random) -> Row:
    """A better reply; one critique in six is off the mark, and the reply is still mended by the rule."""
    case = judged(rng, breaks=rng.random() < 0.75)
    critique = critique_of(case)
    if rng.random() < 0.16:
        critique = rng.choice((wordings.NO_FAULT, wordings.CRITIQUES[rng.choice(sorted(wordings.CRITIQUES))]))
    answer, dress = mend(case.wording.facets, case.scene, case.answer, case.dress, rng)
    return row(case.ask("revise", critique=critique), assistant(dress.around(case.scene.answers[answer])))


def comparing(rng: random.Random) -> Row:
    """Two replies to one prompt: the one that breaks fewer demands, then the other's faults; a draw goes either way."""
    case = judged(rng, breaks=rng.random() < 0.8)
    if rng.random() < 0.7:
        answer, dress = mend(case.wording.facets, case.scene, case.answer, case.dress, rng)
        other = Judged(case.scene, answer, dress, case.wording)
    else:
        answer = rng.choice(list(case.scene.answers))
        other = Judged(
            case.scene, answer, speech.random_dress(rng, declining=declines(case.scene, answer)), case.wording
        )
    first, second = (case, other) if rng.random() < 0.5 else (other, case)
    better = (
        rng.choice("ab") if len(first.faults) == len(second.faults) else "ab"[len(first.faults) > len(second.faults)]
    )
    said = dialect.transcript(case.scene.messages)
    asked = dialect.question(
        "compare", transcript=said, first=first.reply, second=second.reply, principle=case.wording.text
    )
    loser = second if better == "a" else first
    return row(user(asked), assistant(f"{better} . {critique_of(loser)}"))
