"""A short attack, and every finding of the long one (`make fuzz`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qa.fuzz.harness import attack, attack_with_hypothesis
from qa.fuzz.targets import TARGETS
from qa.fuzz.world import SCHEMA, Row, valid_row, world
from rerankzoo import Exclude, RerankingPipeline
from rerankzoo.cli.recipes import find_recipe
from rerankzoo.errors import HubError, RerankingDataError, SchemaError, UnreadableFileError
from rerankzoo.features import FeatureSchema, RerankingFeatureExtractor
from rerankzoo.text_files import read_json, read_yaml

#: Cases of a random number generator; a twentieth as many come from hypothesis.
CASES = {name: max(20, round(500 * target.share)) for name, target in TARGETS.items()}
SLOW = {"recipe": 5, "saved pipeline": 10, "schema.yaml": 15}


@pytest.mark.parametrize("name", TARGETS)
def test_short_attack(name: str) -> None:
    cases = SLOW.get(name, CASES[name])
    found = attack(name, range(cases))
    assert found.cases == cases
    assert found.passed >= 0.2 * cases  # otherwise the cases test nothing but the first check
    drawn = attack_with_hypothesis(name, max(cases // 20, 2), 0)
    assert drawn.cases >= 2


def request(**changes: Any) -> Row:
    return {**valid_row(7), **changes}


HUGE = 10**5_000  # Python refuses to print it

#: What was found, by what is wrong: a call, the error it must raise now, and words of the message.
FINDINGS: dict[str, tuple[Any, type[Exception], str]] = {
    "an integer that Python does not print": (
        lambda: world().extractor(request(item=[HUGE] * len(request()["item"]))),
        *(RerankingDataError, "field 'item', row 0: an integer of .* bits is too large"),
    ),
    "a megabyte in a message": (
        lambda: world().extractor(request(hour="x" * 1_000_000)),
        *(RerankingDataError, "^field 'hour', row 0: .{0,300}$"),
    ),
    "thousands of other columns in a message": (
        lambda: world().extractor({"item": [1], **{f"c{number}": 1 for number in range(5_000)}}),
        *(RerankingDataError, "^field 'user': missing column; .{0,400}$"),
    ),
    "an array without an axis": (
        lambda: world().extractor(request(item=np.array(3))),
        *(RerankingDataError, "field 'item', row 0: a list is required"),
    ),
    "a number that standardising takes beyond float32": (
        lambda: world().extractor(request(hour=3.4e38)) and narrow_extractor()({"item": [1], "hour": 3.4e38}),
        *(RerankingDataError, "field 'hour', row 0: .* after standardising is beyond float32"),
    ),
    "an id beyond int64 in a constraint": (
        lambda: world().pipeline([request()], constraints=[Exclude([2**64])]),
        *(RerankingDataError, "18446744073709551616 is too large"),
    ),
    "a parameter with the name of a tensor": (
        lambda: world().pipeline([request()], candidate_mask=3),
        *(ValueError, r"unknown parameters \['candidate_mask'\]"),
    ),
    "a schema with null for a list": (
        lambda: FeatureSchema.from_dict(with_field(transforms=None)),
        *(SchemaError, r"transforms of field 'user' must be a list, got None"),
    ),
    "a schema with a number beyond float": (
        lambda: FeatureSchema.from_dict(with_field(clip=[0, 10**400])),
        *(SchemaError, "clip of field 'user' must be two increasing numbers"),
    ),
    "a schema with an endless weight": (
        lambda: FeatureSchema.from_dict({**SCHEMA.to_dict(), "targets": [{"name": "click", "weight": 1e39}]}),
        *(SchemaError, "weight of target 'click' must be a finite number"),
    ),
    "a schema with a vector larger than memory": (
        lambda: FeatureSchema.from_dict(with_field(kind="dense", size=10**12)),
        *(SchemaError, "size of field 'user' must be a positive integer of at most"),
    ),
    "a schema with more buckets than int64 holds": (
        lambda: FeatureSchema.from_dict(with_field(kind="categorical", hash_size=2**70)),
        *(SchemaError, "hash_size of field 'user' must be a positive integer of at most"),
    ),
    "a name that no file can hold": (
        lambda: FeatureSchema.from_dict(with_field(name="\ud800")),
        *(SchemaError, r"name of a field must be UTF-8 text of at most 256 characters, got '\\ud800'"),
    ),
    "a recipe's name with a NUL": (lambda: find_recipe("a\x00b"), FileNotFoundError, "no file"),
    "a recipe's name that is too long": (lambda: find_recipe("y" * 5_000), FileNotFoundError, "no file"),
}


def with_field(**changes: Any) -> dict[str, Any]:
    """The schema with another first field."""
    tree = SCHEMA.to_dict()
    tree["fields"][0] = {"name": "user", "group": "request", "kind": "numeric", **changes}
    return tree


def narrow_extractor() -> RerankingFeatureExtractor:
    """Fitted on hours that differ by next to nothing."""
    schema = FeatureSchema.from_dict(
        {
            "name": "narrow",
            "item_id": "item",
            "fields": [{"name": "hour", "group": "request", "kind": "numeric", "transforms": ["standardize"]}],
        }
    )
    return RerankingFeatureExtractor(schema).fit([{"item": [1], "hour": hour} for hour in (0.0, 1e-6)])


@pytest.mark.parametrize("name", FINDINGS)
def test_finding(name: str) -> None:
    call, error, words = FINDINGS[name]
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 1_500,
        b"a: !!timestamp x",
        b"a: !!int ''",
        b"a: !!bool x",
        b"a: 2020-99-99",
        b"9" * 5_000,
        b"\xff\xfe\x00",
        b"a: !!python/name:os.system",
    ],
)
def test_yaml_that_the_library_trips_over(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(content)
    with pytest.raises(UnreadableFileError, match=r"any\.yaml is invalid YAML: .{0,600}$"):
        read_yaml(path)
    with pytest.raises(SchemaError, match=r"any\.yaml is invalid YAML"):
        FeatureSchema.from_yaml(path)


def test_yaml_that_grows_when_it_is_shown(tmp_path: Path) -> None:
    """Forty lines, each twice the one before: a terabyte, if a message printed it."""
    lines = ["a0: &a0 [1, 1]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))]
    path = tmp_path / "schema.yaml"
    path.write_text("name: x\nitem_id: i\nfields: *a39".replace("name: x", "\n".join(lines)), encoding="utf-8")
    with pytest.raises(SchemaError) as caught:
        FeatureSchema.from_yaml(path)
    assert len(str(caught.value)) < 2_000


@pytest.mark.parametrize("content", [b"{" * 100_000, b"[" * 100_000, b"\xff", b"", b"9" * 5_000])
def test_json_that_the_library_trips_over(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "any.json"
    path.write_bytes(content)
    with pytest.raises(UnreadableFileError, match=r"any\.json is invalid JSON"):
        read_json(path)


#: Changes of a checkpoint's `config.json` at which other libraries raised errors of their own.
BAD_CONFIGS: list[dict[str, Any]] = [
    {"num_attention_heads": 0},
    {"hidden_size": "wide"},
    {"feature_schema": 3},
    {"hidden_size": 16},
    {"model_type": "bert"},
    {"architectures": ["NAR4RecEvaluator"]},
    {"num_hidden_layers": 10**9},
]


@pytest.mark.parametrize("change", BAD_CONFIGS)
def test_damaged_config_is_one_line(change: dict[str, Any], tmp_path: Path) -> None:
    import json

    folder = world().save(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}), encoding="utf-8")
    with pytest.raises((HubError, ValueError)) as caught:
        RerankingPipeline.from_pretrained(str(folder), local_files_only=True)
    assert len(str(caught.value).splitlines()) == 1
