"""Probes as checks: of the replies of a model that runs in this process, by its own hidden states."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fairlead.constitution.schema import Constitution
from fairlead.errors import InputError
from fairlead.exchange import Exchange
from fairlead.guard.classifier.probe import Floats, Probe, hidden_states
from fairlead.guard.decision import ALLOW, Decision, Outcome
from fairlead.judges.lineage import Lineage


@dataclass(frozen=True)
class ProbeCheck:
    """One probe as a check of whole replies; a `Sharing` one, so that all probes of a layer read an exchange once.

    It costs one forward pass of the model over the exchange, as long as its prompt and reply. It knows that something
    is broken and not where: what would be redacted is refused. A reply without text has no states and is let go.

    hosted  the model that writes the replies: a local one, or the apprentice on NumPy
    """

    probe: Probe
    hosted: Any = field(repr=False, compare=False)
    on_violation: Outcome = "refuse"
    cost: int = 1

    @property
    def name(self) -> str:
        return f"probe:{self.principle}"

    @property
    def principle(self) -> str:
        return self.probe.principle

    @property
    def lineage(self) -> Lineage:
        return self.probe.lineage

    @property
    def model(self) -> Hashable:
        return ("probe", self.probe.model, self.probe.layer)

    def read(self, exchanges: Sequence[Exchange]) -> list[Floats | None]:
        """The hidden states (T, D) of each reply's tokens; None of a reply that says nothing."""
        saying = [item for item in exchanges if item.reply_text]
        states = iter(hidden_states(self.hosted, saying, self.probe.layer))
        return [next(states) if item.reply_text else None for item in exchanges]

    def said(self, reading: Floats | None) -> Decision:
        if reading is None:
            return ALLOW
        p = self.probe.probability(reading)
        if p < self.probe.threshold:
            return Decision("allow", self.principle, "", (), self.name)
        told = f"P(broken) {p:.3f}, at least {self.probe.threshold:.3f}"
        outcome: Outcome = "refuse" if self.on_violation in ("redact", "block_tool_call") else self.on_violation
        return Decision(outcome, self.principle, told, (), self.name)

    def decide(self, exchanges: Sequence[Exchange]) -> list[Decision]:
        return [self.said(reading) for reading in self.read(exchanges)]


def probe_checks(constitution: Constitution, probes: Sequence[Probe], hosted: Any) -> tuple[ProbeCheck, ...]:
    """A check for every probe of a principle whose guard looks at replies, the more severe first.

    Raises InputError for a probe of another constitution, of a principle that is not guarded there, or of other weights
    than those of `hosted`.
    """
    checks = []
    for probe in probes:
        guard = constitution[probe.principle].guard if probe.principle in constitution else None
        if probe.constitution not in ("", constitution.sha256):
            raise InputError(
                f"the probe of {probe.principle!r} was fitted for another constitution: run `fairlead guard train "
                "--probe` again"
            )
        if guard is None or "reply" not in guard.at:
            raise InputError(
                f"the probe of {probe.principle!r} reads replies, and {constitution.name} has no guarded principle of "
                "that name that looks at them"
            )
        if probe.model != hosted.lineage:
            raise InputError(
                f"the probe of {probe.principle!r} was fitted on {probe.model}, but the model is {hosted.lineage}; fit "
                "a probe for it"
            )
        checks.append(ProbeCheck(probe, hosted, guard.on_violation))
    return tuple(sorted(checks, key=lambda check: -constitution[check.principle].severity))
