"""Raw requests through a graph that was exported with features; needs numpy and onnxruntime, and nothing else.

`rerankzoo export --with-features` puts this file beside the graph. From a command line, JSON in, JSON out:

    python graph_client.py < requests.json

It imports nothing of rerankzoo: where this file runs, there may be none.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import numpy.typing as npt

#: What stands in an input where a value is missing, and in padding.
MISSING = {"double": "NaN", "int64": "-9223372036854775808", "string": "\uffff"}
NO_PIN = -100
NO_LIMIT = 1 << 40
_FLOAT32_MAX = 3.4028234663852886e38
_TOGETHER = 32  # requests of the standard input in one call: memory is bounded
_MARKERS: dict[str, Any] = {"double": np.nan, "int64": int(MISSING["int64"]), "string": MISSING["string"]}
_DTYPES: dict[str, Any] = {"double": np.float64, "int64": np.int64, "string": object}
_TAKEN: dict[str, set[type]] = {
    "double": {int, float, bool, NoneType},
    "int64": {int, bool, NoneType},
    "string": {str, NoneType},
}

Request = Mapping[str, Any]


class GraphClient:
    """Reranks raw requests by an exported graph, and nothing else.

    Args:
        folder: What `rerankzoo export --with-features` has made.
        threads: That a call uses.
    """

    def __init__(self, folder: str | os.PathLike[str], threads: int = 1) -> None:
        import onnxruntime

        path = Path(folder)
        self.description: dict[str, Any] = json.loads((path / "export.json").read_text(encoding="utf-8"))["features"]
        self.inputs: list[dict[str, Any]] = self.description["inputs"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Other layouts of memory, which the highest level tries, are for images.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        graph = str(path / self.description["graph"])
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def __call__(self, requests: Sequence[Request], **demands: Sequence[Any]) -> list[list[dict[str, Any]]]:
        """Reranks requests.

        Args:
            requests: As they come from JSON: a dictionary of columns each.
            **demands: Of a graph that was exported with them, one entry per request: `exclude`, the ids of items that
                are not shown; `pin`, item ids by position; `at_most`, a number.

        Returns:
            For each request its items in order: `item_id`, `index` among the candidates and `score`.

        Raises:
            ValueError: If a request cannot be used; names the field and the row.
        """
        slates, _, scores = self.session.run(None, self.arrays(requests, **demands))
        key = self.description["item_id"]
        return [
            [
                {"item_id": request[key][index], "index": index, "score": score}
                for index, score in zip(slate, steps, strict=True)
                if index >= 0
            ]
            for request, slate, steps in zip(requests, slates.tolist(), scores.tolist(), strict=True)
        ]

    def arrays(self, requests: Sequence[Request], **demands: Sequence[Any]) -> dict[str, npt.NDArray[Any]]:
        """The graph's inputs; arguments and errors as of a call."""
        if not requests:
            raise ValueError("there are no requests")
        key = self.description["item_id"]
        counts = {"candidates": _lengths(requests, key)}
        for row, (request, count) in enumerate(zip(requests, counts["candidates"], strict=True)):
            if count == 0 or None in request[key]:
                raise _error(key, row, "an item id is required, got None" if count else "an empty candidate set")
        past = next((entry["column"] for entry in self.inputs if entry["shape"][1:2] == ["history"]), None)
        if past is not None:
            counts["history"] = _lengths(requests, past, optional=True)
        arrays: dict[str, npt.NDArray[Any]] = {}
        for entry in self.inputs:
            name = entry["name"]
            if "column" in entry:
                arrays[name] = _column(requests, entry, counts)
            elif name.startswith("num_"):
                arrays[name] = np.array(counts[name.removeprefix("num_")], dtype=np.int64)
            else:
                arrays[name] = self._demand(entry, requests, counts["candidates"], demands.pop(name, None))
        if demands:
            raise ValueError(f"the graph was exported without {sorted(demands)}")
        return arrays

    def _demand(
        self, entry: Mapping[str, Any], requests: Sequence[Request], lengths: list[int], given: Sequence[Any] | None
    ) -> npt.NDArray[Any]:
        name, key = entry["name"], self.description["item_id"]
        if given is not None and len(given) != len(requests):
            raise ValueError(f"field {name!r}: {len(given)} entries, there are {len(requests)} requests")
        if name == "at_most":
            return np.array([NO_LIMIT] * len(requests) if given is None else given, dtype=np.int64)
        if name == "exclude":
            mask = np.zeros((len(requests), max(lengths)), dtype=np.bool_)
            for row, items in enumerate(given or ()):
                mask[row, : lengths[row]] = [item in set(items) for item in requests[row][key]]
            return mask
        pins = np.full((len(requests), self.description["slate_size"]), NO_PIN, dtype=np.int64)
        for row, items in enumerate(given or ()):
            for position, item in items.items():
                if item not in requests[row][key]:
                    raise _error(name, row, f"{item!r} is no candidate")
                pins[row, int(position)] = requests[row][key].index(item)
        return pins


