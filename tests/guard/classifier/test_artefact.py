"""A folder is what it was when it was written, or it is not loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed: heads cannot be trained")

from fairlead.errors import InputError
from fairlead.guard.classifier import arrays
from fairlead.guard.classifier.model import load
from guard.classifier.made import constitution, trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("made") / "c").folder


def test_every_file_that_serves_stands_in_the_manifest_with_its_hash(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {p.name for p in folder.iterdir()} - {"manifest.json"}
    assert not list(folder.parent.glob(".new-*")) and not list(folder.parent.glob(".old-*"))


@pytest.mark.parametrize("name", ["heads.safetensors", "vocabulary.json", "card.json"])
def test_one_changed_byte_is_refused_with_the_files_name(folder: Path, tmp_path: Path, name: str) -> None:
    import shutil

    copy = tmp_path / "c"
    shutil.copytree(folder, copy)
    raw = bytearray((copy / name).read_bytes())
    raw[-2] ^= 1
    (copy / name).write_bytes(bytes(raw))
    with pytest.raises(InputError, match=name):
        load(copy)
    (copy / name).unlink()
    with pytest.raises(InputError, match="is missing"):
        load(copy)


def test_a_manifest_cannot_reach_out_of_its_folder(folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "c"
    shutil.copytree(folder, copy)
    body = json.loads((copy / "manifest.json").read_text())
    body["files"]["../heads.safetensors"] = body["files"]["heads.safetensors"]
    (copy / "manifest.json").write_text(json.dumps(body))
    with pytest.raises(InputError, match=r"\.\./heads"):
        load(copy)


def test_another_constitution_is_refused(folder: Path) -> None:
    assert load(folder, constitution=constitution().sha256).sha256
    with pytest.raises(InputError, match="fairlead guard train"):
        load(folder, constitution="0" * 64)


def test_arrays_are_read_by_the_safetensors_library_too(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    from safetensors.numpy import load_file, save_file

    held = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([1, 2], np.int64),
        "empty": np.zeros((0, 3), np.float32),
    }
    (tmp_path / "ours").write_bytes(arrays.dump(held))
    save_file(held, str(tmp_path / "theirs"))
    for found in (load_file(str(tmp_path / "ours")), arrays.load((tmp_path / "theirs").read_bytes())):
        assert set(found) == set(held)
        assert all(np.array_equal(found[name], held[name]) for name in held)


@pytest.mark.parametrize(
    "raw", [b"", b"\x80\x04K\x01.", (1 << 40).to_bytes(8, "little") + b"{}", b"\x02" + b"\0" * 7 + b"{]"]
)
def test_what_is_no_safetensors_file_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="not a safetensors file"):
        arrays.load(raw)


def test_sizes_in_a_header_are_not_believed() -> None:
    raw = arrays.dump({"a": np.zeros(4, np.float32)}).replace(b'"shape":[4]', b'"shape":[9]')
    with pytest.raises(ValueError, match="do not agree"):
        arrays.load(raw)
