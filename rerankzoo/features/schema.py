"""What a reranking log contains: fields, their kinds and groups, feedback targets."""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from rerankzoo.atomic_writing import write_text
from rerankzoo.batch import BUILT_IN, ENTRIES
from rerankzoo.errors import SchemaError, SchemaMismatchError, UnreadableFileError, did_you_mean, shown
from rerankzoo.text_files import read_yaml

Group = Literal["request", "candidate", "history"]
Kind = Literal["categorical", "numeric", "dense", "time", "page"]
Transform = Literal["log1p", "signed_log1p", "quantile", "standardize"]
Discount = Literal["none", "log2"]
Gain = Literal["linear", "exponential"]

FLOAT32_MAX = 3.4028234663852886e38
_MAX_NAME = 256
_MOST_UNKNOWN = 8  # keys in a message
#: Beyond these no machine has the memory, and ids would not fit int64.
_LIMITS = {"hash_size": 1 << 40, "min_count": 1 << 62, "size": 1 << 20, "num_embeddings": (1 << 40) + 2}
_CATEGORICAL = ["hash_size", "min_count", "shares", "num_embeddings"]  # settings of such fields only
_OF_NUMBERS = ["transforms", "clip", "size", "columns"]
#: Kinds that say of the history when and where it was: of at most one field each, which has no settings.
TOLD_ONCE: tuple[Kind, ...] = ("time", "page")
#: What fitting adds to fields.
SET_BY_FITTING = ("num_embeddings", "time_unit")

#: Columns of a mined table (`rerankzoo mine`); their names are the same under every schema.
SLATE_WEIGHTS = "slate_weights"
SLATE_VALUES = "slate_values"
SOFT_LABELS = "soft_labels"
MINED_COLUMNS = (SLATE_WEIGHTS, SLATE_VALUES, SOFT_LABELS)


