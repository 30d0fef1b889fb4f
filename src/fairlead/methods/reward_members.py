"""Several reward models from the same comparisons: an ensemble of them, or one of their averaged weights (WARM).

Members are trained one after the other, each exactly as `train_reward` trains one of its seeds. A finished member is
kept in the run's checkpoint folder, so a run that was stopped trains none of them again; what was kept stays
until whoever gave that folder removes it, once the result is written.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fairlead.engine import parallel
from fairlead.engine.checkpoint import read_record, write_record
from fairlead.errors import FairleadError, InputError
from fairlead.exchange import Exchange, Preference
from fairlead.feedback.rankings import Comparison
from fairlead.judges.ensemble import scale_of
from fairlead.judges.lineage import Lineage
from fairlead.judges.protocol import Judge
from fairlead.judges.reward_ensemble import RewardEnsemble
from fairlead.judges.reward_model import RewardModel, open_reward
from fairlead.methods.config_reward import RewardConfig, RewardEnsembleConfig, WarmConfig
from fairlead.methods.evaluate import decided
from fairlead.methods.loggers import Logger
from fairlead.methods.loop import Run, StepRecord
from fairlead.methods.reward import Compared, Rewarded, calibrated_on, compared, fitted, some_pairs
from fairlead.methods.reward_evaluate import ask
from fairlead.methods.rows import Trainable
from fairlead.methods.warm import average

log = logging.getLogger(__name__)

KEPT = "member.json"  # beside a finished member's own files: what its training did


@dataclass(frozen=True, slots=True)
class Joined:
    """The judge that came of several members, what they did, and what became of the rows.

    records         steps of all members, one after the other, numbered through
    compared        pairs that judge and members were asked about afterwards: those calibrated on, ties left out
    accuracy        how often the judge put the better reply of those first; NaN where there were none
    lowest_member, highest_member    the same of the members' own last training steps
    """

    model: RewardEnsemble | RewardModel
    records: tuple[StepRecord, ...]
    members: int
    prompts: int
    pairs: int
    ties: int
    identical: int
    skipped_too_long: int
    cut: int
    compared: int
    accuracy: float
    lowest_member: float
    highest_member: float


def train_ensemble(
    model: Trainable,
    preferences: Sequence[Comparison],
    config: RewardEnsembleConfig,
    run: Run | None = None,
    *,
    places: Sequence[str] | None = None,
    held_out: Sequence[Comparison] = (),
    labelled_by: Lineage = frozenset(),
    name: str = "reward ensemble",
) -> Joined:
    """Train an ensemble of reward models, each brought on one scale (Coste et al. 2023, arXiv 2310.02743).

    The scale is the mean and spread of a member's rewards on the replies it is calibrated on. See `train_reward` for
    the arguments and errors; raises InputError too where a member's rewards are all alike.
    """
    made, data = _members(model, preferences, config, run, places, held_out, labelled_by, name)
    pairs = some_pairs(held_out or data.kept)
    replies = [Exchange(pair.messages, reply) for pair in pairs for reply in (pair.chosen, pair.rejected)]
    try:
        scales = tuple(scale_of(member.model, replies) for member in made)
    except ValueError as error:
        raise InputError(f"{error}. Train longer, or with a higher lr") from error
    whole = RewardEnsemble(name, tuple(m.model for m in made), scales, config.combine, config.penalty)
    return _joined(whole, made, pairs)


def train_warm(
    model: Trainable,
    preferences: Sequence[Comparison],
    config: WarmConfig,
    run: Run | None = None,
    *,
    places: Sequence[str] | None = None,
    held_out: Sequence[Comparison] = (),
    labelled_by: Lineage = frozenset(),
    name: str = "warm",
) -> Joined:
    """Train reward models from one start and average their weights: an ordinary reward model (see `warm`).

    It is calibrated anew, since an average has a scale of its own. See `train_reward` for the arguments and errors.
    """
    made, data = _members(model, preferences, config, run, places, held_out, labelled_by, name)
    whole = average([member.model for member in made], name=name)
    rows = held_out or data.kept
    return _joined(calibrated_on(whole, rows, held_out=bool(held_out)), made, some_pairs(rows))


def member_configs(config: RewardEnsembleConfig | WarmConfig) -> list[RewardConfig]:
    """The settings of every member: all shared but the seeds."""
    shared = {name: getattr(config, name) for name in RewardConfig.model_fields}
    made = [RewardConfig(**shared | {"seed": config.members * config.seed + k}) for k in range(config.members)]
    if isinstance(config, WarmConfig):  # from other heads they would not lie in one basin
        return made
    return [m.model_copy(update={"head_seed": config.members * config.head_seed + k}) for k, m in enumerate(made)]


# ------------------------------------------------------------------------------------------ one after the other


def _members(
    model: Trainable,
    preferences: Sequence[Comparison],
    config: RewardEnsembleConfig | WarmConfig,
    run: Run | None,
    places: Sequence[str] | None,
    held_out: Sequence[Comparison],
    labelled_by: Lineage,
    name: str,
) -> tuple[list[Rewarded], Compared]:
    run = run or Run()
    data = compared(model, preferences, config, places)
    made: list[Rewarded] = []
    try:
        for k, own in enumerate(member_configs(config)):
            folder = None if run.checkpoint is None else run.checkpoint / f"member-{data.key(own)}"
            member = _kept(folder, data, f"{name} {k}")
            if member is None:
                done = sum(len(m.records) for m in made)
                part = _part(run, done, config.members - k)
                member = fitted(data, own, part, held_out=held_out, labelled_by=labelled_by, name=f"{name} {k}")
                _keep(folder, member)
            made.append(member)
    finally:
        for logger in run.loggers:
            logger.close()
    return made, data


def _part(run: Run, done: int, left: int) -> Run:
    """The run of one member, `done` steps of others before it and `left` members to go with it: numbered through."""
    loggers = [_Numbered(logger, done) for logger in run.loggers]
    tell = run.progress
    if tell is None:
        return replace(run, loggers=loggers)
    told = tell  # each member's steps are taken to be as many as this one's
    return replace(run, loggers=loggers, progress=lambda r: told(_numbered(r, done, done + left * r.steps)))


def _numbered(record: StepRecord, done: int, steps: int) -> StepRecord:
    return replace(record, step=done + record.step, steps=steps)


class _Numbered:
    """A logger that several members share: steps go on from one to the next, and it stays open until the last."""

    def __init__(self, logger: Logger, done: int) -> None:
        self.logger, self.done = logger, done

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.logger.log(self.done + step, metrics)

    def close(self) -> None:
        pass


def _joined(whole: RewardEnsemble | RewardModel, made: Sequence[Rewarded], pairs: Sequence[Preference]) -> Joined:
    records: list[StepRecord] = []
    steps = sum(len(member.records) for member in made)
    for member in made:
        done = len(records)
        records += [_numbered(record, done, steps) for record in member.records]
    first = made[0]
    own = [a for member in made if not math.isnan(a := member.metrics()["accuracy"])]
    return Joined(
        model=whole,
        records=tuple(records),
        members=len(made),
        **{key: getattr(first, key) for key in COUNTS},
        compared=len(decided(pairs)),
        accuracy=_accuracy(whole, pairs),
        lowest_member=min(own, default=math.nan),
        highest_member=max(own, default=math.nan),
    )


COUNTS = ("prompts", "pairs", "ties", "identical", "skipped_too_long", "cut")


def _accuracy(judge: Judge, pairs: Sequence[Preference]) -> float:
    """How often the better reply has the higher reward, over pairs that are no ties. One unread counts half."""
    margins, _ = ask(judge, [pairs[i] for i in decided(pairs)])
    hits = [0.5 if not margin else float(margin > 0) for margin in margins]
    return sum(hits) / len(hits) if hits else math.nan


# ------------------------------------------------------------------------------------------ finished members


def _keep(folder: Path | None, member: Rewarded) -> None:
    """Keep a finished member; the record is written last, so a folder with it is whole."""
    if folder is None:
        return
    member.model.save(folder)
    if parallel.first():
        records = [dataclasses.asdict(record) for record in member.records]
        write_record(folder / KEPT, {"records": records, **{key: getattr(member, key) for key in COUNTS}})
    parallel.wait()


def _kept(folder: Path | None, data: Compared, name: str) -> Rewarded | None:
    """The member that an earlier run finished, where all processes find it whole."""
    member, problem = None, "there is none"
    if folder is not None and folder.is_dir():
        try:
            member, problem = _read(folder, data, name), ""
        except (FairleadError, OSError, ValueError, KeyError, TypeError) as error:
            problem = str(error)
            log.warning("%s: a finished reward model that cannot be read (%s): training it again", folder, problem)
    return member if not any(parallel.texts(problem)) else None


def _read(folder: Path, data: Compared, name: str) -> Rewarded:
    about: dict[str, Any] = read_record((folder / KEPT).read_text(encoding="utf-8"))
    weight = next(iter(data.model.module.parameters()))
    # In the type it was trained in, on the same device, and again behind the model that training started from.
    opened = open_reward(folder, name=name, device=str(weight.device), dtype=str(weight.dtype).removeprefix("torch."))
    own = replace(opened, model=data.model.with_weights(opened.model.module))
    return Rewarded(
        model=own,
        records=tuple(StepRecord(**record) for record in about["records"]),
        **{key: about[key] for key in COUNTS},
    )
