"""`rerankzoo export`: writes a model with its whole decoding as one graph, checked against the model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

import rerankzoo  # noqa: F401  (tells transformers' auto classes about our models)
from rerankzoo.backends import GRAPH_NAMES, GraphSizes
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.hub_errors import one_line_errors
from rerankzoo.models.auto import AutoModelForReranking
from rerankzoo.models.base import RerankingPreTrainedModel
from rerankzoo.serving import export_model

_SIZES = ("batch_size", "num_candidates", "history_length")


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="rerankzoo export",
        description="Writes features, encoder and the whole decode loop of a model as one graph, into a folder from "
        "which RerankingPipeline serves raw requests. The graph is checked against the model before it is kept.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of a generator with its extractor")
    parser.add_argument(
        "--format",
        choices=sorted(GRAPH_NAMES),
        required=True,
        help="onnx: any batch and number of candidates; aoti: compiled for fixed ones, needs a C++ compiler",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    decoding = parser.add_argument_group("decoding (default: the model's own)")
    decoding.add_argument("--slate-size", type=_positive, metavar="M", help="positions")
    decoding.add_argument("--num-beams", type=_positive, metavar="W", help="beam search; 1: greedy")
    decoding.add_argument("--penalty-alpha", type=float, metavar="A", help="contrastive decoding")
    decoding.add_argument("--top-k", type=_positive, metavar="K", help="of contrastive decoding (default: all)")
    sizes = parser.add_argument_group("sizes (aoti only; smaller requests are padded)")
    sizes.add_argument("--batch-size", type=_positive, metavar="B", help="requests per call (default: 1)")
    sizes.add_argument("--num-candidates", type=_positive, metavar="N", help="most candidates of a request")
    sizes.add_argument("--history-length", type=_positive, metavar="L", help="longest history, where there are any")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Runs the command.

    Args:
        arguments: Its name and options.

    Raises:
        SystemExit: With status 2, if an option is wrong.
        HubError: If there is no model.
        ValueError: If it is an evaluator, which generates nothing.
        FileExistsError: If the folder to make is there already.
        ExportError: If the model cannot be exported, or the graph decodes other slates than the model.
    """
    parser = make_parser()
    options = parser.parse_args(list(arguments[1:]))
    sizes = _sizes(options, parser)
    disable_progress_bar()  # of loading weights, over before it is seen
    model, extractor = _load(options.model)
    decoding = {key: getattr(options, key) for key in ("slate_size", "num_beams", "penalty_alpha", "top_k")}
    try:
        config = model.generation_config.merged(**decoding)
    except ValueError as error:
        parser.error(str(error))
    folder = export_model(model, extractor, options.out, options.format, config, sizes)
    megabytes = (folder / GRAPH_NAMES[options.format]).stat().st_size / 1e6
    print(f"{folder / GRAPH_NAMES[options.format]}: {megabytes:.1f} MB, decodes what {options.model} decodes")


def _sizes(options: argparse.Namespace, parser: argparse.ArgumentParser) -> GraphSizes | None:
    given = {key: getattr(options, key) for key in _SIZES if getattr(options, key) is not None}
    if options.format == "onnx":
        if given:
            parser.error(f"an ONNX graph takes any sizes; leave out {['--' + key.replace('_', '-') for key in given]}")
        return None
    if options.num_candidates is None:
        parser.error("format aoti needs --num-candidates")
    return GraphSizes(**{"batch_size": 1, **given})


def _load(path: str) -> tuple[RerankingPreTrainedModel, RerankingFeatureExtractor]:
    with one_line_errors(path):
        return AutoModelForReranking.from_pretrained(path), RerankingFeatureExtractor.from_pretrained(path)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value
