"""Tables of growing size: what each command takes, per million requests, and the memory it holds.

Everything runs as a user would run it: `rerankzoo prepare`, `fit`, `mine`, `predict`, `evaluate`, each in a process of
its own under a limit of its memory. A stage's cost is the slope between a short and a long run of it on one table, so
that starting Python is no part of it; what reads the whole table has one run per table.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.scale.usage import Usage, run

HERE = Path(__file__).parent
#: Of the simulated world: rows of 500 bytes.
WORLD = {"latent_size": 2, "num_candidates": 8, "num_items": 200, "retrieval_pool": 20}
BATCH_SIZE = 256
COMMAND = ("-m", "rerankzoo.cli.main")
OPEN = "from tests.scale.tables import open_table; import sys; open_table(sys.argv[1])"
FIT = "from tests.scale.tables import fit_extractor; import sys; fit_extractor(sys.argv[1])"


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        sizes: Training requests of the tables.
        steps: A short and a long training.
        mined: Requests of a short and a long mining run.
        tested: The same of prediction and evaluation.
        data_limit: RLIMIT_DATA of every process, in bytes.
    """

    sizes: tuple[int, ...] = (200_000, 2_000_000, 10_000_000)
    steps: tuple[int, int] = (200, 2_000)
    mined: tuple[int, int] = (2_000, 20_000)
    tested: tuple[int, int] = (1_000, 6_000)
    data_limit: int = 2 * 2**30


