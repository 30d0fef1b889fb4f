from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.helpers import MODELS, make
from fairlead.engine.checkpoint import (
    atomic_folder,
    atomic_write,
    read_record,
    read_tensors,
    rng_state,
    save_model,
    set_rng_state,
    weights_hash,
    write_record,
    write_tensors,
)
from fairlead.engine.forward import path_of


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_loads_with_the_same_hash(name: str, tmp_path: Path) -> None:
    model = make(name, torch.float32)
    path_of(model)  # routes its attention, which must not reach the saved config
    written = save_model(model, None, tmp_path / "m")
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert weights_hash(model) == written == weights_hash(tmp_path / "m") == weights_hash(loaded)
    assert loaded.config._attn_implementation == "sdpa"
    assert os.listdir(tmp_path) == ["m"]


def test_the_hash_sees_values_names_and_types() -> None:
    model = make("llama-untied", torch.float32)
    before = weights_hash(model)
    assert weights_hash(make("llama-untied", torch.float64)) != before
    with torch.no_grad():
        model.get_parameter("model.norm.weight")[3] += 1e-6
    assert weights_hash(model) != before


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is this a model folder"):
        weights_hash(tmp_path)


def test_saving_again_replaces_the_folder(tmp_path: Path) -> None:
    save_model(make("llama-tied", torch.float32), None, tmp_path / "m")
    (tmp_path / "m" / "stale.txt").write_text("from before")
    model = make("llama-untied", torch.float32)
    assert save_model(model, None, tmp_path / "m") == weights_hash(tmp_path / "m")
    assert not (tmp_path / "m" / "stale.txt").exists()
    assert os.listdir(tmp_path) == ["m"]


def test_write_replaces_and_respects_the_umask(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a" / "f.txt", "one")
    atomic_write(tmp_path / "a" / "f.txt", b"two")
    assert (tmp_path / "a" / "f.txt").read_bytes() == b"two"
    plain = tmp_path / "plain"
    plain.write_text("")
    assert (tmp_path / "a" / "f.txt").stat().st_mode == plain.stat().st_mode
    assert os.listdir(tmp_path / "a") == ["f.txt"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic_write(tmp_path / "f", "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


def test_weights_that_do_not_fit_leave_the_old_folder(tmp_path: Path) -> None:
    old = save_model(make("llama-tied", torch.float32), None, tmp_path / "m")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # no file may grow beyond this: a small disk
    try:
        with pytest.raises(OSError, match="could not be written|File too large"):
            save_model(make("gpt2-untied", torch.float32), None, tmp_path / "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert weights_hash(tmp_path / "m") == old
    assert os.listdir(tmp_path) == ["m"]


def test_an_error_in_the_body_leaves_the_old_folder(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "d") as fresh:
        (fresh / "f").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "d") as fresh:
        (fresh / "f").write_text("new")
        raise KeyboardInterrupt
    assert (tmp_path / "d" / "f").read_text() == "old"
    assert os.listdir(tmp_path) == ["d"]


def test_a_kill_between_the_two_renames_is_healed(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "d") as fresh:
        (fresh / "f").write_text("old")
    os.replace(tmp_path / "d", tmp_path / ".d.old")  # the state that such a kill leaves
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "d"):
        raise RuntimeError
    assert (tmp_path / "d" / "f").read_text() == "old"


WRITER = """
import sys
from pathlib import Path
from fairlead.engine.checkpoint import atomic_folder
print("ready", flush=True)
turn = 0
while True:
    turn += 1
    with atomic_folder(sys.argv[1]) as fresh:
        for number in range(4):
            (fresh / str(number)).write_text(str(turn) * 1000)
"""


def test_a_killed_writer_leaves_one_whole_version(tmp_path: Path) -> None:
    target = tmp_path / "d"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for delay in (0.03, 0.11):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE, env=environment)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(delay)
        writer.kill()
        writer.wait()
        kept = target if target.exists() else tmp_path / ".d.old"
        if kept.exists():  # the very first version may not have been finished
            assert len({(kept / str(number)).read_text() for number in range(4)}) == 1


def drawn() -> list[float]:
    return [
        torch.rand(()).item(),
        random.random(),
        random.gauss(0, 1),
        *np.random.random(2),  # noqa: NPY002
        np.random.standard_normal(),  # noqa: NPY002
    ]


def test_every_generator_goes_on_where_it_was() -> None:
    torch.manual_seed(1)
    random.seed(2)
    np.random.seed(3)  # noqa: NPY002
    drawn()  # leaves half of a pair of normal numbers behind in two of them
    state = rng_state()
    expected = [drawn(), drawn()]
    assert drawn() != expected[0]
    set_rng_state(state)
    assert [drawn(), drawn()] == expected


def test_tensors_come_back_or_the_damage_is_named(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4)[:, ::2], "b": torch.zeros(0, 5), "c": torch.tensor(2, dtype=torch.uint8)}
    digest = write_tensors(tmp_path / "t", tensors)
    back = read_tensors(tmp_path / "t", digest)
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    other = write_tensors(tmp_path / "u", tensors | {"a": tensors["a"] + 1})
    with pytest.raises(ValueError, match="t: its checksum does not match"):
        read_tensors(tmp_path / "t", other)
    with pytest.raises(ValueError, match="v cannot be read"):
        read_tensors(tmp_path / "v", digest)


def test_a_record_notices_a_changed_number(tmp_path: Path) -> None:
    record = {"step": 3, "loss": [0.1 + 0.2, float("inf")], "name": "é"}
    write_record(tmp_path / "r", record)
    text = (tmp_path / "r").read_text()
    assert read_record(text) == record
    for wrong in (text.replace("3", "4", 1), text[:-9], "[]", '{"step": 3}'):
        with pytest.raises(ValueError):
            read_record(wrong)
