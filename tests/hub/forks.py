"""python -m tests.hub.forks: runs scripts in forks of a process that has imported what takes long.

huggingface_hub reads its environment when it is imported, so each script needs a process; importing PyTorch anew in
each would be most of what they cost. One order per line comes in, one exit status per line goes out.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import jsonargparse  # noqa: F401  (imported for the forks, as all that follows)
import matplotlib.pyplot  # noqa: F401
import pandas  # noqa: F401
import pyarrow.parquet  # noqa: F401
import scipy.signal  # noqa: F401
import torch._dynamo
import torch.distributed.tensor  # noqa: F401


def run_script(script: str, folder: str, environment: dict[str, str]) -> None:
    """Runs a script as `python -c` does, in a folder and an environment; its output goes to two files there."""
    for name, number in (("client.out", 1), ("client.err", 2)):
        with Path(folder, name).open("wb") as file:
            os.dup2(file.fileno(), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.path[:0] = ["-c"], [""]
    signal.alarm(240)
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(seconds, 0.01))  # how long a client waits between attempts is its library's
    exec(compile(script, "<script>", "exec"), {"__name__": "__main__"})  # noqa: S102  (written by a test)


def main() -> None:
    """Forks for every order; the forks end as any interpreter does."""
    assert "huggingface_hub" not in sys.modules
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run_script(**json.loads(line))
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
