"""The feature extractor as nodes in front of a model's ONNX graph: raw columns in, the batch's tensors inside.

What the nodes compute is what `rerankzoo.features.encoding` computes, in the same double precision. Two things a graph
cannot do: hash a string (the hash is its input instead), and refuse a value (`graph_client.py` does, by `export.json`).
B requests, N candidates, L history items, F fields, T targets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from rerankzoo.batch import PADDING
from rerankzoo.errors import ExportError
from rerankzoo.features.encoding import (
    FIRST_ID,
    LEVELS,
    MISSING_ID,
    UNKNOWN_ID,
    IdEncoder,
    IntegerVocabulary,
    NumberEncoder,
    PageEncoder,
    TimeEncoder,
)
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.features.schema import FieldSpec, Group, Transform
from rerankzoo.serving.graph_client import MISSING, string_hash
from rerankzoo.serving.graph_rules import DEMANDS, NO_LIMIT

AXES: dict[str, list[Any]] = {
    "request": ["requests"],
    "candidate": ["requests", "candidates"],
    "history": ["requests", "history"],
}
#: Inputs that say how many entries of a request's lists are real; others are padding.
COUNTS = {"candidate": "num_candidates", "history": "num_history"}
_MEANINGS = {
    "exclude": "true: the candidate is not shown",
    "pin": "index of the candidate at each position; -100: as the model likes",
    "at_most": "how many candidates of one category a slate shows at most",
}
_TYPES = {"bool": 9, "double": 11, "int64": 7, "string": 8}  # as onnx.TensorProto has them
_MADE = ("categorical", "numeric", "time", "page")  # tensors of fields
#: Rational approximations of the normal distribution's quantile, the highest power first: near the middle, and of tails
#: down to exp(-32). Moshier, Cephes mathematical library, `ndtri`, which torch has, too.
NDTRI = {
    "P0": (-59.9633501014107895267, 98.0010754185999661536, -56.6762857469070293439, 13.9312609387279679503,
           -1.23916583867381258016),
    "Q0": (1.0, 1.95448858338141759834, 4.67627912898881538453, 86.3602421390890590575, -225.462687854119370527,
           200.260212380060660359, -82.0372256168333339912, 15.9056225126211695515, -1.18331621121330003142),
    "P1": (4.05544892305962419923, 31.5251094599893866154, 57.1628192246421288162, 44.0805073893200834700,
           14.6849561928858024014, 2.18663306850790267539, -0.140256079171354495875, -0.0350424626827848203418,
           -0.000857456785154685413611),
    "Q1": (1.0, 15.7799883256466749731, 45.3907635128879210584, 41.3172038254672030440, 15.0425385692907503408,
           2.50464946208309415979, -0.142182922854787788574, -0.0380806407691578277194, -0.000933259480895457427372),
}  # fmt: skip
_ML, _ML_VERSION = "ai.onnx.ml", 2
_FLOAT, _INT64, _UINT64 = 1, _TYPES["int64"], 13


class FeatureGraph:
    """Builds the nodes that make the model's input tensors.

    Args:
        extractor: A fitted extractor.

    Attributes:
        nodes: In the order in which they run.
        initializers: Their constants.
        inputs: What `export.json` says of each raw input.
    """

    def __init__(self, extractor: RerankingFeatureExtractor) -> None:
        self.extractor, self.state = extractor, extractor._fitted_state()
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.inputs: list[dict[str, Any]] = []

    def make(self, names: Sequence[str]) -> None:
        """Makes tensors of the batch, by their keys; an `ExportError` if one is not made of raw columns."""
        kinds = {name: name.split("_", 1) for name in names}
        made = {name: self._fields(*kind) for name, kind in kinds.items() if kind[1] in _MADE}
        groups = {"candidate", *(group for group, kind in kinds.values() if kind == "mask")}
        masks = {group: self._mask(group) for group in COUNTS if group in groups}
        for name, (group, kind) in kinds.items():
            if kind == "mask" and group in masks:
                tensor = masks[group]
            elif name == "candidate_value":
                tensor = self._values(masks["candidate"])
            elif name not in made:
                raise ExportError(f"the model reads {name}, which a graph cannot make of raw columns")
            else:
                tensor = made[name] or self._empty(kind, masks.get(group, COUNTS["candidate"]))
            self._op("Identity", tensor, output=name)

    def _fields(self, group: str, kind: str) -> str | None:
        """A group's ids or numbers (..., F), its times or pages (...); `None` if there are none: nothing to put in."""
        fields = self.state.fields[cast(Group, group)]
        times = [spec for spec, encode in fields if isinstance(encode, TimeEncoder)]
        numbers = [encode for spec, encode in fields if isinstance(encode, NumberEncoder) and spec not in times]
        if kind == "time":
            return self._time(group, times[0])
        if kind == "page":
            return self._page(group, next(spec for spec, encode in fields if isinstance(encode, PageEncoder)))
        if kind == "numeric":
            return self._numbers(group, numbers) if numbers else None
        ids = [self._id(spec, encode, group) for spec, encode in fields if isinstance(encode, IdEncoder)]
        return self._stack(ids) if ids else None

    def _empty(self, kind: str, like: str) -> str:
        """Like a mask, or numbers of candidates, with a last axis of F = 0."""
        shape = self._op("Concat", self._op("Shape", like), self._constant([0]), axis=0)
        return self._op("Cast", self._op("ConstantOfShape", shape), to=_INT64 if kind == "categorical" else _FLOAT)

    def _values(self, mask: str) -> str:
        """`candidate_value` (B, N, T): a column of each target, 1 where it has none, and 0 in padding."""
        parts = []
        for target in self.extractor.schema.targets:
            if target.value is None:
                parts.append(self._op("Cast", mask, to=_FLOAT))
                continue
            source = self._input(
                "candidate", target.value, "double", f"value of target {target.name!r}", [0.5, 1.0], required=True
            )
            present = self._op("Where", self._op("IsNaN", source), self._constant(0, np.float64), source)
            parts.append(self._op("Cast", present, to=_FLOAT))
        return self._stack(parts)

    # --- nodes -------------------------------------------------------------------------------------------------------

    def _op(self, kind: str, *inputs: str, output: str | None = None, domain: str = "", **attributes: Any) -> str:
        from onnx import helper

        output = output or f"features/{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], domain=domain, **attributes))
        return output

    def _constant(self, value: Any, dtype: npt.DTypeLike = np.int64) -> str:
        from onnx import numpy_helper

        name = f"features/constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def _input(self, group: str, column: str, kind: str, meaning: str, example: list[Any], **more: Any) -> str:
        """A raw column; where several fields read the same one, it is one input."""
        shape = [*AXES[group], more.pop("size")] if "size" in more else AXES[group]
        entry: dict[str, Any] = {"name": f"{group}.{column}", "column": column, "type": kind, "shape": shape}
        for known in self.inputs:
            if known["name"] == entry["name"]:
                if known["type"] != kind or known["shape"] != shape:
                    raise ExportError(f"field {column!r} is read as {known['type']} and as {kind}: a graph reads one")
                known |= {"required": True} if "required" in more else {}
                return str(entry["name"])
        values = example[0] if group == "request" else example
        self.inputs.append({**entry, "missing": MISSING[kind], **more, "meaning": meaning, "example": [values]})
        return str(entry["name"])

    def _stack(self, parts: Sequence[str]) -> str:
        last = self._constant([-1])
        parts = [self._op("Unsqueeze", part, last) for part in parts]
        return parts[0] if len(parts) == 1 else self._op("Concat", *parts, axis=-1)

    def _mask(self, group: str) -> str:
        """(B, N) or (B, L), True where an entry of the group's lists is real."""
        source = next((one["name"] for one in self.inputs if one["name"].startswith(f"{group}.")), None)
        if source is None:
            raise ExportError(f"the model reads no column of the {group}: its graph would not know how many there are")
        what = "candidates" if group == "candidate" else "history items"
        meaning = f"how many {what} each request has; what follows is padding"
        entry = {"name": COUNTS[group], "type": "int64", "shape": ["requests"]}
        self.inputs.append({**entry, "meaning": meaning, "example": [2]})
        width = self._op("Squeeze", self._op("Shape", source, start=1, end=2))
        places = self._op("Range", self._constant(0), width, self._constant(1))
        return self._op("Less", places, self._op("Unsqueeze", COUNTS[group], self._constant([1])))

    # --- ids ---------------------------------------------------------------------------------------------------------

    def _id(self, spec: FieldSpec, encode: IdEncoder, group: str) -> str:
        known = self.extractor.example_values(spec, 2)
        example, vocabulary = [known[0], known[-1]], encode.vocabulary
        if vocabulary is None:
            return self._bucket(spec, encode, group, example)
        kind = "int64" if isinstance(vocabulary, IntegerVocabulary) else "string"
        missing: Any = int(MISSING[kind]) if kind == "int64" else MISSING[kind]
        values = list(vocabulary.values)
        if missing in values:
            raise ExportError(f"field {spec.name!r} has the value {missing!r}, which means a missing one in a graph")
        if kind == "string":
            _check_text(values, spec.name)
        meaning = f"field {spec.name!r}; known are {len(values)} values, others count as one unknown"
        source = self._input(group, spec.name, kind, meaning, example)
        keys: dict[str, Any] = {f"keys_{kind}s": [missing, *values]}
        ids = [MISSING_ID, *range(FIRST_ID, FIRST_ID + len(values))]
        return self._op("LabelEncoder", source, domain=_ML, **keys, values_int64s=ids, default_int64=UNKNOWN_ID)

    def _bucket(self, spec: FieldSpec, encode: IdEncoder, group: str, example: list[Any]) -> str:
        """A hashed field's ids: of integers by the graph itself, of strings from their hash."""
        if encode.type == "string":
            meaning = f"field {spec.name!r}: the BLAKE2b hash (8 bytes, little-endian, signed) of each string's UTF-8"
            hashes = [string_hash(value) for value in example]
            mixed = source = self._input(group, spec.name, "int64", meaning, hashes, hash="blake2b-8")
        else:
            meaning = f"field {spec.name!r}; any integers, which the graph hashes"
            source = self._input(group, spec.name, "int64", meaning, example)
            mixed = self._splitmix(source)
        bucket = self._op("Mod", self._op("Cast", mixed, to=_UINT64), self._constant(encode.hash_size, np.uint64))
        ids = self._op("Add", self._op("Cast", bucket, to=_INT64), self._constant(FIRST_ID))
        missing = self._op("Equal", source, self._constant(int(MISSING["int64"])))
        return self._op("Where", missing, self._constant(MISSING_ID), ids)

    def _splitmix(self, values: str) -> str:
        """`hash_integers` before its remainder, in int64, of which ONNX Runtime has sums and products; they wrap."""
        values = self._op("Add", values, self._constant(_signed(0x9E3779B97F4A7C15)))
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            unsigned = self._op("Cast", values, to=_UINT64)
            shifted = self._op("BitShift", unsigned, self._constant(shift, np.uint64), direction="RIGHT")
            mixed = self._op("Cast", self._op("BitwiseXor", unsigned, shifted), to=_INT64)
            values = self._op("Mul", mixed, self._constant(_signed(factor)))
        return values

    # --- numbers -----------------------------------------------------------------------------------------------------

    def _numbers(self, group: str, encoders: Sequence[NumberEncoder]) -> str:
        """All numeric and dense fields of a group, (..., F); every step is one for all of them."""
        parts = [part for encode in encoders for part in self._raw(group, encode)]
        values = parts[0] if len(parts) == 1 else self._op("Concat", *parts, axis=-1)
        missing, zero = self._op("IsNaN", values), self._constant(0, np.float64)
        values = self._op("Where", missing, zero, values)
        specs = [encode.spec for encode in encoders for _ in range(encode.spec.size)]
        if any(spec.clip for spec in specs):
            low, high = zip(*(spec.clip or (-math.inf, math.inf) for spec in specs), strict=True)
            values = self._op("Max", values, self._constant(low, np.float64))
            values = self._op("Min", values, self._constant(high, np.float64))
        for step in range(max(len(spec.transforms) for spec in specs)):
            at_step = [spec.transforms[step] if step < len(spec.transforms) else None for spec in specs]
            values = self._transform(values, at_step, encoders)
        return self._op("Cast", self._op("Where", missing, zero, values), to=_FLOAT)

    def _time(self, group: str, spec: FieldSpec) -> str:
        meaning = f"field {spec.name!r}: how long before the request; at least 0"
        source = self._input(group, spec.name, "double", meaning, [2.0, 1.0], required=True, at_least=0)
        known = self._op("Where", self._op("IsNaN", source), self._constant(0, np.float64), source)
        return self._op("Cast", self._op("Div", known, self._constant(spec.time_unit, np.float64)), to=_FLOAT)

    def _page(self, group: str, spec: FieldSpec) -> str:
        meaning = f"field {spec.name!r}: how many pages ago; at least 0"
        source = self._input(group, spec.name, "int64", meaning, [2, 1], required=True, at_least=0)
        return self._op("Max", source, self._constant(0))

    def _raw(self, group: str, encode: NumberEncoder) -> list[str]:
        """The columns of a field as (..., 1) each, or its vectors (..., size)."""
        spec, bounds = encode.spec, lower_bounds(encode)
        what = f"field {spec.name!r}: {spec.kind}"
        if spec.kind == "dense" and not spec.columns:
            example = [[0.5] * spec.size, [1.0] * spec.size]
            return [self._input(group, spec.name, "double", what, example, size=spec.size, **_greater(bounds))]
        last, parts = self._constant([-1]), []
        for column, bound in zip(spec.sources, bounds, strict=True):
            source = self._input(group, column, "double", what, [0.5, 1.0], **_greater([bound]))
            parts.append(self._op("Unsqueeze", source, last))
        return parts

    def _transform(self, values: str, names: Sequence[Transform | None], encoders: Sequence[NumberEncoder]) -> str:
        """Applies to each of the F columns its transform of this name, if any."""
        size = len(names)
        for name in ("signed_log1p", "log1p"):
            concerned = [other == name for other in names]
            if not any(concerned):
                continue
            moved = self._log1p(values) if name == "log1p" else self._log1p(self._op("Abs", values))
            moved = moved if name == "log1p" else self._op("Mul", self._op("Sign", values), moved)
            values = moved if all(concerned) else self._op("Where", self._constant(concerned, np.bool_), moved, values)
        if "quantile" in names:
            concerned = [name == "quantile" for name in names]
            known = [np.zeros((len(LEVELS), encode.spec.size)) if encode.quantiles is None else encode.quantiles
                     for encode in encoders]  # fmt: skip
            moved = self._normal_scores(values, np.concatenate(known, 1))
            values = moved if all(concerned) else self._op("Where", self._constant(concerned, np.bool_), moved, values)
        if "standardize" in names:
            fitted = [np.tile([[0.0], [1.0]], encode.spec.size) if encode.statistics is None else encode.statistics
                      for encode in encoders]  # fmt: skip
            concerned_now = np.array([name == "standardize" for name in names])
            mean, std = np.where(concerned_now, np.concatenate(fitted, 1), np.tile([[0.0], [1.0]], size))
            values = self._op("Sub", values, self._constant(mean, np.float64))
            values = self._op("Div", values, self._constant(std, np.float64))
        return values

    def _normal_scores(self, values: str, quantiles: npt.NDArray[Any]) -> str:
        """`encoding.normal_scores` of (..., F), with the quantiles (257, F)."""
        double, edge = partial(self._constant, dtype=np.float64), LEVELS[1] / 2
        below, upto = (self._place(values, quantiles, comparison) for comparison in ("Greater", "GreaterOrEqual"))
        place = self._op("Mul", self._op("Add", below, upto), double(0.5))
        place = self._op("Min", self._op("Max", place, double(edge)), double(1 - edge))
        centred = self._op("Sub", place, double(0.5))
        square = self._op("Mul", centred, centred)
        ratio = self._op("Div", self._polynomial(square, NDTRI["P0"]), self._polynomial(square, NDTRI["Q0"]))
        middle = self._op("Add", centred, self._op("Mul", centred, self._op("Mul", square, ratio)))
        middle = self._op("Mul", middle, double(math.sqrt(2 * math.pi)))
        tail = self._op("Min", place, self._op("Sub", double(1), place))
        x = self._op("Sqrt", self._op("Mul", double(-2), self._op("Log", tail)))
        z = self._op("Div", double(1), x)
        ratio = self._op("Div", self._polynomial(z, NDTRI["P1"]), self._polynomial(z, NDTRI["Q1"]))
        size = self._op("Sub", self._op("Sub", x, self._op("Mul", self._op("Log", x), z)), self._op("Mul", z, ratio))
        outer = self._op("Mul", self._op("Sign", centred), size)
        return self._op("Where", self._op("Greater", tail, double(math.exp(-2))), middle, outer)

    def _place(self, values: str, quantiles: npt.NDArray[Any], comparison: str) -> str:
        """Where values stand among their quantiles, from 0 to 1; with `Greater` the first of equal ones."""
        count, size = quantiles.shape
        table = self._constant(quantiles.T.reshape(-1), np.float64)
        alone = self._op("Unsqueeze", values, self._constant([-1]))
        passed = self._op("Cast", self._op(comparison, alone, self._constant(quantiles.T, np.float64)), to=_INT64)
        passed = self._op("ReduceSum", passed, self._constant([-1]), keepdims=0)
        upper = self._op("Min", self._op("Max", passed, self._constant(1)), self._constant(count - 1))
        upper_index = self._op("Add", upper, self._constant(np.arange(size) * count))
        low = self._op("Gather", table, self._op("Sub", upper_index, self._constant(1)))
        width = self._op("Sub", self._op("Gather", table, upper_index), low)
        share = self._op("Div", self._op("Sub", values, low), width)
        before = self._op("Cast", self._op("Sub", upper, self._constant(1)), to=_TYPES["double"])
        place = self._op("Div", self._op("Add", before, share), self._constant(count - 1, np.float64))
        for end, at in ((0, 0.0), (count, 1.0)):  # of what lies outside, the share has no meaning
            outside = self._op("Equal", passed, self._constant(end))
            place = self._op("Where", outside, self._constant(at, np.float64), place)
        return place

    def _polynomial(self, x: str, coefficients: Sequence[float]) -> str:
        """By Horner's rule, the highest power first."""
        value = self._constant(coefficients[0], np.float64)
        for coefficient in coefficients[1:]:
            value = self._op("Add", self._op("Mul", value, x), self._constant(coefficient, np.float64))
        return value

    def _log1p(self, values: str) -> str:
        """log(1 + x), which ONNX lacks, as exact as numpy's.

        By log(u) x / (u - 1) with u = 1 + x rounded (Goldberg: What every computer scientist should know about
        floating-point arithmetic, 1991, theorem 4).
        """
        one, zero = self._constant(1, np.float64), self._constant(0, np.float64)
        above = self._op("Add", values, one)
        rounded = self._op("Sub", above, one)
        same = self._op("Equal", rounded, zero)
        scaled = self._op("Div", self._op("Mul", self._op("Log", above), values), rounded)
        return self._op("Where", same, values, scaled)


