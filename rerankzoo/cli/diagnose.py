"""`rerankzoo diagnose`: what a log can support, before and after training, on one page."""

from __future__ import annotations

from pathlib import Path

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from rich.console import Console
from rich.markdown import Markdown
from rich.padding import Padding
from transformers.utils.logging import disable_progress_bar

from rerankzoo import diagnosis
from rerankzoo.data.folder import local_folder
from rerankzoo.errors import RecipeError
from rerankzoo.models.auto import load_checkpoint, load_evaluator


def diagnose(
    data: str,
    *,
    evaluator: str | None = None,
    generator: str | None = None,
    worth: float = 0.03,
    max_requests: PositiveInt = 40_000,
    seed: NonNegativeInt = 0,
    out: Path = Path("outputs/diagnosis"),
) -> None:
    """Says what a log can support: whether listwise reranking would pay, and whether the log can tell.

    Small evaluators of several forms learn from the halves of the log and are tested by the other one; a minute of one
    core for 40,000 requests.

    Args:
        data: Data folder, or a dataset on the Hub.
        evaluator: An evaluator that was trained on it: what its search finds is judged, too.
        generator: A generator that was trained on it.
        worth: A gain that is worth the trouble, as a share of what slates earn.
        max_requests: Of a larger log, so many train requests are drawn.
        seed: Of drawing and fitting.
        out: Folder for the page.
    """
    disable_progress_bar()
    torch.set_num_threads(1)  # matrices this small gain nothing from a second one
    if not 0 < worth < 1:
        raise RecipeError(f"worth: expected a share between 0 and 1, got {worth}")
    proposals = {}
    evaluating = load_evaluator(evaluator) if evaluator else None
    if evaluating is not None and evaluating.model.can_generate():
        proposals[f"the evaluator {evaluator}"] = diagnosis.Proposal(evaluating, evaluating)
    if generator is not None:
        proposals[f"the generator {generator}"] = diagnosis.Proposal(load_checkpoint(generator), evaluating)
    log = diagnosis.Log.read(local_folder(data), max_requests=max_requests, seed=seed)
    console = Console(stderr=True)
    with console.status("reading the log") as status:
        found = diagnosis.diagnose(
            log, proposals, worth=worth, seed=seed, watch=lambda task: status.update(f"fitting {task}")
        )
    title = f"Diagnosis of {data}"
    paths = diagnosis.write_page(found, title, out)
    Console().print(Padding(Markdown(paths["md"].read_text(encoding="utf-8")), (0, 1)))
    print("written:", ", ".join(map(str, paths.values())))