@dataclass(frozen=True, kw_only=True)
class FieldSpec:
    """One input column. Contradictory settings are a `SchemaError`.

    Args:
        name: The column's name.
        group: `"request"` (one value per row), `"candidate"` (a list over the row's candidates) or `"history"` (a list
            of the user's past items, newest last).
        kind: `"categorical"` (int or str ids), `"numeric"` (a number), `"dense"` (a vector of `size` numbers), or
            `"time"`: of one history field, how long before the request a past item was, in any one unit, not negative;
            or `"page"`: of one history field, how many pages ago, a whole number that items of one page share.
        hash_size: Categorical: hash values into this many buckets instead of keeping a vocabulary.
        min_count: Categorical: values seen less often than this while fitting become "unknown".
        shares: Categorical: use the vocabulary (and so the embedding rows) of the field of this name.
        transforms: Numeric and dense, applied in order: `"log1p"`, `"signed_log1p"` (of the size, with the sign),
            `"quantile"` (the place among the training rows' values, as a standard normal score), and `"standardize"`.
        clip: Numeric and dense: raw values are clipped to this range before the transforms.
        size: Dense: the length of the vector.
        columns: Dense: the numeric columns that are the vector, each with one number where the vector's column would
            have one vector; `size` is how many.
        num_embeddings: Categorical, set by fitting: 2 + vocabulary (or `hash_size`). Id 0 is padding or missing, 1 is
            unknown.
        time_unit: Time, set by fitting: the mean over the training rows' past items, which is 1 in a batch.
    """

    name: str
    group: Group
    kind: Kind
    hash_size: int | None = None
    min_count: int = 1
    shares: str | None = None
    transforms: tuple[Transform, ...] = ()
    clip: tuple[float, float] | None = None
    size: int = 1
    columns: tuple[str, ...] = ()
    num_embeddings: int | None = None
    time_unit: float | None = None

    def __post_init__(self) -> None:
        require_names(self, "a field", "name")
        require_names(self, f"field {self.name!r}", "shares", optional=True)
        require_choice(self.group, get_args(Group), f"group of field {self.name!r}")
        require_choice(self.kind, get_args(Kind), f"kind of field {self.name!r}")
        for key, most in _LIMITS.items():
            value, optional = getattr(self, key), getattr(FieldSpec, key) is None
            if not (optional and value is None) and (type(value) is not int or not 1 <= value <= most):
                message = f"must be a positive integer of at most {most}, got {shown(value)}"
                raise SchemaError(f"{key} of field {self.name!r} {message}")
        if self.kind in TOLD_ONCE and self.group != "history":
            message = f"of kind {self.kind!r} must be a history field, got group {self.group!r}"
            raise SchemaError(f"field {self.name!r} {message}")
        if self.time_unit is not None and not (_is_number(self.time_unit, FLOAT32_MAX) and self.time_unit > 0):
            message = f"must be a positive number, got {shown(self.time_unit)}"
            raise SchemaError(f"time_unit of field {self.name!r} {message}")
        for key in ("transforms", "columns"):
            object.__setattr__(self, key, _as_tuple(getattr(self, key), f"{key} of field {self.name!r}"))
        refused = {
            "categorical": [*_OF_NUMBERS, "time_unit"],
            "numeric": [*_CATEGORICAL, "size", "columns", "time_unit"],
            "dense": [*_CATEGORICAL, "time_unit"],
            "time": [*_CATEGORICAL, *_OF_NUMBERS],
            "page": [*_CATEGORICAL, *_OF_NUMBERS, "time_unit"],
        }
        self._refuse(f"is {self.kind}", refused[self.kind])
        if self.shares is not None:
            self._refuse("shares a vocabulary", ["hash_size", "min_count"])
        for transform in self.transforms:
            require_choice(transform, get_args(Transform), f"transform of field {self.name!r}")
        if len(set(self.transforms)) != len(self.transforms):
            raise SchemaError(f"field {self.name!r} repeats a transform: {list(self.transforms)}")
        fitted = [transform for transform in self.transforms if transform in ("quantile", "standardize")]
        if fitted == ["standardize", "quantile"]:
            raise SchemaError(f"transforms of field {self.name!r}: quantile comes before standardize")
        if self.columns:
            self._check_columns()
        if self.clip is not None:
            clip = _as_tuple(self.clip, f"clip of field {self.name!r}")
            if len(clip) != 2 or not all(map(_is_number, clip)) or not clip[0] < clip[1]:
                raise SchemaError(f"clip of field {self.name!r} must be two increasing numbers, got {shown(clip)}")
            object.__setattr__(self, "clip", tuple(map(float, clip)))  # 1 and 1.0 must give the same fingerprint

    def _check_columns(self) -> None:
        if not all(isinstance(name, str) and name for name in self.columns):
            raise SchemaError(f"columns of field {self.name!r} must be names, got {shown(list(self.columns))}")
        _require_unique(list(self.columns), f"column of field {self.name!r}")
        if self.size not in (1, len(self.columns)):
            raise SchemaError(f"field {self.name!r} has {len(self.columns)} columns, and size {self.size}")
        object.__setattr__(self, "size", len(self.columns))

    @property
    def sources(self) -> tuple[str, ...]:
        """The columns that the field is read from."""
        return self.columns or (self.name,)

    def _refuse(self, reason: str, keys: Sequence[str]) -> None:
        for key in keys:
            if getattr(self, key) != getattr(FieldSpec, key):  # a dataclass keeps its defaults there
                raise SchemaError(f"field {self.name!r} {reason} and cannot have {key}={shown(getattr(self, key))}")


@dataclass(frozen=True, kw_only=True)
class TargetSpec:
    """One kind of feedback, such as a click. Entries of a wrong type are a `SchemaError`.

    The utility of a slate is the sum over its positions and all targets of weight x value x gain of the feedback,
    discounted by position where the schema says so.

    Args:
        name: The feedback column, aligned with the slate column.
        weight: What one unit of it is worth.
        value: A raw numeric candidate column that multiplies the feedback (a price); 1 if `None`.
        candidate_feedback: A column of labels for all candidates, not only those of the slate; `None` if there is none.
        gain: What a label y counts, in the utility as in NDCG: `"linear"`, y; or `"exponential"`, 2^y - 1, for grades.
            Batches hold the gains.
    """

    name: str
    weight: float = 1.0
    value: str | None = None
    candidate_feedback: str | None = None
    gain: Gain = "linear"

    def __post_init__(self) -> None:
        require_names(self, "a target", "name")
        require_names(self, f"target {self.name!r}", "value", "candidate_feedback", optional=True)
        if not _is_number(self.weight, FLOAT32_MAX):
            raise SchemaError(f"weight of target {self.name!r} must be a finite number, got {shown(self.weight)}")
        require_choice(self.gain, get_args(Gain), f"gain of target {self.name!r}")
        object.__setattr__(self, "weight", float(self.weight))


