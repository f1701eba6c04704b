"""`rerankzoo fit --try KEY=A,B`: trains a model with each value, and keeps the first that held-out feedback prefers."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from torch import Tensor

from rerankzoo.atomic_writing import write_atomically, write_json
from rerankzoo.cli.lightning import RerankingCLI, command_line, run
from rerankzoo.data.folder import link_or_copy
from rerankzoo.data.loader import RequestLoader
from rerankzoo.errors import RecipeError, shown
from rerankzoo.evaluation import MIN_OBSERVED, count_positives
from rerankzoo.losses import slate_mean
from rerankzoo.metrics import paired_bootstrap, within_one_error
from rerankzoo.models.auto import load_checkpoint

_OPTION = "--try"
#: Below the run's root: what was tried, and what became of it.
TRIED_FOLDER, TRIED_FILE = "tried", "tried.json"


def fit(arguments: Sequence[str]) -> None:
    """`rerankzoo fit`, of one model or, with `--try KEY=A,B`, of one for each value of a key of the recipe.

    All are trained in full, below `tried` in the run's root. The first one that is within one standard error of the
    best, by the mean log-probability of the feedback of the validation requests (`log_likelihoods` of an evaluator's
    output), becomes the run's result. `tried.json` tells all, with the paired difference from the best one, whose own
    figure is a little too good: it is the largest of several.

    Raises:
        RecipeError: If the option is wrong, a model is no evaluator that predicts feedback, or a run is to be resumed.
    """
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith(f"{_OPTION}=") else [word])]
    if _OPTION not in words:
        run(arguments)
        return
    at = words.index(_OPTION)
    key, values = parse_choice(words[at + 1 : at + 2])
    rest = [*words[1:at], *words[at + 2 :]]
    planned = command_line([*rest, f"--{key}={values[0]}"], run=False).config
    root = Path(planned.trainer.default_root_dir)
    runs = {value: _make_run(rest, key, value, root) for value in values}  # all of them: a wrong value ends it here
    trials = {value: _train(made) for value, made in runs.items()}
    report = _compare(key, trials)
    best = _folder(runs[report["chosen"]])
    target = Path(planned.export.dirpath or root / "best")
    write_atomically(target, partial(shutil.copytree, best, copy_function=link_or_copy, dirs_exist_ok=True))
    write_json(root / TRIED_FILE, report)
    _print(report)
    print(f"kept: {report['chosen']}, the first within one standard error of the best")
    print(f"in {target}, all in {root / TRIED_FOLDER}")


def parse_choice(words: Sequence[str]) -> tuple[str, list[str]]:
    """The key and its values, as the command line takes them."""
    key, _, text = (words[0] if words else "").partition("=")
    try:
        listed = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError:
        listed = []
    values = [value if isinstance(value, str) else json.dumps(value) for value in listed]
    if not key or len(set(values)) < 2 or len(set(values)) < len(values):
        wanted = "KEY=A,B with several values, such as model.init_args.config.behaviour=independent,cascade"
        raise RecipeError(f"{_OPTION}: expected {wanted}, got {shown(' '.join(words))}")
    return key, values


def _make_run(arguments: Sequence[str], key: str, value: str, root: Path) -> RerankingCLI:
    folder = root / TRIED_FOLDER / re.sub(r"[^\w.-]+", "-", value)
    own = [f"--trainer.default_root_dir={folder}", "--export.dirpath=null", "--checkpoint.dirpath=null"]
    return command_line([*arguments, f"--{key}={value}", *own], run=False)


def _folder(made: RerankingCLI) -> Path:
    return Path(made.trainer.default_root_dir) / "best"


def _train(made: RerankingCLI) -> dict[str, Any]:
    """Trains one model; what it says of the validation requests (B), and its cost."""
    seed = made.config.seed_everything
    if not isinstance(seed, bool):
        L.seed_everything(seed, verbose=False)
    start = time.process_time()
    made.trainer.fit(made.model, datamodule=made.datamodule)
    cost, data = time.process_time() - start, made.datamodule
    positives = count_positives(data.split("validation"), data.extractor.schema)
    logged = log_likelihoods(_folder(made), data.val_dataloader())
    return {"logged": logged, "cpu_seconds": cost, "positives": positives}


@torch.no_grad()
def log_likelihoods(checkpoint: Path, loader: RequestLoader) -> Tensor:
    """Log-probability (B) of the feedback of each request of a loader, the mean over its slates, in nats.

    Raises:
        RecipeError: If the model of the checkpoint does not tell it.
    """
    model = load_checkpoint(checkpoint).model
    parts = []
    for batch in loader:
        logged = getattr(model(**batch), "log_likelihoods", None)
        if logged is None:
            raise RecipeError(f"{_OPTION}: {type(model).__name__} does not tell log-likelihoods to choose by")
        parts.append(slate_mean(logged, batch["slates"]))
    return torch.cat(parts)


def _compare(key: str, trials: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What `tried.json` holds."""
    means = {value: trial["logged"].double().mean().item() for value, trial in trials.items()}
    best = max(means, key=lambda value: means[value])
    chosen = within_one_error({value: trial["logged"] for value, trial in trials.items()})
    report: dict[str, Any] = {"key": key, "chosen": chosen, "requests": len(trials[best]["logged"]), "values": {}}
    report["positives"] = trials[best]["positives"]
    for value, trial in trials.items():
        entry = {"log_likelihood": means[value], "cpu_seconds": trial["cpu_seconds"]}
        if value != best and trial["positives"] >= MIN_OBSERVED:
            difference = paired_bootstrap(trial["logged"], trials[best]["logged"])
            entry |= {"difference": difference.mean, "low": difference.low, "high": difference.high}
        report["values"][value] = entry
    return report


def _print(report: dict[str, Any]) -> None:
    """The table, the best value first."""
    print(f"\n{report['key']}, by the log-likelihood of the feedback of {report['requests']} validation requests:")
    if report["positives"] < MIN_OBSERVED:
        print(f"too little feedback to tell: {report['positives']} positives, at least {MIN_OBSERVED} are needed")
    width = max(map(len, report["values"]))
    for value, entry in sorted(report["values"].items(), key=lambda item: -item[1]["log_likelihood"]):
        line = f"  {value:<{width}}  {entry['log_likelihood']:.4f}"
        if "low" in entry:
            line += f"  {entry['difference']:+.4f} (95 % interval {entry['low']:+.4f} to {entry['high']:+.4f})"
            line += ", cannot be told from the best" if entry["high"] >= 0 else ""
        print(line)
