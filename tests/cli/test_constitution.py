"""`fairlead constitution check` and `schema`, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fairlead.cli.constitution import app
from fairlead.errors import InputError


def test_check_prints_every_principle_and_where_it_stands() -> None:
    result = CliRunner().invoke(app, ["check", "harbour"])
    assert result.exit_code == 0
    for word in ("no-harm", "harmless", "pack harbour:7", "6 principles, 1 secret", "no mistakes found"):
        assert word in result.stdout


def test_check_json_holds_the_whole_meaning(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "name: mine\nextends: [harbour]\nprinciples:\n- {id: x, dimension: domain, severity: 5, text: X.}\n"
    )
    result = CliRunner().invoke(app, ["check", str(path), "--json"])
    summary = json.loads(result.stdout)
    assert [p["id"] for p in summary["principles"]][-2:] == ["be-useful", "x"]
    assert summary["principles"][-1]["from"] == f"{path}:4"
    assert summary["notes"] == ["principle 'x' has severity 5 and no guard"]
    assert len(summary["sha256"]) == 64


def test_check_notes_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    rows = "- {id: x, dimension: voice, severity: 1, text: Be kind.}\n- {id: y, dimension: voice, severity: 1, text: Be  kind.}\n"
    path.write_text(f"name: small\nprinciples:\n{rows}")
    out = CliRunner().invoke(app, ["check", str(path)]).stdout
    assert "no principle speaks of harmless" in out
    assert "principle 'y' says the same as 'x'" in out


def test_check_leaves_mistakes_to_the_command_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(tmp_path / "none.yaml")])
    assert isinstance(result.exception, InputError)
    with pytest.raises(InputError, match="no such constitution"):
        raise result.exception


def test_check_refuses_a_guard_that_no_run_could_put_up(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "name: small\nprinciples:\n- {id: x, dimension: voice, severity: 1, text: Be kind.}\n"
        "- {id: y, dimension: harmless, severity: 1, text: Hurt nobody., guard: {at: [prompt, reply]}}\n"
    )
    result = CliRunner().invoke(app, ["check", str(path)])
    with pytest.raises(InputError, match=r"c\.yaml:4: principle 'y': .*leave prompt out of `at`"):
        raise result.exception or AssertionError("it passed")


PULL = """name: c
principles:
- {id: a, dimension: helpful, severity: 3, text: A.%s, good: [{user: q, reply: yes}]}
- {id: b, dimension: harmless, severity: 5, text: B., bad: [{user: q, reply: yes}]}
"""


def test_check_refuses_a_conflict_that_no_priority_settles_and_names_both_places(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(PULL % "")
    result = CliRunner().invoke(app, ["check", str(path)])
    with pytest.raises(
        InputError, match=r"c\.yaml:3: principle 'a' and principle 'b' \(.*c\.yaml:4\) pull apart: .*over: \[b\]"
    ):
        raise result.exception or AssertionError("it passed")


def test_check_tells_what_a_priority_settles(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(PULL % ", over: [b]")
    result = CliRunner().invoke(app, ["check", str(path)])
    assert (
        result.exit_code == 0 and "a goes before b: the good reply of 'a' to 'q' is a bad one of 'b'" in result.stdout
    )
    (found,) = json.loads(CliRunner().invoke(app, ["check", str(path), "--json"]).stdout)["conflicts"]
    assert (found["first"], found["second"], found["goes_first"]) == ("a", "b", "a")


def test_check_tells_where_samples_have_no_effect_and_what_is_said_in_another_voice(tmp_path: Path) -> None:
    from support.brand import write_brand

    notes = json.loads(CliRunner().invoke(app, ["check", str(write_brand(tmp_path)), "--json"]).stdout)["notes"]
    assert any("principle 'v' says in place of a reply is not in the voice of the samples" in note for note in notes)
    notes = json.loads(
        CliRunner().invoke(app, ["check", str(write_brand(tmp_path, principle="domain")), "--json"]).stdout
    )
    assert any("no principle has the dimension voice" in note for note in notes["notes"])


def test_schema_is_json() -> None:
    schema = json.loads(CliRunner().invoke(app, ["schema"]).stdout)
    assert schema["title"] == "Fairlead constitution"
