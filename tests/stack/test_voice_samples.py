"""Where a voice by samples reaches: the reviser's question, the guard's check, the system prompt, and the plan's own."""

from __future__ import annotations

from pathlib import Path

from fairlead.constitution import load, system_prompt
from fairlead.constitution.voice import excerpts, halves
from fairlead.exchange import exchange
from fairlead.guard.compile import guarded
from fairlead.methods.constitutional import ModelReviser
from fairlead.stack.plan import Plan, PromptLayer
from fairlead.stack.run import Options, constitution_of, context
from fairlead.stack.voice import Quiet
from support.brand import PASSAGES, write_brand
from support.reader import Reader


def shown_and_held(folder: Path) -> tuple[Plan, list[str], list[str]]:
    path = write_brand(folder)
    voice = load(path).assistant.voice
    assert voice is not None and not isinstance(voice, str)
    shown, held = halves(voice)
    plan = Plan(constitution=str(path), layers=(PromptLayer(name="prompt", from_="base"),))
    return plan, excerpts(shown), held


def test_the_reviser_is_shown_the_samples_and_none_that_is_held_out(tmp_path: Path) -> None:
    plan, shown, held = shown_and_held(tmp_path)
    made = constitution_of(plan, world=False)
    reader = Reader(lambda text: "as it should be")
    reviser = ModelReviser(reader, made.principles)
    item, p = exchange("q", "a reply"), made["v"]
    reviser.revise([item], [p], [reviser.critique([item], [p])[0].text])
    assert len(reader.asked) == 2 and all(passage in text for text in reader.asked for passage in shown)
    assert not any(passage in text for text in reader.asked for passage in held)
    assert made.sha256 == load(tmp_path / "c.yaml").sha256  # a run is known by the constitution as written


def test_the_guard_checks_the_voice_by_the_samples_and_mends_what_is_not_in_it(tmp_path: Path) -> None:
    plan, shown, _ = shown_and_held(tmp_path)
    made = constitution_of(plan, world=False)

    def says(text: str) -> bool | str:
        if "Does the reply keep" not in text:
            return PASSAGES[0]  # the critique, then the revision
        return PASSAGES[0] in text.split("=== reply ===")[1] and shown[0] in text

    model = guarded(Reader(lambda text: "BUY NOW!!!"), made, Reader(says))
    ((reply,),) = model.generate([exchange("q", "").messages])
    assert reply.text == PASSAGES[0]


def test_the_system_prompt_says_the_style_and_shows_the_samples(tmp_path: Path) -> None:
    plan, shown, held = shown_and_held(tmp_path)
    text = system_prompt(constitution_of(plan, world=False))
    assert "Your voice: plain and warm." in text and all(passage in text for passage in shown)
    assert not any(passage in text for passage in held)


def test_a_run_is_warned_of_a_conflict_that_no_priority_settles(tmp_path: Path) -> None:
    voice = Quiet()
    text = (
        "name: c\nprinciples:\n- {id: a, dimension: helpful, severity: 3, text: A., good: [{user: q, reply: yes}]%s}\n"
        "- {id: b, dimension: honest, severity: 3, text: B., bad: [{user: q, reply: yes}]}\n"
    )
    path = tmp_path / "c.yaml"
    for more, warned in (("", 1), (", over: [b]", 0)):
        path.write_text(text % more)
        plan = Plan(constitution=str(path), layers=(PromptLayer(name="prompt", from_="base"),))
        before = len(voice.lines)
        context(plan, Options(cache=tmp_path / "cache"), voice)
        assert sum("'a' and 'b' pull apart" in line for line in voice.lines[before:]) == warned
