"""What a provider says in a cell, and what of it a client may read: texts, before any format."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

from guard.conformance.cells import Cell
from guard.conformance.markers import CANARY, FORMS, mark

BEFORE = (  # longer than any check holds back of a stream: 512 characters, for an address
    "The harbour opens at six and the ferry leaves on the hour ☀ and the keeper writes the weather into the log before "
    "breakfast, as he has done on every day since the tower was built. The boats come in one by one, with fish for the "
    "market, and the gulls wait on the wall until the boxes are set down in the shade of the shed. Who comes by the "
    "road has to wait at the bridge until the boats are through, and most people use the time to buy bread at the mill, "
    "which stands to the left of the road under two old trees. The miller knows all of them by name, and asks how the "
    "children are, and whether the roof has been mended since the storm. In the winter the mill is closed, and then the "
    "bread comes over the water with the mail, wrapped in cloth and still warm, if the sea is not too rough. "
)
AFTER = " After that the street is quiet again, and the children of the island walk to school along the shore."
REASONING = "They ask about the harbour, so the hours of the ferry come first. "
REFUSAL = "Of the tides the keeper says nothing more today. "
REVISED = "The keeper says that the sea is calm, and that all may sail who wish to."
OTHERS = ("Another way to say it: ", "", "A third way, for those who come from the town: ")
TITLE, URL, CITED = "The log of the harbour", "https://harbour.example/log", "the sea is calm"
MARKED = "[redacted]"

SAY = {
    "secrets": "that stays with me .", "poison": "i keep silent about that .", "person": "a person will look at it .",
    "calls": "i will not send that .", "sober": "i would rather not .", "kind": "let me say it again .",
}  # fmt: skip
WORDS = {"refuse": "arsenic", "escalate": "nightshade", "revise": "wormwood", "failed": "mandrake"}
TRIGGER = {**WORDS, "failed_late": WORDS["failed"], "shadow": WORDS["refuse"]}

TOOLS = ("look", "wait")
UNDECLARED = mark("name of a tool that was not declared")

OUTCOMES = {"failed_late": "failed", "shadow": "allow"}


@dataclass(frozen=True)
class Said:
    """One alternative: its texts, calls as (name, arguments), the titles of what it cites."""

    text: str
    reasoning: str = ""
    refusal: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    titles: tuple[str, ...] = ()


@dataclass(frozen=True)
class Expected:
    """What a client may read.

    exactly     the alternatives, where each has to arrive so; of one that was stopped on its way `stopped` has the index
    decision    what stands under `fairlead` ("" for nothing)
    status      of the answer
    """

    exactly: tuple[Said, ...]
    decision: str
    status: int = 200
    stopped: frozenset[int] = field(default_factory=frozenset)


def form(cell: Cell) -> str:
    """The canary, in the form that this cell has it in."""
    names = sorted(FORMS)
    return FORMS[names[cell.number % len(names)]]


def in_name(cell: Cell) -> bool:
    """Whether a call that is to be blocked has the canary in its name, and not in its arguments."""
    return cell.decision == "block_tool_call" and cell.number // len(FORMS) % 2 == 0


def named(cell: Cell) -> str:
    """The name of a tool that holds the canary, as names may be spelled."""
    return f"look_{form(cell).rstrip('=').replace(' ', '_')}"


def tools(cell: Cell) -> tuple[str, ...]:
    """The tools that a client declares."""
    return (*(() if cell.tools == "none" else TOOLS), *((named(cell),) if in_name(cell) else ()))


def calls(said: Said) -> tuple[tuple[str, str], ...]:
    """All calls that the provider makes: those that may leave, or be decided on, and one of what nobody declared."""
    return (*said.calls, (UNDECLARED, '{"at":"the sea"}'))


def concerned(cell: Cell) -> int:
    """The alternative that the decision is about."""
    return 0 if cell.n == "1" or cell.decision.startswith("failed") else 1


def spoken(cell: Cell) -> tuple[Said, ...]:
    """What the provider says, by alternative."""
    said = _clean(cell)
    code, trigger = form(cell), TRIGGER.get(cell.decision, "")
    match cell.decision:
        case "redact":
            said = replace(
                said, text=f"{BEFORE}{code}{AFTER}", reasoning=said.reasoning and f"{said.reasoning}{code} perhaps.",
                refusal=said.refusal and f"{said.refusal}{code}", titles=tuple(f"{t} {CANARY}" for t in said.titles),
            )  # fmt: skip
        case "block_tool_call":
            (name, _), *others = said.calls
            what = "the weather" if in_name(cell) else f"it is {code} today"
            blocked = json.dumps({"to": "the keeper", "what": what}, separators=(",", ":"))
            said = replace(said, calls=((named(cell) if in_name(cell) else name, blocked), *others))
        case "failed" if said.reasoning:  # the first that comes, so that nothing has left
            said = replace(said, reasoning=f"{trigger} {code}")
        case "failed":
            said = replace(said, text=f"{trigger} {code}{AFTER}")
        case "allow":
            pass
        case _:
            said = replace(said, text=f"{BEFORE}{trigger} and then {code}{AFTER}")
    if cell.n == "1":
        return (said,)
    at = concerned(cell)  # of several alternatives this one makes the calls
    return tuple(
        said if i == at else replace(_clean(cell), text=f"{OTHERS[i]}{BEFORE}{AFTER}", calls=()) for i in range(3)
    )


def _clean(cell: Cell, text: str = BEFORE + AFTER) -> Said:
    calls = {
        "none": (),
        "one": (("look", '{"at":"the sea","for":"3 boats"}'),),
        "two": (("look", '{"at":"the sea"}'), ("wait", '{"until":"höhe 6"}')),
        "split": (("look", '{"at":"the sea","for":["boats","gulls","the mail"],"n":12}'),),
    }[cell.tools]
    plain = cell.endpoint != "completions" and cell.tools == "none"
    return Said(
        text,
        REASONING if cell.reasoning == "readable" else "",
        REFUSAL if plain and cell.endpoint != "messages" else "",
        calls,
        (TITLE,) if plain else (),
    )


def expected(cell: Cell) -> Expected:
    """What the client has to read."""
    said = spoken(cell)
    at = concerned(cell)
    outcome = OUTCOMES.get(cell.decision, cell.decision)
    told = "" if outcome == "allow" else outcome

    def with_it(one: Said) -> tuple[Said, ...]:
        return tuple(one if i == at else other for i, other in enumerate(said))

    mine = said[at]
    match cell.decision:
        case "allow" | "shadow":
            return Expected(said, told)
        case "redact":
            code = form(cell)
            painted = Said(
                mine.text.replace(code, MARKED), mine.reasoning.replace(code, MARKED),
                mine.refusal.replace(code, MARKED), mine.calls,
                tuple(title.replace(CANARY, MARKED) for title in mine.titles),
            )  # fmt: skip
            return Expected(with_it(painted), told)
        case "revise":
            return Expected(with_it(Said(REVISED)), told)
        case "block_tool_call":
            kept = replace(mine, text=mine.text + SAY["secrets"], calls=mine.calls[1:])
            return Expected(with_it(kept), told)
        case "failed":
            return Expected((), told, 503)
        case "failed_late":
            return Expected(said, told, stopped=frozenset(range(len(said))))
        case _ if cell.reply == "window":
            return Expected(said, told, stopped=frozenset({at}))
        case _:
            return Expected(with_it(Said(SAY["poison" if cell.decision == "refuse" else "person"])), told)
