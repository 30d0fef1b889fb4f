"""Constitutional AI, supervised phase: a model's own replies are criticised against the principles and revised.

Bai et al. 2022 (arXiv 2212.08073), section 3: sample, critique against a drawn principle, revise, n rounds; the last
replies are what supervised fine-tuning imitates. Here a principle is drawn among those the critic finds broken, and a
reply that breaks none is left alone, so that revision does not wear good answers down. Every round is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Protocol, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from fairlead.errors import InputError
from fairlead.exchange import Exchange, Verdict
from fairlead.judges.lineage import Lineage, leaf, merge
from fairlead.judges.prompting import ask_about
from fairlead.judges.protocol import Judge
from fairlead.judges.transcript import quoted
from fairlead.methods.panel import PrincipleLike, Used, Verdicts, judge_all, used
from fairlead.methods.sampling import chance, draw, is_answer, pick
from fairlead.models.protocol import Model, Prompt, Reply, Sampling
from fairlead.models.toolong import all_too_long, where_it_fits

Outcome: TypeAlias = Literal["sampled", "kept", "revised", "empty", "truncated", "unchanged", "failed"]


class ReviseConfig(BaseModel):
    """How replies are drawn, criticised and revised.

    rounds        critique-and-revise rounds; a reply found in keeping takes no further part
    threshold     a principle counts as broken where the critic's P(kept) is below this
    temperature   of the sampled replies; `rewrite_temperature` of critiques and revisions (0 is greedy; None, the
                  model's own, for models that take none)
    max_tokens    of a reply and of a revision; `critique_tokens` of a critique
    final         which last replies are returned for training: all, or only those the critic no longer finds broken
                  (the others are counted)
    canned_at     a reply that answers this many different prompts word for word counts as canned
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: Annotated[int, Field(ge=1, le=16)] = 2
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = 1.0
    rewrite_temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = 0.0
    max_tokens: Annotated[int, Field(ge=1)] = 256
    critique_tokens: Annotated[int, Field(ge=1)] = 128
    final: Literal["all", "unbroken"] = "all"
    canned_at: Annotated[int, Field(ge=2)] = 5
    seed: int = 0


class Reviser(Protocol):
    """Who writes critiques and revisions: one principle for each exchange, answers in the same order."""

    @property
    def name(self) -> str: ...
    @property
    def lineage(self) -> Lineage: ...

    def critique(self, exchanges: Sequence[Exchange], principles: Sequence[PrincipleLike]) -> list[Reply]: ...
    def revise(
        self, exchanges: Sequence[Exchange], principles: Sequence[PrincipleLike], critiques: Sequence[str]
    ) -> list[Reply]: ...


@dataclass(frozen=True, slots=True)
class ModelReviser:
    """A model as reviser, asked in the wording of `critique.md` and `revise.md` (its own, where it brings them)."""

    model: Model
    principles: tuple[PrincipleLike, ...]
    temperature: float | None = 0.0
    max_tokens: int = 256
    critique_tokens: int = 128
    seed: int = 0

    @property
    def name(self) -> str:
        return f"reviser:{self.model.name}"

    @property
    def lineage(self) -> Lineage:
        """The same leaves as critics over this model: who revises by a principle has been optimised towards it."""
        return merge(leaf("critic", model=self.model.lineage, text=p.text) for p in self.principles)

    def critique(self, exchanges: Sequence[Exchange], principles: Sequence[PrincipleLike]) -> list[Reply]:
        asked = [
            ask_about(self.model, "critique", principle=p.text, exchange=item)
            for item, p in zip(exchanges, principles, strict=True)
        ]
        return self._ask(asked, self.critique_tokens)

    def revise(
        self, exchanges: Sequence[Exchange], principles: Sequence[PrincipleLike], critiques: Sequence[str]
    ) -> list[Reply]:
        asked = [
            ask_about(self.model, "revise", principle=p.text, exchange=item, critique=quoted(critique))
            for item, p, critique in zip(exchanges, principles, critiques, strict=True)
        ]
        return self._ask(asked, self.max_tokens)

    def _ask(self, prompts: Sequence[Prompt], max_tokens: int) -> list[Reply]:
        seed = self.seed if "seed" in self.model.capabilities else None
        sampling = Sampling(max_tokens=max_tokens, temperature=self.temperature, seed=seed)

        def ask(fitting: Sequence[Prompt]) -> list[Reply]:
            return [answers[0] for answers in self.model.generate(fitting, sampling)]

        return where_it_fits(ask, prompts, lambda why: Reply((), "error", error=why))


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
    """

    principles: tuple[str, ...]
    rounds: tuple[Round, ...]
    final: tuple[Exchange, ...]
    final_rows: tuple[int, ...]
    counts: Mapping[str, int]
    judges: Used
    threshold: float

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
    progress: Callable[[str, int], None] | None = None,
) -> Revision:
    """Sample a reply to every prompt, then criticise and revise: the data of the supervised phase.

    `judges[k]` scores exchanges against `principles[k]`; `progress` hears each piece of work by name with its rows.
    Raises `InputError` where no prompt was answered at all.
    """
    tell = progress or (lambda what, rows: None)
    tell("sampling", len(prompts))
    drawn = draw(
        model,
        prompts,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        seed=config.seed,
        metas=metas,
    )
    answered = [d for d in drawn if d.exchanges]
    if not answered:
        raise InputError(f"{model.name} answered none of {len(prompts)} prompts: there is nothing to revise")
    exchanges = [d.exchanges[0] for d in answered]
    result = critique_and_revise(exchanges, principles, judges, reviser, config, progress=progress)
    more = {
        "prompts": len(prompts),
        "missing": len(prompts) - len(answered),
        "truncated_samples": sum(d.truncated[0] for d in answered),
    }
    return replace(result, counts={**more, **result.counts})


def critique_and_revise(
    exchanges: Sequence[Exchange],
    principles: Sequence[PrincipleLike],
    judges: Sequence[Judge],
    reviser: Reviser,
    config: ReviseConfig,
    *,
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
    last = rounds[-1]
    broken = last.broken(config.threshold)
    rows = tuple(i for i in range(len(exchanges)) if config.final == "all" or not broken[i])
    return Revision(
        principles=tuple(p.id for p in principles),
        rounds=tuple(rounds),
        final=tuple(last.exchanges[i] for i in rows),
        final_rows=rows,
        counts=_counts(rounds, rows, config),
        judges=(*used(judges), (reviser.name, reviser.lineage)),
        threshold=config.threshold,
    )


def _next_round(
    before: Round,
    number: int,
    principles: Sequence[PrincipleLike],
    judges: Sequence[Judge],
    reviser: Reviser,
    config: ReviseConfig,
    tell: Callable[[str, int], None],
) -> Round:
    drawn = [_draw_broken(v, principles, config, number, row) for row, v in enumerate(before.verdicts)]
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


def _draw_broken(
    verdicts: Verdicts, principles: Sequence[PrincipleLike], config: ReviseConfig, number: int, row: int
) -> int | None:
    """One of the broken principles, with weight severity x P(broken); None where none is."""
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


def _counts(rounds: Sequence[Round], final_rows: Sequence[int], config: ReviseConfig) -> dict[str, int]:
    """Rows by what happened to them.

    found_broken, revised, never_broken   rows broken as sampled; rows revised at least once; rows never touched
    empty, truncated, unchanged, failed   unusable revisions, over all rounds
    still_broken, left_out                rows still broken at the end; rows not returned for training
    unjudged                              verdicts without a score at the end
    canned                                final replies that answer `canned_at` or more different prompts word for word
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
        "left_out": len(last.exchanges) - len(final_rows),
        "unjudged": sum(v.score is None for row in last.verdicts for v in row),
        "canned": canned(last.exchanges, config.canned_at),
    }


def canned(exchanges: Sequence[Exchange], at: int) -> int:
    """How many replies say, word for word, what is said to at least `at` different prompts: evasion by formula."""
    prompts: dict[str, set[Any]] = {}
    for item in exchanges:
        prompts.setdefault(_key(item), set()).add(item.messages)
    return sum(len(prompts[_key(item)]) >= at for item in exchanges)


def _key(item: Exchange) -> str:
    return " ".join(item.reply_text.casefold().split())
