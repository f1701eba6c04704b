"""`rerankzoo start`: from a data folder to trained models, a verdict, a table and a checkpoint that serves.

Every step is a command that a person could have typed. The recipes, which are the shipped ones for this log, lie in the
output folder with their commands in their heads, and all commands in order in `start.sh`.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
import yaml
from datasets import Dataset, DatasetDict
from jsonargparse.typing import NonNegativeInt
from rich.console import Console

from rerankzoo.atomic_writing import write_json, write_text
from rerankzoo.cli.main import run_command
from rerankzoo.cli.recipes import find_recipe
from rerankzoo.data.datamodule import open_splits
from rerankzoo.data.folder import SCHEMA_FILE, local_folder
from rerankzoo.data.loader import slate_lengths
from rerankzoo.errors import refuse_other_settings
from rerankzoo.features.arrow_tables import has_missing
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.pipeline import RerankingPipeline
from rerankzoo.text_files import read_json, read_yaml

console = Console()

#: What was done, and for which log.
STATE_FILE = "start.json"
#: Shipped recipes by model; `{}` stands for "simulator" where items are seen `_OFTEN` times each or more.
_RECIPES = {
    "pointwise": "pointwise/{}.yaml",
    "prm": "prm/{}.yaml",
    "evaluator": "interaction/evaluator-ml-100k.yaml",
    "degre": "degre/guided-simulator.yaml",
}
_OFTEN = 100
#: The simplest first: of those that held-out feedback cannot tell apart the first is kept.
_BEHAVIOURS = "model.init_args.config.behaviour=independent,choice,cascade,satisfaction"
#: Requests that are mined at most, where candidates x positions are `_SMALL` or less; of larger ones fewer, and from
#: `_LARGE` on with fewer beams.
_MINED, _FEWEST_MINED, _SMALL, _LARGE = 24_000, 2_000, 100, 1_000
_EVALUATED = 2_000
_STORY = {
    "diagnosis": "what does the log let expect?",
    "pointwise": "a ranker that values every item alone",
    "prm": "a ranker that sees all candidates",
    "evaluator": "learns what a whole slate earns; the behaviour that held-out feedback prefers is kept",
    "mined": "the evaluator searches logged requests for better slates",
    "degre": "a generator learns what the search has found",
    "evaluation": "all on the same held-out requests",
}


@dataclass(frozen=True)
class LogSize:
    """What of a log decides how its models are trained."""

    requests: int  # of the training split
    candidates: int  # of its largest request
    positions: int  # of its longest slate; 0: there are no whole slates
    views: float  # positions shown (without slates: labelled candidates) for each item id

    @classmethod
    def of(cls, train: Dataset, schema: FeatureSchema) -> LogSize:
        """Measures a training split."""
        lists = train.select_columns([schema.item_id]).with_format("arrow")[:][schema.item_id]
        ids = pa.chunked_array([pc.unique(part.flatten()) for part in lists.chunks])
        whole = schema.slate in train.column_names and not has_missing(train.data.column(schema.slate))
        lengths, candidates = slate_lengths(train, schema.slate), pc.list_value_length(lists)
        shown = int(lengths.sum()) if len(lengths) else pc.sum(candidates).as_py()
        positions = int(lengths.max(initial=0)) if whole else 0
        return cls(len(train), pc.max(candidates).as_py(), positions, shown / max(1, len(pc.unique(ids))))

    def mining(self) -> list[str]:
        """How many requests are mined, and how widely: what takes minutes."""
        cells = self.candidates * self.positions
        wanted = max(_FEWEST_MINED, _MINED * _SMALL // max(_SMALL, cells))
        beams = 16 if cells <= _LARGE else 4
        settings = {"num-requests": min(self.requests, wanted), "num-beams": beams, "keep": 1, "soft-label": "none"}
        return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def start(data: str, *, seed: NonNegativeInt = 0, out: Path = Path("outputs/start")) -> None:
    """From a data folder to trained models, a verdict, a table and a checkpoint that serves.

    Diagnoses the log, trains a pointwise ranker, PRM, an evaluator and DeGRe (only the first of them where the log has
    too little feedback, or no slates, to teach the others), compares them on held-out requests, and says what to do
    next. Recipes and commands are written into the output folder. Given again after it was stopped, it goes on; what
    is done is not done again.

    Args:
        data: Data folder, or a dataset on the Hub.
        seed: Of everything that is drawn.
        out: Folder for recipes, checkpoints, pages and tables.
    """
    torch.set_num_threads(1)  # matrices this small gain nothing from a second one, and lose much on a busy machine
    folder = local_folder(data)
    splits, schema = open_splits(folder), FeatureSchema.from_yaml(folder / SCHEMA_FILE)
    for name in ("train", "validation"):
        if name not in splits:
            raise FileNotFoundError(f"{folder} has no {name}*.parquet; it has {sorted(splits)}")
    size = LogSize.of(splits["train"], schema)
    console.print(f"{size.requests:,} training requests of up to {size.candidates} candidates", highlight=False)
    steps = _Steps(str(folder), out, seed, splits, size)
    steps.write()
    verdict = {"kind": "no slates", "text": "the log has no whole slates: it cannot tell what items do to one another"}
    if size.positions:
        steps.run("diagnosis")
        verdict = read_json(out / "diagnosis.json")["verdict"]
    whole = size.positions > 1 and verdict["kind"] != "not enough feedback"
    for name in ("pointwise", "prm", "evaluator", "mined", "degre") if whole else ("pointwise",):
        steps.run(name)
    steps.run("evaluation", steps.evaluate(["pointwise", "prm", "degre"] if whole else ["pointwise"]))
    chosen, reason = _recommend(verdict["kind"], out / "evaluation" / "results.json")
    steps.tell(recommended=str(out / chosen / "best"), verdict=verdict["text"])
    _conclude(out, chosen, reason, verdict["text"], splits[steps.held_out][0])


class _Steps:
    """The commands of a start, and which of them have been run."""

    def __init__(self, data: str, out: Path, seed: int, splits: DatasetDict, size: LogSize) -> None:
        self.data, self.out, self.seed, self.size = data, out, seed, size
        self.held_out = "test" if "test" in splits else "validation"
        rows = {name: len(table) for name, table in splits.items()}
        asked: dict[str, Any] = {"data": data, "seed": seed, "rows": rows}
        self.state = read_json(out / STATE_FILE) if (out / STATE_FILE).is_file() else {**asked, "done": {}}
        refuse_other_settings(out, self.state, asked)
        mine = ["mine", "--evaluator", self._best("evaluator"), "--data", data, "--out", str(out / "mined")]
        self.commands = {
            "diagnosis": ["diagnose", data, "--seed", str(seed), "--out", str(out)],
            "pointwise": self._fit("pointwise"),
            "prm": self._fit("prm"),
            "evaluator": self._fit("evaluator", "--try", _BEHAVIOURS),
            "mined": [*mine, *size.mining()],
            "degre": self._fit("degre"),
            "evaluation": self.evaluate(["pointwise", "prm", "degre"]),
        }

    def _best(self, name: str) -> str:
        return str(self.out / name / "best")

    def _fit(self, name: str, *further: str) -> list[str]:
        return ["fit", "--config", str(self.out / f"{name}.yaml"), *further]

    def evaluate(self, models: list[str]) -> list[str]:
        """The command that compares models, by the evaluator where it has taught one of them."""
        judged = ["--evaluator", self._best("evaluator")] if "degre" in models else []
        counts = ["--split", self.held_out, "--num-requests", str(_EVALUATED), "--hr-requests", "0"]
        out = ["--seed", str(self.seed), "--out", str(self.out / "evaluation")]
        return ["evaluate", *map(self._best, models), "--data", self.data, *judged, *counts, *out]

    def write(self) -> None:
        """Writes recipes and commands, but what is there: a person may have changed it."""
        texts = {f"{name}.yaml": self._recipe(name) for name in _RECIPES}
        lines = [f"# {_STORY[name]}\n{_line(words)}" for name, words in self.commands.items()]
        texts["start.sh"] = "\n".join(["#!/bin/sh", "# All steps of `rerankzoo start`.", "set -e", *lines, ""])
        for name, text in texts.items():
            if not (self.out / name).exists():
                write_text(self.out / name, text)
        self.tell()

    def _recipe(self, name: str) -> str:
        """A shipped recipe for this log: its batches and passes follow the log's size, its slates the log's."""
        recipe = read_yaml(find_recipe(_RECIPES[name].format("simulator" if self.size.views >= _OFTEN else "ml-100k")))
        model, trainer = recipe["model"]["init_args"], recipe["trainer"]
        model["config"].pop("slate_size", None)
        trainer.pop("max_epochs", None)
        trainer |= {"default_root_dir": str(self.out / name), "enable_model_summary": False}
        source = {"path": self.data}
        if name == "degre":
            source = dict.fromkeys(("path", "extractor"), str(self.out / "mined"))
            model["guide"] = self._best("evaluator")
        recipe["data"] = {"class_path": "rerankzoo.RerankingDataModule", "init_args": source}
        recipe["seed_everything"] = self.seed
        head = [_STORY[name], *([_line(self.commands["mined"])] if name == "degre" else []), _line(self.commands[name])]
        return "".join(f"# {line}\n" for line in head) + yaml.safe_dump(recipe, sort_keys=False)

    def run(self, name: str, words: list[str] | None = None) -> None:
        """Runs a step, unless it is done."""
        words, done = words or self.commands[name], self.state["done"]
        if done.get(name, {}).get("command") == _line(words):
            console.print(f"{name} is done ({done[name]['cpu_seconds']:.0f} CPU seconds)", highlight=False)
            return
        console.rule(f"[bold]{name}[/bold]: {_STORY[name]}")
        console.print(_line(words), highlight=False, soft_wrap=True)
        begun = time.process_time()
        run_command([*words, "--ckpt_path", "last"] if words[0] == "fit" and "--try" not in words else words)
        done[name] = {"command": _line(words), "cpu_seconds": time.process_time() - begun}
        self.tell()

    def tell(self, **further: str) -> None:
        """Keeps what has been done, and what is to be told of it."""
        self.state |= further
        write_json(self.out / STATE_FILE, self.state)


def _line(words: list[str]) -> str:
    return shlex.join(["rerankzoo", *words])


def _recommend(kind: str, results: Path) -> tuple[str, str]:
    """The model to go on with, and why."""
    if kind != "worth an A/B test":
        return "pointwise", "the verdict on the log speaks for nothing else"
    found = read_json(results)
    metric = found["protocol"]["primary_metric"]
    greedy = {row["model"]: row["metrics"].get(metric) for row in found["rows"] if row["decoding"] == "greedy"}
    if None in (greedy["degre"], greedy["pointwise"]):
        return "pointwise", "the held-out requests tell too little to compare it with DeGRe"
    told = f"{metric} {greedy['degre']:.4g}, pointwise {greedy['pointwise']:.4g}"
    if greedy["degre"] > greedy["pointwise"]:
        return "degre", f"test it against the pointwise one: {told}"
    return "pointwise", f"the log promises more, but DeGRe has not found it: {told}"


def _conclude(out: Path, chosen: str, reason: str, verdict: str, row: Mapping[str, Any]) -> None:
    """Reranks one request with the checkpoint that is recommended, and says what to do next."""
    console.rule("[bold]what to do next")
    folder = out / chosen / "best"
    items = RerankingPipeline.from_pretrained(str(folder))(dict(row))
    for line in (
        f"verdict: {verdict}",
        f"checkpoint: {folder} ({reason})",
        f"its slate of the first held-out request: {', '.join(str(item['item_id']) for item in items)}",
        f'in Python: RerankingPipeline.from_pretrained("{folder}")(request)',
        f"pages and tables: {out / 'diagnosis.md'}, {out / 'evaluation' / 'results.md'}",
        f"change a recipe in {out} and give the command in its head; all commands: {out / 'start.sh'}",
    ):
        console.print(f"- {line}", highlight=False, soft_wrap=True)
