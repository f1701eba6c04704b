"""Exporting a model: features, encoder and the whole decode loop in one graph, checked against the model itself."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from rerankzoo.atomic_writing import write_atomically
from rerankzoo.backends import (
    CLIENT_NAME,
    FEATURE_GRAPH_NAME,
    GRAPH_NAMES,
    OUTPUT_NAMES,
    ExportedModel,
    Format,
    GraphMetadata,
    GraphSizes,
)
from rerankzoo.batch import Batch, entry_of, inputs
from rerankzoo.errors import ExportError
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.generation import RerankingGenerationConfig, SlateGenerationOutput
from rerankzoo.models.base import SlateGenerator
from rerankzoo.serving import graph_client
from rerankzoo.serving.feature_graph import with_features
from rerankzoo.serving.graph_client import GraphClient
from rerankzoo.serving.graph_rules import DEMANDS, GraphRules, no_demands
from rerankzoo.serving.random_inputs import random_batch, random_requests, spoil_requests
from rerankzoo.serving.spelling import spell_out

#: Largest difference between the scores of graph and model, absolute and relative.
TOLERANCE = 1e-4
_OPSET = 23  # the first with an operator for attention
_AXES = {"B": "requests", "N": "candidates", "L": "history"}  # that may have any size


class SlateGraph(nn.Module):
    """A model with its decoding (whose `slate_size` counts), as one function of the batch's input tensors."""

    def __init__(
        self, model: SlateGenerator, config: RerankingGenerationConfig, limit_field: str | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.limit_field = limit_field

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Slates (B, M), scores (B,) and step scores (B, M); the loop over positions is unrolled when traced."""
        known = {name: tensor for name, tensor in batch.items() if name not in DEMANDS}
        decoded = self.model.decode(known, self.config, self._rules(batch))
        return decoded.slates[:, 0], decoded.scores[:, 0], decoded.step_scores[:, 0]

    def _rules(self, batch: Batch) -> GraphRules | None:
        if "exclude" not in batch:
            return None
        if self.limit_field is None:
            return GraphRules(batch, None)
        return GraphRules(batch, batch["candidate_categorical"][..., self.model.schema.position(self.limit_field)])


def export_model(
    model: SlateGenerator,
    extractor: RerankingFeatureExtractor,
    out: str | os.PathLike[str],
    format: Format,  # noqa: A002  (the command's own word)
    generation_config: RerankingGenerationConfig | None = None,
    sizes: GraphSizes | None = None,
    features: FeatureOptions | None = None,
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
        features: For `"onnx"`: writes a second graph, which takes raw columns.

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
    if features is not None:
        features.check(schema)
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
        description: dict[str, Any] | None = None
        model.save_pretrained(target)
        extractor.save_pretrained(target)
        path = target / GRAPH_NAMES[format]
        if format == "onnx":
            model.config._attn_implementation = "onnx"
        with _quiet_exporters():
            program = _trace(SlateGraph(model, config), batch, dynamic=sizes is None)
            if format == "onnx":
                _write_onnx(program, batch, path)
                description = None if features is None else _write_features(model, extractor, batch, target, features)
            else:
                _write_package(program, path)
        decoding = GraphMetadata.decoding_of(config)
        GraphMetadata(format, tuple(batch), decoding, schema.fingerprint or "", sizes, description).save(target)
        exported = ExportedModel.from_pretrained(target, format)
        check_graph(exported, model, extractor)
        if features is not None:
            check_feature_graph(GraphClient(target), exported, extractor)

    write_atomically(folder, write)
    return folder


@dataclass(frozen=True)
class FeatureOptions:
    """What the graph with features takes beside raw columns.

    Args:
        constraints: Whether it takes `exclude` and `pin`.
        limit_field: A categorical candidate field, of whose values a slate shows `at_most` so many; with `constraints`.
    """

    constraints: bool = False
    limit_field: str | None = None

    def check(self, schema: FeatureSchema) -> None:
        """Raises an `ExportError` if a schema has no such field."""
        if self.limit_field is None:
            return
        if not self.constraints:
            raise ExportError(f"limit_field {self.limit_field!r} needs constraints")
        known = [field.name for field in schema.select("candidate", "categorical")]
        if self.limit_field not in known:
            raise ExportError(f"limit_field must be one of the categorical fields {known}, got {self.limit_field!r}")


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


def _dynamic_axes(name: str) -> dict[int, str]:
    """The axes of an input that may have any size, and their names."""
    axes = (DEMANDS.get(name) or entry_of(name)).axes
    return {number: _AXES[axis] for number, axis in enumerate(axes) if axis in _AXES}


def _write_onnx(program: ExportedProgram, batch: Mapping[str, Tensor], path: Path) -> None:
    """Converts and saves, unless an axis came out with a fixed size; weights beyond 2 GB go to a file beside it."""
    try:
        import onnxscript  # noqa: F401  (torch asks for it by a traceback)
    except ImportError as error:
        raise ImportError("exporting to ONNX needs onnxscript: pip install 'rerankzoo[serve]'") from error
    converted: Any = torch.onnx.export(
        program, input_names=list(batch), output_names=OUTPUT_NAMES, opset_version=_OPSET, verbose=False
    )
    graph = converted.model.graph
    axes = {entry: _dynamic_axes(entry.name) for entry in graph.inputs}
    axes |= {entry: {0: _AXES["B"]} for entry in graph.outputs}
    for entry, dynamic in axes.items():
        if frozen := [axis for axis in dynamic if isinstance(entry.shape[axis], int)]:
            raise ExportError(f"axes {frozen} of {entry.name!r} are frozen: its shape is {entry.shape}")
    for value in (output for node in graph.all_nodes() for output in node.outputs if output not in axes):
        value.shape = None  # in torch's own names of the axes; a runtime infers it
    for entry, dynamic in axes.items():
        for axis, name in dynamic.items():
            entry.shape[axis] = name
    converted.save(path)


def _write_package(program: ExportedProgram, path: Path) -> None:
    """Compiles and saves; the compiler's patterns would join again what is spelled out."""
    from torch._inductor import aoti_compile_and_package

    program = spell_out(program)
    aoti_compile_and_package(program, package_path=str(path), inductor_configs={"pattern_matcher": False})


def _write_features(
    model: SlateGenerator,
    extractor: RerankingFeatureExtractor,
    batch: Mapping[str, Tensor],
    target: Path,
    options: FeatureOptions,
) -> dict[str, Any]:
    """Writes the graph with features, from that of the model or one with demands, and its client; describes it."""
    size = int(model.generation_config.slate_size or model.config.slate_size)
    source, out = target / GRAPH_NAMES["onnx"], target / FEATURE_GRAPH_NAME
    if options.constraints:
        demanding = {**batch, **no_demands(batch, size, options.limit_field is not None)}
        graph, source = SlateGraph(model, model.generation_config, options.limit_field), out
        _write_onnx(_trace(graph, demanding, dynamic=True), demanding, out)
    inputs = with_features(source, out, extractor, size)
    shutil.copyfile(graph_client.__file__, target / CLIENT_NAME)
    shape = ["requests", size]
    outputs = [
        {"name": "slates", "type": "int64", "shape": shape, "meaning": "candidate at each position; -100 for none"},
        {"name": "scores", "type": "float", "shape": ["requests"], "meaning": "of each slate, by the model's scorer"},
        {"name": "step_scores", "type": "float", "shape": shape, "meaning": "of each choice, by the model's scorer"},
    ]
    item_id = extractor.schema.item_id
    return {"graph": FEATURE_GRAPH_NAME, "item_id": item_id, "slate_size": size, "inputs": inputs, "outputs": outputs}


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


def check_feature_graph(client: GraphClient, exported: ExportedModel, extractor: RerankingFeatureExtractor) -> None:
    """Compares a graph with features with extractor and graph, on random requests with unknown ids and missing values.

    Slates must be identical and scores equal up to `TOLERANCE`, as in `check_graph`.

    Raises:
        ExportError: If they differ.
    """
    for seed, sizes in enumerate([(1, 20, 3), (1, 1, 1), (17, 31, 6)], start=1):
        requests = spoil_requests(extractor, random_requests(extractor, *sizes, seed=seed, ragged=True), seed)
        batch: dict[str, Any] = inputs(extractor(requests))
        expected = exported.generate(**batch, return_dict_in_generate=True)
        outputs = client.session.run(OUTPUT_NAMES, client.arrays(requests))
        decoded = SlateGenerationOutput(**dict(zip(OUTPUT_NAMES, map(torch.from_numpy, outputs), strict=True)))
        if differences := _differences(decoded, expected, beams="num_beams" in exported.metadata.decoding):
            raise ExportError(f"with features, {differences}")


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
