"""A voice by samples: how they are read, what goes wrong, and that what is shown is never what measures."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairlead.constitution import Constitution, json_schema, load, system_prompt
from fairlead.constitution.diff import changes
from fairlead.constitution.load import resolve
from fairlead.constitution.voice import MIN_PASSAGES, excerpts, halves, held_out, passages, with_samples
from fairlead.errors import InputError
from support.brand import PASSAGES, write_brand


def test_samples_are_read_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    loaded = resolve(write_brand(tmp_path))
    voice = loaded.constitution.assistant.voice
    assert voice is not None and not isinstance(voice, str) and sorted(passages(voice.texts)) == sorted(PASSAGES)
    assert loaded.constitution.assistant.style == "plain and warm"
    assert [path.name for path in loaded.files] == ["a.md", "b.md", "c.yaml"]


def test_the_voice_comes_with_extends(tmp_path: Path) -> None:
    write_brand(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.yaml").write_text("name: d\nextends: [../c.yaml]\n")
    assert held_out(load(tmp_path / "sub" / "d.yaml")) == held_out(load(tmp_path / "c.yaml")) != []


def test_no_passage_is_shown_and_held_out(tmp_path: Path) -> None:
    made = load(write_brand(tmp_path))
    voice = made.assistant.voice
    assert voice is not None and not isinstance(voice, str)
    shown, held = halves(voice)
    assert not set(shown) & set(held) and sorted((*shown, *held)) == sorted(PASSAGES) and held_out(made) == held
    text = with_samples(made)["v"].text
    assert text.startswith("Speak as we do. It sounds as in these texts: “")
    assert any(p in text for p in shown) and not any(p in text for p in held)
    assert not any(p in system_prompt(with_samples(made)) for p in held)
    assert len(" ".join(excerpts(shown)).split()) <= 90 and excerpts(["word " * 200]) == ["word " * 200]


def test_one_pattern_needs_no_list(tmp_path: Path) -> None:
    """As it is usually written: `voice: {samples: brand/*.md}`."""
    (tmp_path / "brand").mkdir()
    for k in range(MIN_PASSAGES):
        (tmp_path / "brand" / f"{k}.md").write_text(f"This is passage number {k} of eight words or more.")
    written = (
        "name: c\nassistant: {voice: {samples: %s}}\nprinciples: [{id: v, dimension: voice, severity: 1, text: V.}]\n"
    )
    (tmp_path / "one.yaml").write_text(written % "brand/*.md")
    (tmp_path / "many.yaml").write_text(written % "[brand/*.md]")
    one, many = load(tmp_path / "one.yaml"), load(tmp_path / "many.yaml")
    assert one.sha256 == many.sha256 and one.assistant == many.assistant
    (tmp_path / "none.yaml").write_text(written % "brand/*.txt")
    with pytest.raises(InputError, match=r"none\.yaml:2: .*no file matches 'brand/\*\.txt'"):
        load(tmp_path / "none.yaml")


def test_the_hash_holds_the_content_of_the_samples_and_not_their_names(tmp_path: Path) -> None:
    path = write_brand(tmp_path)
    before = load(path)
    (tmp_path / "brand" / "a.md").rename(tmp_path / "brand" / "z.md")
    assert load(path).sha256 == before.sha256
    assert with_samples(before).sha256 == before.sha256 != with_samples(before).without("v").sha256
    (tmp_path / "brand" / "z.md").write_text(
        "Another text that is quite long enough to count.\n\n" + "\n\n".join(PASSAGES[:7])
    )
    after = load(path)
    assert after.sha256 != before.sha256
    (change,) = changes(before, after)
    assert change.what == "assistant" and set(change.keys) == {"voice"}


def test_a_voice_in_words_is_as_it_was(tmp_path: Path) -> None:
    harbour = load("harbour")
    assert (
        harbour.assistant.style == harbour.assistant.voice
        and held_out(harbour) == []
        and with_samples(harbour) is harbour
    )
    assert held_out(Constitution.model_validate({"name": "c", "assistant": {"voice": {"samples": ["x"]}}})) == []
    assert "samples" in str(json_schema())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("brand/*.md", "brand/*.txt"), "c.yaml:5: assistant: voice: samples: no file matches 'brand/*.txt' in"),
        (("[brand/*.md]", "[brand/*.md, /etc/*.md]"), "c.yaml:5: assistant: voice: samples: '/etc/*.md' is absolute"),
        (("[brand/*.md]", "[brand/b.md]"), f"hold 8 passages of at least 8 words, and {MIN_PASSAGES} are needed"),
        (("samples: [brand/*.md]", "sample: [brand/*.md]"), "c.yaml:5: assistant: voice: unknown key 'sample'. Did you mean 'samples'?"),
        (("    samples: [brand/*.md]\n", ""), "c.yaml:3: assistant: voice: missing key 'samples'"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_line(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    path = write_brand(tmp_path)
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(InputError) as raised:
        load(path)
    assert told in str(raised.value) and "string" not in str(raised.value)


def test_an_empty_sample_and_one_that_is_no_utf8_are_named(tmp_path: Path) -> None:
    path = write_brand(tmp_path)
    (tmp_path / "brand" / "c.md").write_text(" \n")
    with pytest.raises(InputError, match=r"c\.yaml:5: .*brand/c\.md is empty"):
        load(path)
    (tmp_path / "brand" / "c.md").write_bytes(b"ok\n\xff")
    with pytest.raises(InputError, match=r"brand/c\.md:2: is not UTF-8"):
        load(path)


def test_a_pattern_leads_to_whole_passages_without_marks() -> None:
    text = "# A heading of more than eight words to be read as text\n\n* one **two** three four five six seven _eight_\n\nshort\n"
    found = passages([text, text])
    assert sorted(found) == [
        "A heading of more than eight words to be read as text",
        "one two three four five six seven eight",
    ]


def test_the_page_on_writing_one_is_true(tmp_path: Path) -> None:
    import re

    page = Path(__file__).parents[2] / "docs" / "constitution.md"
    write_brand(tmp_path)
    path = tmp_path / "yard.yaml"
    path.write_text(re.findall(r"```yaml\n(name: .*?)```", page.read_text(), re.DOTALL)[0])
    made = load(path)
    assert made.goes_first("no-selling", "be-useful") and held_out(made) and made.assistant.style == "plain and warm"
