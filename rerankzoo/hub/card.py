"""Model cards from data: what a checkpoint's folder tells, and nothing else.

The template is `model_card.md` beside this file. What the folder's files do not tell (licence, datasets on the Hub,
names) comes from the caller, or from the card that is there already.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoConfig, AutoModel

from rerankzoo.atomic_writing import write_atomically
from rerankzoo.errors import RerankingDataError, shown
from rerankzoo.features.schema import FeatureSchema, FieldSpec
from rerankzoo.hub.push import METRICS_FILE, RECIPE_FILE
from rerankzoo.models.auto import EVALUATOR_FOLDER
from rerankzoo.models.base import RerankingPreTrainedModel, SlateEvaluator
from rerankzoo.text_files import read_json, read_yaml

CARD_FILE = "README.md"
RESULTS_FILE = "results.json"
BENCH_FILE = "bench.json"
_TEMPLATE = Path(__file__).with_name("model_card.md")
_TIMES = ("p50_ms", "p99_ms", "cpu_ms")
_BASELINES = ("upstream", "random", "logged", "oracle")
#: Of results: where files lay on the machine that evaluated, and what it took there.
_OF_MACHINE = ("model", "evaluator", "judge_model", "training_cpu_seconds", "cpu_seconds")

#: Config fields that everybody has and nobody reads, or that the card shows elsewhere.
_NOT_SHOWN = ("architectures", "auto_map", "dtype", "feature_schema", "model_type", "transformers_version")
#: What of a recipe the card shows; the file tells the rest.
_SHOWN_RECIPE = (
    "seed_everything",
    "model.init_args.learning_rate",
    "model.init_args.weight_decay",
    "model.init_args.warmup_steps",
    "model.init_args.lr_scheduler_type",
    "data.class_path",
    "data.init_args.batch_size",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.gradient_clip_val",
)


@dataclass(frozen=True)
class CardDetails:
    """What the files of a checkpoint do not tell. `None`: left out, or taken from the card that is there.

    Attributes:
        repo_id: Where the checkpoint is or will be.
        name: What the card calls the model.
        license: Identifier of the Hub, such as `"apache-2.0"`.
        datasets: Datasets on the Hub that the model was trained on.
        results_name: The model's name in `results.json`; default: the model type. Of an evaluator, whose own search may
            have another name there, the default means the generator whose slates it values.
    """

    repo_id: str | None = None
    name: str | None = None
    license: str | None = None
    datasets: Sequence[str] | None = None
    results_name: str | None = None


def write_card(folder: str | Path, details: CardDetails | None = None) -> Path:
    """Writes `README.md` of a checkpoint folder.

    Args:
        folder: A checkpoint folder.
        details: What its files do not tell.

    Returns:
        The card's path.

    Raises:
        FileNotFoundError: If the folder holds no `config.json`.
        RerankingDataError: If `results.json` has no results of this model.
    """
    path = Path(folder) / CARD_FILE
    text = str(render_card(card_values(folder, details or CardDetails()))) + "\n"
    write_atomically(path, lambda fresh: fresh.write_text(text, encoding="utf-8"))
    return path


def render_card(values: Mapping[str, Any]) -> ModelCard:
    """Renders the template.

    Args:
        values: See `card_values`.

    Returns:
        The card, whose metadata is that under "metadata" and whose `model-index` lists the figures under "figures".
    """
    others = {key: value for key, value in values.items() if key not in ("metadata", "figures")}
    figures = [EvalResult(**figure) for figure in values["figures"]]
    data = ModelCardData(**values["metadata"], model_name=values["name"], eval_results=figures or None)
    return ModelCard.from_template(data, template_path=str(_TEMPLATE), **others)


def card_values(folder: str | Path, details: CardDetails) -> dict[str, Any]:
    """Collects what a card says; all of it JSON-able.

    Args:
        folder: A checkpoint folder.
        details: What its files do not tell.

    Returns:
        The values of the template.

    Raises:
        FileNotFoundError: If the folder holds no `config.json`.
        RerankingDataError: If `results.json` has no results of this model.
    """
    folder = Path(folder)
    config = _read(folder / "config.json")
    if not config:
        raise FileNotFoundError(f"{folder / 'config.json'} not found: {folder} is not a checkpoint")
    metrics, results, bench = (_read(folder / name) for name in (METRICS_FILE, RESULTS_FILE, BENCH_FILE))
    name = details.results_name or str(config.get("model_type"))
    try:
        model = _empty_model(folder)
        # An evaluator is of the same model type as the generator whose slates it values.
        own = not isinstance(model, SlateEvaluator) or details.results_name is not None
        return {
            **_model(folder, config, model, details),
            "schema": _schema(FeatureSchema.from_dict(config["feature_schema"])),
            "training": {**metrics, "chosen": _chosen(metrics)},
            "recipe": _recipe(folder),
            "figures": _figures(results, name, own) if results else [],
            "results": _results(results, name, own) if results else None,
            "latency": _latency(bench) if bench else None,
        }
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        message = f"a file of it is not as rerankzoo writes it: {type(error).__name__}: {error}"
        raise RerankingDataError(message, field=str(folder)) from error


# --- parts of a card ------------------------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file."""
    values = read_json(path) if path.is_file() else {}
    if not isinstance(values, dict):
        raise RerankingDataError(f"expected a JSON object, got {shown(values)}", field=str(path))
    return values


