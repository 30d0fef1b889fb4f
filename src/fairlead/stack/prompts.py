"""Training prompts: what the model is asked while it learns, each aimed at one principle of the constitution.

The apprentice's prompts come from its world by the principle's dimension (train split), a share of them ordinary
traffic, so that it also learns where the principle does not apply. Other models bring a prompts file, or the
preference file's own prompts, or take what the constitution has: the train split of its packs' prompts, with harmless
twins as the ordinary traffic, and for principles without prompts the examples written under them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.constitution.prompts_bank import bank
from fairlead.constitution.schema import Constitution, Principle
from fairlead.errors import InputError
from fairlead.exchange import Case, Message, system, user
from fairlead.stack.identity import digest
from fairlead.stack.plan import Prompts

SOURCE = "constitution"


@dataclass(frozen=True, slots=True)
class TrainingPrompts:
    """Cases to train on, in a fixed order, and one line that says where they came from.

    `places[i]` says where case i stands (`file:line`). `aimed[i]` says that case i tempts the model to break its
    principle; ordinary traffic carries a principle only so that it is known under whose share it was drawn.
    """

    cases: tuple[Case, ...]
    said: str
    aimed: tuple[bool, ...] = ()
    places: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.aimed:
            object.__setattr__(self, "aimed", (False,) * len(self.cases))
        if not self.places:
            object.__setattr__(self, "places", tuple(f"training prompt {i}" for i in range(len(self.cases))))

    @property
    def about(self) -> list[str | None]:
        """The principle each prompt is aimed at; None for ordinary traffic."""
        return [case.principle if aimed else None for case, aimed in zip(self.cases, self.aimed, strict=True)]

    @property
    def hash(self) -> str:
        return digest([[_plain(c.messages), c.principle] for c in self.cases])


def training_prompts(
    config: Prompts,
    constitution: Constitution,
    *,
    world: bool,
    seed: int,
    preference_prompts: Sequence[tuple[Message, ...]] = (),
    skip_bad_rows: bool = False,
) -> TrainingPrompts:
    """Prompts for every principle. `world` means the model is the apprentice, whose world makes them.

    Raises InputError where there is nothing to ask.
    """
    if config.from_ != SOURCE:
        return _from_file(config, constitution, seed, skip_bad_rows)
    if world:
        return _from_world(config, constitution, seed)
    if preference_prompts:
        return _dealt(preference_prompts, config, constitution, seed, "the preference file's own prompts")
    return _from_constitution(config, constitution, seed)


def _from_world(config: Prompts, constitution: Constitution, seed: int) -> TrainingPrompts:
    from fairlead.apprentice import cases as world

    general = round(config.per_principle * config.general)
    aimed = config.per_principle - general
    found: list[tuple[Case, bool]] = []
    for principle in constitution.principles:
        # Seeded by the principle's own id: striking one principle out leaves the prompts of the others as they were.
        own = int(digest([seed, principle.id])[:8], 16)
        found += [(_for(case, principle), True) for case in world.prompts(principle.dimension, "train", aimed, own)]
        found += [(_for(case, principle), False) for case in world.prompts(None, "train", general, own + 1)]
    # The same words may be drawn for two principles: they are trained on once for each.
    distinct = {(case.messages, case.principle): (case, aimed) for case, aimed in reversed(found)}
    kept = tuple(reversed(distinct.values()))
    same = len(found) - len(kept)
    said = f"{len(kept):,} prompts of the apprentice's world for {len(constitution.principles)} principles"
    said += f" ({same:,} drawn twice, kept once)" if same else ""
    return TrainingPrompts(tuple(case for case, _ in kept), said, tuple(is_aimed for _, is_aimed in kept))


def _from_file(config: Prompts, constitution: Constitution, seed: int, skip_bad_rows: bool) -> TrainingPrompts:
    from fairlead.feedback.formats import read_prompts

    prompts = read_prompts(Path(config.from_), skip_bad_rows=skip_bad_rows)
    places = dict(zip(prompts.rows, prompts.places, strict=True))
    dealt = _dealt(prompts.rows, config, constitution, seed, config.from_)
    said = "; ".join((dealt.said, *prompts.report.lines()))
    return TrainingPrompts(dealt.cases, said, places=tuple(places[case.messages] for case in dealt.cases))


ROOM = 16  # tokens; a prompt that leaves less than this to answer in is too long


def fitting(prompts: TrainingPrompts, model: Any, too_long: str, room: int = ROOM) -> TrainingPrompts:
    """The prompts that leave the model `room` tokens to answer in. Raises InputError naming the first that does not.

    Models that do not show their tokens (remote ones) are asked as they are: their server refuses what is too long.
    """
    if model.context is None or "tokens" not in model.capabilities:
        return prompts
    sizes = [len(model.render(case.messages)) for case in prompts.cases]
    misfits = [i for i, size in enumerate(sizes) if size + room > model.context]
    if not misfits:
        return prompts
    first = misfits[0]
    if too_long == "refuse":
        raise InputError(
            f"{prompts.places[first]}: {sizes[first]:,} tokens, and with {room:,} for the reply that is more than the "
            f"{model.context:,} of {model.name} ({len(misfits):,} such prompts). "
            "Shorten them, or leave them out with prompts: {too_long: skip}"
        )
    kept = [i for i in range(len(sizes)) if i not in set(misfits)]
    if not kept:
        raise InputError(f"none of {len(sizes):,} training prompts fits the context of {model.context:,} tokens")
    said = f"{prompts.said}; {len(misfits):,} too long, left out (the first at {prompts.places[first]})"
    return TrainingPrompts(
        tuple(prompts.cases[i] for i in kept),
        said,
        tuple(prompts.aimed[i] for i in kept),
        tuple(prompts.places[i] for i in kept),
    )


def _dealt(
    prompts: Sequence[tuple[Message, ...]], config: Prompts, constitution: Constitution, seed: int, source: str
) -> TrainingPrompts:
    """The prompts in a drawn order, dealt to the principles in turn, at most `per_principle` to each."""
    distinct = list(dict.fromkeys(prompts))
    order = sorted(range(len(distinct)), key=lambda i: digest([seed, _plain(distinct[i])]))
    principles = constitution.principles
    kept = order[: config.per_principle * len(principles)]
    cases = tuple(
        Case(distinct[index], measure="", principle=principles[turn % len(principles)].id)
        for turn, index in enumerate(kept)
    )
    left = len(distinct) - len(kept)
    said = f"{len(cases):,} prompts from {source}"
    if left:
        said += f" ({left:,} more not used: per_principle is {config.per_principle})"
    return TrainingPrompts(cases, said)


def _from_constitution(config: Prompts, constitution: Constitution, seed: int) -> TrainingPrompts:
    """What the packs hold for training, and the examples of principles that no pack has prompts for."""
    general = round(config.per_principle * config.general)
    tempting = bank(constitution, "train", "tempting")
    twins = bank(constitution, "train", "twin")
    found: list[tuple[Case, bool]] = []
    for principle in constitution.principles:
        if any(case.principle == principle.id for case in tempting):
            aimed = _drawn(tempting, principle, config.per_principle - general, seed)
            found += [(case, True) for case in aimed]
            found += [(case, False) for case in _drawn(twins, principle, general, seed)]
        else:
            found += [(case, False) for case in _examples(principle)]
    kept = {(case.messages, case.principle): (case, aimed) for case, aimed in reversed(found)}
    cases = tuple(case for case, _ in reversed(kept.values()))
    if not cases:
        raise InputError(
            f"constitution {constitution.name!r} has no examples to take training prompts from; "
            "give a file of prompts with --prompts (.txt, one per line, or .jsonl)"
        )
    packs = sorted({str(case.meta["pack"]) for case in cases if "pack" in case.meta})
    source = "the constitution's examples"
    if packs:
        written = sum("pack" not in case.meta for case in cases)
        source = f"the packs {', '.join(packs)} (train split)" + (f", {written:,} of them examples" if written else "")
    note = "; few prompts teach little, give more with --prompts" if len(cases) < 200 else ""
    aimed_at = tuple(aimed for _, aimed in reversed(kept.values()))
    return TrainingPrompts(cases, f"{len(cases):,} prompts from {source}{note}", aimed_at)


def _drawn(cases: Sequence[Case], principle: Principle, n: int, seed: int) -> list[Case]:
    """At most n of a principle's cases, in an order of their own, so that striking out another changes none of them."""
    own = [case for case in cases if case.principle == principle.id]
    order = sorted(own, key=lambda case: digest([seed, case.meta["pair"]]))
    return [Case(case.messages, "", case.principle, case.reference, case.cluster, case.meta) for case in order[:n]]


def _examples(principle: Principle) -> list[Case]:
    cases = []
    for example in (*principle.good, *principle.bad):
        said = (user(example.user),) if example.system is None else (system(example.system), user(example.user))
        cases.append(Case(said, measure="", principle=principle.id))
    return cases


def _for(case: Case, principle: Principle) -> Case:
    return Case(case.messages, case.measure, principle.id, case.reference, case.cluster, case.meta)


def _plain(messages: Sequence[Message]) -> list[list[str]]:
    return [[m.role, m.text] for m in messages]
