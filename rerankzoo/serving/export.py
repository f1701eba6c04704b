"""Exporting a model: features, encoder and the whole decode loop in one graph, checked against the model itself."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from rerankzoo.atomic_writing import write_atomically
from rerankzoo.backends import GRAPH_NAMES, OUTPUT_NAMES, ExportedModel, Format, GraphMetadata, GraphSizes
from rerankzoo.batch import Batch, entry_of
from rerankzoo.errors import ExportError
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.generation import RerankingGenerationConfig
from rerankzoo.models.base import SlateGenerator
from rerankzoo.serving.random_inputs import random_batch

#: Largest difference between the scores of graph and model, absolute and relative.
TOLERANCE = 1e-4


class SlateGraph(nn.Module):
    """A model with its decoding (whose `slate_size` counts), as one function of the batch's input tensors."""

    def __init__(self, model: SlateGenerator, config: RerankingGenerationConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Slates (B, M), scores (B,) and step scores (B, M); the loop over positions is unrolled when traced."""
        decoded = self.model.decode(batch, self.config)
        return decoded.slates[:, 0], decoded.scores[:, 0], decoded.step_scores[:, 0]


def export_model(
    model: SlateGenerator,
    extractor: RerankingFeatureExtractor,
    out: str | os.PathLike[str],
    format: Format,  # noqa: A002  (the command's own word)
    generation_config: RerankingGenerationConfig | None = None,
    sizes: GraphSizes | None = None,
) -> Path:
    """Writes a folder from which `RerankingPipeline.from_pretrained(out, backend=...)` serves.

    The folder holds the graph, `export.json`, and all of a checkpoint: weights, config, generation config, extractor,
    in single precision. It appears whole, once the graph has given the model's own slates on random requests of other
    sizes than the traced ones (see `check_graph`), or not at all.

    Args:
        model: A model that generates slates.
        extractor: Its feature extractor.
        out: The folder to make.
        format: `"onnx"`: any number of requests, candidates and history items. `"aoti"`: compiled by AOTInductor for
            fixed sizes, for this kind of machine; needs a C++ compiler.
        generation_config: The decoding, any but sampling; default: the model's own.
        sizes: For `"aoti"` only.

    Returns:
        The folder.

    Raises:
        ExportError: If the decoding cannot be exported, an axis of the graph is frozen, or the graph does not decode
            what the model decodes.
        SchemaMismatchError: If the extractor is not the model's.
        FileExistsError: If the folder is there already and not empty.
    """
    folder, schema = Path(out), extractor.schema
    model.check_schema(schema)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already; name a new folder")
    config = generation_config or model.generation_config
    if config.strategy == "sample":
        raise ExportError("sampling cannot be exported: a graph is deterministic; use another strategy")
    if (config.num_return_sequences or 1) > 1:
        raise ExportError(f"a graph returns one slate per request, not {config.num_return_sequences}")
    config = config.merged(slate_size=config.slate_size or model.config.slate_size, return_dict_in_generate=False)
    _check_sizes(schema, format, sizes)
    model = copy.deepcopy(model).eval().cpu().float()
    model.generation_config = config
    # No dynamic size of the traced batch is 1, which is never dynamic, or less than what a search can use.
    width = 5 + max(config.slate_size or 1, config.num_beams or 1, config.top_k or 1)
    traced = (3, width, 4) if sizes is None else (sizes.batch_size, sizes.num_candidates, sizes.history_length or 1)
    batch: dict[str, Any] = random_batch(extractor, *traced)
    try:
        model.generate(**batch)
    except ValueError as error:
        raise ExportError(f"{type(model).__name__} cannot decode like this: {error}") from error

    def write(target: Path) -> None:
        model.save_pretrained(target)
        extractor.save_pretrained(target)
        path = target / GRAPH_NAMES[format]
        with _quiet_exporters():
            program = _trace(SlateGraph(model, config), batch, dynamic=sizes is None)
            if format == "onnx":
                _write_onnx(program, batch, path)
            else:
                from torch._inductor import aoti_compile_and_package

                # Weights are constants: their layout is chosen now, and not again in every call.
                aoti_compile_and_package(program, package_path=str(path), inductor_configs={"freezing": True})
        decoding = GraphMetadata.decoding_of(config)
        GraphMetadata(format, tuple(batch), decoding, schema.fingerprint or "", sizes).save(target)
        check_graph(ExportedModel.from_pretrained(target, format), model, extractor)

    write_atomically(folder, write)
    return folder


def _check_sizes(schema: FeatureSchema, format: Format, sizes: GraphSizes | None) -> None:  # noqa: A002
    if format == "onnx":
        if sizes is not None:
            raise ExportError("an ONNX graph takes any sizes; leave them out")
        return
    if sizes is None:
        raise ExportError("format 'aoti' needs fixed sizes: batch size and number of candidates")
    if schema.has_history != (sizes.history_length is not None):
        need = "needs none" if sizes.history_length else "needs one"
        raise ExportError(f"history_length {sizes.history_length}: schema {schema.name!r} {need}")
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        need = "format 'aoti' needs a C++ compiler: install g++, or name one in CXX; 'onnx' needs none"
        raise ExportError(need) from error


def _trace(graph: SlateGraph, batch: dict[str, Tensor], dynamic: bool) -> ExportedProgram:
    shapes = {name: dict.fromkeys(_dynamic_axes(name), Dim.DYNAMIC) if dynamic else None for name in batch}
    try:
        with torch.no_grad():
            return torch.export.export(graph, (batch,), dynamic_shapes=(shapes,), strict=False)
    except (torch._dynamo.exc.UserError, GuardOnDataDependentSymNode) as error:
        raise ExportError(f"an axis of {type(graph.model).__name__}'s graph is frozen: {error}") from error


def _dynamic_axes(name: str) -> tuple[int, ...]:
    """The axes of an input that may have any size: requests, candidates, history."""
    return tuple(number for number, axis in enumerate(entry_of(name).axes) if axis in "BNL")


def _write_onnx(program: ExportedProgram, batch: Mapping[str, Tensor], path: Path) -> None:
    """Converts and saves, unless an axis came out with a fixed size; weights beyond 2 GB go to a file beside it."""
    try:
        import onnxscript  # noqa: F401  (torch asks for it by a traceback)
    except ImportError as error:
        raise ImportError("exporting to ONNX needs onnxscript: pip install 'rerankzoo[serve]'") from error
    converted: Any = torch.onnx.export(program, input_names=list(batch), output_names=OUTPUT_NAMES, verbose=False)
    graph = converted.model.graph
    axes = {**{entry: _dynamic_axes(entry.name) for entry in graph.inputs}, **dict.fromkeys(graph.outputs, (0,))}
    for entry, dynamic in axes.items():
        if frozen := [axis for axis in dynamic if isinstance(entry.shape[axis], int)]:
            raise ExportError(f"axes {frozen} of {entry.name!r} are frozen: its shape is {entry.shape}")
    converted.save(path)


@contextmanager
def _quiet_exporters() -> Iterator[None]:
    """Silences what torch's exporters say of things that are not ours."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
            yield
    finally:
        logger.setLevel(level)


def check_graph(exported: ExportedModel, model: SlateGenerator, extractor: RerankingFeatureExtractor) -> None:
    """Compares a graph with its model on random requests of other sizes (or, where they are fixed, other masks).

    Slates must be identical and scores equal up to `TOLERANCE`. A slate may differ where two choices tie, that is where
    the scores of the first choices that differ (or, of beams, of the whole slates) are equal up to `TOLERANCE`.

    Raises:
        ExportError: If they differ, or the graph cannot run at some size.
    """
    decoding, fixed = exported.metadata.decoding, exported.metadata.sizes
    if fixed is None:
        m = decoding["slate_size"]
        others = [(1, m + 50, 1), (1, 1, 1), (2, m, 9), (17, 31, 6), (8, max(1, m - 1), 2)]
    else:
        size, width, length = fixed.batch_size, fixed.num_candidates, fixed.history_length or 1
        others = [(size, width, length), (size + 1, max(1, width // 2), 1), (3 * size, width, length)]
    for seed, sizes in enumerate(others, start=1):  # (B, N, L)
        batch: dict[str, Any] = random_batch(extractor, *sizes, seed=seed)
        expected = model.generate(**batch, **decoding, return_dict_in_generate=True)
        place = f"{sizes[0]} requests with {sizes[1]} candidates"
        try:
            decoded = exported.generate(**batch, return_dict_in_generate=True)
        except Exception as error:  # onnxruntime's errors have no common base
            raise ExportError(f"the graph cannot run on {place}: {error}") from error
        if differences := _differences(decoded, expected, beams="num_beams" in decoding):
            raise ExportError(f"on {place}, {differences}")


def _differences(decoded: Any, expected: Any, beams: bool) -> str | None:
    """How the outputs of graph and model differ; `None` if they do not."""
    scores, steps = (
        torch.isclose(decoded[name], expected[name], rtol=TOLERANCE, atol=TOLERANCE) for name in OUTPUT_NAMES[1:]
    )
    differs = decoded.slates != expected.slates  # (B, M)
    first, same = differs.int().argmax(-1, keepdim=True), ~differs.any(-1)
    wrong = ~(same | (scores if beams else steps.gather(1, first).squeeze(1)))
    if wrong.any():
        row = int(wrong.int().argmax())
        both = f"{decoded.slates[row].tolist()}, the model {expected.slates[row].tolist()}"
        return f"{int(wrong.sum())} slates differ: of request {row} the graph decodes {both}"
    if not (scores & steps.all(-1))[same].all():
        worst = float((decoded.step_scores - expected.step_scores).abs()[same].max())
        return f"the slates are the same, but the scores of their choices differ by up to {worst:.2g}"
    return None
