"""`make test-faults`: commands are killed, over and over, and must end as if nothing had happened.

python -m qa.faults [--kills 44] [--seed 0] [--only train mine ...]
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.hub.server import WRITER, LoopbackHub


def main() -> int:
    """Runs the trials; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m qa.faults", description="Kills commands and compares results.")
    parser.add_argument("--kills", type=int, default=44, help="at least so many (default: 44)")
    parser.add_argument("--seed", type=int, default=0, help="of when and where to kill (default: 0)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="commands, such as train or mine (default: all)")
    options = parser.parse_args()
    start, hub = time.monotonic(), LoopbackHub()
    hub._server.handle_error = lambda request, address: None  # type: ignore[method-assign]  # clients are killed here
    with tempfile.TemporaryDirectory(prefix="faults-") as name, hub.running():
        folder = Path(name)
        _set_environment(folder, hub.url)
        # Not before: huggingface_hub and datasets read their environment when they are imported.
        from qa.faults.commands import Workplace
        from qa.faults.processes import import_all, run
        from qa.faults.trials import Tally, Trials, print_log, shares

        import_all()
        workplace, tally = Workplace(folder / "shared", hub), Tally()
        for number, arguments in enumerate(workplace.preparations()):
            ended = run(arguments, folder / f"preparation-{number}.log")
            if ended.status != 0:
                print(ended.text, file=sys.stderr)
                return 1
        commands = [one for one in workplace.commands() if options.only is None or one.name in options.only]
        for one, kills in shares([command.name for command in commands], options.kills).items():
            command = next(command for command in commands if command.name == one)
            print(f"{time.monotonic() - start:.0f} s: {kills} kills of: {one}", flush=True)
            Trials(command, folder, random.Random(f"{options.seed}-{one}"), tally).kill(kills)
    print_log(tally, options.seed, time.monotonic() - start)
    return 1 if any(tally.wrong.values()) else 0


def _set_environment(folder: Path, hub: str) -> None:
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(folder / "cache"),
        "HF_ENDPOINT": hub,
        "HF_TOKEN": WRITER,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DISABLE_SAFETENSORS_CONVERSION": "1",
        "NO_PROXY": "127.0.0.1",
        "PYTHONWARNINGS": "ignore",
    }


if __name__ == "__main__":
    sys.exit(main())
