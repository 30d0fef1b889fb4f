"""What the README prints must be true: its files are valid, its commands exist, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fairlead.cli.main import main
from fairlead.constitution import load
from fairlead.stack.read import parse_plan, read_stack

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


def block(first_line: str) -> str:
    (found,) = [text for text in BLOCKS if text.startswith(first_line)]
    return found


def test_the_constitution_of_the_readme_loads(tmp_path: Path) -> None:
    file = tmp_path / "constitution.yaml"
    file.write_text(block("# constitution.yaml"), encoding="utf-8")
    constitution = load(str(file))
    assert "no-invented-stock" in constitution.ids
    assert len(constitution.ids) > 5  # those of hhh came along


def test_the_stack_of_the_readme_is_a_plan(tmp_path: Path) -> None:
    file = tmp_path / "fairlead.yaml"
    file.write_text(block("# fairlead.yaml"), encoding="utf-8")
    assert parse_plan(read_stack(file)).columns == ("base", "sft", "dpo", "guard")


COMMANDS = sorted(set(re.findall(r"^fairlead (.+?)(?:  +#.*)?$", TEXT, re.MULTILINE)))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_of_the_readme_exists(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    words = command.split()
    names = [word for word in words if not word.startswith("-")]
    depth = 2 if names[0] in {"train", "constitution", "label", "guard"} else 1
    assert main([*names[:depth], "--help"]) == 0, command
    shown = capsys.readouterr().out
    for option in (word for word in words if word.startswith("--")):
        assert option in shown, (command, option)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", TEXT))))
def test_every_link_of_the_readme_leads_to_a_file(link: str) -> None:
    assert (ROOT / link).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"^make ([a-z-]+)", TEXT, re.MULTILINE))))
def test_every_make_target_of_the_readme_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
