"""Running an exported graph in the place of its model. `rerankzoo.serving.export` makes the graphs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

import torch
from torch import Tensor
from transformers import AutoConfig
from transformers.utils import cached_file

from rerankzoo.atomic_writing import write_json
from rerankzoo.batch import Batch, pad, take
from rerankzoo.errors import RerankingDataError, SchemaMismatchError, UnreadableFileError, in_one_line
from rerankzoo.generation import Decoded, RerankingGenerationConfig, SlateGenerationMixin, SlateRules
from rerankzoo.models.auto import model_class
from rerankzoo.models.base import RerankingConfig
from rerankzoo.text_files import read_json

Format = Literal["onnx", "aoti"]
Backend = Literal["eager", "onnx", "aoti"]
METADATA_NAME: Final = "export.json"
GRAPH_NAMES: Final[dict[Format, str]] = {"onnx": "model.onnx", "aoti": "model.pt2"}
#: The graph with features: raw columns in. Nothing here runs it: `rerankzoo.serving.graph_client` does, without torch.
FEATURE_GRAPH_NAME: Final = "model_with_features.onnx"
CLIENT_NAME: Final = "graph_client.py"
OUTPUT_NAMES: Final = ("slates", "scores", "step_scores")

#: From the batch's input tensors, by their keys, to slates (B, M), scores (B,) and step scores (B, M).
Run = Callable[[Batch], Sequence[Tensor]]


@dataclass(frozen=True)
class GraphSizes:
    """The positive sizes that a graph was compiled for. Smaller batches are padded, larger ones cut into several.

    Args:
        batch_size: B.
        num_candidates: N, the most of a request.
        history_length: L, the most items of a history; `None` where the schema has no history fields.
    """

    batch_size: int
    num_candidates: int
    history_length: int | None = None

    def __post_init__(self) -> None:
        for name, size in asdict(self).items():
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")


@dataclass(frozen=True)
class GraphMetadata:
    """What `export.json` says of the graph beside it.

    Args:
        format: Of the graph.
        inputs: Keys of the batch that the graph takes, in its order.
        decoding: The decoding parameters that are part of the graph.
        fingerprint: Of the model's schema.
        sizes: `None` where batch, candidates and history may have any.
        features: What the graph with features takes and gives, if there is one.
    """

    format: Format
    inputs: tuple[str, ...]
    decoding: dict[str, Any]
    fingerprint: str
    sizes: GraphSizes | None = None
    features: dict[str, Any] | None = None

    @staticmethod
    def decoding_of(config: RerankingGenerationConfig) -> dict[str, Any]:
        """The parameters that decide which slates come out, without those that have their default."""
        defaults = {"num_beams": 1, "num_return_sequences": 1, "do_sample": False}
        given = {key: value for key, value in config.parameters().items() if key != "return_dict_in_generate"}
        return {key: value for key, value in given.items() if value != defaults.get(key)}

    def save(self, folder: Path) -> None:
        """Writes `export.json`."""
        write_json(folder / METADATA_NAME, asdict(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GraphMetadata:
        """Reads an `export.json`; raises an `UnreadableFileError` if it is not what `save` writes."""
        entries = read_json(Path(path))
        try:
            sizes = None if entries["sizes"] is None else GraphSizes(**entries["sizes"])
            return cls(**{**entries, "inputs": tuple(entries["inputs"]), "sizes": sizes})
        except (KeyError, TypeError, AttributeError) as error:
            raise UnreadableFileError(f"{path} does not describe an exported graph: {in_one_line(error)}") from error


class GraphFile:
    """A graph, opened from its file. A copy, or a pickle in another process, opens the file again."""

    def __init__(self, path: str, format: Format) -> None:  # noqa: A002  (the command's own word)
        self.path, self.format = os.path.abspath(path), format
        if format == "aoti":
            from torch._inductor import aoti_load_package

            # Called itself, a package reads the description of its arguments anew each time.
            self.graph: Any = aoti_load_package(self.path).loader
            return
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError("an ONNX graph is run by onnxruntime: pip install 'rerankzoo[serve]'") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.graph = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        self.inputs = [entry.name for entry in self.graph.get_inputs()]

    def __call__(self, batch: Batch) -> Sequence[Tensor]:
        """Runs the graph on a batch of its inputs, in their order; see `Run`."""
        if self.format == "aoti":
            return cast(Sequence[Tensor], self.graph.run(list(batch.values())))
        arrays = self.graph.run(OUTPUT_NAMES, {name: batch[name].numpy() for name in self.inputs})
        return [torch.from_numpy(array) for array in arrays]

    def __reduce__(self) -> tuple[type[GraphFile], tuple[str, Format]]:
        return GraphFile, (self.path, self.format)


class ExportedModel(SlateGenerationMixin):
    """An exported graph: `generate` with the decoding that is part of it, on the CPU, in single precision.

    Args:
        metadata: What the graph is.
        run: Runs it.
        config: Of the model that it was made from.
        generation_config_class: Of the same model.

    Raises:
        SchemaMismatchError: If graph and config are of different schemas.
    """

    device: Final = torch.device("cpu")
    dtype: Final = torch.float32

    def __init__(
        self,
        metadata: GraphMetadata,
        run: Run,
        config: RerankingConfig,
        generation_config_class: type[RerankingGenerationConfig] = RerankingGenerationConfig,
    ) -> None:
        self.metadata = metadata
        self.config, self.schema = config, config.schema
        self.generation_config = generation_config_class(**metadata.decoding)
        self.generation_config_class = generation_config_class  # type: ignore[misc]
        self.strategies = ("greedy", *generation_config_class.strategies.values())  # type: ignore[misc]
        self._run = run
        if metadata.fingerprint != self.schema.fingerprint:
            made_for = f"the graph was exported for a schema with fingerprint {metadata.fingerprint}"
            raise SchemaMismatchError(f"{made_for}, the config's is {self.schema.fingerprint}")

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

        Raises:
            ValueError: If the backend is unknown, or the folder's graph is of another format.
            FileNotFoundError: If there is no exported graph.
            ImportError: If onnxruntime is not installed.
        """
        path = os.fspath(pretrained_model_name_or_path)
        if backend not in get_args(Format):
            raise ValueError(f"backend must be one of {list(get_args(Backend))}, got {backend!r}")
        if backend == "aoti" and not os.path.isdir(path):
            raise FileNotFoundError(
                f"folder {path!r} not found; an AOTInductor package is native code and is not loaded from the Hub: "
                "download it yourself if you trust it"
            )
        metadata = GraphMetadata.load(_locate(path, METADATA_NAME, kwargs))
        if metadata.format != backend:
            instead = f"use backend={metadata.format!r} or backend='eager'"
            raise ValueError(f"{path} was exported as {metadata.format!r}, not {backend!r}; {instead}")
        graph = GraphFile(_locate(path, GRAPH_NAMES[backend], kwargs), backend)
        config = AutoConfig.from_pretrained(path, **kwargs)
        return cls(metadata, graph, config, model_class(config.architectures[0]).generation_config_class)

    def to(self, *args: Any, **kwargs: Any) -> ExportedModel:
        """As `torch.nn.Module.to`; raises a `ValueError` if another device or type is asked for."""
        moved = torch.empty(0).to(*args, **kwargs)
        if (moved.device, moved.dtype) != (self.device, self.dtype):
            raise ValueError(f"an exported graph stays {self.dtype} on the CPU, got {args or kwargs}; use the model")
        return self

    def decode(self, batch: Batch, config: RerankingGenerationConfig, rules: SlateRules | None = None) -> Decoded:
        """See `SlateGenerationMixin.decode`; a `ValueError` says what the graph cannot do, or has no room for."""
        if rules is not None:
            raise ValueError("an exported graph keeps no constraints; they need backend='eager'")
        expected, asked = self.metadata.decoding, GraphMetadata.decoding_of(config)
        if asked != expected:
            instead = "export it anew, or use backend='eager'"
            raise ValueError(f"the graph decodes with {expected}, not with {asked}; {instead}")
        if missing := [name for name in self.metadata.inputs if name not in batch]:
            raise ValueError(f"the graph needs {missing}, which the batch lacks")
        batch, sizes = {name: batch[name] for name in self.metadata.inputs}, self.metadata.sizes
        outputs = self._run(batch) if sizes is None else self._run_in_parts(batch, sizes)
        return Decoded(*(tensor.unsqueeze(1) for tensor in outputs))

    def _run_in_parts(self, batch: Batch, sizes: GraphSizes) -> Sequence[Tensor]:
        most = {"N": sizes.num_candidates} | ({} if sizes.history_length is None else {"L": sizes.history_length})
        lengths = [batch[name].shape for name in ("candidate_mask", "history_mask")[: len(most)]]
        if lengths == [(sizes.batch_size, length) for length in most.values()]:  # neither padded nor cut
            return self._run({name: tensor.contiguous() for name, tensor in batch.items()})
        for name, length in zip(("candidate_mask", "history_mask"), most.values(), strict=False):
            beyond = batch[name][:, length:].any(-1)
            if beyond.any():
                row = int(beyond.int().argmax())
                message = f"{int(batch[name][row].sum())} entries, the graph was exported for at most {length}"
                raise RerankingDataError(message, field=name, row=row)
        batch, size, num_requests = pad(batch, **most), sizes.batch_size, len(batch["candidate_mask"])
        # Requests that fill up the last part have no candidates.
        parts = (pad(take(batch, slice(start, start + size)), B=size) for start in range(0, num_requests, size))
        outputs = [self._run({name: tensor.contiguous() for name, tensor in part.items()}) for part in parts]
        return [torch.cat(tensors)[:num_requests] for tensors in zip(*outputs, strict=True)]


def _locate(path: str | os.PathLike[str], name: str, options: Mapping[str, Any]) -> str:
    try:
        return cast(str, cached_file(os.fspath(path), name, **options))
    except OSError as error:
        raise FileNotFoundError(f"{path} has no {name}, which `rerankzoo export` writes: {error}") from error
