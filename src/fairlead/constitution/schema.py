"""What a constitution is: frozen values, the only source of intent (DESIGN, idea 1).

Everything else (critique prompts, preference labels, guard checks, report rows) is derived from a principle and carries
its id. `constitution/load.py` reads one from a file; nothing here touches the disk.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    PrivateAttr,
    Tag,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from fairlead.constitution.explain import meant

Dimension: TypeAlias = Literal["helpful", "harmless", "honest", "voice", "secrecy", "domain"]
Place: TypeAlias = Literal["prompt", "reply", "tool_call", "tool_result"]
Violation: TypeAlias = Literal["allow", "redact", "revise", "refuse", "escalate", "block_tool_call"]

DIMENSIONS: tuple[Dimension, ...] = ("helpful", "harmless", "honest", "voice", "secrecy", "domain")


def _words(text: str) -> str:
    """One line: how a text is folded in the file is not part of what it says."""
    folded = " ".join(text.split())
    if not folded:
        raise ValueError("must not be empty")
    return folded


def _id(text: str) -> str:
    if not re.fullmatch(ID, text):
        raise ValueError(f"{text!r} is not an id: use lower-case letters, digits and single dashes, such as 'no-harm'")
    return text


def _distinct(items: tuple[str, ...]) -> tuple[str, ...]:
    twice = [item for i, item in enumerate(items) if item in items[:i]]
    if twice:
        raise ValueError(f"{twice[0]!r} is given twice")
    return items


@dataclass(frozen=True)
class InSchema:
    """What the JSON Schema says of a value whose check, with its better words, is a function here."""

    keyword: str
    value: str | bool

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(core), self.keyword: self.value}


class OrAlone:
    """What the JSON Schema says of a list that may be one text."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string", "pattern": r"\S"}, handler(core)]}


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


LATER = ("over", "conflicts")
ID = r"[a-z0-9]+(-[a-z0-9]+)*"
Words: TypeAlias = Annotated[str, AfterValidator(_words), InSchema("pattern", r"\S")]
Id: TypeAlias = Annotated[str, AfterValidator(_id), InSchema("pattern", f"^{ID}$")]
UNIQUE = InSchema("uniqueItems", True)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Voice(_Part):
    """How the assistant speaks: in a few words, and by texts of one's own that sound right.

    `texts` are what the loader read (constitution/voice.py); they are not part of the file.
    """

    style: Words | None = Field(None, description="how it speaks, in a few words")
    samples: Annotated[tuple[Words, ...], AfterValidator(_distinct), UNIQUE, OrAlone(), BeforeValidator(_listed)] = (
        Field(min_length=1, description="files with texts in this voice, relative to this one, such as brand/*.md")
    )
    _texts: tuple[str, ...] = PrivateAttr(())

    @property
    def texts(self) -> tuple[str, ...]:
        return self._texts

    def with_texts(self, texts: tuple[str, ...]) -> Voice:
        read = self.model_copy()
        read._texts = texts
        return read

    @property
    def meaning(self) -> dict[str, Any]:
        """What counts of it in a hash: the words, and what the files hold; not how they are called."""
        held = hashlib.sha256("\0".join(sorted(self._texts)).encode()).hexdigest()
        return {"style": self.style, "samples": held}


def _how(value: Any) -> str:
    return "by-samples" if isinstance(value, dict | Voice) else "in-words"


class Assistant(_Part):
    """Who is speaking."""

    name: Words = Field("the assistant", description="the name it goes by")
    role: Words = Field("an assistant", description="what it is, as a noun phrase: 'the harbour office's assistant'")
    voice: (
        Annotated[Annotated[Words, Tag("in-words")] | Annotated[Voice, Tag("by-samples")], Discriminator(_how)] | None
    ) = Field(None, description="how it speaks, in a few words, or {style: …, samples: [FILES]}")

    @property
    def style(self) -> str | None:
        """How it speaks, in a few words, where that is said."""
        return self.voice.style if isinstance(self.voice, Voice) else self.voice


class Example(_Part):
    """One question and one reply that keeps (good) or breaks (bad) the principle."""

    user: Words
    reply: Words
    system: Words | None = None


# Who may be named as judge. Training reads principles through a critic and nothing else; a measure knows them all.
TRAIN_JUDGES: tuple[str, ...] = ("critic",)
AUDIT_JUDGES: tuple[str, ...] = (
    "critic", "gold", "rules", "known-secret", "refusal", "answers", "length", "emoji", "flattery", "polite", "exact",
    "mentions", "numeric", "unknown", "agreement",
)  # fmt: skip


