"""The written values: the only source of intent. `load("hhh")`, `load("brand.yaml")`."""

from fairlead.constitution.compile import Compiled, compiled, system_prompt
from fairlead.constitution.load import Loaded, load, packs, resolve, usual
from fairlead.constitution.prompts import CRITIC_PROMPTS, template
from fairlead.constitution.schema import (
    AUDIT_JUDGES,
    DIMENSIONS,
    TRAIN_JUDGES,
    Assistant,
    Constitution,
    Dimension,
    Example,
    Guard,
    Judges,
    Place,
    Principle,
    Secret,
    Violation,
    json_schema,
)

__all__ = [
    "AUDIT_JUDGES",
    "CRITIC_PROMPTS",
    "DIMENSIONS",
    "TRAIN_JUDGES",
    "Assistant",
    "Compiled",
    "Constitution",
    "Dimension",
    "Example",
    "Guard",
    "Judges",
    "Loaded",
    "Place",
    "Principle",
    "Secret",
    "Violation",
    "compiled",
    "json_schema",
    "load",
    "packs",
    "resolve",
    "system_prompt",
    "template",
    "usual",
]
