"""A bulk job in a process of its own, to be killed: `python bulk_job.py INPUT OUT LOG [PAUSE [FILE_LIMIT]]`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairlead.errors import FairleadError
from fairlead.feedback.bulk import Outcome, Pace, run_job
from fairlead.feedback.shards import open_folder
from fairlead.feedback.stream import survey

WORKERS, CHUNK = 3, 5


def main(source: str, out: str, log: str, pause: str = "0", limit: str = "") -> int:
    if limit:  # the kernel refuses what goes beyond, in the middle of a write: a disk that is full
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    asked = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def double(rows: Sequence[Any]) -> list[Outcome]:
        if not limit:
            os.write(asked, b"".join(b"%d\n" % row["i"] for row in rows))
        time.sleep(float(pause))
        return [Outcome({"twice": 2 * row["i"], "text": "x" * 50}) for row in rows]

    found = survey(source)
    try:
        with open_folder(Path(out), {"input": found.sha256}, rows=found.rows, shard_rows=17) as folder:
            run_job(folder, found.files, double, Pace(WORKERS, CHUNK), marks=found.marks)
    except FairleadError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