def _empty_model(folder: Path) -> RerankingPreTrainedModel:
    """The model without its weights, which may be large, or elsewhere."""
    with torch.device("meta"):
        model: RerankingPreTrainedModel = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    return model


def _model(
    folder: Path, config: Mapping[str, Any], model: RerankingPreTrainedModel, details: CardDetails
) -> dict[str, Any]:
    """What the card says of the model itself."""
    architecture = type(model).__name__
    values, searches = isinstance(model, SlateEvaluator), model.can_generate()
    role, does = ("evaluator", "values") if values else ("generator", "generates")
    family, citation = model.paper or (config["model_type"], "rerankzoo holds this model without a paper of its own.")
    evaluator = _read(folder / EVALUATOR_FOLDER / "config.json").get("architectures")
    beside = folder.name == EVALUATOR_FOLDER and (folder.parent / "config.json").is_file()
    repo_id, old = details.repo_id or "ORG/NAME", _old_metadata(folder)
    given = None if _old_name(old) == architecture else _old_name(old)
    return {
        "metadata": _metadata(details, old, [config["model_type"], role]),
        "name": details.name or given or (repo_id.split("/")[-1] if details.repo_id else architecture),
        "repo_id": repo_id,
        "subfolder": EVALUATOR_FOLDER if beside else None,
        "summary": f"`{architecture}` of rerankzoo ({family}): it {does} slates of {config['slate_size']} positions.",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "values": values,
        "searches": searches,
        "evaluator": f"`{evaluator[0]}`" if evaluator else None,
        "architecture": {f"`{key}`": f"`{value}`" for key, value in config.items() if key not in _NOT_SHOWN},
        "decoding": _decoding(folder, model) if searches else None,
        "citation": citation,
    }


def _metadata(details: CardDetails, old: Mapping[str, Any], tags: Sequence[str]) -> dict[str, Any]:
    """The card's metadata but for the figures; what is not known is left out."""
    known = {
        "library_name": "rerankzoo",
        "tags": ["reranking", "recommender-systems", *tags],
        "license": details.license or old.get("license"),
        "datasets": list(details.datasets or old.get("datasets") or []) or None,
    }
    return {key: value for key, value in known.items() if value is not None}


def _old_metadata(folder: Path) -> dict[str, Any]:
    path = folder / CARD_FILE
    return ModelCard.load(path).data.to_dict() if path.is_file() else {}


def _old_name(old: Mapping[str, Any]) -> str | None:
    index = old.get("model-index") or [{"name": old.get("model_name")}]
    name: str | None = index[0].get("name")
    return name


def _decoding(folder: Path, model: Any) -> str:
    config = model.generation_config_class.from_pretrained(folder)
    names = ("num_beams", "num_return_sequences", "penalty_alpha", "top_k", *config.extra_parameters)
    values = {name: getattr(config, name) for name in names}
    said = ", ".join(f"`{name}={value}`" for name, value in values.items() if value is not None)
    return f"{config.strategy} ({said})" if said else config.strategy


def _schema(schema: FeatureSchema) -> dict[str, Any]:
    return {
        "name": schema.name,
        "fingerprint": schema.fingerprint,
        "upstream_score": schema.upstream_score,
        "discounted": schema.position_discount == "log2",
        "fields": [{**asdict(field), "notes": _notes(field)} for field in schema.fields],
        "targets": [
            {"name": target.name, "weight": f"{target.weight:g}", "value": target.value} for target in schema.targets
        ],
    }


def _notes(field: FieldSpec) -> str:
    known = {
        "{} ids": field.num_embeddings if field.shares is None else None,
        "ids of `{}`": field.shares,
        "hashed": field.hash_size,
        "{} numbers": field.size if field.kind == "dense" else None,
        "{}": ", ".join(field.transforms),
    }
    return ", ".join(text.format(value) for text, value in known.items() if value)


def _recipe(folder: Path) -> dict[str, Any]:
    path = folder / RECIPE_FILE
    recipe = read_yaml(path) if path.is_file() else {}
    values = {}
    for name in _SHOWN_RECIPE:
        value: Any = recipe
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None and value != -1:  # of Lightning: no limit
            values[name] = value
    return values


