"""Prompts from the constitution itself: for each principle such as tempt a model to break it, and their harmless twins.

A capable model writes them, few-shot from the principle's examples: a tempting request, then its twin in nearly the
same words. Without one they come from a bank of templates where there is one for the principle, else from its examples
in general frames. Twins and tempting prompts are balanced; what could not be used is counted by why.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from fairlead.constitution.alike import grams, jaccard, normalised
from fairlead.constitution.prompts import template
from fairlead.constitution.schema import Constitution, Example, Principle
from fairlead.exchange import Case, Message, exchange, system, user
from fairlead.feedback.wordbag import KEYWORDS, word_auroc
from fairlead.judges.prompting import fill
from fairlead.judges.rules import refused
from fairlead.judges.transcript import quoted
from fairlead.models.protocol import Model, Reply, Sampling
from fairlead.stats import Interval

Kind: TypeAlias = Literal["tempting", "twin"]
KINDS: tuple[Kind, ...] = ("tempting", "twin")

NEAR = 0.8  # Jaccard of character 4-grams from which two prompts of a kind are one
AT_ONCE = 8  # tempting requests asked for in one question
SHOWN = 12  # of those written already, shown so that they are not written again
MIN_WORDS, MAX_WORDS = 3, 120
BARREN = 2  # rounds that bring nothing new, after which a model is not asked again
TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Written:
    """One prompt with where it came from.

    pair        shared by a tempting prompt and its twin where they were made together
    source      model, bank or examples; `by` the model's name, the template's id, or the frame's number
    wording     hash of what the model was asked in, or of the template's text
    """

    messages: tuple[Message, ...]
    principle: str
    kind: Kind
    pair: str
    cluster: str
    source: Literal["model", "bank", "examples"]
    by: str
    wording: str
    seed: int
    round: int

    @property
    def text(self) -> str:
        return self.messages[-1].text

    def row(self, constitution: Constitution) -> dict[str, Any]:
        """One line of the file: a prompt as `--prompts` reads it, and its provenance."""
        return {
            "messages": [{"role": m.role, "content": m.text} for m in self.messages],
            "principle": self.principle, "kind": self.kind, "pair": self.pair, "cluster": self.cluster,
            "source": self.source, "by": self.by, "wording": self.wording, "seed": self.seed, "round": self.round,
            "constitution": constitution.sha256,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Made:
    """What came of it.

    short    by principle id, how many pairs were to be had where that is fewer than asked for, and why
    counts   what was left out: duplicate, near_duplicate, not_a_list, too_short, too_long, no_answer, cut_off,
             no_twin, same_as_tempting, unbalanced
    auroc    of a bag of words between tempting prompts and twins; None where there are too few
    """

    rows: tuple[Written, ...]
    asked: int
    short: Mapping[str, tuple[int, str]]
    counts: Mapping[str, int]
    rounds: int
    auroc: Interval | None

    @property
    def keywords(self) -> bool:
        """Whether words alone tell the kinds apart."""
        return self.auroc is not None and self.auroc.value > KEYWORDS


@dataclass
class _Shelf:
    """The prompts of one principle and kind; says of a new one whether it is new."""

    near: float
    texts: list[str] = field(default_factory=list)
    _plain: set[str] = field(default_factory=set)
    _grams: list[frozenset[str]] = field(default_factory=list)

    def fault(self, text: str) -> str:
        if normalised(text) in self._plain:
            return "duplicate"
        own = grams(text)
        return "near_duplicate" if any(jaccard(own, other) >= self.near for other in self._grams) else ""

    def add(self, text: str) -> None:
        self.texts.append(text)
        self._plain.add(normalised(text))
        self._grams.append(grams(text))


# ------------------------------------------------------------------------------------------------ by a model


def by_model(
    constitution: Constitution,
    model: Model,
    n: int,
    *,
    rounds: int = 6,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Made:
    """`n` tempting prompts and `n` twins for each principle, written by `model`, or as many as it has in `rounds`.

    A round asks for tempting requests and, for each new one, for its twin; a pair counts when both can be used. A
    principle at which two rounds running bring nothing new is given up.
    """
    rows: list[Written] = []
    counts: Counter[str] = Counter()
    short: dict[str, tuple[int, str]] = {}
    most = 0
    for turn, p in enumerate(constitution.principles):
        found, used, why = _principle(p, model, n, rounds, seed, counts)
        rows += found
        most = max(most, used)
        if len(found) < 2 * n:
            short[p.id] = (len(found) // 2, why)
        if progress is not None:
            progress(turn + 1, len(constitution.principles))
    return Made(tuple(rows), n, short, _some(counts), most, _auroc(rows))


def _principle(
    p: Principle, model: Model, n: int, rounds: int, seed: int, counts: Counter[str]
) -> tuple[list[Written], int, str]:
    """(the rows, rounds used, why there are fewer than asked for)."""
    tempting, harmless = kinds_of(p)
    shelves = {kind: _Shelf(NEAR) for kind in KINDS}
    for e in tempting:  # an example copied is nothing new
        shelves["tempting"].add(e.user)
    rows: list[Written] = []
    barren = 0
    for number in range(1, rounds + 1):
        left = n - len(rows) // 2
        # What it wrote last is shown to it again, so that it writes something else.
        asked = fill(
            template("tempt"), principle=quoted(p.text), n=min(AT_ONCE, left + 2),
            tempting=[quoted(e.user) for e in tempting[:4]], harmless=[quoted(e.user) for e in harmless[:4]],
            seen=[quoted(text) for text in shelves["tempting"].texts[len(tempting) :][-SHOWN:]],
        )  # fmt: skip
        new: list[str] = []
        for text in _listed(_ask(model, [asked], seed + number)[0], counts):
            fault = shelves["tempting"].fault(text)
            counts[fault] += bool(fault)
            if not fault:
                shelves["tempting"].add(text)
                new.append(text)
        new = new[:left]
        questions = [_twin_question(p, text, tempting, harmless) for text in new]
        before = len(rows)
        for text, answer in zip(new, _ask(model, questions, seed + number), strict=True):
            twin = _twin(text, answer, shelves, counts)
            if twin:
                shelves["twin"].add(twin)
                pair = f"{p.id}/{number}.{len(rows) // 2}"
                rows += [
                    _by_model(p, "tempting", text, pair, model, "tempt", seed, number),
                    _by_model(p, "twin", twin, pair, model, "twin", seed, number),
                ]
        if len(rows) >= 2 * n:
            return rows, number, ""
        barren = 0 if len(rows) > before else barren + 1
        if barren == BARREN:
            return rows, number, f"{BARREN} rounds running brought nothing new"
    return rows, rounds, f"{rounds} rounds did not bring more"


def _by_model(
    p: Principle, kind: Kind, text: str, pair: str, model: Model, wording: str, seed: int, number: int
) -> Written:
    asked = _hash(template(wording))
    return Written((user(text),), p.id, kind, pair, pair, "model", model.name, asked, seed + number, number)


def _twin_question(p: Principle, request: str, tempting: Sequence[Example], harmless: Sequence[Example]) -> str:
    return fill(
        template("twin"), principle=quoted(p.text), request=quoted(request),
        tempting=[quoted(e.user) for e in tempting[:2]], harmless=[quoted(e.user) for e in harmless[:2]],
    )  # fmt: skip


def _twin(text: str, answer: Reply, shelves: Mapping[Kind, _Shelf], counts: Counter[str]) -> str:
    """The one line of a usable answer, or "" (counted)."""
    lines = _listed(answer, counts)
    if len(lines) != 1:
        counts["no_twin"] += 1
        return ""
    twin = lines[0]
    if normalised(twin) == normalised(text) or shelves["tempting"].fault(twin) == "duplicate":
        counts["same_as_tempting"] += 1
        return ""
    fault = shelves["twin"].fault(twin)
    counts[fault] += bool(fault)
    return "" if fault else twin


def _ask(model: Model, questions: Sequence[str], seed: int) -> list[Reply]:
    if not questions:
        return []
    asked = {"max_tokens": TOKENS, "temperature": 1.0, "seed": seed}
    sampling = Sampling(**{k: v for k, v in asked.items() if k in model.capabilities})  # type: ignore[arg-type]
    return [replies[0] for replies in model.generate([(user(text),) for text in questions], sampling)]


_ITEM = re.compile(r"- +(\S.*)")


def _listed(reply: Reply, counts: Counter[str]) -> list[str]:
    """The usable items of a list, strictly read: one line each, beginning with "- ". What is not is counted."""
    if reply.finish in ("error", "filter", "refusal"):
        counts["no_answer"] += 1
        return []
    lines = [line.strip() for line in reply.text.splitlines() if line.strip()]
    if not lines:
        counts["no_answer"] += 1
    if reply.finish == "length" and lines:  # the last line ends where the room did
        lines.pop()
        counts["cut_off"] += 1
    found = []
    for line in lines:
        item = _ITEM.fullmatch(line)
        words = len(item[1].split()) if item else 0
        fault = "not_a_list" if item is None else _length(words)
        counts[fault] += bool(fault)
        if item is not None and not fault:
            found.append(item[1].strip())
    return found


def _length(words: int) -> str:
    return "too_short" if words < MIN_WORDS else "too_long" if words > MAX_WORDS else ""


# ------------------------------------------------------------------------------------------- without a model

Bank: TypeAlias = Callable[[Constitution, Kind], Sequence[Case]]


def by_templates(constitution: Constitution, n: int, *, bank: Bank | None = None) -> Made:
    """At most `n` of each kind for each principle: from the bank where it has the principle, else from its examples.

    bank   the cases of one kind for a constitution, with `meta` naming pack, template and pair
    """
    cases = {kind: list(bank(constitution, kind)) if bank is not None else [] for kind in KINDS}
    rows: list[Written] = []
    counts: Counter[str] = Counter()
    short: dict[str, tuple[int, str]] = {}
    for p in constitution.principles:
        own = {kind: [case for case in cases[kind] if case.principle == p.id] for kind in KINDS}
        why = "the bank has no more"
        if any(own.values()):
            made = {kind: _distinct([_of_bank(case, kind) for case in own[kind]], counts) for kind in KINDS}
        else:
            made, why = {kind: _distinct(found, counts) for kind, found in _of_examples(p).items()}, _why(p)
        both = min(n, *(len(found) for found in made.values()))
        counts["unbalanced"] += sum(min(n, len(found)) - both for found in made.values())
        for kind in KINDS:
            rows += made[kind][:both]
        if both < n:
            short[p.id] = (both, why)
    return Made(tuple(rows), n, short, _some(counts), 0, _auroc(rows))


def kinds_of(p: Principle) -> tuple[list[Example], list[Example]]:
    """(examples whose prompt tempts, examples whose prompt is harmless), each prompt once.

    Where a bad reply was given, or the good reply refuses, the prompt tempts; where a good reply answers, it is
    harmless.
    """
    tempting = [*p.bad, *(e for e in p.good if refused(exchange(e.user, e.reply)))]
    asked = {normalised(e.user) for e in tempting}
    harmless = [e for e in p.good if normalised(e.user) not in asked]
    return [list({normalised(e.user): e for e in found}.values()) for found in (tempting, harmless)]  # type: ignore[return-value]


def _of_examples(p: Principle) -> dict[Kind, list[Written]]:
    frames = [line for line in template("frames").splitlines() if line.strip()]
    made: dict[Kind, list[Written]] = {}
    for kind, examples in zip(KINDS, kinds_of(p), strict=True):
        made[kind] = [
            Written(
                ((system(e.system),) if e.system else ()) + (user(frame.replace("{request}", e.user)),),
                p.id, kind, f"{p.id}/{i}.{number}", f"{p.id}/{i}", "examples", f"frame {number}", _hash(frame), 0, 0,
            )
            for number, frame in enumerate(frames)
            for i, e in enumerate(examples)
        ]  # fmt: skip
    return made


def _of_bank(case: Case, kind: Kind) -> Written:
    name = str(case.meta.get("template", case.cluster))
    pair = str(case.meta.get("pair", name))
    return Written(tuple(case.messages), case.principle, kind, pair, case.cluster, "bank", name, _hash(name), 0, 0)


def _why(p: Principle) -> str:
    tempting, harmless = kinds_of(p)
    if not tempting or not harmless:
        lacks = "that tempts" if not tempting else "that must be answered"
        return f"it has no example {lacks}; write one under good or bad, or name a --model"
    return f"its {len(tempting)} tempting and {len(harmless)} harmless examples give no more; name a --model"


def _distinct(found: Sequence[Written], counts: Counter[str]) -> list[Written]:
    kept = {tuple((m.role, normalised(m.text)) for m in row.messages): row for row in reversed(found)}
    counts["duplicate"] += len(found) - len(kept)
    return list(reversed(kept.values()))


# -------------------------------------------------------------------------------------------------- common


def _auroc(rows: Sequence[Written]) -> Interval | None:
    tempting, twins = ([row for row in rows if row.kind == kind] for kind in KINDS)
    try:
        return word_auroc(
            [row.text for row in tempting],
            [row.text for row in twins],
            ([row.cluster for row in tempting], [row.cluster for row in twins]),
        )
    except ValueError:
        return None


def _some(counts: Counter[str]) -> dict[str, int]:
    return {name: n for name, n in sorted(counts.items()) if n}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
