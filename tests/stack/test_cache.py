"""Results by content: whole or absent, found again, damaged ones made again and said."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fairlead.errors import InputError, MissingResource
from fairlead.stack.atomic import full_disk, plain_disk_errors, point, sweep, whole_folder, write_file
from fairlead.stack.cache import Cache, copy_entry, damage
from fairlead.stack.identity import code_hash, digest, model_hash


def _builder(text: str, calls: list[str]):  # type: ignore[no-untyped-def]
    def build(folder: Path) -> None:
        calls.append(text)
        (folder / "deep").mkdir()
        (folder / "deep" / "value.txt").write_text(text)

    return build


def test_the_same_key_is_built_once(tmp_path: Path) -> None:
    calls: list[str] = []
    first = Cache(tmp_path).make("sft", {"a": 1}, _builder("x", calls))
    second = Cache(tmp_path).make("sft", {"a": 1}, _builder("y", calls))
    assert first.made and not second.made
    assert calls == ["x"]
    assert (second.path / "deep" / "value.txt").read_text() == "x"


def test_another_key_is_another_entry(tmp_path: Path) -> None:
    calls: list[str] = []
    cache = Cache(tmp_path)
    a = cache.make("sft", {"a": 1}, _builder("x", calls))
    b = cache.make("sft", {"a": 1.5}, _builder("y", calls))
    assert a.path != b.path and calls == ["x", "y"]


@pytest.mark.parametrize("harm", ["change", "shorten", "remove", "no sums"])
def test_a_damaged_entry_is_said_and_made_again(tmp_path: Path, harm: str) -> None:
    calls: list[str] = []
    entry = Cache(tmp_path).make("dpo", {"k": 1}, _builder("good", calls))
    file = entry.path / "deep" / "value.txt"
    match harm:
        case "change":
            file.write_text("evil")
        case "shorten":
            file.write_text("go")
        case "remove":
            file.unlink()
        case _:
            (entry.path / "sums.json").unlink()
    said: list[str] = []
    again = Cache(tmp_path, say=said.append).make("dpo", {"k": 1}, _builder("good", calls))
    assert again.made and calls == ["good", "good"]
    assert "damaged" in said[0] and "dpo" in said[0]
    assert damage(again.path) == ""


def test_fresh_makes_each_result_again_once(tmp_path: Path) -> None:
    calls: list[str] = []
    Cache(tmp_path).make("sft", {"a": 1}, _builder("x", calls))
    fresh = Cache(tmp_path, fresh=True)
    assert fresh.make("sft", {"a": 1}, _builder("y", calls)).made
    assert not fresh.make("sft", {"a": 1}, _builder("z", calls)).made
    assert calls == ["x", "y"]


def test_an_error_while_building_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Cache(tmp_path).make("sft", {"a": 1}, build)
    assert list((tmp_path / "sft").iterdir()) == []


def test_a_killed_builder_leaves_what_the_next_run_sweeps(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from fairlead.stack.cache import Cache\n"
        "def build(folder):\n"
        "    (folder / 'half').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "Cache(Path(sys.argv[1])).make('sft', {'a': 1}, build)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=env, check=False)
    assert killed.returncode == -9
    assert [p.name[:5] for p in (tmp_path / "sft").iterdir()] == [".tmp-"]
    calls: list[str] = []
    assert Cache(tmp_path).make("sft", {"a": 1}, _builder("x", calls)).made
    assert len(list((tmp_path / "sft").iterdir())) == 1


def test_what_others_call_temporary_is_theirs(tmp_path: Path) -> None:
    for name in ("training-a.999999999.tmp", "notes.tmp"):
        (tmp_path / name).write_bytes(b"somebody's")
        os.utime(tmp_path / name, (0, 0))
    assert sweep(tmp_path) == 0 and len(list(tmp_path.iterdir())) == 2


def test_what_a_living_process_builds_is_not_swept(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "mine") as mine:
        assert sweep(tmp_path) == 0
        assert mine.is_dir()


def test_two_builders_of_one_place_agree_on_the_first(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "place") as slow:
        (slow / "who").write_text("slow")
        with whole_folder(tmp_path / "place") as quick:
            (quick / "who").write_text("quick")
    assert (tmp_path / "place" / "who").read_text() == "quick"
    assert [p.name for p in tmp_path.iterdir()] == ["place"]


def test_a_full_disk_is_a_missing_resource_that_names_the_place(tmp_path: Path) -> None:
    with pytest.raises(MissingResource, match="disk is full") as caught, whole_folder(tmp_path / "run"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(tmp_path / "run") in str(caught.value) and caught.value.exit_code == 4
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_recognised_through_causes_and_rust_messages() -> None:
    try:
        raise RuntimeError("while saving") from OSError(errno.EFBIG, "File too large")
    except RuntimeError as error:
        assert full_disk(error)
    assert full_disk(RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not full_disk(RuntimeError("something (os error 2)"))


def test_a_forbidden_place_is_wrong_input() -> None:
    with pytest.raises(InputError, match="may not be written"), plain_disk_errors(Path("/x")):
        raise PermissionError(errno.EACCES, "Permission denied", "/x/y")


def test_write_file_replaces_whole(tmp_path: Path) -> None:
    write_file(tmp_path / "a.txt", "one")
    write_file(tmp_path / "a.txt", "two")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "two"


def test_latest_points_and_never_replaces_a_folder(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    point(tmp_path / "latest", tmp_path / "one")
    point(tmp_path / "latest", tmp_path / "two")
    assert (tmp_path / "latest").resolve() == tmp_path / "two"
    (tmp_path / "solid").mkdir()
    with pytest.raises(InputError, match="is not a link"):
        point(tmp_path / "solid", tmp_path / "one")


def test_copy_leaves_the_caches_own_files_behind(tmp_path: Path) -> None:
    entry = Cache(tmp_path / "cache").make("sft", {"a": 1}, _builder("x", []))
    copy_entry(entry.path, tmp_path / "copy", link=True)
    assert sorted(p.name for p in (tmp_path / "copy").rglob("*")) == ["deep", "value.txt"]


def test_digest_ignores_key_order_and_sees_every_bit_of_a_float() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"lr": 0.1}) != digest({"lr": 0.1 + 2**-56})
    assert digest({"x": 1}) != digest({"x": "1"})


def test_model_hash_reads_weights_and_template_but_not_notes(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "chat_template.jinja", "README.md"):
        (tmp_path / name).write_text(name)
    before = model_hash(tmp_path)
    (tmp_path / "README.md").write_text("other")
    assert model_hash(tmp_path) == before
    (tmp_path / "chat_template.jinja").write_text("other")
    assert model_hash(tmp_path) != before


def test_code_hash_differs_by_room() -> None:
    assert code_hash("judges") != code_hash("judges", "feedback")
    assert code_hash("judges") == code_hash("judges")
