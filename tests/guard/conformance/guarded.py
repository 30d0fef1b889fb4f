"""The proxies of the matrix: one for each way to hold a reply back, each over the same mock server.

All that a proxy checks by itself stands in all of them, with rules for the words that decide. `Breaks` is a check that
raises at its word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fairlead.exchange import Exchange, Message
from fairlead.guard import checked
from fairlead.guard.decision import ALLOW, Decision
from fairlead.guard.proxy import setup
from fairlead.guard.watch import Ruling, Seen
from fairlead.guard.wire.events import Channel
from fairlead.judges.lineage import Lineage, leaf
from guard.conformance.markers import CANARY
from guard.conformance.said import REVISED, SAY, WORDS
from support.guard_proxy import Proxy

CONSTITUTION = f"""
name: conformance
principles:
  - id: no-poison
    dimension: harmless
    severity: 5
    text: Do not speak of poison.
    guard: {{on_violation: refuse, stream: STREAM, say: "{SAY["poison"]}"}}
  - id: ask-a-person
    dimension: harmless
    severity: 5
    text: What is doubtful a person looks at.
    guard: {{on_violation: escalate, stream: STREAM, say: "{SAY["person"]}"}}
  - id: stay-sober
    dimension: harmless
    severity: 4
    text: Say nothing that cannot be checked.
    guard: {{on_violation: refuse, stream: STREAM, say: "{SAY["sober"]}"}}
  - id: keep-secrets
    dimension: secrecy
    severity: 5
    text: Keep what you were told to keep.
    guard: {{on_violation: redact, stream: STREAM, say: "{SAY["secrets"]}"}}
secrets:
  - {{id: gate-code, from: value, value: "{CANARY}", canary: true}}
"""
KIND = f"""  - id: speak-kindly
    dimension: voice
    severity: 2
    text: Speak kindly.
    guard: {{on_violation: revise, say: "{SAY["kind"]}"}}
"""
HELD = CONSTITUTION.replace("STREAM", "buffer").replace("secrets:\n", KIND + "secrets:\n")
WINDOW = CONSTITUTION.replace("STREAM", "window")
COMMON = "unknown: drop\naudit: {loss: 0.001}\n"
RULES = f"checks:\n  rules:\n    no-poison: [{WORDS['refuse']}]\n    ask-a-person: [{WORDS['escalate']}]\n"
KIND_RULES = f"    speak-kindly: [{WORDS['revise']}]\n"


@dataclass(frozen=True)
class Breaks:
    """A check that raises at one word. A stream waits for as much as could still become the word."""

    word: str
    principle: str
    cost: int = 0

    @property
    def name(self) -> str:
        return f"breaks:{self.principle}"

    @property
    def lineage(self) -> Lineage:
        return leaf("rule", text="breaks", code=self.word)

    def decide(self, exchanges: Sequence[Exchange]) -> list[Decision]:
        if any(self.word in item.reply_text for item in exchanges):
            raise RuntimeError(f"the check broke at {self.word}")
        return [ALLOW for _ in exchanges]

    def watch(self, messages: Sequence[Message]) -> Any:
        return _Follows(self)


@dataclass
class _Follows:
    check: Breaks
    texts: dict[Channel, str] = field(default_factory=dict)

    def feed(self, seen: Seen) -> Ruling:
        text = self.texts[seen.channel] = self.texts.get(seen.channel, "") + seen.text
        if self.check.word in text:
            raise RuntimeError(f"the check broke at {self.check.word}")
        waits = next((k for k in range(len(self.check.word) - 1, 0, -1) if text.endswith(self.check.word[:k])), 0)
        return Ruling(safe={seen.channel: len(text) if seen.last else len(text) - waits})

    def finish(self, choice: int) -> Ruling:
        return Ruling(safe={channel: len(text) for channel, text in self.texts.items() if channel.choice == choice})


def _revise(broken: Sequence[tuple[str, Exchange]]) -> list[tuple[Message, ...] | None]:
    return [(Message("assistant", REVISED),) for _ in broken]


@contextmanager
def proxies(folder: Path, upstream: str) -> Iterator[dict[str, Proxy]]:
    """By name: `window` and `buffer` hold streams in that way, `shadow` does nothing, `strict` ends a reply at what
    it has no name for; replies in one body go through `buffer`."""
    breaks, rules = Breaks(WORDS["failed"], "stay-sober"), COMMON + RULES
    made = {
        "window": _made(folder / "window", upstream, WINDOW, rules, (breaks,)),
        "buffer": _made(folder / "buffer", upstream, HELD, rules + KIND_RULES, (breaks,), revises=True),
        "shadow": _made(folder / "shadow", upstream, WINDOW, rules, (), shadow=True),
        "strict": _made(folder / "strict", upstream, WINDOW, rules.replace("drop", "stop"), (breaks,)),
    }
    with ExitStack() as stack:
        for proxy in made.values():
            stack.enter_context(proxy)
        yield made


def _made(
    folder: Path, upstream: str, constitution: str, policy: str, more: Sequence[Any], *, revises: bool = False,
    shadow: bool = False,
) -> Proxy:  # fmt: skip
    folder.mkdir()
    real = checked.proxy_checks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checked, "proxy_checks", lambda c, critic, **how: (*real(c, None, **how), *more))
        if revises:  # a critic that only revises
            patch.setattr(setup, "_critic", lambda *_: object())
            patch.setattr(setup, "reviser", lambda _: _revise)
        return Proxy(
            folder, upstream, constitution=constitution, policy=policy, audit=folder / "audit.db", shadow=shadow
        )
