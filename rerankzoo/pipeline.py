"""From raw requests to ordered items: model, feature extractor and, if wanted, evaluator in one object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel

from rerankzoo.backends import Backend, ExportedModel
from rerankzoo.errors import InfeasibleConstraintError
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.generation import Constraint, SlateEvaluator
from rerankzoo.generation.constraints import check_types
from rerankzoo.models.auto import AutoModelForReranking
from rerankzoo.models.base import RerankingPreTrainedModel

_CHUNK = 256  # requests decoded together: more gains nothing and takes memory

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
        self.evaluator: SlateEvaluator | None = None if evaluator is None else evaluator.eval()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str,
        evaluator: str | None = None,
        backend: Backend = "eager",
        **kwargs: Any,
    ) -> RerankingPipeline:
        """Loads a checkpoint.

        Args:
            pretrained_model_name_or_path: A folder or Hub id with model and feature extractor.
            evaluator: A folder or Hub id with an evaluator.
            backend: What decodes: `"eager"`, the model itself, or, from a folder made by `rerankzoo export`, its graph:
                `"onnx"` or `"aoti"`. A graph decodes as it was exported to, and has no evaluator.
            **kwargs: Passed to every `from_pretrained`: `revision`, `token`, `cache_dir`, `local_files_only`...

        Returns:
            The pipeline.

        Raises:
            ValueError: If the backend is unknown, the folder's graph is of another format, or an evaluator was given
                for a graph.
            FileNotFoundError: If a graph is asked for where there is none.
        """
        if backend != "eager" and evaluator is not None:
            raise ValueError(f"backend {backend!r} decodes one slate per request; an evaluator needs backend='eager'")
        return cls(
            AutoModelForReranking.from_pretrained(pretrained_model_name_or_path, **kwargs)
            if backend == "eager"
            else ExportedModel.from_pretrained(pretrained_model_name_or_path, backend, **kwargs),
            RerankingFeatureExtractor.from_pretrained(pretrained_model_name_or_path, **kwargs),
            None if evaluator is None else AutoModel.from_pretrained(evaluator, **kwargs),
        )

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


def _chunks(size: int) -> list[slice]:
    return [slice(start, start + _CHUNK) for start in range(0, size, _CHUNK)]
