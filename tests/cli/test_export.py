from __future__ import annotations

from pathlib import Path

import pytest

from rerankzoo.cli.main import main
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.models.nar4rec import NAR4RecConfig, NAR4RecEvaluator, NAR4RecForReranking

# What the command writes: tests/serving/test_export.py.


@pytest.fixture(scope="module")
def root(extractor: RerankingFeatureExtractor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator and an evaluator."""
    folder = tmp_path_factory.mktemp("models")
    config = NAR4RecConfig(feature_schema=extractor.schema.to_dict(), hidden_size=8, embedding_size=4)
    for name, head in {"generator": NAR4RecForReranking, "evaluator": NAR4RecEvaluator}.items():
        head(config).save_pretrained(folder / name)
        extractor.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generator", "--format", "onnx", "--num-candidates", "50"], "leave out --num-candidates"),
        (["generator", "--format", "aoti"], "format aoti needs --num-candidates"),
        (["generator", "--format", "onnx", "--num-beams", "3", "--penalty-alpha", "0.1"], "one decoding strategy"),
        (["generator", "--format", "onnx", "--limit-field", "brand"], "are of the graph that --with-features writes"),
        (["generator", "--format", "aoti", "--num-candidates", "9", "--with-features"], "only an ONNX graph"),
        (["generator", "--format", "onnx", "--slate-size", "0"], "--slate-size: expected PositiveInt, got '0'"),
    ],
)
def test_wrong_options(root: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, *options = arguments
    assert main(["export", str(root / name), *options, "--out", str(root / "graph")]) == 2
    assert message in capsys.readouterr().err
    assert not (root / "graph").exists()


def test_an_evaluator_is_no_generator(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(root / "evaluator"), "--format", "onnx", "--out", str(root / "graph")]) == 2
    error = capsys.readouterr().err.strip()
    assert "holds ['NAR4RecEvaluator'], not a model that generates" in error
    assert len(error.splitlines()) == 1
    assert not (root / "graph").exists()


def test_impossible_decoding_is_one_line_and_status_2(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(root / "generator")
    assert main(["export", model, "--format", "onnx", "--slate-size", "9", "--out", str(root / "graph")]) == 2
    error = capsys.readouterr().err
    assert "rerankzoo export: NAR4RecForReranking cannot decode like this: slate_size must be at most 4" in error
    assert not (root / "graph").exists()


def test_no_model_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nar4rec"}', encoding="utf-8")
    assert main(["export", str(tmp_path), "--format", "onnx", "--out", str(tmp_path / "graph")]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"rerankzoo export: cannot load {tmp_path}: ")
    assert len(error.splitlines()) == 1
