"""Personal data and keys by their form, with check digits where they have them: what code can tell for sure.

Found: e-mail addresses, telephone numbers, IBAN (mod 97), payment cards (Luhn), IP addresses, US social security numbers
and other national numbers with check digits (UK NHS, Spanish DNI and NIE, Brazilian CPF, Italian codice fiscale, Dutch
BSN where it is named), Bitcoin and Ethereum addresses, and keys of providers by the prefixes that they publish.

Not found: names, places, organisations, titles, ages, dates and what else needs a reader. `Presidio` puts the optional
`presidio-analyzer` behind the same face.
"""

from __future__ import annotations

import hashlib
import importlib
import ipaddress
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from fairlead.errors import InputError, MissingResource
from fairlead.exchange import Exchange, Message
from fairlead.guard.checks.normalise import normalise
from fairlead.guard.checks.reader import compiled, plain
from fairlead.guard.checks.spans import SpanWatch, decided
from fairlead.guard.decision import Decision, Outcome
from fairlead.guard.pieces import PLACES
from fairlead.judges.lineage import Lineage, leaf

HELD, BACK = 96, 512  # no entity here is longer than 90 characters, private keys aside


def _digits(text: str) -> str:
    return "".join(char for char in text if char.isdigit())


def luhn(text: str) -> bool:
    """The check digit of payment cards (ISO/IEC 7812-1)."""
    digits = [int(char) for char in _digits(text)]
    doubled = [2 * d - 9 if d > 4 else 2 * d for d in digits[-2::-2]]
    return 12 <= len(digits) <= 19 and len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


_IBAN_SIZES = {
    "AD": 24, "AE": 23, "AT": 20, "BE": 16, "BG": 22, "CH": 21, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "EE": 20,
    "ES": 24, "FI": 18, "FR": 27, "GB": 22, "GR": 27, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IS": 26, "IT": 27,
    "LI": 21, "LT": 20, "LU": 20, "LV": 21, "MC": 27, "MT": 31, "NL": 18, "NO": 15, "PL": 28, "PT": 25, "RO": 24,
    "SA": 24, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "TR": 26, "UA": 29,
}  # fmt: skip


def iban(text: str) -> bool:
    """Length by country, and mod 97 (ISO 13616)."""
    plain = re.sub(r"[\s-]", "", text).upper()
    if len(plain) != _IBAN_SIZES.get(plain[:2], -1):
        return False
    return int("".join(str(int(char, 36)) for char in plain[4:] + plain[:4])) % 97 == 1


def ssn(text: str) -> bool:
    """US social security numbers have no check digit; what was never given out is left out."""
    a, b, c = text[:3], text[-7:-5] if len(text) == 11 else text[3:5], text[-4:]
    return a not in ("000", "666") and a < "900" and b != "00" and c != "0000"


def nhs(text: str) -> bool:
    digits = [int(char) for char in _digits(text)]
    rest = 11 - sum(d * (10 - n) for n, d in enumerate(digits[:9])) % 11
    return len(digits) == 10 and (0 if rest == 11 else rest) == digits[9]


def dni(text: str) -> bool:
    plain = text.upper().replace("-", "")
    number = plain[:-1].translate(str.maketrans("XYZ", "012"))
    return number.isdigit() and "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == plain[-1]


def cpf(text: str) -> bool:
    digits = [int(char) for char in _digits(text)]
    if len(digits) != 11 or len(set(digits)) == 1:
        return False
    for size in (9, 10):
        rest = sum(d * (size + 1 - n) for n, d in enumerate(digits[:size])) * 10 % 11 % 10
        if rest != digits[size]:
            return False
    return True


