"""What leaves of an alternative: in the order of its parts, and no farther than every check lets go."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fairlead.guard.alternative import Alternative
from fairlead.guard.arguments import painted
from fairlead.guard.holding import Held, delta
from fairlead.guard.wire.events import Channel, Close, Delta, Open

if TYPE_CHECKING:
    from fairlead.guard.release import Release


def drain(release: Release, choice: Alternative) -> None:
    """Lets go of what may: a part of which something is held holds those behind it."""
    if choice.revising is not None and not choice.whole:
        return
    buffered = () if choice.whole else release.plan.buffered
    texts = choice.texts
    for k in range(choice.first, len(texts)):
        text = texts[k]
        if choice.passed and not _pass(release, choice, k):
            return
        if not text.done:
            if text.place in buffered or (text.place in _WHOLE and not text.whole):
                return
            allowed = min(text.let)
            if text.place in _WHOLE:
                if allowed < text.seen or (text.seen == 0 and not choice.whole):
                    return
                (_call if text.place == "tool_call" else _citation)(release, choice, text)
            else:
                if allowed > text.out and text.seen > text.out:
                    _write(release, choice, text, allowed if allowed < text.seen else text.seen)
                if text.out < text.seen:
                    return
                if text.whole:
                    _close(release, choice, text)
        if k == choice.first and text.done:
            choice.first += 1
    if choice.passed:
        _pass(release, choice, len(texts))


_WHOLE = frozenset(("tool_call", "citation"))  # JSON on the wire: whole, or not there


def say(release: Release, channel: Channel, words: str, verdict: str) -> None:
    """Words of the guard, as a part of their own."""
    release.emit(Open(channel, "reply"), Delta(channel, words), Close(channel))
    release.ledger.write(channel.choice, channel.part, "guard", words, (verdict,))


def _pass(release: Release, choice: Alternative, k: int) -> bool:
    """Lets unread events before part `k` go, behind the parts before them; whether none is left there."""
    if not choice.whole and not release.plan.buffered.isdisjoint(("reply", "reasoning")):
        return False  # where a reply can still be refused as a whole, nothing of it leaves
    while choice.passed and choice.passed[0][0] <= k:
        before = choice.texts[: choice.passed[0][0]]
        if not all(text.done or (text.opened and text.out == text.seen) for text in before):
            return False
        release.emit(choice.passed.pop(0)[1])
        choice.sent = True
    return True


def _write(release: Release, choice: Alternative, text: Held, upto: int) -> None:
    channel, ledger = text.channel, release.ledger
    while text.out < upto:
        start = text.out
        cover, end = choice.covering(release, text, upto)
        for stretches, log in text.take(end):
            if not text.opened:
                choice.sent = True
                release.emit(text.opening())
            release.emit(delta(channel, stretches, log))
            for body, mark in stretches:
                if mark:
                    ledger.write(channel.choice, channel.part, "guard", body, (mark,))
                else:
                    ledger.write(channel.choice, channel.part, text.place, body, cover)
        if text.out == start:
            return  # a piece with log-probs waits for the rest of it


def _close(release: Release, choice: Alternative, text: Held) -> None:
    if not text.opened:
        choice.sent = True
        release.emit(text.opening())
    release.emit(text.closing())


def _call(release: Release, choice: Alternative, text: Held) -> None:
    """A tool call that every check has let go: as it is, painted over, or a sentence in its place."""
    arguments = "".join(piece for piece, _ in text.pieces)
    channel, place = text.channel, str(text.place)
    cover = let_go = choice.covering(release, text, text.seen)[0]
    if text.cuts and not text.blocked:
        left = painted(arguments, [(a, b) for a, b, _ in text.cuts])
        if left is None:
            text.blocked = text.cuts[0][2]
        else:
            arguments, place = left, "guard"
            cover = tuple(dict.fromkeys((*cover, *(verdict for _, _, verdict in sorted(text.cuts)))))
    text.out = text.seen
    text.pieces.clear()
    text.done = choice.sent = True
    if text.blocked:
        choice.lost_call = True
        say(release, channel, release.plan.policy(choice.principle).say, text.blocked)
        return
    choice.calls += 1
    release.emit(text.opening(), *((Delta(channel, arguments),) if arguments else ()), Close(channel))
    release.ledger.write(channel.choice, channel.part, "tool_call", text.name, let_go)
    release.ledger.write(channel.choice, channel.part, place, arguments, cover)


def _citation(release: Release, choice: Alternative, text: Held) -> None:
    """A citation that every check has let go: as it is, painted over, or left out where what is left would be none."""
    if not text.cuts:
        _write(release, choice, text, text.seen)
        _close(release, choice, text)
        return
    cited = "".join(piece for piece, _ in text.pieces)
    left = painted(cited, [(a, b) for a, b, _ in text.cuts])
    if left is None or _kind(left) != _kind(cited):
        release.tally.withheld["citation"] += 1
        choice.withheld += text.drop()
        return
    answers = [verdict for model in text.segments.values() for _, verdict in model]
    marks = [verdict for _, _, verdict in sorted(text.cuts)]
    cover = tuple(dict.fromkeys((*choice.covering(release, text, text.seen)[0], *answers, *marks)))
    text.drop()
    text.out, choice.sent = text.seen, True
    release.emit(text.opening(), Delta(text.channel, left), text.closing())
    release.ledger.write(text.channel.choice, text.channel.part, "guard", left, cover)


def _kind(cited: str) -> Any:
    given = json.loads(cited)
    return given.get("type") if isinstance(given, dict) else None
