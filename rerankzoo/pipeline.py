"""From raw requests to ordered items: model, feature extractor and, if wanted, evaluator in one object."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel

from rerankzoo.backends import Backend, ExportedModel
from rerankzoo.errors import InfeasibleConstraintError
from rerankzoo.faults import one_line_errors
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.generation import Constraint
from rerankzoo.generation.constraints import check_types
from rerankzoo.hub.card import CARD_FILE, CardDetails, write_card
from rerankzoo.hub.push import Push, push_folder
from rerankzoo.models.auto import EVALUATOR_FOLDER, AutoModelForReranking, evaluator_subfolder
from rerankzoo.models.base import RerankingPreTrainedModel

_CHUNK = 128  # requests decoded together: the activations of more outgrow a CPU's cache

RerankedItem = dict[str, Any]


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
                AutoModelForReranking.from_pretrained(path, **kwargs)
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
        self, requests: Sequence[Mapping[str, Any]], constraints: Sequence[Constraint] = (), **parameters: Any
    ) -> list[list[RerankedItem]]: ...
    @overload
    def __call__(
        self, requests: Any, constraints: Sequence[Constraint] = (), **parameters: Any
    ) -> list[RerankedItem] | list[list[RerankedItem]]: ...
    def __call__(
        self, requests: Any, constraints: Sequence[Constraint] = (), **parameters: Any
    ) -> list[RerankedItem] | list[list[RerankedItem]]:
        """Chooses and orders the items of one request or of many.

        Args:
            requests: One request as a dictionary, or many: a list of dictionaries, a dictionary of columns, a pandas or
                Arrow table, a `datasets.Dataset`. Columns are those of the schema; label columns are not needed.
            constraints: What slates must keep, such as `[Exclude([17, 4]), AtMost(2, "category")]`, with items by their
                ids (see `rerankzoo.generation.constraints`).
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
        batch = self.extractor(requests)
        check_types(constraints)
        locate = partial(self.extractor.locate, data=requests)
        located = [constraint.located(locate) for constraint in constraints]
        found = [self._generate(batch, rows, located, parameters) for rows in _chunks(len(batch["candidate_mask"]))]
        slates, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
        ranked = [
            [
                {"item_id": item, "index": index, "score": score}
                for item, index, score in zip(items, slate, step_scores, strict=False)  # padding at the end is left out
            ]
            for items, slate, step_scores in zip(
                self.extractor.decode(slates, requests), slates.tolist(), scores.tolist(), strict=True
            )
        ]
        return ranked[0] if self._is_one(requests) else ranked

    def _is_one(self, requests: Any) -> bool:
        """Tells one request from a dictionary of columns, whose lists of items are lists of lists."""
        if not isinstance(requests, Mapping):
            return False
        items = requests[self.extractor.schema.item_id]
        return not isinstance(items[0], list | tuple | np.ndarray)

    def _generate(
        self, batch: dict[str, Tensor], rows: slice, constraints: Sequence[Constraint], parameters: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Slates (B, M) of some rows of a batch and the score of every choice (B, M)."""
        inputs = {key: value[rows].to(self.model.device) for key, value in batch.items()}
        options = {**parameters, "return_dict_in_generate": True}
        own = [constraint.rows(rows) for constraint in constraints]
        try:
            output: Any = self.model.generate(**inputs, evaluator=self.evaluator, constraints=own, **options)
        except InfeasibleConstraintError as error:  # counts rows from the first of the chunk
            row = error.row + rows.start
            raise InfeasibleConstraintError(error.message, row=row, constraints=error.constraints) from error
        if output.slates.dim() == 3:
            raise ValueError("num_return_sequences above 1 needs an evaluator, which chooses one of the slates")
        return output.slates, output.step_scores


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
        return AutoModel.from_pretrained(source, **shared, **place)


def _chunks(size: int) -> list[slice]:
    return [slice(start, start + _CHUNK) for start in range(0, size, _CHUNK)]
