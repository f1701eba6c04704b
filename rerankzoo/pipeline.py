"""From raw requests to ordered items: model, feature extractor and, if wanted, evaluator in one object."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast, get_args, overload

from transformers import AutoModel

from rerankzoo.backends import Backend, ExportedModel
from rerankzoo.errors import HubError, InfeasibleConstraintError, RerankingDataError
from rerankzoo.features.encoded import Encoded
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.generation import Constraint, RerankingGenerationConfig
from rerankzoo.generation.constraints.constraint import constraint_list
from rerankzoo.hub.card import CARD_FILE, CardDetails, write_card
from rerankzoo.hub.push import Push, push_folder
from rerankzoo.hub_errors import one_line_errors
from rerankzoo.models.auto import EVALUATOR_FOLDER, AutoModelForReranking, evaluator_subfolder
from rerankzoo.models.base import RerankingPreTrainedModel

logger = logging.getLogger(__name__)

_CHUNK = 128  # requests decoded together: the activations of more outgrow a CPU's cache
_CHUNK_CANDIDATES = _CHUNK * 256  # padded: of requests with thousands of candidates, fewer are decoded together

OnError = Literal["raise", "skip", "report"]
RerankedItem = dict[str, Any]
#: What one request gets: its items, or with `on_error` what is in their place.
Outcome = list[RerankedItem] | RerankingDataError | InfeasibleConstraintError | None


class RerankingPipeline:
    """Reranks raw requests.

    Args:
        model: A model that generates slates, or its exported graph.
        extractor: The feature extractor it was trained with.
        evaluator: Chooses among several slates where `num_return_sequences` asks for them.

    Raises:
        SchemaMismatchError: If model or evaluator were trained with another extractor.

    Example:
        >>> pipeline = RerankingPipeline.from_pretrained("outputs/quickstart/degre")  # doctest: +SKIP
        >>> pipeline({"user_embedding": [...], "item_id": [3, 1, 2], ...}, slate_size=2)  # doctest: +SKIP
        [{'item_id': 2, 'index': 2, 'score': -0.31}, {'item_id': 3, 'index': 0, 'score': -0.52}]
    """

    def __init__(
        self,
        model: RerankingPreTrainedModel | ExportedModel,
        extractor: RerankingFeatureExtractor,
        evaluator: RerankingPreTrainedModel | None = None,
    ) -> None:
        for part in (model, evaluator):
            if part is not None:
                part.check_schema(extractor.schema)
        self.model = model if isinstance(model, ExportedModel) else model.eval()
        self.extractor = extractor
        self.evaluator = None if evaluator is None else evaluator.eval()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str,
        evaluator: str | bool | None = None,
        backend: Backend = "eager",
        **kwargs: Any,
    ) -> RerankingPipeline:
        """Loads a checkpoint.

        Args:
            pretrained_model_name_or_path: A folder or Hub id with model and feature extractor.
            evaluator: `True`: the one beside the model, in its subfolder `evaluator`; or a folder or Hub id of an
                evaluator, or of a generator with one beside it.
            backend: What decodes: `"eager"`, the model itself, or, from a folder made by `rerankzoo export`, its graph:
                `"onnx"` or `"aoti"`. A graph decodes as it was exported to, and has no evaluator.
            **kwargs: For every `from_pretrained`: `token`, `cache_dir`, `local_files_only`...; `revision` and
                `subfolder` are of the checkpoint, and not of an evaluator elsewhere.

        Returns:
            The pipeline.

        Raises:
            ValueError: If the backend is unknown, the folder's graph is of another format, or an evaluator was given
                for a graph.
            FileNotFoundError: If a graph is asked for where there is none.
            HubError: If anything is missing or cannot be reached; in one line that says what to do.
        """
        if backend != "eager" and evaluator:
            raise ValueError(f"backend {backend!r} decodes one slate per request; an evaluator needs backend='eager'")
        path, revision = pretrained_model_name_or_path, kwargs.get("revision")
        with one_line_errors(path, revision, kwargs.get("subfolder")):
            model = (
                _load_whole(AutoModelForReranking, path, kwargs)
                if backend == "eager"
                else ExportedModel.from_pretrained(path, backend, **kwargs)
            )
            extractor = RerankingFeatureExtractor.from_pretrained(path, **kwargs)
        return cls(model, extractor, _load_evaluator(path, evaluator, kwargs) if evaluator else None)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Saves the whole: model, feature extractor, the evaluator in the subfolder `evaluator`, and a model card.

        Args:
            save_directory: The folder, created if need be. A card that is there is kept.

        Raises:
            ValueError: If the model is an exported graph: its folder is whole already.
        """
        if isinstance(self.model, ExportedModel):
            raise ValueError("an exported graph is not saved again: copy its folder, or save the model it is of")
        folder = Path(save_directory)
        self.model.save_pretrained(folder)
        self.extractor.save_pretrained(folder)
        if self.evaluator is not None:
            self.evaluator.save_pretrained(folder / EVALUATOR_FOLDER)
            self.extractor.save_pretrained(folder / EVALUATOR_FOLDER)
        if not (folder / CARD_FILE).exists():
            write_card(folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Pushes the whole in one commit (see `rerankzoo.hub.push.push_folder`).

        A card that the repository has is kept.

        Args:
            repo_id: The repository, made if there is none.
            commit_message: Title of the commit.
            private: Whether to make the repository private; `None`: as the owner's default says.
            token: Default: HF_TOKEN, or that of `hf auth login`.
            revision: The branch, made if there is none; default: main.
            create_pr: Open a pull request instead.

        Returns:
            The address of the commit or pull request.

        Raises:
            HubError: If the Hub refuses or stays unreachable; the message names the folder where the files are kept.
        """
        folder = Path(tempfile.mkdtemp(prefix="rerankzoo-"))
        self.save_pretrained(folder)
        write_card(folder, CardDetails(repo_id))
        push = Push(folder, repo_id, private, revision, create_pr, commit_message, keep=(CARD_FILE,))
        pushed = push_folder(push, token)
        shutil.rmtree(folder)  # only now: after a failure the files are all there is
        return pushed.url

    @overload
    def __call__(
        self,
        requests: Sequence[Mapping[str, Any]],
        constraints: Sequence[Constraint] = (),
        on_error: Literal["raise"] = "raise",
        **parameters: Any,
    ) -> list[list[RerankedItem]]: ...
    @overload
    def __call__(
        self,
        requests: Any,
        constraints: Sequence[Constraint] = (),
        on_error: Literal["raise"] = "raise",
        **parameters: Any,
    ) -> list[RerankedItem] | list[list[RerankedItem]]: ...
    @overload
    def __call__(
        self, requests: Any, constraints: Sequence[Constraint] = (), on_error: OnError = "raise", **parameters: Any
    ) -> Outcome | list[Outcome]: ...
    def __call__(
        self, requests: Any, constraints: Sequence[Constraint] = (), on_error: OnError = "raise", **parameters: Any
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
                alone, and the answer stays as long as the requests, so that `zip(requests, answer)` is right. What is
                wrong with the call or the whole table (a parameter, a constraint, a missing column of a DataFrame) is
                raised in any case.
            **parameters: Decoding parameters, such as `slate_size=4, num_beams=4` (see `RerankingGenerationConfig`).

        Returns:
            For one request a list of items in display order, each a dictionary with `item_id`, `index` (position among
            the request's candidates) and `score` (what the model's scorer gave to the choice: a log-probability, or the
            value of the slate up to it). For many requests a list of such lists.

        Raises:
            RerankingDataError: If a request cannot be used; it names field and row.
            InfeasibleConstraintError: If a request has no slate that keeps the constraints; it names row and
                constraints.
            ValueError: If a parameter is unknown, or several slates per request are asked for without an evaluator.
        """
        constraints = constraint_list(constraints)
        if on_error not in get_args(OnError):
            raise ValueError(f"on_error must be one of {', '.join(get_args(OnError))}, got {on_error!r}")
        if unknown := sorted(set(parameters) - set(RerankingGenerationConfig.names())):
            raise ValueError(
                f"unknown parameters {unknown}; decoding parameters are {list(RerankingGenerationConfig.names())}"
            )
        parts, errors = self._read(requests, on_error)
        answer: list[Outcome] = [None] * (sum(map(len, parts)) + len(errors))
        for row, error in errors.items():
            answer[row] = error
        for part in parts:
            whole = len(part) == len(answer)
            for constraint in constraints:
                constraint.check_fit(len(answer), part.batch["candidate_mask"].shape[1] if whole else None)
            for chunk in _chunks(part):
                answer[chunk.rows] = self._rank(chunk, constraints, on_error, parameters)
        if on_error == "skip":
            answer = _without_errors(answer)
        return answer[0] if self.extractor.is_single(requests) else answer

    def _read(self, requests: Any, on_error: OnError) -> tuple[list[Encoded], dict[int, RerankingDataError]]:
        """The usable rows, and the errors of the others."""
        return ([self.extractor.read(requests)], {}) if on_error == "raise" else self.extractor.usable(requests)

    def _rank(
        self,
        chunk: Encoded,
        constraints: Sequence[Constraint],
        on_error: OnError,
        parameters: Mapping[str, Any],
    ) -> list[Outcome]:
        """The items of some rows that are decoded together, or the error of those that cannot be."""
        try:
            return self._decode(chunk, constraints, parameters)
        except (InfeasibleConstraintError, RerankingDataError) as error:
            failed = _counted_from(chunk.rows.start, error)
            if on_error == "raise" or failed.row is None:
                raise failed from error
        # Outside the handler: it keeps the failed decoding's tensors in memory.
        place = failed.row - chunk.rows.start
        rest = (slice(0, place), slice(place + 1, len(chunk)))
        before, after = (
            self._rank(chunk.take(rows), constraints, on_error, parameters) if rows.start < rows.stop else []
            for rows in rest
        )
        return [*before, failed.with_traceback(None), *after]

    def _decode(
        self, chunk: Encoded, constraints: Sequence[Constraint], parameters: Mapping[str, Any]
    ) -> list[Outcome]:
        width = chunk.batch["candidate_mask"].shape[1]
        own = [constraint.rows(chunk.rows, width).located(chunk.item_ids.locate) for constraint in constraints]
        inputs = {key: value.to(self.model.device) for key, value in chunk.batch.items()}
        options = {**parameters, "return_dict_in_generate": True}
        output: Any = self.model.generate(**inputs, evaluator=self.evaluator, constraints=own, **options)
        if output.slates.dim() == 3:
            raise ValueError("num_return_sequences above 1 needs an evaluator, which chooses one of the slates")
        names = chunk.item_ids.decode(output.slates)
        return [
            [
                {"item_id": item, "index": index, "score": score}
                for item, index, score in zip(items, slate, scores, strict=False)  # padding at the end is left out
            ]
            for items, slate, scores in zip(names, output.slates.tolist(), output.step_scores.tolist(), strict=True)
        ]


def _load_evaluator(path: str, evaluator: str | bool, options: Mapping[str, Any]) -> RerankingPreTrainedModel:
    """The evaluator beside a checkpoint (`True`), or of its own folder or repository."""
    shared = dict(options)
    revision, subfolder = shared.pop("revision", None), shared.pop("subfolder", "")
    if evaluator is True:
        source, place = path, {"revision": revision, "subfolder": str(PurePosixPath(subfolder, EVALUATOR_FOLDER))}
    else:
        source = str(evaluator)
        place = {"subfolder": evaluator_subfolder(source, **shared)}
    with one_line_errors(source, **place):
        return _load_whole(AutoModel, source, {**shared, **place})


def _load_whole(auto: Any, path: str, options: Mapping[str, Any]) -> RerankingPreTrainedModel:
    """A model all of whose weights are in its checkpoint.

    Raises:
        HubError: If some are missing: transformers would go on with random ones, and only print which.
    """
    # Without the flag transformers would ask on the terminal whether to run a checkpoint's code.
    options = {"trust_remote_code": False, **options}
    model, report = auto.from_pretrained(path, output_loading_info=True, **options)
    if missing := sorted(map(str, report["missing_keys"])):
        raise HubError(
            f"cannot load {path}: its file of weights lacks {', '.join(missing[:3])} ({len(missing)} in all)"
        )
    return cast(RerankingPreTrainedModel, model)


def _chunks(part: Encoded) -> Iterator[Encoded]:
    """The rows in runs that are decoded together, each padded to the longest of its own candidate lists only."""
    lengths = part.batch["candidate_mask"].sum(-1).tolist()
    start, widest = 0, 0
    for row, length in enumerate(lengths):
        size, widest = row - start + 1, max(widest, length)
        if row > start and (size > _CHUNK or size * widest > _CHUNK_CANDIDATES):
            yield part.take(slice(start, row))
            start, widest = row, length
    yield part.take(slice(start, len(lengths)))


def _counted_from(
    first: int, error: RerankingDataError | InfeasibleConstraintError
) -> RerankingDataError | InfeasibleConstraintError:
    """An error about a row of a chunk, as one about a row of all requests."""
    if isinstance(error, InfeasibleConstraintError):
        return InfeasibleConstraintError(error.message, row=first + error.row, constraints=error.constraints)
    return error  # names the row by the batch's request_index


def _without_errors(answer: list[Outcome]) -> list[Outcome]:
    """The answer with `None` in the place of errors, which are logged."""
    errors = [outcome for outcome in answer if isinstance(outcome, Exception)]
    if errors:
        logger.warning("%d of %d requests were skipped; the first: %s", len(errors), len(answer), errors[0])
    return [None if isinstance(outcome, Exception) else outcome for outcome in answer]
