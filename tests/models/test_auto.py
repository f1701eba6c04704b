from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

from rerankzoo.errors import HubError
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.generation import SlateGenerationMixin
from rerankzoo.models.auto import AutoModelForReranking, evaluator_subfolder, model_class
from rerankzoo.models.base import RerankingConfig
from rerankzoo.models.nar4rec import NAR4RecConfig, NAR4RecEvaluator, NAR4RecForReranking
from tests.families import HEADS
from tests.models.common import EvaluatorTestSuite, GeneratorTestSuite, ModelTestSuite, VariantTestSuite


def suites(base: type[VariantTestSuite] = VariantTestSuite) -> list[type[VariantTestSuite]]:
    """All suite classes of the test files beside this one."""
    for path in Path(__file__).parent.glob("test_*.py"):
        importlib.import_module(f"tests.models.{path.stem}")
    return [suite for child in base.__subclasses__() for suite in (child, *suites(child))]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_every_registered_model_passes_the_common_suite(head: Any) -> None:
    whole = [suite for suite in suites(ModelTestSuite) if getattr(suite, "model_class", None) is head]
    assert whole, f"no subclass of ModelTestSuite tests {head.__name__}"
    for suite in whole:
        assert issubclass(suite, GeneratorTestSuite) == head.can_generate()
        assert issubclass(suite, EvaluatorTestSuite) == hasattr(head, "score_slates")


def test_every_suite_is_collected_whole() -> None:
    checked = [suite for suite in suites() if suite.__module__ != VariantTestSuite.__module__]
    assert checked
    for suite in checked:
        assert suite.__name__.startswith("Test")
        assert getattr(suite, "__test__", True)
        assert not getattr(suite, "pytestmark", []), f"{suite.__name__} is marked as a whole"
        inherited = {name for name in dir(suite) if name.startswith("test")} - set(vars(suite))
        for name in inherited:
            base = next(base for base in suite.__mro__ if name in vars(base))
            assert base.__module__ == VariantTestSuite.__module__
            marks = {mark.name for mark in getattr(getattr(suite, name), "pytestmark", [])}
            assert marks <= {"parametrize", "slow"}, f"{name} may be left out: {marks}"


def test_no_suite_replaces_a_common_test() -> None:
    with pytest.raises(TypeError, match="test_overfits_eight_requests"):
        type("TestLazy", (GeneratorTestSuite,), {"test_overfits_eight_requests": None})


def test_names_of_architectures() -> None:
    assert model_class("NAR4RecEvaluator") is NAR4RecEvaluator
    with pytest.raises(ValueError, match=r"'NAR4Rec' is not one of .*'NAR4RecForReranking'"):
        model_class("NAR4Rec")


def test_auto_classes_know_every_family(extractor: RerankingFeatureExtractor) -> None:
    generating = {head.config_class for head in HEADS if issubclass(head, SlateGenerationMixin)}
    for config_class in {head.config_class for head in HEADS}:
        config = AutoConfig.for_model(config_class.model_type, feature_schema=extractor.schema.to_dict())
        assert type(config) is config_class
        assert issubclass(config_class, RerankingConfig)
        if config_class in generating:
            assert isinstance(AutoModelForReranking.from_config(config), SlateGenerationMixin)


def test_auto_feature_extractor_knows_ours(extractor: RerankingFeatureExtractor, tmp_path: Path) -> None:
    extractor.save_pretrained(tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(loaded) is RerankingFeatureExtractor
    assert loaded.to_dict() == extractor.to_dict()


@pytest.mark.parametrize("kind", [RerankingConfig, NAR4RecEvaluator, RerankingFeatureExtractor])
def test_source_files_are_never_copied_beside_a_checkpoint(kind: Any) -> None:
    kind.register_for_auto_class()  # as transformers does after loading with trust_remote_code
    assert kind._auto_class is None


def test_auto_model_for_reranking_refuses_an_evaluator(extractor: RerankingFeatureExtractor, tmp_path: Path) -> None:
    config = NAR4RecConfig(feature_schema=extractor.schema.to_dict(), hidden_size=8)
    NAR4RecEvaluator(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="NAR4RecEvaluator"):
        AutoModelForReranking.from_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is NAR4RecEvaluator
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["auto_map"] == {
        "AutoConfig": "modeling_rerankzoo.NAR4RecConfig",
        "AutoModel": "modeling_rerankzoo.NAR4RecEvaluator",
    }
    NAR4RecForReranking(config).save_pretrained(tmp_path)
    model, info = AutoModelForReranking.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is NAR4RecForReranking
    assert not info["missing_keys"]


def test_an_evaluator_is_found_beside_its_generator(extractor: RerankingFeatureExtractor, tmp_path: Path) -> None:
    config = NAR4RecConfig(feature_schema=extractor.schema.to_dict(), hidden_size=16, num_attention_heads=2)
    NAR4RecForReranking(config).save_pretrained(tmp_path)
    with pytest.raises(HubError, match="holds a NAR4RecForReranking, which is no evaluator, and none is beside it"):
        evaluator_subfolder(str(tmp_path))
    NAR4RecEvaluator(config).save_pretrained(tmp_path / "evaluator")
    assert evaluator_subfolder(str(tmp_path)) == "evaluator"
    assert evaluator_subfolder(str(tmp_path / "evaluator")) == ""
