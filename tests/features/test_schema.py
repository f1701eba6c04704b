from __future__ import annotations

import json
from typing import Any

import pytest

from rerankzoo.errors import SchemaError
from rerankzoo.features import FeatureSchema, FieldSpec, TargetSpec


def field(**changes: Any) -> FieldSpec:
    return FieldSpec(**{"name": "f", "group": "candidate", "kind": "categorical", **changes})


def make(*fields: FieldSpec, **changes: Any) -> FeatureSchema:
    return FeatureSchema(**{"name": "s", "item_id": "item_id", "fields": fields, **changes})


def test_dict_and_yaml_round_trips_are_exact(schema: FeatureSchema, tmp_path: Any) -> None:
    assert FeatureSchema.from_dict(schema.to_dict()) == schema
    assert FeatureSchema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema
    schema.to_yaml(tmp_path / "schema.yaml")
    assert FeatureSchema.from_yaml(tmp_path / "schema.yaml") == schema
    assert [path.name for path in tmp_path.iterdir()] == ["schema.yaml"]


def test_every_non_default_entry_survives_the_round_trip() -> None:
    full = make(
        field(name="a", min_count=3, num_embeddings=7),
        field(name="b", hash_size=5),
        field(name="c", kind="numeric", transforms=("standardize", "log1p"), clip=(-1, 2.5)),
        field(name="d", kind="dense", size=4),
        targets=(TargetSpec(name="t", weight=3, value="c", candidate_feedback="u"),),
        upstream_score="c",
        slate="shown",
        propensity="p",
        fingerprint="abc",
    )
    assert FeatureSchema.from_dict(full.to_dict()) == full
    assert full.targets[0].weight.hex() == (3.0).hex()


def test_select_sizes_and_positions(schema: FeatureSchema) -> None:
    assert [spec.name for spec in schema.select("candidate", "categorical")] == ["item_id", "brand"]
    assert schema.numeric_size("candidate") == 4
    assert schema.numeric_size("request") == 1
    assert schema.numeric_size("history") == 0
    assert [schema.position(name) for name in ("score", "vector", "price", "brand")] == [0, 1, 3, 1]
    assert schema.owner(schema.field("past")).name == "item_id"


def test_label_target_is_the_first_with_labels_of_candidates() -> None:
    click, order, labelled = TargetSpec(name="click"), TargetSpec(name="order"), {"candidate_feedback": "liked"}
    assert make(targets=(click, order)).label_target is None
    assert make(targets=(click, TargetSpec(name="order", **labelled))).label_target == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": ""}, ["name"]),
        ({"group": "item"}, ["group", "'f'", "'item'"]),
        ({"kind": "categoric"}, ["kind", "'categoric'", "did you mean 'categorical'"]),
        ({"kind": "numeric", "hash_size": 8}, ["'f'", "numeric", "hash_size=8"]),
        ({"kind": "numeric", "size": 2}, ["'f'", "size=2"]),
        ({"kind": "dense", "shares": "g"}, ["'f'", "shares='g'"]),
        ({"transforms": ("log1p",)}, ["'f'", "categorical", "log1p"]),
        ({"clip": (0.0, 1.0)}, ["'f'", "clip"]),
        ({"kind": "numeric", "transforms": ("log",)}, ["transform", "'log'", "log1p"]),
        ({"kind": "numeric", "transforms": ("log1p", "log1p")}, ["repeats", "log1p"]),
        ({"kind": "numeric", "transforms": ("standardize", "quantile")}, ["quantile comes before standardize"]),
        ({"kind": "numeric", "clip": (1.0, 1.0)}, ["clip", "(1.0, 1.0)"]),
        ({"kind": "numeric", "clip": (1.0,)}, ["clip", "(1.0,)"]),
        ({"hash_size": 0}, ["hash_size", "0"]),
        ({"min_count": True}, ["min_count", "True"]),
        ({"shares": "g", "hash_size": 4}, ["shares", "hash_size=4"]),
        ({"kind": "time"}, ["'f'", "history field", "'candidate'"]),
        ({"kind": "page"}, ["'f'", "of kind 'page'", "history field", "'candidate'"]),
        ({"group": "history", "kind": "page", "hash_size": 9}, ["'f'", "is page", "hash_size"]),
        ({"group": "history", "kind": "time", "transforms": ["log1p"]}, ["'f'", "is time", "transforms"]),
        ({"group": "history", "kind": "time", "time_unit": 0.0}, ["time_unit", "'f'", "positive", "0.0"]),
    ],
)
def test_contradictory_fields_are_refused(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SchemaError) as caught:
        field(**changes)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "changes", "words"),
    [
        ((field(), field()), {}, ["field 'f' appears 2 times"]),
        ((), {"targets": (TargetSpec(name="t"), TargetSpec(name="t"))}, ["target 't' appears 2 times"]),
        ((field(shares="g"),), {}, ["no field 'g'"]),
        ((field(shares="g"), field(name="g", kind="numeric")), {}, ["'f' shares 'g'", "numeric"]),
        ((field(shares="g"), field(name="g", shares="h"), field(name="h")), {}, ["'g', which itself shares 'h'"]),
        ((field(),), {"upstream_score": "f"}, ["upstream_score 'f'", "categorical"]),
        ((field(group="request", kind="numeric"),), {"upstream_score": "f"}, ["upstream_score 'f'", "request"]),
        ((field(name="price"),), {"upstream_score": "prices"}, ["no field 'prices'", "did you mean 'price'"]),
        ((field(name="item_id", group="request"),), {}, ["item_id", "request"]),
        ((field(name="click"),), {"targets": (TargetSpec(name="click"),)}, ["'click'", "input and a label"]),
        ((field(name="slate"),), {}, ["'slate'", "input and a label"]),
        ((field(),), {"targets": (TargetSpec(name="t", candidate_feedback="f"),)}, ["'f'", "label"]),
        ((field(),), {"targets": (TargetSpec(name="t", value="f"),)}, ["value 'f'", "'t'", "categorical"]),
    ],
)
def test_contradictory_schemas_are_refused(
    fields: tuple[FieldSpec, ...], changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(SchemaError) as caught:
        make(*fields, **changes)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: s\nitem_id: i\nfeilds: []", ["'feilds'", "did you mean 'fields'"]),
        (
            "name: s\nitem_id: i\nfields:\n- {name: f, group: request, kind: numeric, transfroms: [log1p]}",
            ["fields[0]", "'transfroms'", "did you mean 'transforms'"],
        ),
        ("name: s\nitem_id: i\nfields:\n- {name: f, kind: numeric}", ["fields[0]", "lacks 'group'"]),
        ("name: s\nitem_id: i\nfields: {}", ["fields", "list"]),
        (
            "name: s\nitem_id: i\nfields:\n- {name: f, group: request, kind: numeric, transforms: log1p}",
            ["transforms", "list"],
        ),
        ("name: s\nitem_id: i\nfields: []\ntargets: [{name: t, weight: heavy}]", ["weight", "'heavy'"]),
        ("- 1", ["mapping"]),
        ("a: [", ["schema.yaml"]),
    ],
)
def test_bad_yaml_names_the_file_and_the_key(text: str, words: list[str], tmp_path: Any) -> None:
    path = tmp_path / "schema.yaml"
    path.write_text(text)
    with pytest.raises(SchemaError) as caught:
        FeatureSchema.from_yaml(path)
    for word in [*words, "schema.yaml"]:
        assert word in str(caught.value)
