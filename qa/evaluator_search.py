"""What searches that ask an evaluator alone find, by the truth, and how often they ask it; beside generators.

Requests of a simulated world, an evaluator that was trained on its log or is the truth: beams over the values of
prefixes, the best of uniformly drawn slates, local search from the upstream order and from drawn slates, all slates.
Of every generator: what it decodes, and what a model that edits makes of it.

python -m qa.evaluator_search EVALUATOR DATA [--requests 200] [--models MODEL...]
python -m qa.evaluator_search truth DATA --models MODEL...
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor

from rerankzoo.batch import Batch, inputs
from rerankzoo.data.simulator.evaluator import SimulatorEvaluator
from rerankzoo.generation import SlateGenerationMixin, exhaustive_search, local_search
from rerankzoo.generation.rollouts import upstream_slates
from rerankzoo.models.auto import load_checkpoint, load_evaluator
from rerankzoo.slates import uniform_slates
from rerankzoo.training.objectives import TRUTH


class Counted:
    """An evaluator that counts what it is asked for."""

    def __init__(self, evaluator: Any) -> None:
        self.evaluator, self.asked = evaluator, 0

    def score_slates(self, slates: Tensor, /, **batch: Tensor) -> Tensor:
        """Values, as the evaluator's."""
        self.asked += slates.shape[0] * slates.shape[1]
        values: Tensor = self.evaluator.score_slates(slates, **batch)
        return values


def best_of(evaluator: Counted, batch: Batch, slates: Tensor) -> Tensor:
    """The slate (B, M) of each request that the evaluator likes best."""
    return slates[torch.arange(len(slates)), evaluator.score_slates(slates, **batch).argmax(-1)]


def searches(evaluator: Counted, batch: Batch, size: int, generators: dict[str, Any]) -> dict[str, Any]:
    """Slates (B, M) by search; called one by one."""
    model, mask = evaluator.evaluator, batch["candidate_mask"]
    start = upstream_slates(batch, size, model.schema)
    known = {name: generator.generate(**batch).unsqueeze(1) for name, generator in generators.items()}
    known |= {"uniform": uniform_slates(mask, size, 1, torch.Generator().manual_seed(0))}
    editors = {name: generator for name, generator in generators.items() if hasattr(generator, "edit_path")}

    def drawn(number: int) -> Tensor:
        return uniform_slates(mask, size, number, torch.Generator().manual_seed(0))

    def climbed(slates: Tensor, steps: int) -> Tensor:
        found = local_search(evaluator, batch, slates, steps)
        return found.slates[torch.arange(len(mask)), found.utilities.argmax(-1)]

    return {
        "upstream order": lambda: start[:, 0],
        **{
            f"best of {number} drawn": lambda number=number: best_of(evaluator, batch, drawn(number))
            for number in (31, 121)
        },
        **{f"upstream, {steps} steps": lambda steps=steps: climbed(start, steps) for steps in (1, 2, 4, 20)},
        "4 drawn, 20 steps each": lambda: climbed(drawn(4), 20),
        **(
            {"beam of 8": lambda: model.generate(**batch, num_beams=8, slate_size=size)}
            if isinstance(model, SlateGenerationMixin)
            else {}
        ),
        **{name: lambda slates=slates: slates[:, 0] for name, slates in known.items()},
        **{f"{name}, up to 20 steps": lambda slates=slates: climbed(slates, 20) for name, slates in known.items()},
        **{
            f"{name}, edited by {editor}": lambda slates=slates, editor=editor: (
                editors[editor].refine(slates, 8, **batch).slates[:, 0]
            )
            for editor in editors
            for name, slates in known.items()
            if name != editor
        },
        "all slates": lambda: exhaustive_search(evaluator, batch, size).slates[:, 0],
    }


def main() -> None:
    """Searches and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluator")
    parser.add_argument("data", type=Path)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--models", nargs="*", default=[])
    arguments = parser.parse_args()
    loaded = {name: load_checkpoint(name) for name in arguments.models}
    model, extractor = (
        next(iter(loaded.values())) if arguments.evaluator == TRUTH else load_evaluator(arguments.evaluator)
    )
    batch = inputs(extractor(pq.read_table(arguments.data / "test.parquet").slice(0, arguments.requests)))
    metadata = json.loads((arguments.data / "dataset.json").read_text(encoding="utf-8"))
    truth, size = SimulatorEvaluator.from_metadata(metadata, extractor.schema), model.config.slate_size
    model = truth if arguments.evaluator == TRUTH else model
    generators = {name: found.model for name, found in loaded.items()}
    optimum = exhaustive_search(truth, batch, size).scores[:, 0].mean()
    beams = [min(8, math.perm(batch["candidate_mask"].shape[1], place)) for place in range(size)]
    prefixes = sum(width * (batch["candidate_mask"].shape[1] - place) for place, width in enumerate(beams))
    print("| search | true utility | by the evaluator | asked per request |\n|---|---:|---:|---:|")
    for name, search in searches(evaluator := Counted(model), batch, size, generators).items():
        evaluator.asked = 0
        with torch.inference_mode():
            slates = search()
        asked = f"{prefixes} prefixes" if name.startswith("beam") else f"{evaluator.asked / len(slates):.0f}"
        value, own = (one.score_slates(slates.unsqueeze(1), **batch).mean() for one in (truth, model))
        print(f"| {name} | {100 * value / optimum:.1f} % | {own:.3f} | {asked} |", flush=True)


if __name__ == "__main__":
    main()
