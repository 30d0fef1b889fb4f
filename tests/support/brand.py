"""A small team's own texts: short sentences, contractions, the reader addressed, no marks of excitement."""

from __future__ import annotations

from pathlib import Path

PASSAGES = [
    "You're early. The kettle's on and the yard is quiet. We'll start with the small boat, since you know her.",
    "Don't hurry the varnish. You'll see it turn from wet to glass, and that's when we stop.",
    "We open at seven. If you're late, it's fine. We'll keep your tools where you left them.",
    "You can't rush an oak plank. It bends when it's warm and you're patient. We've all learnt that twice.",
    "There's soup at noon. You bring the bread, we bring the pot. It's been that way since my uncle.",
    "Ask us anything. If we don't know, we'll say so, and we'll find you someone who does.",
    "It's a small yard. You'll know everyone by Friday. We're glad you're here.",
    "The tide doesn't wait for us. You check the lines at six, we check them again at seven.",
    "You'll want gloves for this. We keep them by the door. They don't match, and nobody minds.",
    "We won't sell you a part you don't need. If it's sound, we'll say so, and you keep your money.",
    "Your boat's dry by March. You paint, we lend the ladder. It's no trouble.",
    "When it's foggy we don't sail. You'll hear the horn, and we'll have tea.",
    "You've asked about the price. It's on the board, and it's the same for everyone. We don't haggle.",
    "We're closed on Sundays. You can still knock. If there's a leak, we'll come.",
    "That's a good knot. You'll find it holds better wet. We use it on all our lines.",
    "You don't need an engine for this bay. We've rowed it for years. It's an hour, and it's quiet.",
]
ALIEN = (
    "WOW!!! 🎉🎉 Introducing an unprecedentedly comprehensive revolutionary maritime solutions portfolio, "
    "delivering extraordinary transformational customer experiences internationally!!! 🚀🚀"
)


def write_brand(folder: Path, *, principle: str = "voice") -> Path:
    """A constitution in `folder` with the passages in two files beside it."""
    (folder / "brand").mkdir(parents=True, exist_ok=True)
    (folder / "brand" / "a.md").write_text("# Notes\n\n" + "\n\n".join(PASSAGES[:8]))
    (folder / "brand" / "b.md").write_text("\n\n".join(f"- {text}" for text in PASSAGES[8:]))
    path = folder / "c.yaml"
    path.write_text(
        "name: yard\nassistant:\n  voice:\n    style: plain and warm\n    samples: [brand/*.md]\nprinciples:\n"
        f"- {{id: v, dimension: {principle}, severity: 2, text: Speak as we do., guard: {{at: [reply], "
        f"on_violation: revise, say: '{ALIEN}'}}}}\n"
    )
    return path
