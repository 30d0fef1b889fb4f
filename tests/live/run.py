"""`make live`: the contract suite against each provider whose key is set, and a clear word where none is.

`make live MODELS="openai/NAME anthropic/NAME"` names the models; else a small one of each provider with a key.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fairlead.errors import FairleadError
from fairlead.models import open_model

SMALL = {
    "OPENAI_API_KEY": ("openai/gpt-6-luna", "openai-responses/gpt-6-luna"),
    "ANTHROPIC_API_KEY": ("anthropic/claude-haiku-5-5",),
}


def main(named: list[str]) -> int:
    keys = [name for name in SMALL if os.environ.get(name) or os.environ.get(f"{name}_FILE")]
    models = named or [model for key in keys for model in SMALL[key]]
    if not models:
        print(
            f"make live: neither {' nor '.join(SMALL)} is set and no model is named, so the contract suite did NOT run "
            "against any provider.\nThe same suite runs against loopback servers in `make test`. To run it here: set a key, or name models "
            'with MODELS="PROVIDER/NAME …".'
        )
        return 0
    for model in models:
        try:
            open_model(model)
        except FairleadError as error:
            print(f"make live: {error}", file=sys.stderr)
            return error.exit_code
    print(f"make live: the contract suite against {', '.join(models)}, for at most 100,000 tokens in all", flush=True)
    here = Path(__file__).parent
    env = {**os.environ, "FAIRLEAD_LIVE_MODELS": " ".join(models)}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(here / "test_contract_live.py")], env=env, cwd=here.parents[1]
    ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