_ODD = dict(zip("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23), strict=True))  # fmt: skip


def codice_fiscale(text: str) -> bool:
    plain = text.upper()
    total = sum(
        _ODD[char] if n % 2 == 0 else int(char) if char.isdigit() else ord(char) - 65
        for n, char in enumerate(plain[:15])
    )
    return chr(65 + total % 26) == plain[15]


def ip(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not address.is_unspecified


_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def bitcoin(text: str) -> bool:
    """Base58Check; addresses of the newer form (bc1…) are taken by their form."""
    if text.lower().startswith("bc1"):
        return True
    number = 0
    for char in text:
        number = number * 58 + _BASE58.index(char)
    data = number.to_bytes(25, "big") if number < 1 << 200 else b""
    return len(data) == 25 and hashlib.sha256(hashlib.sha256(data[:21]).digest()).digest()[:4] == data[21:]


def phone(text: str) -> bool:
    """Seven to fifteen digits (E.164), and not the form of a US social security number."""
    return not re.fullmatch(r"[0-9]{3}-[0-9]{2}-[0-9]{4}", text) and 7 <= len(_digits(text.partition("x")[0])) <= 15


def always(text: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Entity:
    """One kind of data: its name as presidio has it, its form, and what has to hold of a match. `hint` matches wherever
    `pattern` does, and is read by RE2, many times faster."""

    name: str
    pattern: re.Pattern[str]
    hint: bytes
    holds: Callable[[str], bool] = always


def _entity(name: str, pattern: str, holds: Callable[[str], bool] = always, flags: int = 0) -> Entity:
    # What RE2 does not know, or keeps large tables for, is left out: what has to stand beside a match, and the upper
    # bounds of repeats. Letters beyond ASCII are "?" for the hint, so that it sees more borders of words, and not less.
    hint = re.sub(r"\{([0-9]+),[0-9]+\}", r"{\1,}", re.sub(r"\(\?<?[=!][^()]*\)", "", pattern))
    return Entity(name, re.compile(pattern, flags), b"(?i:%b)" % hint.encode() if flags else hint.encode(), holds)


# Every repeat is bounded, so that no text takes longer than a multiple of its length. Of two that overlap the earlier in
# this list stays.
ENTITIES: tuple[Entity, ...] = (
    _entity("PRIVATE_KEY", r"-----BEGIN (?:[A-Z]{2,10} ){0,2}PRIVATE KEY-----[A-Za-z0-9+/=\s\\]{0,4096}(?:-----END)?"),
    _entity(
        "API_KEY",
        r"\b(?:sk-(?:ant-|proj-|or-)?[A-Za-z0-9_-]{20,200}|AKIA[0-9A-Z]{16}|ASIA[0-9A-Z]{16}|AIza[0-9A-Za-z_-]{35}"
        r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{50,255}|glpat-[A-Za-z0-9_-]{20,64}"
        r"|xox[abeoprs]-[A-Za-z0-9-]{10,250}|hf_[A-Za-z0-9]{30,64}|(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,128}"
        r"|SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,64}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,255}"
        r"|eyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,2000}\.[A-Za-z0-9_-]{10,600})",
    ),
    _entity("EMAIL_ADDRESS", r"\b[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,5}[A-Za-z]{2,24}\b"),
    _entity("IBAN_CODE", r"\b[A-Z]{2}[0-9]{2}(?:[ -]?[A-Z0-9]{2,4}){2,7}(?:[ -]?[A-Z0-9]{1,4})?\b", iban),
    _entity("CRYPTO", r"\b(?:[13][1-9A-HJ-NP-Za-km-z]{25,34}|bc1[02-9ac-hj-np-z]{11,71}|0x[0-9a-fA-F]{40})\b",
            lambda text: text.startswith("0x") or bitcoin(text)),
    _entity("CREDIT_CARD", r"\b(?:[0-9][ -]?){12,18}[0-9]\b", luhn),
    _entity("US_SSN", r"\b[0-9]{3}-[0-9]{2}-[0-9]{4}\b", ssn),
    _entity("US_SSN", r"(?<=ssn)\W{1,3}(?:is |number )?[0-9]{9}\b", always, re.I),
    _entity("ES_NIF", r"\b(?:[0-9]{8}|[XYZ][0-9]{7})-?[A-Z]\b", dni),
    _entity("BR_CPF", r"\b[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}\b", cpf),
    _entity("IT_FISCAL_CODE", r"\b[A-Z]{6}[0-9]{2}[A-EHLMPRST][0-9]{2}[A-Z][0-9]{3}[A-Z]\b", codice_fiscale),
    _entity("UK_NHS", r"\b[0-9]{3}[ -][0-9]{3}[ -][0-9]{4}\b", nhs),
    _entity("IP_ADDRESS", r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w]|\.[0-9])", ip),
    _entity("IP_ADDRESS", r"(?<![\w:])(?:[0-9A-Fa-f]{0,4}:){3,7}[0-9A-Fa-f]{0,4}(?![\w:])", ip),
    _entity(
        "PHONE_NUMBER",
        r"(?<![\w.,/+-])(?:\+[0-9]{1,3}[ .-]?(?:\([0-9]{1,4}\)[ .-]?)?(?:[0-9]{1,5}[ ./-]?){1,5}[0-9]{2,4}"
        r"|(?:1[ .-])?\(?[2-9][0-9]{2}\)?[ .-][0-9]{3}[ .-][0-9]{4}|(?<![0-9] )\(?0[0-9]{1,4}\)?[ /-][0-9]{2,4}[ -]?[0-9]{2,4}(?:[ -]?[0-9]{2,4})?"
        r"|\([0-9]{2,4}\) [0-9]{3}[ -][0-9]{3,4}|001-[0-9]{3}-[0-9]{3}-[0-9]{4})(?:[ ]?x[0-9]{1,6})?(?![\w]|[.,][0-9])",
        phone,
    ),
)  # fmt: skip
NAMES = tuple(dict.fromkeys(entity.name for entity in ENTITIES))
_HINTS = tuple(compiled(entity.hint) for entity in ENTITIES)
_ANY = compiled(b"|".join(b"(?:%b)" % entity.hint for entity in ENTITIES))


@dataclass(frozen=True)
class PersonalData:
    """Finds personal data in what a model writes; `entities` (all of `NAMES` where not given) says which kinds."""

    principle: str = ""
    on_violation: Outcome = "redact"
    at: frozenset[str] = PLACES
    entities: tuple[str, ...] = NAMES
    extra: Presidio | None = None
    cost: int = 0
    held: ClassVar[int] = HELD  # characters of a stream

    def __post_init__(self) -> None:
        for name in self.entities:
            if name not in NAMES:
                raise InputError(f"{self.name}: no personal data {name!r} is known; there are: {', '.join(NAMES)}")

    @property
    def name(self) -> str:
        called = "personal" if self.entities else "presidio"
        return f"{called}:{self.principle}" if self.principle else called

    @cached_property
    def lineage(self) -> Lineage:
        read = self.extra
        more = () if read is None else ("presidio", read.language, read.model, str(read.threshold), *read.entities)
        return leaf(
            "rule", text=" ".join(["guard personal data", *self.entities, *more]), code=Path(__file__).read_text()
        )

    def matches(self, text: str) -> list[tuple[str, int, int]]:
        """(entity, start, end), in order, none inside another."""
        found = list(_found(text, self.entities)) if self.entities else []
        if self.extra is not None:
            found += self.extra.matches(text)
        return found

    def says(self, entity: str, place: str) -> str:
        return f"{entity} in the {place.replace('_', ' ')}"

    def decide(self, exchanges: Sequence[Exchange]) -> list[Decision]:
        return [decided(self, item.reply) for item in exchanges]

    def ask(self, messages: Sequence[Message]) -> Decision:
        """The same over what is asked."""
        return decided(self, messages)

    def watch(self, messages: Sequence[Message]) -> SpanWatch:
        return SpanWatch(self, HELD, BACK)


def _found(text: str, entities: Collection[str]) -> Iterator[tuple[str, int, int]]:
    read = plain(text)
    if not _ANY.search(read):
        return
    folded = normalise(text)
    taken: list[tuple[str, int, int]] = []
    for entity, hint in zip(ENTITIES, _HINTS, strict=True):
        if entity.name in entities and hint.search(read):
            for match in entity.pattern.finditer(folded.text):
                start, end = match.span()
                if entity.holds(match[0]) and not any(start < b and a < end for _, a, b in taken):
                    taken.append((entity.name, start, end))
    for name, start, end in sorted(taken, key=lambda item: item[1]):
        yield (name, *folded.locate(start, end))


MODEL = "en_core_web_lg"  # the spaCy model that presidio takes by itself


@dataclass(frozen=True)
class Presidio:
    """presidio-analyzer (optional) as a finder of what needs a reader: names, places. `engine` is its AnalyzerEngine."""

    engine: Any
    entities: tuple[str, ...] = ("PERSON", "LOCATION")
    language: str = "en"
    threshold: float = 0.5
    model: str = MODEL

    def matches(self, text: str) -> list[tuple[str, int, int]]:
        found = self.engine.analyze(text=text, entities=list(self.entities), language=self.language)
        return [(item.entity_type, item.start, item.end) for item in found if item.score >= self.threshold]


def open_presidio(entities: Sequence[str], language: str = "en", model: str = MODEL) -> Presidio:
    """Presidio over a spaCy model, by name or folder. Raises MissingResource where one of the two is not installed,
    InputError for a kind of data that it does not know."""
    try:
        analyzer = importlib.import_module("presidio_analyzer")
        engines = importlib.import_module("presidio_analyzer.nlp_engine")
    except ModuleNotFoundError as missing:
        raise MissingResource(
            f"presidio looks for {', '.join(entities)}, and {missing.name} is not installed: pip install "
            f"'fairlead[presidio]', and its model: python -m spacy download {model}"
        ) from None
    asked = {"nlp_engine_name": "spacy", "models": [{"lang_code": language, "model_name": model}]}
    try:
        read = engines.NlpEngineProvider(nlp_configuration=asked).create_engine()
        engine = analyzer.AnalyzerEngine(nlp_engine=read, supported_languages=[language])
    except (OSError, SystemExit, ValueError) as problem:  # spaCy ends the process where it cannot get a model
        raise MissingResource(
            f"presidio cannot start ({type(problem).__name__}): python -m spacy download {model}, or name a folder of "
            "one in the settings (checks: {presidio_model: ./FOLDER})"
        ) from None
    known = sorted(engine.get_supported_entities(language=language))
    for name in entities:
        if name not in known:
            raise InputError(f"presidio knows no {name!r}; there are: {', '.join(known)}")
    return Presidio(engine, tuple(entities), language, model=model)