class Tables:
    """Makes the tables, one after the other, and measures.

    Args:
        plan: How much.
        work: Folder for tables, caches and checkpoints; the tables are removed as soon as they are measured.
    """

    def __init__(self, plan: Plan, work: Path) -> None:
        self.plan = plan
        self.work = work
        self.environment = {
            "HF_DATASETS_CACHE": str(work / "cache"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(HERE.parents[1]),
        }

    def measure(self) -> Iterator[dict[str, Any]]:
        """All figures so far, after each table: by table, and the costs of what its size does not change."""
        found: dict[str, Any] = {"plan": asdict(self.plan), "world": WORLD, "tables": {}, "costs": {}}
        for size in self.plan.sizes:
            found["tables"][size] = self._table(size)
            if not found["costs"]:
                found["costs"] = self._costs(size, found["tables"][size])
            shutil.rmtree(self._folder(size))
            shutil.rmtree(self.work / "cache")
            yield found

    def _folder(self, size: int) -> Path:
        return self.work / f"log-{size}"

    def _table(self, size: int) -> dict[str, Any]:
        """One table: making it, opening it, and the memory of training and mining on it."""
        folder, found = self._folder(size), {}
        found["prepare"] = self._prepare(folder, size)
        found["open"] = self._run(f"open {size:,}", "-c", OPEN, folder)
        found["fit extractor"] = self._run(f"fit the extractor {size:,}", "-c", FIT, folder)
        if not (self.work / "evaluator").is_dir():
            self._fit("evaluator", folder, self.plan.steps[0])
        found["train"] = self._fit("generator", folder, self.plan.steps[1])
        found["mine"] = self._mine(folder, self.plan.mined[0])
        sizes = {"parquet bytes": _bytes(folder), "arrow bytes": _bytes(self.work / "cache")}
        return {**{name: _figures(usage) for name, usage in found.items()}, **sizes}

    def _costs(self, size: int, known: dict[str, Any]) -> dict[str, Any]:
        """A short and a long run of each stage that takes some requests of a table."""
        folder, plan = self._folder(size), self.plan
        predict = [(count, _figures(self._predict(folder, count))) for count in plan.tested]
        evaluate = [(count, _figures(self._evaluate(folder, count))) for count in plan.tested]
        mine = [(plan.mined[0], known["mine"]), (plan.mined[1], _figures(self._mine(folder, plan.mined[1])))]
        short = _figures(self._fit("generator", folder, plan.steps[0]))
        train = [(plan.steps[0] * BATCH_SIZE, short), (plan.steps[1] * BATCH_SIZE, known["train"])]
        stages = {"train": train, "mine": mine, "predict": predict, "evaluate": evaluate}
        return {name: [{"requests": count, **entry} for count, entry in runs] for name, runs in stages.items()}

    def _prepare(self, folder: Path, size: int) -> Usage:
        tested = str(self.plan.tested[1])
        sizes = ["--num-train", str(size), "--num-validation", "2000", "--num-test", tested]
        world = [f"--constant={name}={value}" for name, value in WORLD.items()]
        return self._run(f"prepare {size:,}", *COMMAND, "prepare", "simulator", *sizes, *world, "--out", folder)

    def _fit(self, kind: str, folder: Path, steps: int) -> Usage:
        out = self.work / kind
        shutil.rmtree(out, ignore_errors=True)
        options = [f"--data.init_args.path={folder}", f"--trainer.max_steps={steps}"]
        options += [f"--trainer.val_check_interval={steps // 2}", f"--trainer.default_root_dir={out}"]
        name = f"train a {kind} for {steps:,} steps on {folder.name}"
        return self._run(name, *COMMAND, "fit", "--config", HERE / f"{kind}.yaml", *options)

    def _mine(self, folder: Path, count: int) -> Usage:
        out = self.work / "mined"
        shutil.rmtree(out, ignore_errors=True)
        options = ["--evaluator", self.work / "evaluator" / "best", "--num-requests", count, "--num-validation", 0]
        name = f"mine {count:,} of {folder.name}"
        return self._run(name, *COMMAND, "mine", *options, "--data", folder, "--out", out, "--devices", 1)

    def _predict(self, folder: Path, count: int) -> Usage:
        out, size = self.work / "generator", 1_000
        options = [f"--data.init_args.path={folder}", f"--data.init_args.eval_batch_size={size}"]
        options += [f"--trainer.limit_predict_batches={count // size}", f"--trainer.default_root_dir={out}"]
        options += [f"--ckpt_path={out / 'checkpoints' / 'best.ckpt'}"]
        return self._run(f"predict {count:,}", *COMMAND, "predict", "--config", HERE / "generator.yaml", *options)

    def _evaluate(self, folder: Path, count: int) -> Usage:
        options = ["--data", folder, "--num-requests", count, "--out", self.work / "report"]
        return self._run(f"evaluate {count:,}", *COMMAND, "evaluate", self.work / "generator" / "best", *options)

    def _run(self, name: str, *arguments: Any) -> Usage:
        usage = run([str(argument) for argument in arguments], self.environment, self.plan.data_limit)
        print(f"{name}: {usage.cpu:.1f} s of CPU, at most {usage.peak / 2**20:.0f} MiB", flush=True)
        return usage


def open_table(folder: str) -> None:
    """Opens a data folder, which copies it to Arrow's format where that was not done yet."""
    from rerankzoo.data.datamodule import open_splits

    open_splits(Path(folder))


def fit_extractor(folder: str) -> None:
    """Fits an extractor on a folder that was opened before."""
    from rerankzoo.data.datamodule import RerankingDataModule

    RerankingDataModule(folder).setup()


def slope(runs: Sequence[dict[str, Any]], unit: int = 1_000_000) -> dict[str, float]:
    """What `unit` requests more cost: CPU seconds and bytes of memory."""
    short, long = runs
    requests = (long["requests"] - short["requests"]) / unit
    return {name: (long[name] - short[name]) / requests for name in ("cpu", "peak")}


def rows(found: dict[str, Any]) -> Iterable[str]:
    """The figures as two Markdown tables: memory by table, cost by stage."""
    sizes, tables = list(found["tables"]), found["tables"]
    stages = ("prepare", "open", "fit extractor", "train", "mine")
    yield "| stage | " + " | ".join(f"{int(size):,} requests" for size in sizes) + " |"
    yield "|---|" + "---:|" * len(sizes)
    for stage in stages:
        yield f"| {stage}, MiB | " + " | ".join(f"{tables[size][stage]['peak'] / 2**20:.0f}" for size in sizes) + " |"
    yield ""
    yield "| stage | CPU s per million requests | MiB per million requests |"
    yield "|---|---:|---:|"
    for stage in ("prepare", "open", "fit extractor") if len(sizes) > 1 else ():
        yield _row(stage, slope([{"requests": int(size), **tables[size][stage]} for size in (sizes[0], sizes[-1])]))
    for stage, runs in found["costs"].items():
        yield _row(stage, slope(runs))
    yield ""
    yield "| on disk | bytes per request |"
    yield "|---|---:|"
    for name in ("parquet bytes", "arrow bytes"):
        yield f"| {name.split()[0]} | {tables[sizes[-1]][name] / int(sizes[-1]):.0f} |"


def _row(stage: str, cost: dict[str, float]) -> str:
    return f"| {stage} | {cost['cpu']:.1f} | {cost['peak'] / 2**20:.1f} |"


def _figures(usage: Usage) -> dict[str, float]:
    return {"cpu": usage.cpu, "wall": usage.wall, "peak": usage.peak}


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
