from __future__ import annotations

from typing import Any, ClassVar

from rerankzoo.models.nlgr import NLGRForReranking
from tests.models.common import GeneratorTestSuite

TINY: dict[str, Any] = {
    "slate_size": 4,
    "hidden_size": 32,
    "embedding_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_slot_layers": 1,
}


class TestNLGRForReranking(GeneratorTestSuite):
    model_class = NLGRForReranking
    config_values: ClassVar[dict[str, Any]] = TINY
    own_calls: ClassVar[dict[str, dict[str, Any]]] = {
        "edits once": {"num_refinements": 1},
        "edits": {"num_refinements": 4},
    }
