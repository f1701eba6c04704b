from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from rerankzoo.cli.evaluate import EvaluationRun
from rerankzoo.data.datamodule import RerankingDataModule
from rerankzoo.data.folder import write_data_folder
from rerankzoo.errors import RecipeError
from rerankzoo.evaluation import Decoding, LambdaMART, print_table
from rerankzoo.features import FeatureSchema, FieldSpec, TargetSpec
from rerankzoo.models.pointwise import PointwiseConfig, PointwiseForReranking

SCHEMA = FeatureSchema(
    name="graded",
    item_id="item",
    fields=(
        FieldSpec(name="wide", group="request", kind="categorical"),
        FieldSpec(name="size", group="candidate", kind="numeric"),
        FieldSpec(name="kind", group="candidate", kind="categorical"),
    ),
    targets=(TargetSpec(name="grade", candidate_feedback="grades", gain="exponential"),),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RerankingDataModule:
    """Documents of which larger ones are better if the request is wide, and smaller ones otherwise."""
    folder, rng = tmp_path_factory.mktemp("graded") / "data", np.random.default_rng(0)

    def row() -> dict[str, Any]:
        size, wide = rng.normal(size=8), int(rng.integers(2))
        grades = np.clip(np.round(1 + (2 * wide - 1) * 2 * size), 0, 4)
        kinds = rng.integers(3, size=8)
        return {"item": list(range(8)), "wide": wide, "size": size, "kind": kinds, "grades": grades}

    tables = {split: pa.Table.from_pylist([row() for _ in range(n)]) for split, n in
              {"train": 150, "validation": 40, "test": 60}.items()}  # fmt: skip
    write_data_folder(folder, tables, SCHEMA, {"source": "generated", "protocol": "grades"})
    module = RerankingDataModule(str(folder))
    module.setup()
    return module


def test_lambdamart_is_a_row_of_an_evaluation_without_slates(data: RerankingDataModule, capsys: Any) -> None:
    torch.manual_seed(0)
    config = PointwiseConfig(
        feature_schema=data.extractor.schema.to_dict(), slate_size=3, hidden_size=8, loss="softmax"
    )
    run = EvaluationRun(data.splits, data.extractor.schema, data.metadata, lambdamart=True, counterfactual=True)
    decodings = [Decoding("greedy", {"num_beams": 1})]
    found = run.evaluate("untrained", PointwiseForReranking(config), data.extractor, 0, decodings)
    assert [row.key for row in found.rows] == [("random", "sample"), ("LambdaMART", "sort"), ("untrained", "greedy")]
    assert found.row("LambdaMART", "sort").metrics["ndcg@3"] > 0.9 > found.row("random", "sample").metrics["ndcg@3"]
    assert "LightGBM" in found.protocol["baselines"]["LambdaMART"]
    assert found.protocol["labels"]["definition"].startswith("exponential gain")
    print_table([found])
    assert "LambdaMART" in capsys.readouterr().out
    again = run.evaluate("untrained", PointwiseForReranking(config), data.extractor, 1, decodings)
    assert again.row("LambdaMART", "sort").slates == found.row("LambdaMART", "sort").slates  # fitted once
    with pytest.raises(RecipeError, match="lambdamart: there is no split 'validation'"):
        EvaluationRun({"train": data.split("train")}, data.extractor.schema, None, lambdamart=True)


def test_lambdamart_learns_from_what_was_shown(schema: FeatureSchema, extractor: Any, make_rows: Any) -> None:
    from datasets import Dataset

    tables = [
        Dataset.from_list([row for seed in seeds for row in make_rows(seed)]) for seeds in (range(9), range(9, 12))
    ]
    fitted = LambdaMART.fit(*tables, extractor, k=4)
    batch = extractor(make_rows(20))
    scores = fitted.scores(batch)
    assert scores.shape == batch["candidate_mask"].shape
    assert scores.isfinite().all()
    # Beside the numbers of candidate and request, the ids of both are categories.
    assert fitted.booster.num_feature() == 5 + 1 + 2 + 1
