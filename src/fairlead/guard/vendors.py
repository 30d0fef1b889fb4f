"""Who else reads what is said: checks that send texts to another vendor are taken where the constitution allows it."""

from __future__ import annotations

from collections.abc import Sequence

from fairlead.constitution.schema import Constitution
from fairlead.errors import InputError
from fairlead.guard.decision import Check
from fairlead.models.access import vendor
from fairlead.models.protocol import Model


def vendors(checks: Sequence[Check], critic: Model | None = None) -> tuple[str, ...]:
    """The hosts that these checks send texts to (`sends_to`), and that of the model which writes revisions."""
    told = (vendor(critic), *(getattr(check, "sends_to", "") for check in checks))
    return tuple(dict.fromkeys(host for host in told if host))


def refuse_others(hosts: Sequence[str], constitution: Constitution, where: str, *servers: str) -> None:
    """Raises InputError for a host that neither serves the model (`servers`: it reads what is said anyway) nor is
    allowed by the constitution."""
    for host in hosts:
        if host not in servers and host not in constitution.vendors:
            raise InputError(
                f"a check of this guard sends what is said to {host}, and the constitution {where} does not allow it: "
                f"write `vendors: [{host}]` there, or take a critic that runs here"
            )
