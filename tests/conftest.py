"""For every test: no network, one thread per worker (many workers share few cores), and a Ctrl-C that is heard."""

from __future__ import annotations

import os
import signal

for name, value in {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}.items():
    os.environ.setdefault(name, value)  # before anything imports torch

# A shell that starts the suite in the background has it ignore interrupts, and what the tests start would inherit that:
# they could not be interrupted, and the tests that do would fail or wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