@dataclass(frozen=True, kw_only=True, repr=False)
class FeatureSchema:
    """The columns of a reranking log and what they mean, written by hand (`schema.yaml`) or by a converter.

    Fitting an extractor returns it with the numbers of embeddings and a fingerprint; from that a model is built.
    Entries that contradict one another are a `SchemaError`.

    Args:
        name: A name for people.
        item_id: The list column of the candidates' ids (int or str). A categorical candidate field may have this name.
        fields: The input fields. Their order is the order of the last dimension of a batch's tensors.
        targets: The feedback targets, in the order of a batch's T dimension.
        upstream_score: The numeric candidate field with the first stage's score, if there is one.
        slate: The column of displayed positions.
        propensity: The column of logging probabilities, aligned with `slate`.
        position_discount: How utility counts the feedback of position t = 1, 2...: `"none"` (all the same; right where
            the feedback itself depends on what was seen) or `"log2"` (1/log2(t + 1), as NDCG; for logs whose labels do
            not depend on the slate, such as ratings, where the order would otherwise be worth nothing).
        fingerprint: Set by fitting: a hash over schema, vocabularies and statistics. Models compare it.
    """

    name: str
    item_id: str
    fields: tuple[FieldSpec, ...]
    targets: tuple[TargetSpec, ...] = ()
    upstream_score: str | None = None
    slate: str = "slate"
    propensity: str | None = None
    position_discount: Discount = "none"
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        require_names(self, "the schema", "name", "item_id", "slate")
        require_names(self, "the schema", "upstream_score", "propensity", "fingerprint", optional=True)
        require_choice(self.position_discount, get_args(Discount), "the schema's position_discount")
        _require_unique([field.name for field in self.fields], "field")
        _require_unique([target.name for target in self.targets], "target")
        self._check_labels()
        self._check_references()

    def __repr__(self) -> str:
        groups = {group: [field.name for field in self.fields if field.group == group] for group in get_args(Group)}
        groups["targets"] = [target.name for target in self.targets]
        listed = "".join(f", {group}={shown(names)}" for group, names in groups.items() if names)
        state = "not fitted" if self.fingerprint is None else f"fingerprint {self.fingerprint[:12]}"
        return f"FeatureSchema({self.name!r}, item_id={self.item_id!r}{listed}, {state})"

    def _check_labels(self) -> None:
        """Columns known only after the slate was shown must be distinct and must not be inputs."""
        labels = [*self.label_columns(), *MINED_COLUMNS]
        labels += [target.candidate_feedback for target in self.targets if target.candidate_feedback]
        _require_unique(labels, "label column")
        inputs = {self.item_id, *(name for field in self.fields for name in field.sources)}
        inputs.update(target.value for target in self.targets if target.value)
        if both := [label for label in labels if label in inputs]:
            raise SchemaError(f"column {both[0]!r} is both an input and a label (slate, feedback, propensity or mined)")

    def _check_references(self) -> None:
        """Fields that the schema names elsewhere must be candidate fields of the right kind; some are told once."""
        for kind in TOLD_ONCE:
            if len(told := self.select("history", kind)) > 1:
                raise SchemaError(f"field {told[1].name!r} is a second one of kind {kind!r}, beside {told[0].name!r}")
        for field in self.fields:
            owner = self.owner(field)
            if owner.kind != field.kind:
                raise SchemaError(f"field {field.name!r} shares {owner.name!r}, which is {owner.kind}")
            if owner.shares is not None:
                raise SchemaError(f"field {field.name!r} shares {owner.name!r}, which itself shares {owner.shares!r}")
        if self.upstream_score is not None:
            self.field(self.upstream_score)
        references = [(f"value {target.value!r} of target {target.name!r}", target.value) for target in self.targets]
        references += [(f"upstream_score {self.upstream_score!r}", self.upstream_score), ("item_id", self.item_id)]
        for what, name in references:
            kind = "categorical" if what == "item_id" else "numeric"
            spec = next((field for field in self.fields if field.name == name), None)
            if spec is not None and (spec.group, spec.kind) != ("candidate", kind):
                raise SchemaError(f"{what} must be a {kind} candidate field, got {spec.group} {spec.kind}")

    def columns(self) -> set[str]:
        """Returns all columns that are read where a table has them: the schema's, and those of registered entries."""
        named = {self.item_id, *self.label_columns(), *MINED_COLUMNS}
        named.update(name for field in self.fields for name in field.sources)
        named.update(name for target in self.targets for name in (target.value, target.candidate_feedback) if name)
        return named | (ENTRIES.keys() - BUILT_IN)

    def label_columns(self) -> list[str]:
        """Returns the columns that belong to the slates shown: slate, feedback, propensity."""
        return [self.slate, *(target.name for target in self.targets), *([self.propensity] if self.propensity else [])]

    @property
    def label_target(self) -> int | None:
        """The target (index of T) that the labels of candidates belong to: the first with `candidate_feedback`."""
        return next((index for index, target in enumerate(self.targets) if target.candidate_feedback is not None), None)

    def field(self, name: str) -> FieldSpec:
        """Returns the field of this name; a `SchemaError` if there is none."""
        specs = {field.name: field for field in self.fields}
        if name not in specs:
            raise SchemaError(f"no field {name!r}{did_you_mean(name, specs)}")
        return specs[name]

    def owner(self, field: FieldSpec) -> FieldSpec:
        """Returns the field whose vocabulary a categorical field uses: itself, unless it shares another's."""
        return field if field.shares is None else self.field(field.shares)

    def select(self, group: Group, kind: Kind) -> list[FieldSpec]:
        """Returns the fields of one group and kind, in schema order."""
        return [field for field in self.fields if field.group == group and field.kind == kind]

    def numeric_fields(self, group: Group) -> list[FieldSpec]:
        """Returns the numeric and dense fields of a group, in the order of its numeric tensor."""
        return [field for field in self.fields if field.group == group and field.kind in ("numeric", "dense")]

    def numeric_size(self, group: Group) -> int:
        """Returns the width of a group's numeric tensor: 1 per numeric field plus `size` per dense one."""
        return sum(field.size for field in self.numeric_fields(group))

    @property
    def has_history(self) -> bool:
        """Whether there are history fields."""
        return any(field.group == "history" for field in self.fields)

    @property
    def history_time(self) -> FieldSpec | None:
        """The field that tells how long ago past items were."""
        return next(iter(self.select("history", "time")), None)

    @property
    def history_page(self) -> FieldSpec | None:
        """The field that tells which page past items were on."""
        return next(iter(self.select("history", "page")), None)

    def position(self, name: str) -> int:
        """Returns the (first) column of a field within its group's tensor of ids, numbers, times or pages."""
        field = self.field(name)
        if field.kind in ("categorical", *TOLD_ONCE):
            return self.select(field.group, field.kind).index(field)
        numeric = self.numeric_fields(field.group)
        return sum(other.size for other in numeric[: numeric.index(field)])

    def check_same(self, expected: FeatureSchema) -> None:
        """Raises a `SchemaMismatchError` that lists all differences of columns and their meaning; names may differ."""
        problems: list[str] = []
        for key in ("item_id", "upstream_score", "slate", "propensity", "position_discount"):
            problems += _differences(key, getattr(self, key), getattr(expected, key))
        problems += _entry_differences("field", self.fields, expected.fields)
        problems += _entry_differences("target", self.targets, expected.targets)
        if problems:
            names = f"schema {self.name!r} is not schema {expected.name!r} (expected)"
            raise SchemaMismatchError(f"{names}: {'; '.join(problems)}")

    def to_dict(self) -> dict[str, Any]:
        """Returns a JSON-able dictionary without the entries that have their default value."""
        return dict(_plain(self))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FeatureSchema:
        """Builds a schema from `to_dict`'s format; keys that are unknown or missing are a `SchemaError`, too."""
        values = known_keys(cls, data, "schema")
        for key, spec in (("fields", FieldSpec), ("targets", TargetSpec)):
            entries = _as_tuple(values.get(key, []), f"{key} of the schema")
            values[key] = tuple(spec(**known_keys(spec, entry, f"{key}[{at}]")) for at, entry in enumerate(entries))
        return cls(**values)

    def to_yaml(self, path: str | os.PathLike[str]) -> None:
        """Writes the schema as YAML, atomically."""
        import yaml

        write_text(Path(path), yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True))

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> FeatureSchema:
        """Reads a schema from YAML; a `SchemaError` names the file if it is not valid YAML or not a valid schema."""
        try:
            return cls.from_dict(read_yaml(Path(path)))
        except SchemaError as error:
            raise SchemaError(f"{os.fspath(path)}: {error}") from error
        except UnreadableFileError as error:
            raise SchemaError(str(error)) from error


