"""`RerankingFeatureExtractor`: to a reranker what a tokenizer is to a language model.

Fitted on training rows, it turns raw rows into the batch of `rerankzoo.features.batch` and slates back into item ids,
and is saved, loaded and pushed to the Hub with the model.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor
from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.utils import cached_file

from rerankzoo.errors import RerankingDataError, SchemaError, SchemaMismatchError
from rerankzoo.features.batch import PADDING_INDEX
from rerankzoo.features.columns import Column, Table, read_table
from rerankzoo.features.encoding import (
    IdType,
    Moments,
    Statistics,
    encode_ids,
    encode_numbers,
    id_type,
    pack,
    transform,
)
from rerankzoo.features.labels import (
    Arrays,
    candidate_column,
    read_candidate_feedback,
    read_candidate_values,
    read_candidates,
    read_slates,
    refuse_missing_lists,
)
from rerankzoo.features.ragged import Ragged
from rerankzoo.features.schema import FeatureSchema, FieldSpec, Group
from rerankzoo.features.vocabulary import (
    FIRST_ID,
    IntegerCounter,
    IntegerVocabulary,
    StringCounter,
    Vocabulary,
    vocabulary_digest,
    vocabulary_from_arrays,
)

CONFIG_NAME: Final = "preprocessor_config.json"
VOCABULARY_NAME: Final = "vocabularies.safetensors"

_FIT_ROWS = 16_384
_BASE_DEPTH: dict[Group, int] = {"request": 0, "candidate": 1, "history": 1}


class RerankingFeatureExtractor(FeatureExtractionMixin):
    """Turns raw requests into batches, and slates into item ids.

    Example:
        >>> extractor = RerankingFeatureExtractor(schema).fit(train)
        >>> batch = extractor({"user_id": 7, "item_id": [3, 1, 2], "price": [9.5, None, 2.0]})
        >>> extractor.decode(torch.tensor([[2, 0]]), {"user_id": 7, "item_id": [3, 1, 2]})
        [[2, 3]]

    Args:
        schema: What the columns are. A fitted schema is accepted too: fitting computes everything anew.
    """

    model_input_names = ["request_categorical", "candidate_categorical"]

    def __init__(self, schema: FeatureSchema) -> None:
        super().__init__()
        self._declared = _unfitted(schema)
        self._fitted: FeatureSchema | None = None
        self._types: dict[str, IdType | None] = {}
        self._vocabularies: dict[str, Vocabulary] = {}
        self._statistics: dict[str, Statistics] = {}

    @property
    def schema(self) -> FeatureSchema:
        """The fitted schema, with `num_embeddings` and `fingerprint`.

        Raises:
            SchemaError: If the extractor was not fitted.
        """
        if self._fitted is None:
            raise SchemaError(f"the extractor of schema {self._declared.name!r} is not fitted; call fit(data) first")
        return self._fitted

    # --- fitting ----------------------------------------------------------------------------------------------------

    def fit(self, data: Any) -> RerankingFeatureExtractor:
        """Learns vocabularies and statistics; call it on training rows only.

        Rows are read in slices, so that memory grows with the vocabularies only. A field that shares another's
        vocabulary adds nothing to it.

        Args:
            data: Any supported table (see `rerankzoo.features.columns`).

        Returns:
            The extractor itself.

        Raises:
            RerankingDataError: If a value cannot be used; it names field, row and value.
        """
        fitters = [_make_fitter(spec) for spec in self._declared.fields]
        table = read_table(data, self._declared.item_id)
        for start in range(0, table.rows, _FIT_ROWS):
            rows = table.slice(start, start + _FIT_ROWS)
            for fitter in fitters:
                fitter.update(rows)
        self._types, self._vocabularies, self._statistics = {}, {}, {}
        for fitter in fitters:
            fitter.finish(self)
        self._fitted = self._finished_schema()
        return self

    def _finished_schema(self) -> FeatureSchema:
        sizes = {}
        for spec in self._declared.select_categorical():
            owner = self._declared.owner(spec)
            size = owner.hash_size if owner.hash_size is not None else len(self._vocabularies[owner.name])
            sizes[spec.name] = FIRST_ID + size
        fields = tuple(
            replace(spec, num_embeddings=sizes[spec.name]) if spec.name in sizes else spec
            for spec in self._declared.fields
        )
        schema = replace(self._declared, fields=fields)
        return replace(schema, fingerprint=self._fingerprint(schema, self._digests()))
