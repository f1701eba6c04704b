"""From raw requests to ordered items: model, feature extractor and, if wanted, evaluator in one object."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence, Sized
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers.utils import CONFIG_NAME

from rerankzoo.atomic_writing import SAVED_MODEL, saved_over
from rerankzoo.backends import CLIENT_NAME, METADATA_NAME, Backend, ExportedModel
from rerankzoo.batch import to_device
from rerankzoo.errors import InfeasibleConstraintError, RerankingDataError
from rerankzoo.features.extractor import Encoded, RerankingFeatureExtractor
from rerankzoo.generation import Constraint, RerankingGenerationConfig
from rerankzoo.generation.constraints.constraint import constraint_list
from rerankzoo.hub.card import CARD_FILE, CardDetails, write_card
from rerankzoo.hub.push import Push, push_folder
from rerankzoo.hub_errors import one_line_errors
from rerankzoo.models.auto import EVALUATOR_FOLDER, AutoModelForReranking, load_checkpoint, load_evaluator

logger = logging.getLogger(__name__)

_CHUNK = 128  # requests decoded together: the activations of more outgrow a CPU's cache
_CHUNK_CANDIDATES = _CHUNK * 256  # padded: of requests with thousands of candidates, fewer are decoded together
#: What an earlier save or export may have left in a folder, as patterns.
_EARLIER = (*SAVED_MODEL, "config.json", EVALUATOR_FOLDER, METADATA_NAME, "model*.onnx*", "model.pt2", CLIENT_NAME)

OnError = Literal["raise", "skip", "report"]
RerankedItem = dict[str, Any]
#: What one request gets: its items, or with `on_error` what is in their place.
Outcome = list[RerankedItem] | RerankingDataError | InfeasibleConstraintError | None


class RerankingPipeline:
    """Reranks raw requests; can be copied, pickled, and sent to other processes.

    Args:
        model: A model that generates slates, a pool of them, or an exported graph.
        extractor: The feature extractor it was trained with.
        evaluator: An evaluator or ensemble, which chooses among `num_return_sequences` slates.
        generation_config: How to decode where a call does not say; default: as the model's own config says.

    Raises:
        SchemaMismatchError: If model or evaluator were trained with another extractor.

    Example:
        >>> pipeline = RerankingPipeline(model, extractor)  # or RerankingPipeline.from_pretrained("my-org/degre")
        >>> items = pipeline({"user_id": 7, "item_id": [3, 1, 2], "price": [9.5, 1.0, 2.0]}, slate_size=2)
        >>> [sorted(item) for item in items]
        [['index', 'item_id', 'score'], ['index', 'item_id', 'score']]
    """

    def __init__(
        self,
        model: Any,
        extractor: RerankingFeatureExtractor,
        evaluator: Any = None,
        generation_config: RerankingGenerationConfig | Mapping[str, Any] | None = None,
    ) -> None:
        for part in (model, evaluator):
            if part is not None:
                part.check_schema(extractor.schema)
            if isinstance(part, nn.Module):
                part.eval()
        self.model = model
        self.extractor = extractor
        self.evaluator = evaluator
        self.generation_config = None if generation_config is None else model.config_of(generation_config)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        evaluator: str | os.PathLike[str] | bool | None = None,
        backend: Backend = "eager",
        device: torch.device | str | None = None,
        generation_config: RerankingGenerationConfig | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> RerankingPipeline:
        """Loads a checkpoint.

        Args:
            pretrained_model_name_or_path: A folder or Hub id with model and feature extractor.
            evaluator: `True`: the one beside the model, in its subfolder `evaluator`; or what `load_evaluator` takes.
            backend: What decodes: `"eager"`, the model itself, or, from a folder made by `rerankzoo export`, its graph:
                `"onnx"` or `"aoti"`. A graph decodes as it was exported to, on the CPU, and has no evaluator.
            device: Where the models go; default: the CPU, or as `device_map` says.
            generation_config: See the class.
            **kwargs: For the models' `from_pretrained`: `dtype`, `attn_implementation`, `device_map`, `token`,
                `cache_dir`, `local_files_only`... `revision` and `subfolder` are of the checkpoint, and not of an
                evaluator elsewhere.

        Raises:
            ValueError: If an evaluator or another device was given for a graph. See `ExportedModel.from_pretrained`.
            TypeError: If an option of a model was given for a graph.
            HubError: If anything is missing or cannot be reached, or an option is unknown; in one line that says what
                to do.
        """
        path = os.fspath(pretrained_model_name_or_path)
        if backend == "eager":
            model, extractor = load_checkpoint(path, AutoModelForReranking, **kwargs)
        elif evaluator:
            raise ValueError(f"backend {backend!r} decodes one slate per request; an evaluator needs backend='eager'")
        else:
            with one_line_errors(path, kwargs.get("revision"), kwargs.get("subfolder")):
                extractor = RerankingFeatureExtractor.from_pretrained(path, **kwargs)
                model = ExportedModel.from_pretrained(path, backend, **kwargs)
        chooser = None
        if evaluator is True:
            beside = PurePosixPath(kwargs.get("subfolder", ""), EVALUATOR_FOLDER)
            chooser = load_evaluator(path, **{**kwargs, "subfolder": str(beside)}).model
        elif evaluator:
            elsewhere = {name: value for name, value in kwargs.items() if name not in ("revision", "subfolder")}
            chooser = load_evaluator(evaluator, **elsewhere).model
        pipeline = cls(model, extractor, chooser, generation_config)
        return pipeline if device is None else pipeline.to(device)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self.model.dtype

    def to(self, *args: Any, **kwargs: Any) -> RerankingPipeline:
        """Moves or casts model and evaluator, as `torch.nn.Module.to`; see `ExportedModel.to`."""
        self.model.to(*args, **kwargs)
        if self.evaluator is not None:
            self.evaluator.to(*args, **kwargs)
        return self

    def __repr__(self) -> str:
        evaluator = "" if self.evaluator is None else f", evaluator={type(self.evaluator).__name__}"
        parts = f"{type(self.model).__name__}, schema={self.extractor.schema.name!r}{evaluator}"
        return f"{type(self).__name__}({parts}, device={str(self.device)!r}, dtype={self.dtype})"

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Saves the whole: model, feature extractor, the evaluator in the subfolder `evaluator`, and a model card.

        What an earlier save or export left in the folder goes; other files, and a card that is there, stay.

        Raises:
            ValueError: If the model is an exported graph: its folder is whole already.
        """
        if isinstance(self.model, ExportedModel):
            raise ValueError("an exported graph is not saved again: copy its folder, or save the model it is of")
        folder = Path(save_directory)
        with saved_over(folder, _EARLIER) as fresh:
            self.model.save_pretrained(fresh)
            self.extractor.save_pretrained(fresh)
            if self.generation_config is not None:
                self.generation_config.save_pretrained(fresh)
            if self.evaluator is not None:
                self.evaluator.save_pretrained(fresh / EVALUATOR_FOLDER)
                self.extractor.save_pretrained(fresh / EVALUATOR_FOLDER)
        if not (folder / CARD_FILE).exists() and (folder / CONFIG_NAME).exists():  # a pool of models has no card
            write_card(folder)

    def push_to_hub(
        self, repo_id: str, *, commit_message: str | None = None, token: str | bool | None = None, **options: Any
    ) -> str:
        """Pushes the whole in one commit; a card that the repository has is kept.

        Args:
            repo_id: The repository, made if there is none.
            commit_message: Its title.
            token: Default: HF_TOKEN, or that of `hf auth login`.
            **options: Of `rerankzoo.hub.push.Push`: `private`, `revision`, `create_pr`.

        Returns:
            The address of the commit or pull request.

        Raises:
            HubError: If the Hub refuses or stays unreachable; the message names the folder where the files are kept.
        """
        folder = Path(tempfile.mkdtemp(prefix="rerankzoo-"))
        push = Push(folder, repo_id, message=commit_message, keep=(CARD_FILE,), **options)
        self.save_pretrained(folder)
        write_card(folder, CardDetails(repo_id))
        pushed = push_folder(push, token)
        shutil.rmtree(folder)  # only now: after a failure the files are all there is
        return pushed.url

    def __call__(
        self,
        requests: Any,
        constraints: Sequence[Constraint] = (),
        on_error: OnError = "raise",
        generation_config: RerankingGenerationConfig | Mapping[str, Any] | None = None,
        **parameters: Any,
    ) -> Any:
        """Chooses and orders the items of one request or of many.

        Args:
            requests: One request as a dictionary, or many: a list of dictionaries, a dictionary of columns, a pandas or
                Arrow table, a `datasets.Dataset`. Columns are those of the schema; label columns are not needed.
            constraints: What slates must keep, such as `[Exclude([17, 4]), AtMost(2, "category")]`, with items by their
                ids (see `rerankzoo.generation.constraints`).
            on_error: What becomes of a request that cannot be used, or has no slate that keeps the constraints.
                `"raise"`: its error is raised, and no request is answered. `"report"`: the error stands in the place of
                its items. `"skip"`: `None` does, and a warning is logged. All others are answered as if they came
                alone. What is wrong with the call or the whole table (a parameter, a constraint, a missing column of a
                DataFrame) is raised in any case.
            generation_config: How to decode, instead of the pipeline's own or the model's.
            **parameters: Decoding parameters, such as `slate_size=4, num_beams=4` (see `RerankingGenerationConfig`),
                which replace those of the config.

        Returns:
            For one request a list of items in display order, each a dictionary with `item_id`, `index` (position among
            the request's candidates) and `score` (what the model's scorer gave to the choice: a log-probability, or the
            value of the slate up to it). For many requests a list of such lists, as long as the requests.

        Raises:
            RerankingDataError: If a request cannot be used; it names field and row.
            InfeasibleConstraintError: If a request has no slate that keeps the constraints; it names both.
            ValueError: If a parameter is unknown, or several slates per request are asked for without an evaluator.
        """
        constraints = constraint_list(constraints) if constraints != () else ()
        if on_error not in get_args(OnError):
            raise ValueError(f"on_error must be one of {', '.join(get_args(OnError))}, got {on_error!r}")
        names = self.model.generation_config_class.names()
        if unknown := sorted(parameters.keys() - set(names)):
            raise ValueError(f"unknown parameters {unknown}; decoding parameters are {list(names)}")
        if isinstance(requests, Sized) and not isinstance(requests, Mapping | str | bytes) and len(requests) == 0:
            return []
        read, usable = self.extractor.read, self.extractor.usable
        parts, errors = ([read(requests)], {}) if on_error == "raise" else usable(requests)
        answer: list[Outcome] = [None] * (sum(map(len, parts)) + len(errors))
        for row, error in errors.items():
            answer[row] = error
        options = {
            **parameters,
            "generation_config": self.generation_config if generation_config is None else generation_config,
            "evaluator": self.evaluator,
        }
        for part in parts:
            for constraint in constraints:
                width = part.batch["candidate_mask"].shape[1] if len(part) == len(answer) else None
                constraint.check_fit(len(answer), width)
            for chunk in _chunks(part):
                answer[chunk.rows] = self._rank(chunk, constraints, on_error, options)
        if on_error == "skip":
            failed = [outcome for outcome in answer if isinstance(outcome, Exception)]
            if failed:
                logger.warning("%d of %d requests were skipped; the first: %s", len(failed), len(answer), failed[0])
            answer = [None if isinstance(outcome, Exception) else outcome for outcome in answer]
        return answer[0] if self.extractor.is_single(requests) else answer

    def _rank(
        self, chunk: Encoded, constraints: Sequence[Constraint], on_error: OnError, options: Mapping[str, Any]
    ) -> list[Outcome]:
        """The items of some rows that are decoded together, or the error of those that cannot be."""
        try:
            return self._decode(chunk, constraints, options)
        except (InfeasibleConstraintError, RerankingDataError) as error:
            place: Any = error.row  # within the chunk
            row = None if place is None else chunk.rows.start + place
            failed = type(error)(**{**vars(error), "row": row})
            if on_error == "raise" or row is None:
                raise failed from error
        # Outside the handler: it keeps the failed decoding's tensors in memory.
        before, after = (
            self._rank(chunk.take(rows), constraints, on_error, options) if rows.start < rows.stop else []
            for rows in (slice(0, place), slice(place + 1, len(chunk)))
        )
        return [*before, failed.with_traceback(None), *after]

    def _decode(self, chunk: Encoded, constraints: Sequence[Constraint], options: Mapping[str, Any]) -> list[Outcome]:
        width = chunk.batch["candidate_mask"].shape[1]
        rules = [constraint.rows(chunk.rows, width).located(chunk.item_ids.locate) for constraint in constraints]
        batch = to_device(chunk.batch, self.model.device)
        output = self.model.generate(**batch, **options, constraints=rules, return_dict_in_generate=True)
        if output.slates.dim() == 3:
            raise ValueError("num_return_sequences above 1 needs an evaluator, which chooses one of the slates")
        slates, scores = output.slates.tolist(), output.step_scores.tolist()
        return [
            [
                {"item_id": item, "index": index, "score": score}
                for item, index, score in zip(*request, strict=False)  # padding at the end is left out
            ]
            for request in zip(chunk.item_ids.decode(output.slates), slates, scores, strict=True)
        ]


def _chunks(part: Encoded) -> Iterator[Encoded]:
    """The rows in runs that are decoded together, each padded to the longest of its own candidate lists only."""
    lengths = part.batch["candidate_mask"].sum(-1).tolist() if len(part) > 1 else [0]
    start, widest = 0, 0
    for row, length in enumerate(lengths):
        size, widest = row - start + 1, max(widest, length)
        if row > start and (size > _CHUNK or size * widest > _CHUNK_CANDIDATES):
            yield part.take(slice(start, row))
            start, widest = row, length
    yield part.take(slice(start, len(lengths)))