def _differences(what: str, found: Any, expected: Any) -> list[str]:
    return [] if found == expected else [f"{what} is {found!r}, expected {expected!r}"]


def _entry_differences(
    what: str, found: Sequence[FieldSpec | TargetSpec], expected: Sequence[FieldSpec | TargetSpec]
) -> list[str]:
    own, other = ({entry.name: entry for entry in entries} for entries in (found, expected))
    problems = [f"{what} {name!r} is not expected" for name in own if name not in other]
    for name, entry in other.items():
        if name not in own:
            problems.append(f"{what} {name!r} is missing")
            continue
        for key in (spec.name for spec in fields(entry) if spec.name not in SET_BY_FITTING):
            problems += _differences(f"{key} of {what} {name!r}", getattr(own[name], key), getattr(entry, key))
    # Columns of a batch's tensors are in this order.
    return problems or _differences(f"the order of {what}s", list(own), list(other))


def _plain(value: Any) -> Any:
    """What JSON and YAML hold of a schema: mappings without the entries of default value, and lists."""
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    if not isinstance(value, FieldSpec | TargetSpec | FeatureSchema):
        return value
    values = {entry: getattr(value, entry.name) for entry in fields(value)}
    return {
        entry.name: _plain(held) for entry, held in values.items() if entry.default is MISSING or held != entry.default
    }


