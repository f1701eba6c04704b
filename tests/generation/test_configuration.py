from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerankzoo.generation import RerankingGenerationConfig


@pytest.mark.parametrize(
    ("parameters", "strategy"),
    [
        ({}, "greedy"),
        ({"num_beams": 1}, "greedy"),
        ({"num_beams": 4, "num_return_sequences": 4}, "beam"),
        ({"penalty_alpha": 0.0}, "contrastive"),
        ({"penalty_alpha": 1, "top_k": 3, "num_beams": 1}, "contrastive"),
        ({"do_sample": True, "num_return_sequences": 16, "top_k": 2, "temperature": 0.5}, "sample"),
        ({"do_sample": False, "slate_size": 3, "return_dict_in_generate": True}, "greedy"),
    ],
    ids=str,
)
def test_strategy_follows_from_the_parameters(parameters: dict[str, Any], strategy: str) -> None:
    assert RerankingGenerationConfig(**parameters).strategy == strategy


def test_scalars_of_numpy_become_numbers_of_python(tmp_path: Path) -> None:
    config = RerankingGenerationConfig(
        do_sample=np.True_, temperature=np.float32(0.5), top_k=np.int64(3), slate_size=np.uint8(4)
    )
    assert config.parameters() == {"do_sample": True, "temperature": 0.5, "top_k": 3, "slate_size": 4}
    assert {type(value) for value in config.parameters().values()} == {bool, float, int}
    config.top_k = np.int16(2)
    config.save_pretrained(tmp_path)
    assert RerankingGenerationConfig.from_pretrained(tmp_path).top_k == 2
    with pytest.raises(ValueError, match="num_beams must be a positive integer"):
        config.merged(num_beams=np.float64(2))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"num_beam": 4}, r"unknown decoding parameters \['num_beam'\]"),
        ({"max_new_tokens": 4}, "max_new_tokens"),
        ({"slate_size": 0}, "slate_size must be a positive integer, got 0"),
        ({"slate_size": 4.0}, "slate_size"),
        ({"num_beams": True}, "num_beams"),
        ({"num_beams": "4"}, "num_beams"),
        ({"num_return_sequences": -1, "do_sample": True}, "num_return_sequences"),
        ({"top_k": 0, "do_sample": True}, "top_k"),
        ({"temperature": 0.0, "do_sample": True}, "temperature"),
        ({"temperature": float("inf"), "do_sample": True}, "temperature"),
        ({"temperature": float("nan"), "do_sample": True}, "temperature"),
        ({"temperature": "hot", "do_sample": True}, "temperature"),
        ({"penalty_alpha": 1.1}, "penalty_alpha"),
        ({"penalty_alpha": -0.1}, "penalty_alpha"),
        ({"penalty_alpha": float("nan")}, "penalty_alpha"),
        ({"penalty_alpha": "0.5"}, "penalty_alpha"),
        ({"do_sample": "no"}, "do_sample must be True or False, got 'no'"),
        ({"return_dict_in_generate": 1}, "return_dict_in_generate"),
        ({"num_beams": 2, "do_sample": True}, "one decoding strategy"),
        ({"num_beams": 2, "penalty_alpha": 0.5}, "one decoding strategy"),
        ({"penalty_alpha": 0.5, "do_sample": True}, "one decoding strategy"),
        ({"temperature": 0.5}, "temperature 0.5 needs do_sample=True"),
        ({"top_k": 5}, "top_k 5 needs do_sample=True or penalty_alpha"),
        ({"num_return_sequences": 5, "num_beams": 4}, "num_return_sequences 5 exceeds num_beams 4"),
        ({"num_return_sequences": 2, "penalty_alpha": 0.5}, "num_return_sequences 2"),
    ],
    ids=str,
)
def test_refuses_what_makes_no_sense(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RerankingGenerationConfig(**parameters)


def set_parameters(config: RerankingGenerationConfig) -> dict[str, Any]:
    return {key: getattr(config, key) for key in config.names() if getattr(config, key) is not None}


@pytest.mark.parametrize(
    ("saved", "overrides", "expected"),
    [
        ({"num_beams": 4}, {}, {"num_beams": 4}),
        ({"num_beams": 4}, {"num_beams": None}, {"num_beams": 4}),
        ({"num_beams": 4}, {"slate_size": 3}, {"num_beams": 4, "slate_size": 3}),
        ({"num_beams": 4}, {"num_return_sequences": 2}, {"num_beams": 4, "num_return_sequences": 2}),
        ({"penalty_alpha": 0.5, "top_k": 3}, {"top_k": 5}, {"penalty_alpha": 0.5, "top_k": 5}),
        ({"penalty_alpha": 0.5, "top_k": 3}, {"num_beams": 4}, {"num_beams": 4}),
        ({"penalty_alpha": 0.5, "top_k": 3}, {"num_beams": 1}, {"num_beams": 1}),
        (
            {"do_sample": True, "temperature": 2.0, "num_return_sequences": 8, "slate_size": 3},
            {"penalty_alpha": 0.1, "return_dict_in_generate": True},
            {"penalty_alpha": 0.1, "slate_size": 3, "return_dict_in_generate": True},
        ),
    ],
    ids=str,
)
def test_overrides_replace_the_saved_strategy(
    saved: dict[str, Any], overrides: dict[str, Any], expected: dict[str, Any]
) -> None:
    config = RerankingGenerationConfig(**saved)
    assert set_parameters(config.merged(**overrides)) == expected
    assert set_parameters(config) == saved


def test_merging_checks_the_result() -> None:
    with pytest.raises(ValueError, match="num_return_sequences 3 exceeds num_beams 2"):
        RerankingGenerationConfig(num_beams=2).merged(num_return_sequences=3)


@pytest.mark.parametrize(
    "parameters", [{}, {"penalty_alpha": 0.3, "top_k": 5, "slate_size": 6}, {"do_sample": True, "temperature": 0.7}]
)
def test_saves_and_loads(parameters: dict[str, Any], tmp_path: Path) -> None:
    config = RerankingGenerationConfig(**parameters)
    config.save_pretrained(tmp_path)
    loaded = RerankingGenerationConfig.from_pretrained(tmp_path)
    assert type(loaded) is RerankingGenerationConfig
    assert set_parameters(loaded) == parameters


def test_parameters_of_a_later_version_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "generation_config.json").write_text('{"num_beams": 4, "num_rounds": 2}')
    assert set_parameters(RerankingGenerationConfig.from_pretrained(tmp_path)) == {"num_beams": 4}
    assert "['num_rounds'] are unknown to this version" in caplog.text
