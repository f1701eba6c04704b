"""What each command costs per million requests, with the models, sizes and data of the shipped DeGRe recipes.

A stage is run for a few requests and for more of them, each in a process of its own; its cost is the slope, so that
starting, compiling and writing checkpoints are no part of it. 10 candidates, slates of 4 positions, one thread.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets

from qa.scale.usage import run
from rerankzoo.cli import evaluate, mine, prepare
from rerankzoo.cli.lightning import command_line
from rerankzoo.cli.main import main

# Imported here, before processes are made.
__all__ = ["command_line", "evaluate", "measure", "mine", "prepare", "rows"]

RECIPES = Path(__file__).parents[2] / "recipes" / "degre"
BATCH_SIZE = {"evaluator": 256, "generator": 128}  # the recipes'
#: Few and more of what each stage takes: requests, or steps of a training.
FEW_AND_MORE: dict[str, tuple[int, int]] = {
    "prepare simulator": (2_000, 20_000),
    "train the evaluator": (50, 250),
    "mine, 8 beams": (400, 2_000),
    "train the generator": (50, 250),
    "predict, greedy": (1_000, 8_000),
    "evaluate, 7 rows": (200, 1_000),
}


def measure(work: Path) -> dict[str, Any]:
    """CPU seconds and memory of both runs of every stage."""
    stages = _Stages(work)
    main(["prepare", "simulator", "--num-train", "20000", "--num-test", "8000", "--out", str(stages.data)])
    calls: dict[str, Callable[[int], Any]] = {
        "prepare simulator": stages.prepare,
        "train the evaluator": stages.train_evaluator,
        "mine, 8 beams": stages.mine,
        "train the generator": stages.train_generator,
        "predict, greedy": stages.predict,
        "evaluate, 7 rows": stages.evaluate,
    }
    found: dict[str, Any] = {}
    for stage, call in calls.items():
        found[stage] = []
        for count in FEW_AND_MORE[stage]:
            usage = stages.run(call, count)
            kind = stage.split()[-1]
            requests = count * BATCH_SIZE[kind] if kind in BATCH_SIZE else count
            found[stage].append({"requests": requests, **asdict(usage)})
            print(f"{stage}, {requests:,} requests: {usage.cpu:.1f} s of CPU", flush=True)
    return found


def rows(found: dict[str, Any]) -> Iterable[str]:
    """The figures as a Markdown table."""
    yield "| stage | requests | CPU s per million | requests per CPU second |"
    yield "|---|---:|---:|---:|"
    for stage, (few, more) in found.items():
        requests = more["requests"] - few["requests"]
        seconds = (more["cpu"] - few["cpu"]) / requests
        counts = f"{few['requests']:,} and {more['requests']:,}"
        yield f"| {stage} | {counts} | {seconds * 1e6:,.0f} | {1 / seconds:,.0f} |"


class _Stages:
    """The commands, one after another: each uses what the one before has left."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.data = work / "data"

    def run(self, call: Callable[[int], Any], count: int) -> Any:
        def in_own_cache() -> None:
            datasets.config.HF_DATASETS_CACHE = self.work / "cache"
            call(count)

        return run(in_own_cache, self.work / "output")

    def prepare(self, count: int) -> None:
        self._command("prepare", "simulator", "--num-train", count, out=self.work / "simulated")

    def train_evaluator(self, steps: int) -> None:
        self._fit("evaluator", steps, self.data)

    def mine(self, count: int) -> None:
        options = ["--evaluator", self.work / "evaluator" / "best", "--data", self.data, "--num-requests", count]
        options += ["--num-validation", 100, "--accelerator", "cpu", "--devices", 1]
        self._command("mine", *options, out=self.work / "mined")

    def train_generator(self, steps: int) -> None:
        mined = self.work / "mined"
        self._fit("generator", steps, mined, f"--data.init_args.extractor={mined}")

    def predict(self, count: int) -> None:
        out = self.work / "generator"
        options = [f"--data.init_args.path={self.work / 'mined'}", "--data.init_args.eval_batch_size=100"]
        options += [f"--trainer.limit_predict_batches={count // 100}", "--trainer.accelerator=cpu"]
        options += [f"--trainer.default_root_dir={out}", f"--ckpt_path={out / 'checkpoints' / 'best.ckpt'}"]
        self._command("predict", "--config", RECIPES / "generator-simulator.yaml", *options)

    def evaluate(self, count: int) -> None:
        options = ["--data", self.data, "--num-requests", count]
        self._command("evaluate", self.work / "generator" / "best", *options, out=self.work / "report")

    def _fit(self, kind: str, steps: int, data: Path, *options: str) -> None:
        out = self.work / kind
        shutil.rmtree(out, ignore_errors=True)
        module = ["--data=rerankzoo.RerankingDataModule", f"--data.init_args.path={data}", *options]
        module.append(f"--data.init_args.batch_size={BATCH_SIZE[kind]}")
        trainer = [f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}"]
        trainer += ["--trainer.check_val_every_n_epoch=null", "--trainer.accelerator=cpu", "--trainer.max_epochs=-1"]
        config = RECIPES / f"{kind}-simulator.yaml"
        self._command("fit", "--config", config, *module, *trainer, f"--trainer.default_root_dir={out}")

    def _command(self, *arguments: Any, out: Path | None = None) -> None:
        if out is not None:
            shutil.rmtree(out, ignore_errors=True)
            arguments = (*arguments, "--out", out)
        if main([str(argument) for argument in arguments]):
            raise RuntimeError(f"rerankzoo {arguments[0]} failed")
