"""What must work with the core dependencies alone, without any extra: `python tests/core_imports.py`.

Uses every public name that is not about training, fits an extractor, makes a model, saves both, loads them as a
pipeline and reranks a request. The names that train must say what is missing. CI runs this where no extra is installed,
and `make test` where the extras are hidden.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

#: Import names of the packages of the extras "train", "data" and "serve".
EXTRAS = (
    "datasets",
    "duckdb",
    "fastapi",
    "httptools",
    "jsonargparse",
    "lightgbm",
    "lightning",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pandas",
    "prometheus_client",
    "pyarrow",
    "pydantic",
    "torchmetrics",
    "uvicorn",
    "uvloop",
    "wandb",
)
#: Public names that train or read data sets.
TRAINING = ("RerankingDataModule", "RerankingModule", "SimulatorDataModule")


def hide(names: Iterable[str] = EXTRAS) -> None:
    """Makes packages look as if they were not installed."""
    for name in names:
        sys.modules[name] = None  # type: ignore[assignment]


def check() -> None:
    """Raises an exception if anything needs an extra that should not."""
    import rerankzoo

    _import_lazily()
    for name in rerankzoo.__all__:
        if name not in TRAINING:
            getattr(rerankzoo, name)
    for name in TRAINING:
        try:
            getattr(rerankzoo, name)
        except ImportError as error:
            if str(error.name).split(".")[0] not in EXTRAS:
                raise
        else:
            raise AssertionError(f"{name} could be imported: this environment has an extra")
    _rerank()
    loaded = sorted(name for name in EXTRAS if sys.modules.get(name) is not None)
    if loaded:
        raise AssertionError(f"{loaded} were loaded")


def _import_lazily() -> None:
    """`import rerankzoo` loads nothing large, and transformers finds our classes all the same."""
    loaded = sorted({"numpy", "torch", "transformers"} & sys.modules.keys())
    if loaded:
        raise AssertionError(f"import rerankzoo has loaded {loaded}")
    from transformers import AutoConfig

    if type(AutoConfig.for_model("prm")).__name__ != "PRMConfig":
        raise AssertionError("AutoConfig does not find PRM's config")


def _rerank() -> None:
    from rerankzoo import (
        FeatureSchema,
        FieldSpec,
        NAR4RecConfig,
        NAR4RecForReranking,
        RerankingFeatureExtractor,
        RerankingPipeline,
        TargetSpec,
    )

    schema = FeatureSchema(
        name="core",
        item_id="item_id",
        fields=(
            FieldSpec(name="item_id", group="candidate", kind="categorical"),
            FieldSpec(name="price", group="candidate", kind="numeric", transforms=("standardize",)),
        ),
        targets=(TargetSpec(name="click"),),
    )
    request = {"item_id": [3, 1, 2], "price": [1.0, 2.5, 0.5]}
    extractor = RerankingFeatureExtractor(schema).fit([request])
    config = NAR4RecConfig(feature_schema=extractor.schema.to_dict(), slate_size=2, utility_threshold=1.0)
    with tempfile.TemporaryDirectory() as folder:
        NAR4RecForReranking(config).save_pretrained(folder)
        extractor.save_pretrained(folder)
        items = RerankingPipeline.from_pretrained(folder)(request, num_beams=2)
    if len(items) != 2 or not {item["item_id"] for item in items} <= {1, 2, 3}:
        raise AssertionError(f"the pipeline returned {items}")


if __name__ == "__main__":
    if "--hide" in sys.argv[1:]:
        hide()
    check()
    import rerankzoo

    names = len(rerankzoo.__all__) - len(TRAINING)
    print(f"{names} public names of {Path(rerankzoo.__file__).parent} work without extras")
