"""Kills a command over and over, and compares what it ends with with what it makes undisturbed."""

from __future__ import annotations

import random
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qa.faults.commands import Command, half_files, repeated_rows
from qa.faults.processes import TERMINATED, Ended, Fault, run

#: How the faults are shared out: weights, for those that are not 2.
_WEIGHTS = {"train": 6, "mine": 4, "predict": 4}
#: Faults of one folder before its command may end.
_FAULTS_OF_A_TRIAL = 2


@dataclass(frozen=True)
class Kill:
    """A line of the log."""

    command: str
    trial: int
    signal: str
    where: str
    inside: bool
    status: int


@dataclass
class Tally:
    """The kills, the full disks, and what went wrong."""

    kills: list[Kill] = field(default_factory=list)
    full: list[Kill] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    half: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> dict[str, list[str]]:
        """What went wrong, by kind."""
        return {kind: getattr(self, kind) for kind in ("lost", "duplicated", "different", "half", "failed")}


class Trials:
    """Trials of one command.

    Args:
        command: The command.
        folder: For the folders of the trials.
        rng: Chooses when and where.
        tally: Takes down what happens.
    """

    def __init__(self, command: Command, folder: Path, rng: random.Random, tally: Tally) -> None:
        self.command, self.folder, self.rng, self.tally = command, folder, rng, tally
        root = self._root("undisturbed")
        self.undisturbed = self._end(root)
        self.expected = command.outcome(root)
        self.repeated = repeated_rows(root)
        self.largest = max((path.stat().st_size for path in root.rglob("*") if path.is_file()), default=0)

    def _root(self, name: str) -> Path:
        root = self.folder / f"{self.command.name.replace(' ', '-')}-{name}"
        root.mkdir(parents=True)
        return root

    def _end(self, root: Path) -> Ended:
        """Runs the command to its end."""
        ended = self._run(root)
        if ended.status != 0:
            self.tally.failed.append(f"{root.name}: status {ended.status}: {ended.text[-2000:]}")
        return ended

    def _run(self, root: Path, fault: Fault | None = None) -> Ended:
        return run(self.command.arguments(root), self.folder / f"{root.name}.log", fault)

    def kill(self, kills: int) -> None:
        """Kills the command so often, every second time inside a write, and fills the disk once."""
        first, failed, trial = len(self.tally.kills), len(self.tally.failed), 0
        while (left := first + kills - len(self.tally.kills)) > 0 and len(self.tally.failed) == failed:
            trial += 1
            root = self._root(f"trial-{trial}")
            if trial == 1 and self.largest:
                self._fill_disk(root)
            steps = len(self.undisturbed.steps)
            for _ in range(min(_FAULTS_OF_A_TRIAL, left)):
                steps -= self._kill_once(root, trial, (len(self.tally.kills) - first) % 2 == 0, steps)
            self._end(root)
            self._compare(root, f"{self.command.name}, trial {trial}")
            shutil.rmtree(root)

    def _kill_once(self, root: Path, trial: int, inside: bool, steps: int) -> int:
        """Starts the command and kills it, unless it ends first; returns how many steps of writing it took."""
        number = signal.SIGTERM if self.rng.random() < 0.25 else signal.SIGKILL
        step = self.rng.randrange(max(steps, 1))
        seconds = self.rng.uniform(0.05, 0.95) * self.undisturbed.seconds
        fault = Fault(number, step=step) if inside else Fault(number, seconds=seconds)
        ended = self._run(root, fault)
        if ended.status == 0:
            return len(ended.steps)
        # Before Python has said what to do on SIGTERM, a process ends as the system does it.
        if ended.status not in (-number, TERMINATED if number == signal.SIGTERM else -number):
            self.tally.failed.append(f"{root.name}: status {ended.status} after {fault}: {ended.text[-2000:]}")
        where = ended.steps[-1] if inside and ended.steps else f"{seconds:.2f} s of {self.undisturbed.seconds:.2f}"
        self.tally.kills.append(Kill(self.command.name, trial, number.name, where, inside, ended.status))
        self.tally.half += [f"{root.name}: {name}" for name in half_files(root)]
        return len(ended.steps)

    def _fill_disk(self, root: Path) -> None:
        """Lets writing fail as on a full disk: the command says so in one line, and nothing visible is half a file."""
        limit = self.rng.randrange(self.largest // 4, self.largest)
        while (ended := self._run(root, Fault(limit=limit))).status == 0:  # the largest file was only linked
            limit //= 2
            shutil.rmtree(root)
            root.mkdir()
        lines = [line for line in ended.text.splitlines() if line.startswith("rerankzoo ")]
        if ended.status != 2 or len(lines) != 1 or "cannot write" not in lines[0]:
            self.tally.failed.append(f"{root.name}: status {ended.status} on a full disk: {ended.text[-2000:]}")
        where = f"no file above {limit:,} bytes"
        self.tally.full.append(Kill(self.command.name, 1, "(full disk)", where, True, ended.status))
        self.tally.half += [f"{root.name}: {name}" for name in half_files(root)]

    def _compare(self, root: Path, name: str) -> None:
        found = self.command.outcome(root)
        self.tally.lost += [f"{name}: {key}" for key in self.expected.keys() - found.keys()]
        self.tally.duplicated += [f"{name}: {key} is left over" for key in found.keys() - self.expected.keys()]
        self.tally.duplicated += [f"{name}: rows"] * (repeated_rows(root) - self.repeated)
        common = found.keys() & self.expected.keys()
        self.tally.different += [f"{name}: {key}" for key in common if found[key] != self.expected[key]]


def shares(names: list[str], kills: int) -> dict[str, int]:
    """How often to kill each command, so many times in all or a few more."""
    weights = {name: _WEIGHTS.get(name, 2) for name in names}
    return {name: max(1, -(-kills * weight // sum(weights.values()))) for name, weight in weights.items()}


def print_log(tally: Tally, seed: int, seconds: float) -> None:
    """The table of kills, and what came of them."""
    console = Console(width=120)
    table = Table("", "command", "trial", "signal", "inside a write, or after", "status", title=f"seed {seed}")
    for number, one in enumerate([*tally.kills, *tally.full], 1):
        table.add_row(str(number), one.command, str(one.trial), one.signal, one.where, str(one.status))
    console.print(table)
    for kind, lines in tally.wrong.items():
        for line in lines[:20]:
            console.print(f"{kind}: {line}", markup=False, highlight=False)
    inside = sum(one.inside for one in tally.kills)
    counts = ", ".join(f"{len(lines)} {kind}" for kind, lines in tally.wrong.items())
    print(
        f"seed {seed}: {len(tally.kills)} kills, {inside} of them inside a write, and {len(tally.full)} full disks in "
        f"{seconds:.0f} s: {counts}"
    )
