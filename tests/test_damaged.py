"""Files of a checkpoint or data folder that were cut off or changed are recognised and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import AutoModel, PreTrainedModel

from rerankzoo.cli.main import main
from rerankzoo.data.datamodule import RerankingDataModule
from rerankzoo.errors import HubError, SchemaMismatchError, UnreadableFileError
from rerankzoo.features import FeatureSchema, RerankingFeatureExtractor
from rerankzoo.models.nar4rec import NAR4RecConfig, NAR4RecEvaluator, NAR4RecForReranking
from rerankzoo.pipeline import RerankingPipeline


@pytest.fixture
def checkpoint(schema: FeatureSchema, extractor: RerankingFeatureExtractor, tmp_path: Path) -> Path:
    config = NAR4RecConfig(
        feature_schema=extractor.schema.to_dict(), slate_size=3, hidden_size=8, embedding_size=4, num_attention_heads=2
    )
    NAR4RecForReranking(config).save_pretrained(tmp_path / "best")
    extractor.save_pretrained(tmp_path / "best")
    return tmp_path / "best"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, change])
def test_weights_are_verified_when_asked_for(checkpoint: Path, damage: Callable[[Path], None]) -> None:
    loaders = (AutoModel.from_pretrained, NAR4RecForReranking.from_pretrained, RerankingPipeline.from_pretrained)
    for load in loaders:
        load(str(checkpoint), verify=True)
    damage(checkpoint / "model.safetensors")
    for load in loaders:
        with pytest.raises(UnreadableFileError, match=r"best/model\.safetensors is damaged"):
            load(str(checkpoint), verify=True)
    (checkpoint / "SHA256SUMS").unlink()
    with pytest.raises(UnreadableFileError, match=r"best cannot be verified: SHA256SUMS not found"):
        AutoModel.from_pretrained(checkpoint, verify=True)


def test_weights_that_are_cut_off_are_named_in_any_case(checkpoint: Path) -> None:
    cut(checkpoint / "model.safetensors")
    with pytest.raises(UnreadableFileError, match=r"the weights of .*best are damaged"):
        AutoModel.from_pretrained(checkpoint)


def test_a_model_leaves_nothing_of_an_earlier_one(
    checkpoint: Path, extractor: RerankingFeatureExtractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = NAR4RecForReranking.from_pretrained(checkpoint)
    evaluator = NAR4RecEvaluator(generator.config)
    evaluator.save_pretrained(tmp_path / "fresh")
    extractor.save_pretrained(tmp_path / "fresh")
    for name in ("pytorch_model.bin", "ensemble.json", "member-0", "notes.txt"):
        (checkpoint / name).touch()
    generator.save_pretrained(checkpoint, max_shard_size="10KB")
    assert len(list(checkpoint.glob("model-*.safetensors"))) > 1
    assert not (checkpoint / "model.safetensors").exists()
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", lambda *arguments, **options: 1 / 0)
    before = sorted(path.name for path in checkpoint.iterdir())
    with pytest.raises(ZeroDivisionError):
        evaluator.save_pretrained(checkpoint)
    assert sorted(path.name for path in checkpoint.iterdir()) == before
    monkeypatch.undo()
    evaluator.save_pretrained(checkpoint)
    fresh = {path.name: path.read_bytes() for path in (tmp_path / "fresh").iterdir()}
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.name != "notes.txt"} == fresh
    assert (checkpoint / "notes.txt").exists()


def test_generation_config(checkpoint: Path) -> None:
    cut(checkpoint / "generation_config.json")
    with pytest.raises(UnreadableFileError, match=r"best/generation_config\.json is damaged"):
        AutoModel.from_pretrained(checkpoint)
    (checkpoint / "generation_config.json").unlink()
    AutoModel.from_pretrained(checkpoint)


@pytest.mark.parametrize("name", ["vocabularies.safetensors", "preprocessor_config.json"])
def test_extractor(checkpoint: Path, name: str) -> None:
    cut(checkpoint / name)
    for load in (RerankingFeatureExtractor.from_pretrained, RerankingPipeline.from_pretrained):
        with pytest.raises(UnreadableFileError, match=f"best/{name} is (damaged|invalid JSON)"):
            load(str(checkpoint))


def test_vocabulary_with_one_bit_changed(checkpoint: Path) -> None:
    change(checkpoint / "vocabularies.safetensors")
    with pytest.raises(SchemaMismatchError, match=r"best/vocabularies\.safetensors: .* is not the one"):
        RerankingFeatureExtractor.from_pretrained(checkpoint)


def test_fingerprint_that_is_none(checkpoint: Path) -> None:
    path = checkpoint / "preprocessor_config.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["schema"]["fingerprint"] = "two\nlines"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(SchemaMismatchError) as found:
        RerankingFeatureExtractor.from_pretrained(checkpoint)
    assert len(str(found.value).splitlines()) == 1


def test_config(checkpoint: Path) -> None:
    cut(checkpoint / "config.json")
    with pytest.raises(HubError, match=r"config\.json.* is not a valid JSON file"):
        RerankingPipeline.from_pretrained(str(checkpoint))


@pytest.mark.parametrize("how", ["cut", "one bit"])
def test_table(data_folder: Path, tmp_path: Path, how: str) -> None:
    folder = shutil.copytree(data_folder, tmp_path / "data")
    path = folder / "validation.parquet"
    if how == "cut":
        cut(path)
    else:
        content, column = bytearray(path.read_bytes()), pq.read_metadata(path).row_group(0).column(0)
        content[column.data_page_offset + column.total_compressed_size - 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(UnreadableFileError, match=r"data/validation\.parquet is damaged"):
        RerankingDataModule(str(folder)).setup()


def test_a_damaged_file_is_one_line_and_status_2(
    checkpoint: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut(checkpoint / "model.safetensors")
    arguments: list[Any] = ["evaluate", checkpoint, "--data", data_folder]
    assert main(list(map(str, arguments))) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"rerankzoo evaluate: the weights of {checkpoint} are damaged")