def known_keys(spec: type[Any], data: Any, where: str) -> dict[str, Any]:
    """Returns a copy of `data` after checking that its keys are `spec`'s."""
    if not isinstance(data, Mapping):
        raise SchemaError(f"{where} must be a mapping, got {shown(data)}")
    known = [entry.name for entry in fields(spec)]
    if unknown := [key for key in data if key not in known][:_MOST_UNKNOWN]:
        listed, hints = ", ".join(map(shown, unknown)), "".join(did_you_mean(key, known) for key in unknown)
        raise SchemaError(f"unknown keys in {where}: {listed}{hints}; known keys: {', '.join(known)}")
    if missing := [entry.name for entry in fields(spec) if entry.default is MISSING and entry.name not in data]:
        raise SchemaError(f"{where} lacks {', '.join(map(repr, missing))}")
    return dict(data)


def _as_tuple(value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise SchemaError(f"{where} must be a list, got {shown(value)}")
    return tuple(value)


def _is_number(value: Any, most: float = math.inf) -> bool:
    """Whether a value is a number of at most this size; NaN and integers beyond float are none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= (most if isinstance(value, float) else min(most, sys.float_info.max))


def require_names(spec: Any, owner: str, *keys: str, optional: bool = False) -> None:
    """Raises a `SchemaError` where an entry is no name (`None` is one if `optional`)."""
    for key in keys:
        value = getattr(spec, key)
        if value is None and optional:
            continue
        if not isinstance(value, str) or not value:
            raise SchemaError(f"{key} of {owner} must be a non-empty string, got {shown(value)}")
        # Names are written into JSON, YAML, Parquet and safetensors files, and into every message about them.
        if len(value) > _MAX_NAME or any("\ud800" <= letter <= "\udfff" for letter in value):
            message = f"must be UTF-8 text of at most {_MAX_NAME} characters, got {shown(value)}"
            raise SchemaError(f"{key} of {owner} {message}")


def require_choice(value: Any, choices: tuple[str, ...], what: str) -> None:
    """Raises a `SchemaError` that names the nearest choice."""
    if value not in choices:
        hint = did_you_mean(value, choices)
        raise SchemaError(f"{what} must be one of {', '.join(choices)}; got {shown(value)}{hint}")


def _require_unique(names: list[str], what: str) -> None:
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise SchemaError(f"{what} {name!r} appears {count} times")
