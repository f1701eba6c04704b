"""`rerankzoo card`: the model card of a checkpoint folder, from the data in it."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from rerankzoo.atomic_writing import write_atomically
from rerankzoo.cli.options import takes
from rerankzoo.hub.card import RESULTS_FILE, CardDetails, write_card


@takes(CardDetails)
def card(folder: Path, *, results: Path | None = None, datasets: list[str] | None = None, **details: str) -> None:
    """Writes README.md of a checkpoint folder from what is in it.

    That is config, schema, metrics.json, results.json, bench.json, config.yaml, evaluator/. What is not known is left
    out; licence, datasets and name are kept from the card that is there.

    Args:
        folder: A checkpoint folder, such as a run's best/.
        results: The results.json of `rerankzoo evaluate`, copied here.
        datasets: Datasets on the Hub that the model was trained on, as ORG/NAME.
        **details: Of `CardDetails`.
    """
    if results is not None:
        if not results.is_file():
            raise FileNotFoundError(f"{results} is missing; `rerankzoo evaluate` writes it")
        if folder.is_dir():  # or else there is no card either
            write_atomically(folder / RESULTS_FILE, partial(shutil.copyfile, results))
    print(write_card(folder, CardDetails(datasets=datasets, **details)))
