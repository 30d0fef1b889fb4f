"""What `fairlead doctor` says of keys: whether they are to be had, and never what they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairlead.cli.doctor import KEYS
from fairlead.cli.main import main


def test_a_key_in_a_file_counts_where_it_can_be_read_and_no_other_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)
    good, open_to_all = tmp_path / "good", tmp_path / "open"
    for path, mode in ((good, 0o600), (open_to_all, 0o644)):
        path.write_text("sk-canary-of-the-doctor")
        path.chmod(mode)
    monkeypatch.setenv("TOGETHER_API_KEY_FILE", str(good))
    monkeypatch.setenv("OPENAI_API_KEY_FILE", str(open_to_all))
    monkeypatch.setenv("ANTHROPIC_API_KEY_FILE", str(tmp_path / "nowhere"))
    assert main(["doctor", "--json"]) == 0
    out = capsys.readouterr().out
    assert [name for name, there in json.loads(out)["keys"].items() if there] == ["TOGETHER_API_KEY"]
    assert "canary" not in out and {"cluster", "presidio"} <= set(json.loads(out)["extras"])
