"""Running an exported graph in the place of its model. `rerankzoo.serving.export` makes the graphs.

B requests, N candidates, M positions, L history length.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.utils import cached_file

from rerankzoo.atomic_writing import write_atomically
from rerankzoo.batch import ENTRIES
from rerankzoo.errors import RerankingDataError, SchemaMismatchError, UnreadableFileError, in_one_line
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.generation import Constraint, Evaluator, RerankingGenerationConfig, SlateGenerationOutput
from rerankzoo.text_files import read_json

Format = Literal["onnx", "aoti"]
Backend = Literal["eager", "onnx", "aoti"]

METADATA_NAME: Final = "export.json"
GRAPH_NAMES: Final[dict[Format, str]] = {"onnx": "model.onnx", "aoti": "model.pt2"}
OUTPUT_NAMES: Final = ("slates", "scores", "step_scores")

#: From the batch's input tensors, by their keys, to slates (B, M), scores (B,) and step scores (B, M).
Run = Callable[[Mapping[str, Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class GraphSizes:
    """The sizes that a graph was compiled for. Smaller batches are padded, larger ones cut into several.

    Args:
        batch_size: B.
        num_candidates: N, the most candidates of a request.
        history_length: L, the most items of a history; `None` where the schema has no history fields.

    Raises:
        ValueError: If a size is not positive.
    """

    batch_size: int
    num_candidates: int
    history_length: int | None = None

    def __post_init__(self) -> None:
        for name, size in asdict(self).items():
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")

    @property
    def widths(self) -> dict[str, int]:
        """The length of the second axis by the group of tensors that has it."""
        widths = {"candidate": self.num_candidates, "history": self.history_length}
        return {group: width for group, width in widths.items() if width is not None}


@dataclass(frozen=True)
class GraphMetadata:
    """What `export.json` says of the graph beside it.

    Args:
        format: `"onnx"` or `"aoti"`.
        inputs: Keys of the batch that the graph takes, in its order.
        decoding: The decoding parameters that are part of the graph.
        fingerprint: Of the model's schema.
        sizes: Of a graph of fixed sizes; `None` where batch, candidates and history may have any.
    """

    format: Format
    inputs: tuple[str, ...]
    decoding: dict[str, Any]
    fingerprint: str
    sizes: GraphSizes | None = None

    def save(self, folder: Path) -> None:
        """Writes `export.json`."""
        text = json.dumps(asdict(self), indent=2) + "\n"
        write_atomically(folder / METADATA_NAME, lambda path: path.write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GraphMetadata:
        """Reads an `export.json`.

        Raises:
            UnreadableFileError: If the file is not what `save` writes.
        """
        entries = read_json(Path(path))
        try:
            sizes = entries.pop("sizes")
            inputs = tuple(entries.pop("inputs"))
            return cls(**entries, inputs=inputs, sizes=None if sizes is None else GraphSizes(**sizes))
        except (KeyError, TypeError, AttributeError) as error:
            raise UnreadableFileError(f"{path} does not describe an exported graph: {in_one_line(error)}") from error


class ExportedModel:
    """An exported graph: `generate` with the decoding that is part of it, and nothing else of a model.

    Args:
        metadata: What the graph is.
        run: Runs it.

    Example:
        >>> model = ExportedModel.from_pretrained("outputs/onnx", "onnx")  # doctest: +SKIP
        >>> slates = model.generate(**extractor(rows))  # doctest: +SKIP
    """

    device: Final = torch.device("cpu")

    def __init__(self, metadata: GraphMetadata, run: Run) -> None:
        self.metadata = metadata
        self._run = run

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], backend: Format, **kwargs: Any
    ) -> ExportedModel:
        """Loads a graph.

        Args:
            pretrained_model_name_or_path: A folder made by `rerankzoo export`, or a Hub id that holds one. An
                AOTInductor package is native code, and is loaded from folders only.
            backend: `"onnx"` (runs with as many threads as torch) or `"aoti"`.
            **kwargs: Of the Hub: `revision`, `token`, `cache_dir`, `local_files_only`...

        Returns:
            The graph, ready to run on the CPU.

        Raises:
            ValueError: If the backend is unknown, or the folder's graph is of another format.
            FileNotFoundError: If there is no exported graph.
            ImportError: If onnxruntime is not installed.
        """
        if backend not in get_args(Format):
            raise ValueError(f"backend {backend!r} is not one of {list(get_args(Backend))}")
        if backend == "aoti" and not Path(pretrained_model_name_or_path).is_dir():
            raise FileNotFoundError(
                f"no folder {str(pretrained_model_name_or_path)!r}; an AOTInductor package is native code and is not "
                "loaded from the Hub: download it yourself if you trust it"
            )
        metadata = GraphMetadata.load(_locate(pretrained_model_name_or_path, METADATA_NAME, kwargs))
        if metadata.format != backend:
            raise ValueError(
                f"{pretrained_model_name_or_path} was exported as {metadata.format!r}, not {backend!r}; "
                f"use backend={metadata.format!r} or backend='eager'"
            )
        graph = _locate(pretrained_model_name_or_path, GRAPH_NAMES[backend], kwargs)
        return cls(metadata, _open_onnx(graph) if backend == "onnx" else _open_aoti(graph))

    def check_schema(self, schema: FeatureSchema) -> None:
        """Refuses a feature extractor other than the one the model was trained with.

        Raises:
            SchemaMismatchError: If the fingerprints differ.
        """
        if self.metadata.fingerprint != schema.fingerprint:
            raise SchemaMismatchError(
                f"the graph was exported for a schema with fingerprint {self.metadata.fingerprint}, "
                f"the extractor has {schema.name!r} (fingerprint {schema.fingerprint})"
            )

    def generate(
        self, evaluator: Evaluator | None = None, constraints: Sequence[Constraint] = (), **kwargs: Any
    ) -> Tensor | SlateGenerationOutput:
        """Decodes slates; see `SlateGenerationMixin.generate`.

        Args:
            evaluator: Must be `None`: an evaluator's choice is not part of a graph.
            constraints: Must be empty: a graph keeps none.
            **kwargs: The batch, by its keys, and decoding parameters, which may only repeat those of the graph.

        Returns:
            Slates (B, M), or a `SlateGenerationOutput` with `return_dict_in_generate`.

        Raises:
            ValueError: If there are constraints or an evaluator, the batch lacks an input, a keyword is unknown, or
                another decoding is asked for.
            RerankingDataError: If a request has more candidates, or a longer history, than the graph has room for.
        """
        if evaluator is not None:
            raise ValueError("an exported graph decodes one slate per request; an evaluator needs backend='eager'")
        if constraints:
            raise ValueError("an exported graph keeps no constraints; they need backend='eager'")
        names = RerankingGenerationConfig.names()
        unknown = sorted(set(kwargs) - set(names) - set(ENTRIES))
        if unknown:
            raise ValueError(f"generate() got {unknown}, neither batch keys nor decoding parameters {list(names)}")
        parameters = {key: kwargs[key] for key in names if kwargs.get(key) is not None}
        as_dictionary = parameters.pop("return_dict_in_generate", False)
        if parameters:  # making a config takes longer than a whole decoding step
            self._check_decoding(parameters)
        missing = [key for key in self.metadata.inputs if kwargs.get(key) is None]
        if missing:
            raise ValueError(f"the graph needs {missing}, which the batch lacks")
        found = self._decode({key: kwargs[key] for key in self.metadata.inputs}, kwargs.get("request_index"))
        return SlateGenerationOutput(*found) if as_dictionary else found[0]

    def _check_decoding(self, parameters: Mapping[str, Any]) -> None:
        own = self.metadata.decoding
        asked = decoding_parameters(RerankingGenerationConfig(**own).merged(**parameters))
        if asked != own:
            raise ValueError(f"the graph decodes with {own}, not with {asked}; export it anew, or use backend='eager'")

    def _decode(self, batch: dict[str, Tensor], request_index: Tensor | None) -> Sequence[Tensor]:
        sizes = self.metadata.sizes
        if sizes is None:
            return self._run(batch)
        batch = _fit_widths(batch, sizes, request_index)
        found = [self._run(chunk) for chunk in _chunks(batch, sizes.batch_size)]
        num_requests = batch["candidate_mask"].shape[0]
        return [torch.cat(parts)[:num_requests] for parts in zip(*found, strict=True)]


def decoding_parameters(config: RerankingGenerationConfig) -> dict[str, Any]:
    """The parameters that decide which slates come out, without those that have their default."""
    defaults = {"num_beams": 1, "num_return_sequences": 1, "do_sample": False}
    given = {key: value for key, value in config.parameters().items() if key != "return_dict_in_generate"}
    return {key: value for key, value in given.items() if value != defaults.get(key)}


def _fit_widths(batch: Mapping[str, Tensor], sizes: GraphSizes, request_index: Tensor | None) -> dict[str, Tensor]:
    """Pads, or cuts padding from, the axes of candidates and history.

    Raises:
        RerankingDataError: If real entries would have to be cut.
    """
    for group, width in sizes.widths.items():
        mask = batch[f"{group}_mask"]
        beyond = mask[:, width:].any(-1)
        if beyond.any():
            row = int(beyond.int().argmax())
            raise RerankingDataError(
                f"{int(mask[row].sum())} entries, the graph was exported for at most {width}",
                field=f"{group}_mask",
                row=row if request_index is None else int(request_index[row]),
            )
    groups = {key: key.split("_")[0] for key in batch}
    return {
        key: _fit(value, 1, sizes.widths[groups[key]]) if groups[key] in sizes.widths else value
        for key, value in batch.items()
    }


def _chunks(batch: Mapping[str, Tensor], size: int) -> Iterable[dict[str, Tensor]]:
    """The batch in parts of exactly `size` requests; those that fill up the last one have no candidates."""
    num_requests = batch["candidate_mask"].shape[0]
    for start in range(0, num_requests, size):
        yield {key: _fit(value[start : start + size], 0, size) for key, value in batch.items()}


def _fit(value: Tensor, axis: int, size: int) -> Tensor:
    """Pads an axis with zeros to `size`, or cuts it."""
    missing = size - value.shape[axis]
    if missing == 0:
        return value
    if missing < 0:
        return value.narrow(axis, 0, size).contiguous()
    return F.pad(value, [0, 0] * (value.dim() - axis - 1) + [0, missing])


def _open_onnx(path: str) -> Run:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("an ONNX graph is run by onnxruntime: pip install 'rerankzoo[serve]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(batch: Mapping[str, Tensor]) -> Sequence[Tensor]:
        found = session.run(OUTPUT_NAMES, {name: batch[name].numpy() for name in names})
        return [torch.from_numpy(array) for array in found]

    return run


def _open_aoti(path: str) -> Run:
    from torch._inductor import aoti_load_package

    return cast(Run, aoti_load_package(path))


def _locate(path: str | os.PathLike[str], name: str, options: Mapping[str, Any]) -> str:
    try:
        return cast(str, cached_file(os.fspath(path), name, **options))
    except OSError as error:
        raise FileNotFoundError(f"{path} has no {name}, which `rerankzoo export` writes: {error}") from error
