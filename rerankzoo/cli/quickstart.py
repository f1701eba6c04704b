"""`rerankzoo quickstart`: the whole story in minutes, on simulated logs of two worlds whose truth is known."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from rich.console import Console
from rich.table import Table

from rerankzoo import diagnosis
from rerankzoo.cli.benchmark import Benchmark, Entry, EvaluatorSpec, World
from rerankzoo.cli.recipes import find_recipe
from rerankzoo.cli.runs import Trained, mine_once, train
from rerankzoo.data.simulator import Simulator
from rerankzoo.evaluation import Evaluation, print_table, write_report
from rerankzoo.evaluation.results import UPSTREAM
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.mining import SETTINGS_FILE
from rerankzoo.models.auto import load_checkpoint
from rerankzoo.pipeline import RerankingPipeline

console = Console()

#: Requests that are diagnosed: for a verdict in seconds.
_DIAGNOSED = 10_000
#: What is trained, what is said of it, and how it decodes.
STORY = "quickstart.yaml"


def quickstart(
    *,
    seed: NonNegativeInt = 0,
    num_train: int = 20_000,
    num_mined: int = 10_000,
    max_epochs: PositiveInt | None = None,
    out: Path = Path("outputs/quickstart"),
) -> None:
    """The whole story in minutes, on simulated logs of two worlds whose truth is known.

    In one world reranking pays, in the other one it does not. In both, the log is diagnosed first: what does it let
    expect? Then an evaluator learns what people click in a slate, searches the logged requests for better slates than
    were shown, and a generator (DeGRe's) learns what it found. Beside it: the upstream order, a pointwise ranker, PRM
    and NAR4Rec, with and without the evaluator, and the truth. All checkpoints are saved, and the generator's is loaded
    back and reranks one raw request.

    Args:
        seed: Of the simulated worlds and of the training.
        num_train: Logged requests to train on.
        num_mined: Of them the evaluator searches.
        max_epochs: Passes over the data (default: the recipes').
        out: Folder for checkpoints, tables, plots, pages and results.json.
    """
    torch.set_num_threads(1)  # matrices this small gain nothing from a second one, and lose much on a busy machine
    story = Benchmark.from_yaml(find_recipe(STORY))
    options = [f"--data.init_args.world_seed={seed}", f"--data.init_args.num_train={num_train}"]
    options += [f"--data.init_args.root={out / 'data'}", "--trainer.accelerator=cpu", "--trainer.devices=1"]
    options += ["--trainer.enable_model_summary=false"]
    options += [f"--trainer.max_epochs={max_epochs}"] if max_epochs else []
    told = []
    for number, (name, world) in enumerate(story.worlds.items()):
        console.rule(f"[bold]world {number + 1}, {name}: {world.story}")
        # The first world's checkpoints are those that the documentation goes on with.
        teller = _Teller(story, world, out if number == 0 else out / name, seed, [*world.arguments, *options])
        told.append((name, *teller.tell(num_mined)))
    _conclude(told)
    _show_one(*told[0][3:])
    console.print(f"\nCheckpoints, tables, plots and results.json are in [bold]{out}[/bold].", highlight=False)


class _Teller:
    """Tells the story in one world."""

    def __init__(self, story: Benchmark, world: World, out: Path, seed: int, options: list[str]) -> None:
        self.story, self.out, self.seed, self.options = story, out, seed, options
        self.models = {name: entry for name, entry in story.models.items() if name in (world.models or story.models)}

    def tell(self, num_mined: int) -> tuple[diagnosis.Diagnosis, list[Evaluation], Trained, Trained]:
        """What the log lets expect, what came of it, the evaluator, and the last model."""
        spec = self.story.evaluator
        if spec is None:
            raise ValueError(f"{STORY} names no evaluator")
        evaluator = self._teach("degre-evaluator", spec, self.options)
        found = self._diagnose(Path(evaluator.data.path))
        for name, entry in self.models.items():
            trained = self._teach(name, entry, self._options(entry, evaluator, num_mined))
        console.rule("evaluating on test requests")
        run = evaluator.evaluation(evaluator.load("cpu"), ceiling=self.story.ceiling, seed=self.seed)
        evaluations = []
        for name, entry in self.models.items():
            extractor = RerankingFeatureExtractor.from_pretrained(self.out / name)
            model = load_checkpoint(self.out / name).model
            evaluations.append(
                run.evaluate(name, model, extractor, self.seed, entry.named_decodings(), hr_requests=100)
            )
        write_report(evaluations, self.out)
        print_table(evaluations, console)
        return found, evaluations, evaluator, trained

    def _diagnose(self, data: Path) -> diagnosis.Diagnosis:
        console.rule("diagnosis: what does the log let expect?")
        log = diagnosis.Log.read(data, max_requests=_DIAGNOSED, seed=self.seed)
        found = diagnosis.diagnose(log, seed=self.seed)
        diagnosis.write_page(found, f"Diagnosis of {data.name}", self.out)
        console.print(f"verdict: [bold]{found.verdict.text}[/bold]", highlight=False)
        for reason in found.verdict.reasons:
            console.print(f"- {reason}", highlight=False)
        return found

    def _teach(self, name: str, spec: Entry | EvaluatorSpec, options: list[str]) -> Trained:
        console.rule(f"{name}: {spec.story}")
        return train(str(spec.recipe), self.out / "runs" / name, self.seed, options, anew_to=self.out / name)

    def _options(self, entry: Entry, evaluator: Trained, num_mined: int) -> list[str]:
        """The options of a model's recipe; mines first, where it learns from that."""
        own = [argument.replace("{evaluator}", str(evaluator.folder)) for argument in entry.arguments]
        if entry.mine is None:
            return [*self.options, *own]
        mined = self.out / "mined"
        if (mined / SETTINGS_FILE).is_file():
            shutil.rmtree(mined)  # of an earlier quickstart, whose evaluator was another
        console.rule("mining: the evaluator searches logged requests for better slates")
        mine_once(evaluator, mined, num_requests=num_mined, **entry.mine)
        kept = [option for option in self.options if not option.startswith("--data")]
        return [f"--data.init_args.path={mined}", f"--data.init_args.extractor={mined}", *kept, *own]


def _conclude(told: Sequence[tuple[str, diagnosis.Diagnosis, list[Evaluation], Trained, Trained]]) -> None:
    """The verdicts beside the truth."""
    table = Table(title="the verdict of each log, and the truth", title_justify="left")
    for column in ("world", "verdict", "upstream", "pointwise", "DeGRe"):
        table.add_column(column, justify="left" if column in ("world", "verdict") else "right")
    for name, found, evaluations, *_ in told:
        rows = {row.key: row.metrics["utility"] for evaluation in evaluations for row in evaluation.rows}
        keys = (UPSTREAM, ("pointwise", "greedy"), ("degre", "greedy"))
        table.add_row(name, found.verdict.kind, *(f"{100 * rows[key]:.1f}" for key in keys))
    console.print(table)
    console.print("true expected utility of greedy slates, in % of the best possible one", highlight=False)


def _show_one(evaluator: Trained, generator: Trained) -> None:
    """Reranks one raw test request with the checkpoint as it was saved."""
    console.rule("one request")
    row = evaluator.data.split("test")[0]
    schema = evaluator.data.extractor.schema
    request = {field.name: row[field.name] for field in schema.fields}
    [after] = RerankingPipeline.from_pretrained(str(generator.folder))([request], slate_size=4)
    order = np.argsort(row["upstream_score"])[::-1][: len(after)].tolist()
    before = [{"item_id": row["item_id"][i], "index": i, "score": row["upstream_score"][i]} for i in order]
    table = Table("", title=f"user {row['user_id']}, {len(row['item_id'])} candidates", title_justify="left")
    for side in ("upstream", "DeGRe"):
        for column in (f"{side} item", "category", "score"):
            table.add_column(column, justify="right")
    for position, pair in enumerate(zip(before, after, strict=True), start=1):
        items = ((str(item["item_id"]), str(row["category"][item["index"]]), f"{item['score']:.2f}") for item in pair)
        table.add_row(str(position), *chain.from_iterable(items))
    console.print(table)
    simulator = Simulator.from_metadata(evaluator.data.metadata or {})
    users, ids = np.array([row["user_id"]]), np.array([row["item_id"]])
    slates = np.array([[[item["index"] for item in slate] for slate in (before, after)]])
    upstream, reranked = simulator.expected_utility(users, ids, slates)[0]
    best = simulator.all_utilities(users, ids, slates.shape[-1]).max()
    text = f"true expected utility: upstream {upstream:.2f}, DeGRe {reranked:.2f}, best possible {best:.2f}"
    console.print(text, highlight=False)