def lower_bounds(encode: NumberEncoder) -> list[float | None]:
    """For each number of a field what it must be greater than, for `log1p` to take it; `None` for anything."""
    spec = encode.spec
    if "log1p" not in spec.transforms:
        return [None] * spec.size
    bound = np.full(spec.size, -1.0)
    for name in reversed(spec.transforms[: spec.transforms.index("log1p")]):  # all of them grow
        if name == "quantile":
            raise ExportError(f"field {spec.name!r}: log1p after quantile has no form in a graph with features")
        if name == "signed_log1p":
            bound = np.sign(bound) * np.expm1(np.abs(bound))
        elif encode.statistics is not None:
            bound = bound * encode.statistics[1] + encode.statistics[0]
    clipped = spec.clip is not None and spec.clip[0] > bound
    return [None if free else float(value) for value, free in np.broadcast(bound, clipped)]


def with_features(
    model: Path, out: Path, extractor: RerankingFeatureExtractor, slate_size: int
) -> list[dict[str, Any]]:
    """Writes a model's graph with the extractor in front, and the weights that it refers to where they were.

    Args:
        model: An ONNX file whose inputs are tensors of the batch, or demands (see `DEMANDS`).
        out: The file to write; may be the same.
        extractor: The model's.
        slate_size: M.

    Returns:
        What `export.json` says of each input; batch tensors that the model does not read are none.

    Raises:
        ExportError: If a tensor cannot be made of raw columns, or a value of the extractor cannot stand in a graph.
    """
    import onnx
    from onnx import helper

    proto = onnx.load(model, load_external_data=False)
    graph, features = proto.graph, FeatureGraph(extractor)
    read = {name for node in graph.node for name in node.input}
    names = [entry.name for entry in graph.input]
    features.make([name for name in names if name in read and name not in DEMANDS])
    inputs = [*features.inputs, *(_demand(name, slate_size) for name in names if name in DEMANDS)]
    nodes = [*features.nodes, *graph.node]
    for part in (graph.node, graph.input, graph.value_info):
        del part[:]
    graph.node.extend(nodes)
    graph.initializer.extend(features.initializers)
    graph.input.extend(helper.make_tensor_value_info(e["name"], _TYPES[e["type"]], e["shape"]) for e in inputs)
    if _ML not in (opset.domain for opset in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid(_ML, _ML_VERSION))
    onnx.save(proto, out)
    return inputs


def _demand(name: str, slate_size: int) -> dict[str, Any]:
    """What `export.json` says of a demand."""
    entry, names = DEMANDS[name], {"B": "requests", "N": "candidates", "M": "positions"}
    example = {"exclude": [[False, False]], "pin": [[PADDING] * slate_size], "at_most": [NO_LIMIT]}[name]
    kind, shape = str(entry.dtype).removeprefix("torch."), [names[axis] for axis in entry.axes]
    return {"name": name, "type": kind, "shape": shape, "meaning": _MEANINGS[name], "example": example}


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _greater(bounds: Sequence[float | None]) -> dict[str, Any]:
    return {} if all(bound is None for bound in bounds) else {"greater_than": list(bounds)}


def _check_text(values: Sequence[str], field: str) -> None:
    for value in values:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ExportError(f"field {field!r} has {value!r}, which is no text that a graph can hold") from error
