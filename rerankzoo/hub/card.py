"""Model cards from data: what a checkpoint's folder tells, and nothing else.

The template is `model_card.md` beside this file. What the folder's files do not tell (licence, datasets on the Hub,
names) comes from the caller, or from the card that is there already.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import TemplateError
from transformers import AutoConfig, AutoModel

from rerankzoo.atomic_writing import write_text
from rerankzoo.errors import RerankingDataError
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.hub.push import METRICS_FILE, RECIPE_FILE, read_object
from rerankzoo.models.auto import EVALUATOR_FOLDER
from rerankzoo.models.base import RerankingPreTrainedModel, SlateEvaluator
from rerankzoo.text_files import read_yaml

CARD_FILE = "README.md"
RESULTS_FILE = "results.json"
_BASELINES = ("upstream", "random", "logged", "LambdaMART", "oracle", "correctly specified")
#: Of results: where files lay on the machine that evaluated, and what it took there.
_OF_MACHINE = ("model", "evaluator", "judge_model", "training_cpu_seconds", "cpu_seconds")


@dataclass(frozen=True)
class CardDetails:
    """What the files of a checkpoint do not tell. `None`: left out, or taken from the card that is there.

    Attributes:
        repo_id: Where the checkpoint is or will be.
        name: What the card calls the model.
        license: Identifier of the Hub, such as `"apache-2.0"`.
        datasets: Datasets on the Hub that the model was trained on.
        results_name: The model's name in `results.json`; default: the model type. Of an evaluator, whose own search may
            have another name there, the default means the generator whose slates it values: of its type, or the only
            one.
    """

    repo_id: str | None = None
    name: str | None = None
    license: str | None = None
    datasets: Sequence[str] | None = None
    results_name: str | None = None


def write_card(folder: str | Path, details: CardDetails | None = None) -> Path:
    """Writes `README.md` of a checkpoint folder, from its files and what they do not tell; returns its path.

    Raises:
        FileNotFoundError: If the folder holds no `config.json`.
        RerankingDataError: If `results.json` has no results of this model.
    """
    path = Path(folder) / CARD_FILE
    if not path.with_name("config.json").is_file():
        raise FileNotFoundError(f"{path.with_name('config.json')} not found: {folder} is not a checkpoint")
    try:
        text = f"{_render(path.parent, details or CardDetails())}\n"
    except (LookupError, TypeError, AttributeError, TemplateError) as error:
        message = f"a file of it is not as rerankzoo writes it: {type(error).__name__}: {error}"
        raise RerankingDataError(message, field=str(folder)) from error
    write_text(path, text)
    return path


def _render(folder: Path, details: CardDetails) -> ModelCard:
    config, results = read_object(folder / "config.json"), read_object(folder / RESULTS_FILE)
    with torch.device("meta"):  # without its weights, which may be large, or elsewhere
        model: RerankingPreTrainedModel = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    values, architecture, model_type = isinstance(model, SlateEvaluator), type(model).__name__, config["model_type"]
    is_new = not (folder / CARD_FILE).is_file()
    old: Any = ModelCardData() if is_new else ModelCard.load(folder / CARD_FILE).data
    evaluator = read_object(folder / EVALUATOR_FOLDER / "config.json").get("architectures")
    beside = folder.name == EVALUATOR_FOLDER and (folder.parent / "config.json").is_file()
    given = details.name or (None if old.model_name == architecture else old.model_name)
    name = given or (details.repo_id.split("/")[-1] if details.repo_id else architecture)
    # An evaluator is of the same model type as the generator whose slates it values.
    valued = _valued(results, model_type) if values else model_type
    results_name, own = details.results_name or valued, not values or details.results_name is not None
    data = ModelCardData(
        library_name="rerankzoo",
        tags=["reranking", "recommender-systems", model_type, "evaluator" if values else "generator"],
        license=details.license or old.license,
        datasets=list(details.datasets or old.datasets or []) or None,
        model_name=name,
        eval_results=_figures(results, results_name, own) if results else None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(Path(__file__).with_name("model_card.md")),
        name=name,
        repo_id=details.repo_id or "ORG/NAME",
        subfolder=EVALUATOR_FOLDER if beside else None,
        model=architecture,
        paper=model.paper,
        config=config,
        parameters=model.num_parameters(),
        values=values,
        searches=model.can_generate(),
        evaluator=evaluator[0] if evaluator else None,
        decoding=model.generation_config_class.from_pretrained(folder) if model.can_generate() else None,
        schema=FeatureSchema.from_dict(config["feature_schema"]),
        training=read_object(folder / METRICS_FILE),
        recipe=read_yaml(folder / RECIPE_FILE) if (folder / RECIPE_FILE).is_file() else None,
        results=_results(results, results_name, own) if results else None,
        latency=read_object(folder / "bench.json"),
    )


def _valued(results: Mapping[str, Any], model_type: str) -> str:
    """The generator in results whose slates an evaluator values: that of its type, or the only one."""
    models = {row["model"] for row in results.get("rows", [])} - set(_BASELINES)
    return next(iter(models)) if len(models) == 1 else model_type


def _results(results: Mapping[str, Any], name: str, own: bool) -> dict[str, Any]:
    """The table of the model and the baselines, or of the generator whose slates an evaluator values."""
    # Evaluation needs packages that serving does without; a folder with results was made where they are.
    from rerankzoo.evaluation.report import comparison_text, doubt_lines, evaluator_line, markdown_table, opinion_line
    from rerankzoo.evaluation.results import Comparison, Row, summarize

    rows = _rows_of(results, name)
    summaries = summarize([Row(**row) for row in rows])
    protocol = {key: value for key, value in results["protocol"].items() if key not in _OF_MACHINE}
    return {
        "generator": None if own else name,
        "seeds": sorted({row["seed"] for row in rows if row["model"] == name}),
        "has_truth": any(row["model"] == "oracle" for row in rows),
        "table": markdown_table(summaries).rstrip(),
        "evaluator": evaluator_line(summaries),
        "opinion": opinion_line(summaries),
        "doubts": doubt_lines(protocol),
        "differences": [
            {"metric": difference["metric"], "text": comparison_text(Comparison.from_dict(difference))}
            for difference in results.get("differences", [])
            if difference["a"]["model"] == name and difference["b"]["model"] in _BASELINES
        ],
        "protocol": protocol,
        "protocol_text": json.dumps(protocol, indent=2),
    }


def _figures(results: Mapping[str, Any], name: str, own: bool) -> list[EvalResult]:
    """Means over runs: of slates by decoding, without opinions of them; of an evaluator alone, what it is worth."""
    from rerankzoo.evaluation.report import OF_EVALUATOR
    from rerankzoo.evaluation.results import OPINIONS

    groups: dict[tuple[str, str], list[float]] = {}
    for row in _rows_of(results, name):
        for metric, value in row["metrics"].items() if row["model"] == name else ():
            of_slates = metric not in OF_EVALUATOR
            if of_slates == own and metric not in OPINIONS and not metric.endswith(("_low", "_high")):
                title = f"{metric} ({row['decoding']})" if own else metric
                groups.setdefault((metric, title), []).append(value)
    data = results["protocol"]["data"]
    parts = data if isinstance(data, list) else [data]
    source = ", ".join(sorted({part.get("source", "unknown") for part in parts}))
    about: dict[str, Any] = {"task_type": "reranking", "task_name": "List re-ranking"}
    about |= {"dataset_type": source, "dataset_name": source}
    return [
        EvalResult(**about, metric_type=metric, metric_name=title, metric_value=round(fmean(values), 4))
        for (metric, title), values in groups.items()
    ]


def _rows_of(results: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    models = {row["model"] for row in results["rows"]}
    if name not in models:
        known = sorted(models - set(_BASELINES))
        raise RerankingDataError(f"no results of {name!r}; there are results of {known}", field=RESULTS_FILE)
    return [
        {**row, "metrics": {metric: value for metric, value in row["metrics"].items() if metric not in _OF_MACHINE}}
        for row in results["rows"]
        if row["model"] in (*_BASELINES, name)
    ]
