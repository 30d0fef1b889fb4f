"""Inference-time alignment: checks compiled from the constitution, around any model.

`guarded(model, constitution, critic_model)` is the whole of it; the rest is here for those who build their own.
"""

from fairlead.guard.checks.rules import RulesCheck
from fairlead.guard.checks.secrets import Secret, SecretsCheck
from fairlead.guard.compile import checks_from, guarded, policies_from, unchecked
from fairlead.guard.critic import CriticCheck, threshold_at
from fairlead.guard.decision import Check, Decision, Span
from fairlead.guard.guard import GuardedModel, Policy
from fairlead.guard.log import GuardLog, Record

__all__ = [
    "Check",
    "CriticCheck",
    "Decision",
    "GuardLog",
    "GuardedModel",
    "Policy",
    "Record",
    "RulesCheck",
    "Secret",
    "SecretsCheck",
    "Span",
    "checks_from",
    "guarded",
    "policies_from",
    "threshold_at",
    "unchecked",
]
