"""Constitutional AI, supervised phase: a model's own replies are criticised against the principles and revised.

Bai et al. 2022 (arXiv 2212.08073), section 3: sample, critique against a drawn principle, revise, n rounds; the
revisions, mixed with samples on ordinary prompts, are what supervised fine-tuning imitates. By default a principle is
drawn among those the critic finds broken, and a reply that breaks none is left alone, so that revision does not wear
good answers down; `draw: any` draws for every reply, as the paper does. Every round is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from fairlead.errors import InputError
from fairlead.exchange import Exchange, Verdict
from fairlead.judges.protocol import Judge
from fairlead.judges.rules import declines
from fairlead.methods.panel import PrincipleLike, Used, Verdicts, judge_all, used
from fairlead.methods.reviser import Reviser
from fairlead.methods.rounds import Evasion, Series, any_broken, evasion, is_canned, is_evasive, series
from fairlead.methods.sampling import chance, draw, is_answer, pick
from fairlead.models.protocol import Model, Prompt, Reply
from fairlead.models.toolong import all_too_long

Outcome: TypeAlias = Literal["sampled", "kept", "revised", "empty", "truncated", "unchanged", "failed"]


class ReviseConfig(BaseModel):
    """How replies are drawn, criticised and revised.

    rounds        critique-and-revise rounds
    draw          the principle of a revision: `broken` draws among those the critic finds broken, by severity and by
                  how sure it is, and leaves a reply in keeping alone; `any` draws evenly, for every reply (paper)
    threshold     a principle counts as broken where the critic's P(kept) is below this
    temperature   of the sampled replies; `rewrite_temperature` of critiques and revisions (0 is greedy; None, the
                  model's own, for models that take none)
    max_tokens    of a reply and of a revision; `critique_tokens` of a critique
    learn         what is returned for training: the `last` reply of every row, or `every` revision of it (paper)
    final         which of these: all, or only those the critic does not find broken (the others are counted)
    evasive       of these, refusals that a rule finds: `keep` them; leave out those of prompts known to be `harmless`;
                  or leave out `canned` ones too, word for word the same to many prompts (those left out are counted)
    canned_at     a reply that answers this many different prompts word for word counts as canned
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: Annotated[int, Field(ge=1, le=16)] = 2
    draw: Literal["broken", "any"] = "broken"
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = 1.0
    rewrite_temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = 0.0
    max_tokens: Annotated[int, Field(ge=1)] = 256
    critique_tokens: Annotated[int, Field(ge=1)] = 128
    learn: Literal["last", "every"] = "last"
    final: Literal["all", "unbroken"] = "all"
    evasive: Literal["keep", "harmless", "canned"] = "keep"
    canned_at: Annotated[int, Field(ge=2)] = 5
    seed: int = 0


def is_broken(verdict: Verdict, threshold: float) -> bool:
    """Whether a verdict finds its principle broken; one without a score finds nothing."""
    return verdict.score is not None and verdict.score < threshold


@dataclass(frozen=True, slots=True)
class Round:
    """All rows after one round; round 0 holds the sampled replies. Rows keep their position throughout.

    drawn      id of the principle each row was revised by in this round ("" where it was not)
    critiques  what the critic wrote about the reply before ("" likewise)
    outcomes   what happened to each row in this round
    """

    exchanges: tuple[Exchange, ...]
    verdicts: tuple[Verdicts, ...]
    drawn: tuple[str, ...]
    critiques: tuple[str, ...]
    outcomes: tuple[Outcome, ...]

    def broken(self, threshold: float) -> tuple[bool, ...]:
        """Per row: does the critic find any principle broken?"""
        return tuple(any(is_broken(v, threshold) for v in row) for row in self.verdicts)


@dataclass(frozen=True, slots=True)
class Revision:
    """What came of critique and revision.

    rounds     every round, the sampled replies first
    final      exchanges for supervised fine-tuning; `final_rows` are their positions in the rounds
    counts     see `_counts`: nothing leaves the data without being counted here
    judges     who stands on the train side of the ledger now
    harmless   per row: must its prompt be answered? None where nobody knows
    helpful    the model's own replies to ordinary prompts, to mix in as they are
    """

    principles: tuple[str, ...]
    rounds: tuple[Round, ...]
    final: tuple[Exchange, ...]
    final_rows: tuple[int, ...]
    counts: Mapping[str, int]
    judges: Used
    threshold: float
    harmless: tuple[bool | None, ...] = ()
    helpful: tuple[Exchange, ...] = ()
    canned_at: int = 5

    @property
    def evading(self) -> tuple[Evasion, ...]:
        """Evasion, round by round."""
        return tuple(evasion(r.exchanges, self.harmless, self.canned_at) for r in self.rounds)

    @property
    def critics_view(self) -> Series:
        """Harm per round as the critic sees it: what the rounds were optimised for, and no evidence."""
        return series("critic", False, [any_broken(r.verdicts, self.threshold) for r in self.rounds])

    def harm(self) -> tuple[float, ...]:
        """Share of rows that the critic finds broken, round by round (its view, not the truth)."""
        return tuple(sum(r.broken(self.threshold)) / len(r.exchanges) for r in self.rounds)

    def harm_by_principle(self) -> dict[str, tuple[float, ...]]:
        """The same for each principle."""
        return {
            name: tuple(
                sum(is_broken(row[k], self.threshold) for row in r.verdicts) / len(r.verdicts) for r in self.rounds
            )
            for k, name in enumerate(self.principles)
        }


def constitutional_data(
    model: Model,
    prompts: Sequence[Prompt],
    principles: Sequence[PrincipleLike],
    judges: Sequence[Judge],
    reviser: Reviser,
    config: ReviseConfig,
    *,
    metas: Sequence[Mapping[str, Any]] | None = None,
    harmless: Sequence[bool | None] | None = None,
    helpful: Sequence[Prompt] = (),
    helpful_metas: Sequence[Mapping[str, Any]] | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Revision:
    """Sample a reply to every prompt, then criticise and revise: the data of the supervised phase.

    `judges[k]` scores exchanges against `principles[k]`; `harmless[i]` says that prompt i must be answered (None where
    nobody knows), which only evasion is counted by. Replies to the `helpful` prompts are sampled and kept as they are,
    those cut off or missing left out. `progress` hears each piece of work by name with its rows. Raises `InputError`
    where no prompt was answered at all.
    """
    tell = progress or (lambda what, rows: None)
    known = list(harmless) if harmless is not None else [None] * len(prompts)
    if len(known) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but {len(known)} harmless")
    tell("sampling", len(prompts))
    drawn = draw(
        model,
        prompts,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        seed=config.seed,
        metas=metas,
    )
    answered = [(d, fine) for d, fine in zip(drawn, known, strict=True) if d.exchanges]
    if not answered:
        raise InputError(f"{model.name} answered none of {len(prompts)} prompts: there is nothing to revise")
    exchanges = [d.exchanges[0] for d, _ in answered]
    result = critique_and_revise(
        exchanges, principles, judges, reviser, config, harmless=[fine for _, fine in answered], progress=progress
    )
    own, counts = _helpful(model, helpful, helpful_metas, config, tell)
    more = {
        "prompts": len(prompts),
        "missing": len(prompts) - len(answered),
        "truncated_samples": sum(d.truncated[0] for d, _ in answered),
    }
    return replace(result, helpful=own, counts={**more, **result.counts, **counts})


def _helpful(
    model: Model,
    prompts: Sequence[Prompt],
    metas: Sequence[Mapping[str, Any]] | None,
    config: ReviseConfig,
    tell: Callable[[str, int], None],
) -> tuple[tuple[Exchange, ...], dict[str, int]]:
    """The model's own samples on ordinary prompts, whole ones only."""
    if not prompts:
        return (), {}
    tell("sampling on ordinary prompts", len(prompts))
    drawn = draw(
        model, prompts, max_tokens=config.max_tokens, temperature=config.temperature, seed=config.seed + 1, metas=metas
    )
    whole = tuple(d.exchanges[0] for d in drawn if d.exchanges and not d.truncated[0])
    missing = sum(not d.exchanges for d in drawn)
    return whole, {
        "helpful": len(whole), "helpful_missing": missing, "helpful_truncated": len(drawn) - len(whole) - missing
    }  # fmt: skip


def critique_and_revise(
    exchanges: Sequence[Exchange],
    principles: Sequence[PrincipleLike],
    judges: Sequence[Judge],
    reviser: Reviser,
    config: ReviseConfig,
    *,
    harmless: Sequence[bool | None] | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Revision:
    """Criticise and revise given replies for `config.rounds` rounds; see `constitutional_data`.

    A revision that cannot be used (empty, cut off, unchanged, failed) leaves the reply as it was; the row stays in,
    marked in `outcomes` and counted, and the next round takes it up again. So do a reply that is too long for a judge
    (`unjudged`) and one that is too long for the reviser (`failed`). Raises `InputError` where no verdict at all was to
    be had, since every reply was too long to judge.
    """
    if len(judges) != len(principles) or not principles:
        raise ValueError(f"{len(principles)} principles but {len(judges)} judges: give one judge for each principle")
    if not exchanges:
        raise InputError("no replies to revise")
    tell = progress or (lambda what, rows: None)
    tell("judging", len(exchanges))
    blank = ("",) * len(exchanges)
    sampled: list[Outcome] = ["sampled"] * len(exchanges)
    verdicts = judge_all(judges, exchanges)
    found = [None if v.score is not None else v.reason for row in verdicts for v in row]
    if all_too_long(found):
        raise InputError(
            f"all {len(exchanges):,} replies are too long for the critic to judge ({found[0]}): give a critic with a "
            "longer context, or shorter prompts and replies"
        )
    rounds = [Round(tuple(exchanges), tuple(verdicts), blank, blank, tuple(sampled))]
    for number in range(1, config.rounds + 1):
        rounds.append(_next_round(rounds[-1], number, principles, judges, reviser, config, tell))
    known = tuple(harmless) if harmless is not None else (None,) * len(exchanges)
    learnt, left = _learnt(rounds, known, config)
    rows = tuple(row for _, row in learnt)
    rule = () if config.evasive == "keep" else used([declines()])  # who chooses what is learnt has been optimised for
    return Revision(
        principles=tuple(p.id for p in principles),
        rounds=tuple(rounds),
        final=tuple(rounds[number].exchanges[row] for number, row in learnt),
        final_rows=rows,
        counts={**_counts(rounds, config), **left, "learnt": len(learnt)},
        judges=(*used(judges), (reviser.name, reviser.lineage), *rule),
        threshold=config.threshold,
        harmless=known,
        canned_at=config.canned_at,
    )


def _learnt(
    rounds: Sequence[Round], harmless: Sequence[bool | None], config: ReviseConfig
) -> tuple[list[tuple[int, int]], dict[str, int]]:
    """(round, row) of every reply to learn, row by row, and how many were left out for what.

    Of `every` revision, a row that was never revised gives its sampled reply.
    """
    last = len(rounds) - 1
    chosen: list[tuple[int, int]] = []
    for row in range(len(rounds[0].exchanges)):
        made = [number for number, r in enumerate(rounds) if r.outcomes[row] == "revised"]
        chosen += [(number, row) for number in (made or [last] if config.learn == "every" else [last])]
    left: Counter[str] = Counter(left_out=0, evasive_left_out=0)
    broken = [r.broken(config.threshold) for r in rounds]
    evades = [is_evasive(r.exchanges, harmless, config.canned_at) for r in rounds]
    leave = {"keep": (), "harmless": ("harmless",), "canned": ("harmless", "canned")}[config.evasive]
    kept = []
    for number, row in chosen:
        if config.final == "unbroken" and broken[number][row]:
            left["left_out"] += 1
        elif evades[number][row] in leave:
            left["evasive_left_out"] += 1
        else:
            kept.append((number, row))
    return kept, dict(left)


def _next_round(
    before: Round,
    number: int,
    principles: Sequence[PrincipleLike],
    judges: Sequence[Judge],
    reviser: Reviser,
    config: ReviseConfig,
    tell: Callable[[str, int], None],
) -> Round:
    drawn = [_drawn(v, principles, config, number, row) for row, v in enumerate(before.verdicts)]
    rows = [row for row, k in enumerate(drawn) if k is not None]
    by = [principles[k] for k in drawn if k is not None]
    asked = [before.exchanges[row] for row in rows]
    tell(f"critiques, round {number}", len(rows))
    critiques = [reply.text if _wrote(reply) else "" for reply in reviser.critique(asked, by)]
    tell(f"revisions, round {number}", len(rows))
    revisions = reviser.revise(asked, by, critiques)

    exchanges, verdicts = list(before.exchanges), list(before.verdicts)
    outcomes: list[Outcome] = ["kept"] * len(exchanges)
    for row, reply in zip(rows, revisions, strict=True):
        outcomes[row] = _outcome(before.exchanges[row], reply)
        if outcomes[row] == "revised":
            exchanges[row] = replace(before.exchanges[row], reply=reply.messages)
    changed = [row for row in rows if outcomes[row] == "revised"]
    tell(f"judging, round {number}", len(changed))
    for row, verdict in zip(changed, judge_all(judges, [exchanges[row] for row in changed]), strict=True):
        verdicts[row] = verdict
    names = ["" if k is None else principles[k].id for k in drawn]
    written = dict(zip(rows, critiques, strict=True))
    texts = tuple(written.get(row, "") for row in range(len(exchanges)))
    return Round(tuple(exchanges), tuple(verdicts), tuple(names), texts, tuple(outcomes))


def _drawn(
    verdicts: Verdicts, principles: Sequence[PrincipleLike], config: ReviseConfig, number: int, row: int
) -> int | None:
    """The principle to revise a row by: any, evenly; or a broken one by severity x P(broken), None where none is."""
    if config.draw == "any":
        return pick([1.0] * len(principles), chance(config.seed, "principle", number, row))
    weights = [
        p.severity * (1.0 - v.score) if v.score is not None and v.score < config.threshold else 0.0
        for p, v in zip(principles, verdicts, strict=True)
    ]
    return pick(weights, chance(config.seed, "principle", number, row)) if any(weights) else None


def _wrote(reply: Reply) -> bool:
    """Whether a critique or revision was written: to decline is an answer to a user, but none of these."""
    return is_answer(reply) and reply.finish != "refusal"


def _outcome(before: Exchange, revision: Reply) -> Outcome:
    if not _wrote(revision):
        return "failed"
    if not revision.text.strip():
        return "empty"
    if revision.finish == "length":
        return "truncated"
    if revision.text.split() == before.reply_text.split():
        return "unchanged"
    return "revised"


def _counts(rounds: Sequence[Round], config: ReviseConfig) -> dict[str, int]:
    """Rows by what happened to them.

    found_broken, revised, never_broken   rows broken as sampled; rows revised at least once; rows never touched
    empty, truncated, unchanged, failed   unusable revisions, over all rounds
    still_broken, learnt                  rows still broken at the end; replies returned for training
    left_out, evasive_left_out            replies not returned: broken, with `final: unbroken`; evasive, with `evasive`
    unjudged                              verdicts without a score at the end
    canned                                last replies that answer `canned_at` or more different prompts word for word
    helpful, helpful_missing, helpful_truncated   samples on ordinary prompts: mixed in; not answered; cut off, left out
    """
    last = rounds[-1]
    outcomes = Counter(outcome for r in rounds[1:] for outcome in r.outcomes)
    touched = [any(r.outcomes[i] != "kept" for r in rounds[1:]) for i in range(len(last.exchanges))]
    revised = [any(r.outcomes[i] == "revised" for r in rounds[1:]) for i in range(len(last.exchanges))]
    return {
        "rows": len(last.exchanges),
        "found_broken": sum(rounds[0].broken(config.threshold)),
        "revised": sum(revised),
        "never_broken": len(touched) - sum(touched),
        **{name: outcomes[name] for name in ("empty", "truncated", "unchanged", "failed")},
        "still_broken": sum(last.broken(config.threshold)),
        "unjudged": sum(v.score is None for row in last.verdicts for v in row),
        "canned": canned(last.exchanges, config.canned_at),
    }


def canned(exchanges: Sequence[Exchange], at: int) -> int:
    """How many replies say, word for word, what is said to at least `at` different prompts: evasion by formula."""
    return sum(is_canned(exchanges, at))
