"""`rerankzoo export`: writes a model with its whole decoding as one graph, checked against the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import PositiveInt
from transformers.utils.logging import disable_progress_bar

from rerankzoo.backends import GRAPH_NAMES, Format, GraphSizes
from rerankzoo.errors import RecipeError
from rerankzoo.models.auto import AutoModelForReranking, load_checkpoint
from rerankzoo.serving import FeatureOptions, export_model


def export(
    model: str,
    *,
    format: Format,  # noqa: A002  (the command's own word)
    out: Path,
    slate_size: PositiveInt | None = None,
    num_beams: PositiveInt | None = None,
    penalty_alpha: float | None = None,
    top_k: PositiveInt | None = None,
    batch_size: PositiveInt | None = None,
    num_candidates: PositiveInt | None = None,
    history_length: PositiveInt | None = None,
    with_features: bool = False,
    constraints: bool = False,
    limit_field: str | None = None,
    device: Literal["auto", "cpu"] = "auto",
) -> None:
    """Writes features, encoder and the whole decode loop of a model as one graph.

    RerankingPipeline serves raw requests from the folder. The graph is checked against the model before it is kept.

    Args:
        model: Folder or Hub id of a generator with its extractor.
        format: The graph: onnx takes any batch and number of candidates; aoti is compiled for fixed ones and needs a
            C++ compiler.
        out: Folder to make.
        slate_size: Positions (default, as of the other decoding parameters: the model's own).
        num_beams: Beam search; 1: greedy.
        penalty_alpha: Contrastive decoding.
        top_k: Of contrastive decoding.
        batch_size: Requests per call, for aoti; smaller requests are padded (default: 1).
        num_candidates: Most candidates of a request, for aoti.
        history_length: Longest history, for aoti, where there are any.
        with_features: For onnx: writes a second graph beside the first, which takes raw columns (strings, integers,
            numbers), for services without Python.
        constraints: With features: that graph also takes which candidates to exclude, and which to pin.
        limit_field: With constraints: and how many candidates of one value of this field a slate shows at most.
        device: What the graph is made for; so far it is always the CPU.
    """
    asked = {"batch_size": batch_size, "num_candidates": num_candidates, "history_length": history_length}
    given: dict[str, Any] = {name: size for name, size in asked.items() if size is not None}
    if format == "onnx" and given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise RecipeError(f"an ONNX graph takes any sizes; leave out {options}")
    if format == "aoti" and num_candidates is None:
        raise RecipeError("format aoti needs --num-candidates")
    if format != "onnx" and with_features:
        raise RecipeError("only an ONNX graph can take raw columns; leave out --with-features")
    if (constraints or limit_field) and not with_features:
        raise RecipeError("--constraints and --limit-field are of the graph that --with-features writes")
    features = FeatureOptions(constraints or limit_field is not None, limit_field) if with_features else None
    sizes = GraphSizes(**{"batch_size": 1, **given}) if given else None
    disable_progress_bar()  # of loading weights, over before it is seen
    generator, extractor = load_checkpoint(model, AutoModelForReranking)
    decoding = {"slate_size": slate_size, "num_beams": num_beams, "penalty_alpha": penalty_alpha, "top_k": top_k}
    config = generator.generation_config.merged(**decoding)
    graph = export_model(generator, extractor, out, format, config, sizes, features) / GRAPH_NAMES[format]
    print(f"{graph}: {graph.stat().st_size / 1e6:.1f} MB, decodes what {model} decodes")
