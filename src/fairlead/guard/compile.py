"""From the constitution to the guard: every principle that has a `guard:` becomes checks and a policy."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence

from fairlead.constitution.schema import Constitution, Principle
from fairlead.constitution.schema import Secret as Written
from fairlead.errors import InputError
from fairlead.guard.checks.exfiltration import ExfiltrationCheck
from fairlead.guard.checks.injection import InjectionCheck
from fairlead.guard.checks.personal import PersonalData, Presidio
from fairlead.guard.checks.rules import RulesCheck
from fairlead.guard.checks.secrets import Secret, SecretsCheck
from fairlead.guard.checks.voice import VoiceCheck, voice_checks
from fairlead.guard.critic import CriticCheck
from fairlead.guard.decision import Check
from fairlead.guard.guard import GuardedModel
from fairlead.guard.policy import ROUNDS, SAY, Policy
from fairlead.guard.revise import reviser
from fairlead.guard.vendors import refuse_others, vendors
from fairlead.judges.check import JudgeCheck
from fairlead.judges.critic import critic
from fairlead.models.access import vendor
from fairlead.models.protocol import Model

THRESHOLD = 0.5


def checks_from(
    constitution: Constitution,
    critic_model: Model | None,
    *,
    thresholds: Mapping[str, float] | None = None,
    rules: Mapping[str, Sequence[str]] | None = None,
    only: Collection[str] | None = None,
    deadline: float | None = None,
    proxy: bool = False,
    presidio: Presidio | None = None,
) -> tuple[Check, ...]:
    """The checks of a constitution: cheap ones first, of equals the more severe principle first.

    The principle that speaks of what was told to be kept (`keepers`) is checked by the declared secrets; every other
    one, and all where no secrets are declared, by the critic. Without a critic model those are left out: `unchecked`
    names them.

    thresholds  by principle id, the score below which the critic's verdict counts as broken (0.5 where not given)
    rules       by principle id, patterns that a reply must not hold; the principle's `guard:` says what follows
    only        ids of the principles to guard; all that have a `guard:` where not given
    deadline    seconds for one batch of one critic
    proxy       the checks of a proxy: personal data where a principle speaks of it, and what tools bring back and
                take out (`proxy_checks`)
    presidio    finds there what needs a reader: a model, asked in threads
    """
    chosen, patterns = dict(thresholds or {}), dict(rules or {})
    for what, ids in (("threshold is", chosen), ("rule is", patterns)):
        for id in ids:
            if id not in constitution:
                known = ", ".join(constitution.ids)
                raise InputError(f"a guard {what} given for {id!r}, which is no principle; there are: {known}")
    for id in patterns:
        if constitution[id].guard is None or (only is not None and id not in only):
            raise InputError(f"a guard rule is given for {id!r}, which is not guarded: it has no `guard:` in this run")
    keeping = keepers(constitution)
    checks: list[Check] = []
    for principle in sorted(constitution.principles, key=lambda p: -p.severity):
        if principle.guard is None or (only is not None and principle.id not in only):
            continue
        places, outcome = _places(principle, proxy=proxy), principle.guard.on_violation
        if principle.id in patterns:
            checks.append(RulesCheck(tuple(patterns[principle.id]), principle.id, outcome, places))
        if principle.id in keeping:
            secrets = tuple(_secret(written) for written in constitution.secrets)
            checks.append(SecretsCheck(secrets, principle.id, outcome, places))
        if proxy and speaks_of_privacy(principle):
            checks.append(PersonalData(principle.id, "redact", places))
            if presidio is not None:
                checks.append(PersonalData(principle.id, "redact", places, entities=(), extra=presidio, cost=1))
        if principle.id not in keeping and critic_model is not None and places:
            judge = critic(principle, critic_model)
            check = JudgeCheck(judge, principle.id, deadline, chosen.get(principle.id, THRESHOLD))
            checks.append(CriticCheck(check, outcome, places))
    return tuple(sorted(checks, key=lambda check: check.cost))


def proxy_checks(
    constitution: Constitution,
    critic_model: Model | None,
    *,
    hosts: Sequence[str] = (),
    unknown_hosts: bool = True,
    thresholds: Mapping[str, float] | None = None,
    rules: Mapping[str, Sequence[str]] | None = None,
    only: Collection[str] | None = None,
    deadline: float | None = None,
    presidio: Presidio | None = None,
) -> tuple[Check, ...]:
    """The checks of a proxy: those of `checks_from`, the style of the voice's samples where there are some, personal
    data (painted over) for every guarded principle of secrecy that speaks of people, and for the gravest of secrecy the
    two that tools need: orders in what they bring back, data in what they take out.

    The guard of a run leaves the voice to the critic, so that the judge which counts the same features stays evidence.

    hosts, unknown_hosts  as in `ExfiltrationCheck`
    """
    checks = checks_from(
        constitution, critic_model, thresholds=thresholds, rules=rules, only=only, deadline=deadline, proxy=True,
        presidio=presidio,
    )  # fmt: skip
    voices = (check for check in voice_checks(constitution) if only is None or check.principle in only)
    checks = tuple(sorted((*checks, *voices), key=lambda check: check.cost))
    gravest = gravest_of_secrecy(constitution, only)
    if gravest is None:
        return checks
    tools = (InjectionCheck(gravest), ExfiltrationCheck(gravest, hosts=tuple(hosts), unknown_hosts=unknown_hosts))
    return tuple(sorted((*checks, *tools), key=lambda check: check.cost))


def gravest_of_secrecy(constitution: Constitution, only: Collection[str] | None = None) -> str | None:
    """The guarded principle that stands for orders in what tools bring back, and data in what they take out."""
    secrecy = [
        p
        for p in constitution.principles
        if p.dimension == "secrecy" and p.guard is not None and (only is None or p.id in only)
    ]
    return max(secrecy, key=lambda p: p.severity).id if secrecy else None


def order_check(
    constitution: Constitution, score: Callable[[str], float], threshold: float, *, only: Collection[str] | None = None
) -> InjectionCheck | None:
    """Orders in tools' texts by a classifier's `score`, as a check of what is asked: of the same principle as that by
    words, and beside it. None where nothing of secrecy is guarded."""
    gravest = gravest_of_secrecy(constitution, only)
    if gravest is None:
        return None
    return InjectionCheck(gravest, score=score, score_threshold=threshold, words=False, cost=1)


_PRIVATE = re.compile(
    r"\bpriva(?:te|cy)\b|\bpersonal (?:data|details|information|facts)\b|\bpeople's data\b|\bpassed? on\b|\brecords\b"
    r"|\baddress(?:es)?\b|\bwhere they live\b",
    re.I,
)


def speaks_of_privacy(principle: Principle) -> bool:
    """Whether a principle of secrecy is about people and not about what the model was told to keep."""
    if principle.dimension != "secrecy" or principle.id.split("-")[0] == "keep":
        return False
    return bool(_PRIVATE.search(f"{principle.id.replace('-', ' ')} {principle.text}"))


def keepers(constitution: Constitution) -> tuple[str, ...]:
    """Ids of the guarded principles that the declared secrets stand for: those called `keep…`, else the first of
    secrecy. Other principles of secrecy (other people's privacy) speak of what no list of secrets holds."""
    if not constitution.secrets:
        return ()
    guarded = [p.id for p in constitution.principles if p.dimension == "secrecy" and p.guard is not None]
    return tuple(id for id in guarded if id.split("-")[0] == "keep") or tuple(guarded[:1])


def unchecked(constitution: Constitution, checks: Sequence[Check]) -> tuple[str, ...]:
    """Ids of principles with a `guard:` that none of these checks stands for. Print them: they are not guarded."""
    partly = (PersonalData, InjectionCheck, ExfiltrationCheck, VoiceCheck)  # they see a part of what it says
    reads = [check for check in checks if getattr(check, "exchange_head", True) is not None]  # and not prompts alone
    covered = {check.principle for check in reads if not isinstance(check, partly)}
    return tuple(p.id for p in constitution.principles if p.guard is not None and p.id not in covered)


def policies_from(constitution: Constitution) -> dict[str, Policy]:
    """What to say, what to do when a check fails, and how to stream, by principle id."""
    return {p.id: _policy(p) for p in constitution.principles}


def guarded(
    model: Model,
    constitution: Constitution,
    critic_model: Model | None,
    *,
    thresholds: Mapping[str, float] | None = None,
    rounds: int = ROUNDS,
    deadline: float | None = None,
) -> GuardedModel:
    """`model` behind the guard that the constitution asks for; the critic model also writes the revisions.

    Raises InputError for a critic at a vendor that neither serves the model nor is among the constitution's `vendors`.
    """
    checks = checks_from(constitution, critic_model, thresholds=thresholds, deadline=deadline)
    refuse_others(vendors(checks, critic_model), constitution, constitution.name, vendor(model))
    revise = None if critic_model is None else reviser(critic_model)
    return GuardedModel(model, checks, policies_from(constitution), revise, rounds)


def _policy(principle: Principle) -> Policy:
    """Only a reply that nobody has read yet can be revised: a principle that revises holds it whole."""
    guard = principle.guard
    if guard is None:
        return Policy(principle.text)
    stream = "buffer" if guard.on_violation == "revise" else guard.stream
    at = frozenset(guard.at) - {"prompt"} | ({"reasoning"} if "reply" in guard.at else frozenset())
    return Policy(principle.text, guard.say or SAY, guard.on_error, stream, at)


def _places(principle: Principle, *, proxy: bool = False) -> frozenset[str]:
    """Where the check looks, as places of `pieces.py`; reasoning counts as part of the reply."""
    assert principle.guard is not None
    at = frozenset(principle.guard.at)
    if "prompt" in at and not proxy:
        raise InputError(
            f"principle {principle.id!r}: the guard of a run looks at replies, so `guard: at: prompt` would check "
            "nothing; leave prompt out of `at`"
        )
    at -= {"prompt"}  # what is asked has checks of its own
    return (at | {"reasoning"}) if "reply" in at else at


def _secret(written: Written) -> Secret:
    if written.source == "value":
        assert written.value is not None
        try:
            return Secret(written.id, (written.value,), anywhere=written.canary)
        except ValueError as problem:
            raise InputError(f"constitution: {problem}") from None
    return Secret(written.id, anywhere=written.canary)