def _chosen(metrics: Mapping[str, Any]) -> str | None:
    if metrics.get("monitor") is None or metrics.get("value") is None:
        return None
    best = {"min": "lowest", "max": "highest"}.get(metrics.get("mode", ""), "best")
    value = f"{metrics['value']:.4f}"
    return f"The checkpoint has the {best} `{metrics['monitor']}`, {value}, in step {metrics['step']:,}."


def _results(results: Mapping[str, Any], name: str, own: bool) -> dict[str, Any]:
    """The table of the model and the baselines, its paired differences and the protocol.

    Where the rows are not an evaluator's own, they are of the generator whose slates it values.
    """
    # Evaluation needs packages that serving does without; a folder with results was made where they are.
    from rerankzoo.evaluation.report import comparison_text, evaluator_line, markdown_table, opinion_line
    from rerankzoo.evaluation.results import Comparison, Row, summarize

    rows = _rows_of(results, name)
    summaries = summarize([Row(**row) for row in rows])
    seeds = sorted({row["seed"] for row in rows if row["model"] == name})
    runs = f"mean ± sample standard deviation over {len(seeds)} runs" if len(seeds) > 1 else "one run"
    protocol = {key: value for key, value in results["protocol"].items() if key not in _OF_MACHINE}
    others = "other rows are yardsticks" if own else f"`{name}` is a generator whose slates it values and chooses"
    labels = protocol.get("labels")
    labelled = f" ({labels['num_requests']} with labels of both kinds)" if isinstance(labels, dict) else ""
    about = (
        f"Test requests: {protocol['num_requests']}{labelled}. Slates of {protocol['slate_size']}. Figures in %, "
        f"except value and ild; {runs}, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}. "
        f"`upstream` is the order before re-ranking; {others}."
    )
    if any(row["model"] == "oracle" for row in rows):
        about += " `oracle`, utility, regret and true HR know the simulator's truth."
    compared = [
        {"metric": difference["metric"], "text": comparison_text(Comparison.from_dict(difference))}
        for difference in results.get("differences", [])
        if difference["a"]["model"] == name and difference["b"]["model"] in _BASELINES
    ]
    return {
        "about": about,
        "table": markdown_table(summaries).rstrip(),
        "evaluator": evaluator_line(summaries),
        "opinion": opinion_line(summaries),
        "differences": compared,
        "protocol": json.dumps(protocol, indent=2),
    }


def _figures(results: Mapping[str, Any], name: str, own: bool) -> list[dict[str, Any]]:
    """Entries of `model-index`, means over runs: every metric of the model's own slates under every decoding, but for
    an evaluator's opinion of them; of an evaluator of others' slates, what is known of itself."""
    from rerankzoo.evaluation.report import OF_EVALUATOR
    from rerankzoo.evaluation.results import OPINIONS

    groups: dict[tuple[str, str], list[float]] = {}
    for row in _rows_of(results, name):
        if row["model"] == name:
            for metric, value in row["metrics"].items():
                if (
                    (metric in OF_EVALUATOR) != own
                    and metric not in OPINIONS
                    and not metric.endswith(("_low", "_high"))
                ):
                    groups.setdefault((metric, row["decoding"] if own else ""), []).append(value)
    data = results["protocol"]["data"]
    sources = {part.get("source", "unknown") for part in (data if isinstance(data, list) else [data])}
    source = ", ".join(sorted(sources))
    return [
        {
            "task_type": "reranking",
            "task_name": "List re-ranking",
            "dataset_type": source,
            "dataset_name": source,
            "metric_type": metric,
            "metric_name": f"{metric} ({decoding})" if decoding else metric,
            "metric_value": round(sum(values) / len(values), 4),
        }
        for (metric, decoding), values in groups.items()
    ]


def _rows_of(results: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    own = [row for row in results["rows"] if row["model"] == name]
    if not own:
        known = sorted({row["model"] for row in results["rows"]} - set(_BASELINES))
        raise RerankingDataError(f"no results of {name!r}; there are results of {known}", field=RESULTS_FILE)
    return [
        {**row, "metrics": {metric: value for metric, value in row["metrics"].items() if metric not in _OF_MACHINE}}
        for row in results["rows"]
        if row["model"] in (*_BASELINES, name)
    ]


def _latency(bench: Mapping[str, Any]) -> dict[str, Any]:
    """What a call cost where it was measured."""
    names = {"processor": "", "cores": "cores: ", "threads": "threads: ", "load": "load: ", "torch": "PyTorch "}
    machine = {**dict.fromkeys(names), **bench.get("machine", {})}
    return {
        "machine": ", ".join(f"{text}{machine[name]}" for name, text in names.items() if machine[name] is not None),
        "calls": [{**call, **{name: f"{call[name]:.2f}" for name in _TIMES}} for call in bench["calls"]],
    }