def string_hash(text: str) -> int:
    """What a graph takes for a string of a hashed field: BLAKE2b of its UTF-8, 8 bytes, as a little-endian integer."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _column(requests: Sequence[Request], entry: Mapping[str, Any], counts: Mapping[str, list[int]]) -> npt.NDArray[Any]:
    """A column of the requests as (B,), (B, N) or (B, L), and (..., size) of vectors; padding is as what is missing."""
    name, axes = entry["column"], entry["shape"][1:]
    values = [_get(request, name, row) for row, request in enumerate(requests)]
    shape = [len(values)]
    if axes[:1] in (["candidates"], ["history"]):
        lengths = counts[axes.pop(0)]
        shape.append(max(1, *lengths))
        lists = []
        for row, (entries, length) in enumerate(zip(values, lengths, strict=True)):
            entries = [] if entries is None and length == 0 else entries
            if not isinstance(entries, list) or len(entries) != length:
                found = f"{len(entries)}" if isinstance(entries, list) else repr(entries)
                raise _error(name, row, f"a list of {length} entries is required, got {found}")
            if "required" in entry and None in entries:
                raise _error(name, row, "a number is required, got None")
            lists.append(entries if length == shape[1] else entries + [None] * (shape[1] - length))
        values = lists[0] if len(lists) == 1 else [value for entries in lists for value in entries]
    for size in axes:
        for place, vector in enumerate(values):
            if vector is not None and not (isinstance(vector, list) and len(vector) == size):
                raise _error(name, place * shape[0] // len(values), f"a vector of length {size} is required")
        values = [number for vector in values for number in (vector or [None] * size)]
        shape.append(size)
    return _leaves(values, entry, len(values) // shape[0]).reshape(shape)


def _leaves(values: list[Any], entry: Mapping[str, Any], per_row: int) -> npt.NDArray[Any]:
    """Values of JSON as an array; a ValueError if one is of a wrong type, or beyond what the model takes."""
    name, kind = entry["column"], entry["type"]
    taken = {str, NoneType} if "hash" in entry else _TAKEN[kind]
    types = set(map(type, values))
    if not types <= taken:
        place = next(place for place, value in enumerate(values) if type(value) not in taken)
        wanted = {"double": "a number", "int64": "an int", "string": "a string"}["string" if str in taken else kind]
        raise _error(name, place // per_row, f"{wanted} is required, got {values[place]!r}")
    absent = NoneType in types
    if "hash" in entry:
        values = [None if value is None else string_hash(value) for value in values]
    if kind != "double":
        marker = _MARKERS[kind]
        filled = [marker if value is None else value for value in values] if absent else values
        for place, value in enumerate(values) if "at_least" in entry else ():
            if value is not None and value < entry["at_least"]:
                raise _error(name, place // per_row, f"an int of at least {entry['at_least']} is required, got {value}")
        try:
            return np.array(filled, dtype=_DTYPES[kind])
        except OverflowError:
            place = next(place for place, value in enumerate(filled) if not -(1 << 63) <= value < 1 << 63)
            raise _error(name, place // per_row, f"{values[place]} is too large") from None
    try:
        array = np.array(values, dtype=np.float64)  # None becomes NaN
    except OverflowError:
        raise _error(name, None, "a finite float32 number is required, got one that is too large") from None
    good = np.abs(array) <= _FLOAT32_MAX
    wanted = "a finite float32 number"
    if "at_least" in entry:
        good, wanted = good & (array >= entry["at_least"]), f"{wanted} of at least {entry['at_least']}"
    if "greater_than" in entry:
        bounds = np.array(entry["greater_than"], dtype=np.float64)  # of a vector's numbers; NaN where there is none
        good &= ~(array.reshape(-1, len(bounds)) <= bounds).reshape(-1)
        wanted += f" greater than {entry['greater_than']}"
    if not good.all():
        bad = [place for place in np.flatnonzero(~good).tolist() if values[place] is not None]
        if bad:
            raise _error(name, bad[0] // per_row, f"{wanted} is required, got {values[bad[0]]!r}")
    return array


def _lengths(requests: Sequence[Request], name: str, optional: bool = False) -> list[int]:
    """How long the list of each request's column is."""
    lengths = []
    for row, request in enumerate(requests):
        values = _get(request, name, row)
        values = [] if values is None and optional else values
        if not isinstance(values, list):
            raise _error(name, row, f"a list is required, got {values!r}")
        lengths.append(len(values))
    return lengths


def _get(request: Request, name: str, row: int) -> Any:
    if not isinstance(request, Mapping):
        raise _error(name, row, f"a request must be an object, got {request!r}")
    if name not in request:
        raise _error(name, row, f"missing column; there are {sorted(request)[:30]}")
    return request[name]


def _error(field: str, row: int | None, message: str) -> ValueError:
    place = f"field {field!r}" if row is None else f"field {field!r}, row {row}"
    return ValueError(f"{place}: {message[:500]}")


def main() -> None:
    """Requests from the standard input, their items to the standard output."""
    client, requests = GraphClient(Path(__file__).parent), json.load(sys.stdin)
    parts = (requests[start : start + _TOGETHER] for start in range(0, len(requests), _TOGETHER))
    json.dump([items for part in parts for items in client(part)], sys.stdout, ensure_ascii=False)


if __name__ == "__main__":
    main()
