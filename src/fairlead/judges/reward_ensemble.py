"""Several reward models as one judge: each on a scale of its own, joined by mean, worst case or uncertainty.

Coste et al. 2023 (arXiv 2310.02743). Rewards are known up to a constant and grow with training, so every member is
shifted and scaled first; the numbers are found once, at the end of training, and kept with it.

On disk: `ensemble.json`, and each member as `member-0/`, `member-1/`, …, the folders of reward models.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fairlead.engine import parallel
from fairlead.engine.checkpoint import atomic_folder
from fairlead.errors import InputError
from fairlead.exchange import Exchange, Verdict
from fairlead.judges.ensemble import Ensemble, mean, scaled, uncertainty_weighted, worst_case
from fairlead.judges.lineage import Lineage, merge
from fairlead.judges.reward_model import MEMBERS, RewardModel, open_reward

Combine: TypeAlias = Literal["mean", "worst", "uncertainty"]

FORMAT = 1


@dataclass(frozen=True, eq=False)
class RewardEnsemble:
    """A judge. `scales` holds (centre, spread) of each member's rewards; `penalty` is read by uncertainty alone."""

    name: str
    members: tuple[RewardModel, ...]
    scales: tuple[tuple[float, float], ...]
    combine: Combine = "mean"
    penalty: float = 0.5

    @cached_property
    def joined(self) -> Ensemble:
        """The ensemble that answers. Raises ValueError for scales or a penalty that are none."""
        children = [scaled(m, *scale) for m, scale in zip(self.members, self.scales, strict=True)]
        match self.combine:
            case "mean":
                return mean(children, name=self.name)
            case "worst":
                return worst_case(children, name=self.name)
            case "uncertainty":
                return uncertainty_weighted(children, self.penalty, name=self.name)
        raise ValueError(f"{self.name}: combine is {self.combine!r}; it is mean, worst or uncertainty")

    @property
    def lineage(self) -> Lineage:
        return merge(member.lineage for member in self.members)

    def __call__(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return self.judge(exchanges)

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """One verdict each, in order; `raw` is in standard deviations. What a member cannot read has no verdict."""
        return self.joined.judge(exchanges)

    def save(self, folder: Path | str) -> Path:
        """Write its folder whole or not at all; `open_reward_folder` gives it back bit for bit.

        Under torchrun all processes call it; where they name the same folder, process 0 writes and the others wait.
        """
        where = Path(folder)
        with parallel.writing(where.absolute()) as mine:
            if mine:
                with atomic_folder(where) as fresh:
                    for number, member in enumerate(self.members):
                        (fresh / _place(number)).mkdir()
                        member.write(fresh / _place(number))
                    (fresh / MEMBERS).write_text(json.dumps(self._about(), indent=1), encoding="utf-8")
        return where

    def _about(self) -> dict[str, Any]:
        members = [
            {"folder": _place(number), "weights": member.weights, "centre": centre, "spread": spread}
            for number, (member, (centre, spread)) in enumerate(zip(self.members, self.scales, strict=True))
        ]
        return {"format": FORMAT, "combine": self.combine, "penalty": self.penalty, "members": members}


def open_reward_folder(
    folder: Path | str, *, base: Any = None, name: str | None = None, **local: Any
) -> RewardModel | RewardEnsemble:
    """The judge in a folder, a reward model or an ensemble of them, bit for bit as it was saved.

    base, local    see `open_reward`

    Raises InputError for a folder that is damaged, or is neither.
    """
    where = Path(folder)
    called = name or str(folder)
    try:
        text = (where / MEMBERS).read_text(encoding="utf-8")
    except FileNotFoundError:
        return open_reward(where, base=base, name=called, **local)
    try:
        about = json.loads(text)
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']!r}, not {FORMAT}")
        found = [(str(m["folder"]), str(m["weights"])) for m in about["members"]]
        scales = tuple((float(m["centre"]), float(m["spread"])) for m in about["members"])
        members = tuple(open_reward(where / m[0], name=f"{called} {i}", **local) for i, m in enumerate(found))
        other = next((m[0] for m, member in zip(found, members, strict=True) if member.weights != m[1]), None)
        if other is not None:
            raise InputError(f"{where / other}: not the reward model that {MEMBERS} names; copy the whole folder again")
        made = RewardEnsemble(called, members, scales, about["combine"], float(about["penalty"]))
        _ = made.joined  # what is written may be no ensemble
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where / MEMBERS}: cannot be read ({error}); copy the whole folder again") from error
    return made


def _place(number: int) -> str:
    return f"member-{number}"
