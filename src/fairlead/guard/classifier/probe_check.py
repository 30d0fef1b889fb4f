"""Probes as checks: of the replies of a model that runs in this process, by its own hidden states."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fairlead.constitution.schema import Constitution
from fairlead.errors import InputError
from fairlead.exchange import Exchange, exchange
from fairlead.guard.asking import failure
from fairlead.guard.classifier.probe import LAST, Floats, Probe, hidden_states
from fairlead.guard.decision import ALLOW, Decision, Outcome, unplaced
from fairlead.judges.lineage import Lineage
from fairlead.models.toolong import TOO_LONG, TooLong


@dataclass(frozen=True)
class ProbeCheck:
    """One probe as a check of whole replies; a `Sharing` one, so that all probes of a layer read an exchange once.

    It costs one forward pass of the model over the exchange, as long as its prompt and reply. It knows that something
    is broken and not where: what would be redacted is refused. A reply without text has no states and is let go; an
    exchange that the model cannot read (too long for it, or with more than text) is a failed check of that exchange.

    hosted  the model that writes the replies: a local one, or the apprentice on NumPy
    """

    probe: Probe
    hosted: Any = field(repr=False, compare=False)
    on_violation: Outcome = "refuse"
    cost: int = 1

    @property
    def name(self) -> str:
        return f"probe:{self.principle}" + ("" if self.probe.layer == LAST else f"@{self.probe.layer}")

    @property
    def principle(self) -> str:
        return self.probe.principle

    @property
    def lineage(self) -> Lineage:
        return self.probe.lineage

    @property
    def model(self) -> Hashable:
        return ("probe", self.probe.model, self.probe.layer)

    def read(self, exchanges: Sequence[Exchange]) -> list[Floats | Decision | None]:
        """The hidden states (T, D) of each reply's tokens; None of a reply that says nothing, a failed decision of an
        exchange that the model cannot read."""
        return [self._read(item) if item.reply_text else None for item in exchanges]

    def _read(self, item: Exchange) -> Floats | Decision:
        try:
            [states] = hidden_states(self.hosted, [item], self.probe.layer)
        except TooLong as problem:
            return failure(self, f"{TOO_LONG}: {problem}")
        except InputError:  # its words may be those of the exchange
            return failure(self, "the model's template takes no such exchange, or it holds more than text")
        return states

    def said(self, reading: Floats | Decision | None) -> Decision:
        if reading is None:
            return ALLOW
        if isinstance(reading, Decision):
            return failure(self, reading.evidence)  # of another check over the same model
        p = self.probe.probability(reading)
        if p < self.probe.threshold:
            return Decision("allow", self.principle, "", (), self.name)
        told = f"P(broken) {p:.3f}, at least {self.probe.threshold:.3f}"
        return Decision(unplaced(self.on_violation), self.principle, told, (), self.name)

    def decide(self, exchanges: Sequence[Exchange]) -> list[Decision]:
        return [self.said(reading) for reading in self.read(exchanges)]


def probe_checks(constitution: Constitution, probes: Sequence[Probe], hosted: Any) -> tuple[ProbeCheck, ...]:
    """A check for every probe of a principle whose guard looks at replies, the more severe first.

    Raises InputError for a probe of another constitution, of a principle that is not guarded there, of other weights
    than those of `hosted`, or of a layer that it does not give; and for two of one principle and layer.
    """
    checks: list[ProbeCheck] = []
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
        if any((other.principle, other.probe.layer) == (probe.principle, probe.layer) for other in checks):
            raise InputError(f"two probes of {probe.principle!r} on layer {probe.layer}: leave one of them out")
        hidden_states(hosted, [exchange("hello", "hello")], probe.layer)  # what it cannot do at all is said now
        checks.append(ProbeCheck(probe, hosted, guard.on_violation))
    return tuple(sorted(checks, key=lambda check: -constitution[check.principle].severity))
