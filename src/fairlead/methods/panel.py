"""Judge exchanges against every principle of a constitution at once.

Where all judges are critics over one model, all questions go to it in one batch: a model that shares common beginnings
between prompts then reads each exchange once, not once per principle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

from fairlead.exchange import Exchange, Verdict
from fairlead.judges.critic import Critic
from fairlead.judges.lineage import Lineage
from fairlead.judges.prompting import ask_about
from fairlead.judges.protocol import Judge
from fairlead.judges.twoway import Read

Verdicts: TypeAlias = tuple[Verdict, ...]  # one per principle, in the panel's order


class PrincipleLike(Protocol):
    """What the methods need of a principle."""

    @property
    def id(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def severity(self) -> int: ...


Used: TypeAlias = tuple[tuple[str, Lineage], ...]  # judges to put on the train side: name, lineage


def used(judges: Sequence[Judge]) -> Used:
    """The judges as the ledger wants them."""
    return tuple((judge.name, judge.lineage) for judge in judges)


def judge_all(judges: Sequence[Judge], exchanges: Sequence[Exchange]) -> list[Verdicts]:
    """Every judge's verdict on every exchange: one tuple per exchange, in the order of the judges."""
    if not exchanges:
        return []
    critics = one_panel(judges)
    if critics is not None:
        return [tuple(c.verdict(r) for c, r in zip(critics, row, strict=True)) for row in read_all(critics, exchanges)]
    columns = [judge.judge(exchanges) for judge in judges]
    for judge, column in zip(judges, columns, strict=True):
        if len(column) != len(exchanges):
            raise ValueError(f"judge {judge.name} gave {len(column)} verdicts for {len(exchanges)} exchanges")
    return list(zip(*columns, strict=True))


def one_panel(judges: Sequence[Judge]) -> list[Critic] | None:
    """The judges, where all are critics asking one model in one way; else None."""
    critics = [judge for judge in judges if type(judge) is Critic]
    if len(critics) < len(judges) or not critics:
        return None
    model, samples, max_tokens = critics[0].model, critics[0].samples, critics[0].max_tokens
    same = all(c.model is model and (c.samples, c.max_tokens) == (samples, max_tokens) for c in critics)
    return critics if same else None


def read_all(critics: Sequence[Critic], exchanges: Sequence[Exchange]) -> list[tuple[Read, ...]]:
    """What the critics of one panel answer about every exchange, as `ask_two_way` tells it."""
    model = critics[0].model
    # Exchange by exchange, so that prompts with a common beginning lie side by side.
    prompts = [ask_about(model, "judge", principle=c.text, exchange=item) for item in exchanges for c in critics]
    reads = critics[0].read(prompts)
    return [tuple(reads[i : i + len(critics)]) for i in range(0, len(reads), len(critics))]
