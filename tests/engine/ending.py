"""Two processes that split a model, and end as Python programs do while a thread of their group is still at work.

Run as a script by test_parallel.py, with how often: prints the exit codes of both. It forks, so that torch is imported
once.
"""

from __future__ import annotations

import os
import sys
import threading
import time

import torch
import torch.distributed as dist

from engine.helpers import make
from fairlead.engine import parallel, sharded
from support.ranks import free_port


def late(began: threading.Event) -> None:
    """What the group's thread does a second long: take Python's lock again and again, as it does for every tensor."""
    began.set()
    for _ in range(1000):
        time.sleep(0.001)


def rank(number: int, port: int) -> None:
    os.environ |= {
        "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    parallel.world()
    model = make("llama-tied")
    sharded.shard(model)
    sharded.whole(model)
    if number:
        time.sleep(0.5)  # the other has said by then what its thread is to do
    work = dist.all_reduce(torch.ones(1), async_op=True)
    if number == 0:
        began = threading.Event()
        work.get_future().then(lambda _: late(began))
        began.wait()


def main(times: int) -> None:
    torch.set_num_threads(1)
    for _ in range(times):
        port, pids = free_port(), []
        for number in (0, 1):
            pid = os.fork()
            if not pid:
                rank(number, port)
                return  # and Python ends by itself
            pids.append(pid)
        print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids], flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
