"""`make test-faults`: commands are killed, over and over, and must end as if nothing had happened.

python -m tests.faults [--kills 44] [--seed 0] [--only train mine ...]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.hub.server import WRITER, LoopbackHub

if TYPE_CHECKING:
    from tests.faults.commands import Command, Outcome
    from tests.faults.processes import Ended

#: How the kills are shared out; the rest of the commands share what is left.
_WEIGHTS = {"train": 6, "mine": 4, "predict": 4}
#: Kills of one folder before its command may end.
_KILLS_OF_A_TRIAL = 2


@dataclass
class Killed:
    """A line of the log."""

    command: str
    trial: int
    signal: str
    where: str
    inside: bool
    status: int


@dataclass
class Tally:
    """What went wrong."""

    killed: list[Killed] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    half: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def faults(self) -> dict[str, list[str]]:
        """All of it, by kind."""
        kinds = ("lost", "duplicated", "different", "half", "failed")
        return {kind: getattr(self, kind) for kind in kinds}


class Trials:
    """Kills one command until it has been killed often enough."""

    def __init__(self, command: Command, folder: Path, rng: random.Random, tally: Tally) -> None:
        from tests.faults.commands import half_files, repeated_rows
        from tests.faults.processes import TERMINATED, Kill, run

        self.half_files, self.repeated_rows, self.terminated, self.kill, self.run = (
            half_files,
            repeated_rows,
            TERMINATED,
            Kill,
            run,
        )
        self.command, self.folder, self.rng, self.tally = command, folder, rng, tally
        self.slug = command.name.replace(" ", "-")
        root = self._root("undisturbed")
        self.reference = self._must_end(root)
        self.expected: Outcome = command.outcome(root)
        self.repeated = repeated_rows(root)

    def _root(self, name: str) -> Path:
        root = self.folder / f"{self.slug}-{name}"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        return root

    def _must_end(self, root: Path) -> Ended:
        ended = self.run(self.command.arguments(root), self.folder / f"{root.name}.log")
        if ended.status != 0:
            self.tally.failed.append(f"{root.name}: status {ended.status}: {ended.text[-2000:]}")
        return ended

    def kill_often(self, kills: int) -> None:
        """Kills the command so often, in trials of a few kills each, and compares what each of them ends with."""
        inside, before, trial = True, len(self.tally.killed), 0
        while len(self.tally.killed) - before < kills and not self.tally.failed:
            trial += 1
            root = self._root(f"trial-{trial}")
            steps = len(self.reference.steps)
            for _ in range(min(_KILLS_OF_A_TRIAL, kills - (len(self.tally.killed) - before))):
                done = self._kill_once(root, trial, inside, steps)
                steps -= done
                inside = not inside
            self._must_end(root)
            self._compare(root, f"{self.command.name}, trial {trial}")
            shutil.rmtree(root, ignore_errors=True)

    def _kill_once(self, root: Path, trial: int, inside: bool, steps: int) -> int:
        """Starts the command once and kills it, unless it ends first; returns how many steps of writing it did."""
        number = signal.SIGTERM if self.rng.random() < 0.25 else signal.SIGKILL
        step = self.rng.randrange(max(steps, 1)) if inside else None
        seconds = self.rng.uniform(0.05, 0.95) * self.reference.seconds
        log = self.folder / f"{root.name}.log"
        ended = self.run(self.command.arguments(root), log, self.kill(number, step, seconds))
        expected = self.terminated if number == signal.SIGTERM else -number
        if ended.status == 0:
            return len(ended.steps)
        # A process that has not yet said what to do on SIGTERM ends as the system does it.
        if ended.status not in (expected, -number):
            self.tally.failed.append(f"{root.name}: status {ended.status}, not {expected}: {ended.text[-2000:]}")
        where = ended.steps[-1] if inside else f"{seconds:.2f} s of {self.reference.seconds:.2f}"
        self.tally.killed.append(Killed(self.command.name, trial, number.name, where, inside, ended.status))
        self.tally.half += [f"{root.name}: {name}" for name in self.half_files(root)]
        return len(ended.steps)

    def _compare(self, root: Path, name: str) -> None:
        found = self.command.outcome(root)
        self.tally.lost += [f"{name}: {key}" for key in self.expected.keys() - found.keys()]
        self.tally.duplicated += [f"{name}: {key} is left over" for key in found.keys() - self.expected.keys()]
        self.tally.duplicated += [f"{name}: rows"] * (self.repeated_rows(root) - self.repeated)
        common = found.keys() & self.expected.keys()
        self.tally.different += [f"{name}: {key}" for key in common if found[key] != self.expected[key]]


def shares(names: list[str], kills: int) -> dict[str, int]:
    """How often to kill each command."""
    weights = {name: _WEIGHTS.get(name, 2) for name in names}
    return {name: max(1, -(-kills * weight // sum(weights.values()))) for name, weight in weights.items()}


def print_log(tally: Tally, seed: int, seconds: float) -> None:
    """The table of kills, and what came of them."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=120)
    table = Table("kill", "command", "trial", "signal", "inside a write, or after", "status", title=f"seed {seed}")
    for number, one in enumerate(tally.killed, 1):
        table.add_row(str(number), one.command, str(one.trial), one.signal, one.where, str(one.status))
    console.print(table)
    for kind, faults in tally.faults.items():
        for fault in faults[:20]:
            console.print(f"{kind}: {fault}", markup=False, highlight=False)
    inside = sum(one.inside for one in tally.killed)
    counts = ", ".join(f"{len(faults)} {kind}" for kind, faults in tally.faults.items())
    print(f"seed {seed}: {len(tally.killed)} kills, {inside} of them inside a write, in {seconds:.0f} s: {counts}")


def main() -> int:
    """Runs the kills; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Kills commands and compares results.")
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
        from tests.faults.commands import Workplace
        from tests.faults.processes import import_all, run

        import_all()
        workplace, tally = Workplace(folder / "shared", hub), Tally()
        for number, arguments in enumerate(workplace.preparations()):
            ended = run(arguments, folder / f"preparation-{number}.log")
            if ended.status != 0:
                print(ended.text, file=sys.stderr)
                return 1
        commands = [one for one in workplace.commands() if options.only is None or one.name in options.only]
        wanted = shares([one.name for one in commands], options.kills)
        for number, command in enumerate(commands):
            rng = random.Random(f"{options.seed}-{number}-{command.name}")
            print(f"{time.monotonic() - start:.0f} s: {wanted[command.name]} kills of: {command.name}", flush=True)
            Trials(command, folder, rng, tally).kill_often(wanted[command.name])
    print_log(tally, options.seed, time.monotonic() - start)
    return 1 if any(tally.faults.values()) else 0


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
