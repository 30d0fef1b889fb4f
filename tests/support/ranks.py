"""Several processes for a test, with the environment torchrun gives, forked from one that has imported torch already."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_context: Any = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["torch.distributed.fsdp", "transformers.models.llama.modeling_llama", "peft", "fairlead.methods.preference"]
)


def run(job: Callable[..., Any], size: int, folder: Path, *args: Any, timeout: float = 600) -> list[Any]:
    """`job(*args)` on `size` processes; what each returned, by rank, through JSON.

    Fails with the processes' own output where one of them fails, or where they are not done after `timeout` seconds
    (a hang; far longer than any job takes, since test machines are busy).
    """
    group = start(job, size, folder, *args)
    codes = finish(group, timeout)
    said = "\n".join(f"--- process {r}\n{log_of(folder, r)}" for r in range(size))
    assert None not in codes, f"not done after {timeout:.0f} s: {codes}\n{said}"
    assert not any(codes), f"exit codes {codes}\n{said}"
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def start(job: Callable[..., Any], size: int, folder: Path, *args: Any) -> list[BaseProcess]:
    """Start the processes and return at once; their output goes to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with _path():
        forkserver.ensure_running()
    port = free_port()
    group = [_context.Process(target=_enter, args=(job, rank, size, port, str(folder), args)) for rank in range(size)]
    for process in group:
        process.start()
    return group


def finish(group: list[BaseProcess], timeout: float, *, together: bool = False) -> list[int | None]:
    """Wait for the processes; exit codes (None for one that hung). `together`: when one dies, the others are killed."""
    end = time.monotonic() + timeout
    while time.monotonic() < end and any(process.is_alive() for process in group):
        if together and any(process.exitcode for process in group):
            break
        group[0].join(0.05)
    codes = [process.exitcode for process in group]
    for process in group:
        process.kill()
        process.join()
    return codes


def log_of(folder: Path, rank: int) -> str:
    return (folder / f"{rank}.log").read_text(errors="replace")


def _enter(job: Callable[..., Any], rank: int, size: int, port: int, folder: str, args: tuple[Any, ...]) -> None:
    where = Path(folder)
    sink = os.open(where / f"{rank}.log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    sys.stdout = sys.stderr = os.fdopen(sink, "w")
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    logging.basicConfig(stream=sys.stderr, force=True)
    import torch

    from fairlead.engine import parallel

    torch.set_num_threads(1)
    parallel._world = None  # a process starts knowing nothing
    code = 1
    try:
        (where / f"{rank}.json").write_text(json.dumps(job(*args)))
        code = 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # at once, as a process does whose peers may be gone


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _path() -> Any:
    """The server looks for what it is to import where this process does."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "src"), str(ROOT / "tests"), *sys.path])
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
