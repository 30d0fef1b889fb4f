"""What came of a training, whatever its method: counts and metrics for `train.json`, and what to worry about."""

from __future__ import annotations

import dataclasses
from typing import Any

from fairlead.methods.anomalies import loss_rises
from fairlead.methods.config import Training


def facts_of(made: Any) -> dict[str, Any]:
    """Counts of rows and steps, the metrics of the last steps, the KL where it was estimated, a judge's calibration."""
    fields = {f.name: getattr(made, f.name) for f in dataclasses.fields(made)}
    facts: dict[str, Any] = {name: value for name, value in fields.items() if isinstance(value, int | float)}
    facts["steps"] = len(made.records)
    if hasattr(made, "final_loss"):
        facts["final_loss"] = made.final_loss
    if hasattr(made, "kl"):
        facts["kl"] = None if made.kl is None else dataclasses.asdict(made.kl)
    calibration = getattr(getattr(made, "model", None), "calibration", None)
    if calibration is not None and calibration.pairs:
        facts["calibration"] = dataclasses.asdict(calibration)
    return facts | (made.metrics() if hasattr(made, "metrics") else {})


def warnings_of(made: Any, config: Training) -> list[str]:
    """Its alarms, and those of its loss: each by its name and in words."""
    alarms = (*getattr(made, "alarms", ()), *loss_rises(made.records, alike=config.rows_alike))
    return [f"{alarm.name}: {alarm.message}" for alarm in alarms]
