"""One exported graph for all tests of serving: exporting takes ten seconds or more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rerankzoo.cli.main import main
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.models.pointwise import PointwiseConfig, PointwiseForReranking


def make_model(extractor: RerankingFeatureExtractor, seed: int = 0) -> PointwiseForReranking:
    torch.manual_seed(seed)
    config = PointwiseConfig(feature_schema=extractor.schema.to_dict(), hidden_size=8, embedding_size=4)
    return PointwiseForReranking(config).eval()


@pytest.fixture(scope="session")
def model_folder(extractor: RerankingFeatureExtractor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving") / "model"
    make_model(extractor).save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def onnx_folder(model_folder: Path) -> Path:
    """The model exported with greedy decoding of three positions, with features and demands, by the command."""
    out = model_folder.with_name("onnx")
    options = ["--format", "onnx", "--slate-size", "3", "--with-features", "--limit-field", "brand"]
    assert main(["export", str(model_folder), *options, "--out", str(out)]) == 0
    return out
