"""A real vLLM server on this machine, where the tool that makes one is at hand."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT.parent / "shared" / "tools" / "vllm-cpu.sh"
ENVIRONMENT = ROOT / ".venv-vllm"


def environment() -> Path:
    """The virtual environment with vLLM; made once (about 3 minutes), the test skips where it cannot be."""
    done = ENVIRONMENT / ".whole"  # a run that was killed half way leaves an environment that only looks whole
    if not done.exists():
        if not TOOL.is_file():
            pytest.skip(f"{TOOL} is missing: it makes the vLLM environment")
        subprocess.run(["bash", str(TOOL), str(ENVIRONMENT)], check=True)
        done.touch()
    return ENVIRONMENT


@contextmanager
def served(model: Path, name: str, log: Path, *flags: str, dev: bool = False) -> Iterator[str]:
    """The base URL (`…/v1`) of a vLLM that serves the folder under `name`. `dev`: with the paths that take weights."""
    venv = environment()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(venv / "bin" / "vllm"), "serve", str(model), "--served-model-name", name, "--host", "127.0.0.1",
        "--port", str(port), "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "32", "--max-logprobs", "5",
        *flags,
    ]  # fmt: skip
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    env["VLLM_SERVER_DEV_MODE"] = str(int(dev))
    env.pop("PYTHONPATH", None)
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=env, start_new_session=True)
        try:
            _wait(f"http://127.0.0.1:{port}/v1/models", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        assert process.poll() is None, f"vLLM ended while starting:\n{log.read_text(errors='replace')[-3000:]}"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, TimeoutError, OSError):
            time.sleep(1)
    raise AssertionError(f"vLLM was not ready in ten minutes:\n{log.read_text(errors='replace')[-3000:]}")