def _known(known: tuple[str, ...]) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
    def check(names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in known:
                raise ValueError(f"unknown judge {name!r}. {meant(name, known)}")
        return names

    return check


class Judges(_Part):
    """Names of judges by side. What trains a layer is never its evidence: the run's ledger holds that line.

    `train` says what training does in any case: a critic reads the principle. `audit` replaces the measure's own judge.
    """

    train: Annotated[tuple[Words, ...], AfterValidator(_distinct), AfterValidator(_known(TRAIN_JUDGES)), UNIQUE] = ()
    audit: Annotated[tuple[Words, ...], AfterValidator(_distinct), AfterValidator(_known(AUDIT_JUDGES)), UNIQUE] = ()


class Guard(_Part):
    """What the guard does about one principle.

    `stream` is for a proxy that streams, which has to choose what it holds back. A guard in the same process sees whole
    replies, so there it changes nothing.
    """

    at: Annotated[tuple[Place, ...], AfterValidator(_distinct), UNIQUE] = Field(
        ("reply",), min_length=1, description="where the principle is checked"
    )
    on_violation: Violation = Field("refuse", description="what happens when it is broken")
    on_error: Literal["refuse", "allow"] = Field("refuse", description="what happens when the check itself fails")
    say: Words | None = Field(None, description="what the user reads instead of the reply")
    stream: Literal["buffer", "window"] = Field(
        "buffer",
        description="of a streamed reply: hold the whole until it is checked, or release it behind a sliding window",
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Guard:
        if self.on_violation == "block_tool_call" and "tool_call" not in self.at:
            raise ValueError("on_violation is block_tool_call, but tool_call is not in `at`")
        if self.on_violation == "revise" and "reply" not in self.at:
            raise ValueError("on_violation is revise, but only a reply can be revised: put reply in `at`")
        return self


class Principle(_Part):
    """One thing the model should do or not do, in plain language."""

    id: Id = Field(description="short and stable: reports, caches and history refer to it")
    dimension: Dimension
    severity: int = Field(
        ge=1, le=5, description="5 is worst when broken; a heavier one weighs more in draws and labels"
    )
    text: Words = Field(description="what a reader is told; judges, critics and the system prompt read these words")
    over: Annotated[tuple[Id, ...], AfterValidator(_distinct), UNIQUE] = Field(
        (), description="priority: ids of the principles that give way to this one where the two pull apart"
    )
    conflicts: Annotated[tuple[Id, ...], AfterValidator(_distinct), UNIQUE] = Field(
        (), description="ids of principles known to pull apart from this one: one of the two needs an `over`"
    )
    good: tuple[Example, ...] = ()
    bad: tuple[Example, ...] = ()
    judges: Judges = Judges()
    guard: Guard | None = None


class Secret(_Part):
    """Something the model must keep: read from the system prompt as it runs, or given here as a value."""

    id: Id
    source: Literal["system", "value"] = Field(alias="from", description="where the secret's text comes from")
    value: Words | None = Field(None, description="the secret itself, with `from: value`")
    canary: bool = Field(False, description="a marker whose appearance anywhere proves a leak: looked for beyond `at`")

    @model_validator(mode="after")
    def _has_value(self) -> Secret:
        if self.source == "value" and self.value is None:
            raise ValueError("from is value, but no value is given")
        if self.source == "system" and self.value is not None:
            raise ValueError("a value is given, but from is system; write `from: value`")
        return self


class Constitution(_Part):
    """How a model should behave, written once.

    As loaded, `principles` and `secrets` are complete: those of `extends` first, each replaced where a later one has
    the same id. `vendors` are those of all.
    """

    name: Words
    extends: Annotated[tuple[Words, ...], AfterValidator(_distinct), UNIQUE] = Field(
        (), description="packs (hhh, health, …) or files, relative to this one, whose principles this one builds on"
    )
    assistant: Assistant = Assistant()
    principles: tuple[Principle, ...] = ()
    secrets: tuple[Secret, ...] = ()
    vendors: Annotated[tuple[Words, ...], AfterValidator(_distinct), UNIQUE] = Field(
        (), description="hosts that a guard's checks may send texts to, beside the model's own server: api.openai.com"
    )
    _sha256: str = PrivateAttr("")

    @model_validator(mode="after")
    def _ids_are_distinct(self) -> Constitution:
        for kind, items in (("principle", self.principles), ("secret", self.secrets)):
            seen: set[str] = set()
            for item in items:
                if item.id in seen:
                    raise ValueError(f"{kind} {item.id!r} is given twice")
                seen.add(item.id)
        return self

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the principles, in order."""
        return tuple(p.id for p in self.principles)

    def __getitem__(self, id: str) -> Principle:
        """The principle of that id; a `KeyError` that says what was meant."""
        for principle in self.principles:
            if principle.id == id:
                return principle
        raise KeyError(f"no principle {id!r} in constitution {self.name!r}. {meant(id, self.ids)}")

    def __contains__(self, id: object) -> bool:
        return id in self.ids

    def principle_for(self, dimension: Dimension, *preferred: str) -> Principle | None:
        """The principle that stands beside a row of `dimension`: a preferred id where the constitution has it in that
        dimension, else the first of the dimension, else None."""
        of_dimension = [p for p in self.principles if p.dimension == dimension]
        for id in preferred:
            for principle in of_dimension:
                if principle.id == id:
                    return principle
        return of_dimension[0] if of_dimension else None

    def without(self, *ids: str) -> Constitution:
        """The same constitution with those principles struck out (the counterfactual of DESIGN, idea 1)."""
        for id in ids:
            self[id]
        left = [
            p.model_copy(update={key: tuple(other for other in getattr(p, key) if other not in ids) for key in LATER})
            for p in self.principles
            if p.id not in ids
        ]
        return self.model_copy(update={"principles": tuple(left)}).hashed_as("")

    def reworded(self, texts: dict[str, str]) -> Constitution:
        """The same constitution with new words for some principles, by id."""
        for id in texts:
            self[id]
        changed = [
            Principle.model_validate({**p.model_dump(), "text": texts[p.id]}) if p.id in texts else p
            for p in self.principles
        ]
        return self.model_copy(update={"principles": tuple(changed)}).hashed_as("")

    def hashed_as(self, sha256: str) -> Constitution:
        """The same, known by the hash of the constitution that it was derived from; "" for one of its own."""
        known = self.model_copy()
        known._sha256 = sha256
        return known

    def goes_first(self, first: str, second: str) -> bool:
        """Whether `first` has priority over `second`, by its own `over` or through others between them."""
        return second in _below(first, {p.id: p.over for p in self.principles})

    @property
    def sha256(self) -> str:
        """Hash of the resolved meaning: not of comments, folding, key order, defaults spelled out, `name` or how the
        principles were put together. The order of principles is meaning, since prompts follow it."""
        if self._sha256:
            return self._sha256
        meaning = self.model_dump(mode="json", by_alias=True, exclude={"name", "extends"})
        if isinstance(self.assistant.voice, Voice):
            meaning["assistant"]["voice"] = self.assistant.voice.meaning
        for principle in meaning["principles"]:
            for key in LATER:  # keys that came later: a constitution without them keeps its hash
                if not principle[key]:
                    del principle[key]
        if not meaning["vendors"]:
            del meaning["vendors"]
        body = json.dumps(meaning, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(body.encode()).hexdigest()


def _below(id: str, over: Mapping[str, Sequence[str]]) -> set[str]:
    """All that give way to `id`, directly or through others; itself among them where the priorities run in a circle."""
    found: set[str] = set()
    waiting = list(over.get(id, ()))
    while waiting:
        other = waiting.pop()
        if other not in found:
            found.add(other)
            waiting += over.get(other, ())
    return found


def merged(own: Constitution, bases: Sequence[Constitution], *, assistant_given: bool) -> Constitution:
    """`own` over its bases: a later principle or secret of the same id replaces the earlier one whole, in its place.

    The assistant is the constitution's own where it gives one, else that of the last base.
    """
    principles: dict[str, Principle] = {}
    secrets: dict[str, Secret] = {}
    for source in (*bases, own):
        principles |= {p.id: p for p in source.principles}
        secrets |= {s.id: s for s in source.secrets}
    assistant = own.assistant if assistant_given or not bases else bases[-1].assistant
    return Constitution(
        name=own.name,
        extends=own.extends,
        assistant=assistant,
        principles=tuple(principles.values()),
        secrets=tuple(secrets.values()),
        vendors=tuple(dict.fromkeys(host for source in (*bases, own) for host in source.vendors)),
    )


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a constitution file, for editors that complete and check YAML."""
    schema = Constitution.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Fairlead constitution"}
