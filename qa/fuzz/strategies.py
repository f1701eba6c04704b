"""Hostile values, and ways to put them into what is right otherwise.

A case that is random throughout is refused at its first field and tests nothing else. So cases start from what is
right, and few places of them, often none, are spoiled.

Every case is made from a `Source` of choices: hypothesis', which makes a finding small, or a random number generator,
which is ten times faster and told by its seed.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from hypothesis import strategies as st

from qa.fuzz.world import INPUTS, LABELS, Row, valid_row

T = TypeVar("T")


class Source(Protocol):
    """Where choices come from."""

    def pick(self, values: Sequence[T]) -> T:
        """One of several values."""

    def number(self, least: int, most: int) -> int:
        """An integer, both ends included."""

    def float(self) -> float:
        """Any float."""

    def text(self, most: int) -> str:
        """A short text of any characters."""


class RandomSource:
    """Choices of a random number generator."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def pick(self, values: Sequence[T]) -> T:
        """See `Source`."""
        return self._random.choice(values)

    def number(self, least: int, most: int) -> int:
        """See `Source`."""
        return self._random.randint(least, most)

    def float(self) -> float:
        """See `Source`."""
        return self._random.choice([1.0, -1.0]) * 2.0 ** self._random.uniform(-1070, 1023)

    def text(self, most: int) -> str:
        """See `Source`."""
        letters = (self._random.choice([9, 40, 127, 0x7FF, 0xFFFF, 0x10FFFF]) for _ in range(self.number(0, most)))
        return "".join(chr(self._random.randint(0, limit)) for limit in letters)


class DrawnSource:
    """Choices of hypothesis."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw

    def pick(self, values: Sequence[T]) -> T:
        """See `Source`."""
        return self._draw(st.sampled_from(values))

    def number(self, least: int, most: int) -> int:
        """See `Source`."""
        return self._draw(st.integers(least, most))

    def float(self) -> float:
        """See `Source`."""
        return self._draw(st.floats())

    def text(self, most: int) -> str:
        """See `Source`."""
        return self._draw(st.text(max_size=most))


def drawn(make: Callable[[Source], T]) -> st.SearchStrategy[T]:
    """The strategy of cases that a function makes."""

    @st.composite
    def strategy(draw: st.DrawFn) -> T:
        return make(DrawnSource(draw))

    return strategy()


_NESTED: list[Any] = []
_NESTED.append(_NESTED)  # a list that holds itself

#: Values that are legal somewhere, in places where they are not, and values that are legal nowhere.
ODD_VALUES: list[Any] = [
    *[None, True, False, 0, 1, -1, 3, 2**31, 2**63 - 1, -(2**63), 2**63, 2**64, 10**400, -(10**5000)],
    *[0.0, -0.0, 0.5, -1.0, 1e-45, 5e-324, 3.4e38, 3.5e38, -3.4e38, 1e308, math.nan, math.inf, -math.inf],
    *["", "0", "u1", "b1", "\x00", "a\nb\r\t\x1b[31m", "\ud800", "\U0001f600" * 3, "é" * 1_000, "x" * 100_000],
    *[b"bytes", 1j, (), [], {}, [[]], [[[]]], [None], [[1], 2], [1, "a"], [1.5, None], _NESTED, {"a": 1}, {1, 2}],
    *[np.int8(3), np.uint64(2**64 - 1), np.float16(1), np.float32("nan"), np.str_("s"), np.bool_(True)],
    *[np.array(3), np.array([]), np.array([1, 2]), np.array([[1.0]]), np.array(["a", "b"]), np.array([None, 1])],
    *[np.datetime64("2020-01-01"), np.array([1 + 1j]), pd.NA, pd.Timestamp(0), torch.tensor([1, 2]), torch.tensor(1.0)],
    *[range(3), object, "item", "candidate_mask", "../../etc/passwd", "/", "a" * 300 + "/../b"],
]


def odd_value(source: Source) -> Any:
    """Anything."""
    kind = source.number(0, 9)
    if kind <= 5:
        return source.pick(ODD_VALUES)
    if kind == 6:
        return source.float()
    if kind == 7:
        return source.text(8)
    if kind == 8:
        return source.number(-(2**65), 2**65)
    return [source.pick([None, 0, -1, 7, 59, 0.5, "u1", "x", True]) for _ in range(source.number(0, 6))]


def spoiled(source: Source, value: Any) -> Any:
    """A value with one thing about it changed: itself, an entry of it, or its length."""
    if not isinstance(value, list) or not value or source.number(0, 1):
        return odd_value(source)
    place = source.number(0, len(value) - 1)
    how = source.pick(["entry", "drop", "repeat", "deeper"])
    if how == "drop":
        return value[:place] + value[place + 1 :]
    if how == "repeat":
        return [*value, value[place]]
    if how == "deeper":
        return [value]
    return [*value[:place], spoiled(source, value[place]), *value[place + 1 :]]


def row(source: Source, labels: bool = False) -> Row:
    """One request; half of them are right."""
    made = valid_row(source.number(0, 2**32 - 1), labels)
    for _ in range(source.pick([0, 0, 0, 1, 1, 2])):
        name = source.pick((*INPUTS, *LABELS) if labels else INPUTS)
        how = source.pick(["spoil", "spoil", "spoil", "remove", "extra"])
        if how == "remove":
            made.pop(name, None)
        elif how == "extra":
            made[source.pick(["extra", "", "\ud800", "price ", "slates"])] = odd_value(source)
        elif name in made:
            made[name] = spoiled(source, made[name])
    return made


def as_columns(data: list[Row]) -> dict[str, list[Any]]:
    """Rows as columns; what a row lacks is `None`."""
    names = dict.fromkeys(name for row in data for name in row)
    return {name: [row.get(name) for row in data] for name in names}


def _holds_itself(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_itself, value.values()))
    return isinstance(value, list | tuple) and (value is _NESTED or any(map(_holds_itself, value)))


def table(source: Source, labels: bool = False) -> Any:
    """Several requests, in any of the formats that are read."""
    data = [row(source, labels) for _ in range(source.pick([1, 1, 2, 3]))]
    form = source.pick(["rows", "rows", "rows", "one", "columns", "pandas", "arrow", "odd"])
    if form == "one":
        return data[0]
    if form == "odd":
        return odd_value(source) if source.number(0, 1) else [*data, odd_value(source)]
    if form == "columns":
        columns = as_columns(data)
        if source.number(0, 5) == 0:
            name = source.pick(sorted(columns))
            columns[name] = spoiled(source, columns[name])
        return columns
    if _holds_itself(data):  # on which Arrow's own conversion crashes the process
        return data
    try:
        if form == "pandas":
            return pd.DataFrame(as_columns(data))
        if form == "arrow":
            return pa.Table.from_pydict(as_columns(data))
    except (ValueError, TypeError, OverflowError, AttributeError, pa.ArrowException, UnicodeError, RecursionError):
        pass  # what pandas or Arrow do not hold, nobody can hand in
    return data


# --- text and bytes -------------------------------------------------------------------------------------------------

_HOSTILE_YAML = [
    *["", "a: [", "[" * 3_000, "- 1", "a: &a [*a]", "!!python/object/apply:os.system [x]", "!!timestamp x", "!!int ''"],
    *["a: 2020-99-99", "? {a: b}\n: c", "a: !!binary x", "\x00", "a: \ud7ff", "9" * 5_000, "a: .inf", "!!bool x"],
    "\n".join(["a0: &a0 [1, 1]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))]),
]
_TOKENS = [": ", "- ", *"[]{}'#|>", '"', "!!", "&a ", "*a", "null", "\n", "  ", "\t", "1e400"]


def mutated_bytes(source: Source, content: bytes) -> bytes:
    """Bytes of a file with a few places changed, cut out or doubled; a fifth are unchanged."""
    data = bytearray(content)
    for _ in range(source.pick([0, 1, 1, 2, 4])):
        place = source.number(0, max(len(data) - 1, 0))
        how = source.pick(["byte", "byte", "cut", "remove", "double", "insert"])
        if how == "cut":
            del data[place:]
        elif how == "remove":
            del data[place : place + source.number(1, 16)]
        elif how == "double":
            data[place:place] = data[place : place + source.number(1, 64)]
        elif how == "insert":
            data.insert(place, source.number(0, 255))
        elif data:
            data[place] = source.number(0, 255)
    return bytes(data)


def mutated_text(source: Source, content: str) -> bytes:
    """Text of a file with tokens put in or lines taken out; some of it hostile throughout."""
    if source.number(0, 9) == 0:
        return source.pick(_HOSTILE_YAML).encode("utf-8", "surrogatepass")
    for _ in range(source.pick([0, 0, 1, 1, 2])):
        lines = content.split("\n")
        place = source.number(0, len(lines) - 1)
        if source.number(0, 1):
            token = source.text(3) if source.number(0, 1) else source.pick(_TOKENS)
            column = source.number(0, len(lines[place]))
            lines[place] = lines[place][:column] + token + lines[place][column:]
        else:
            lines[place : place + 1] = [lines[place]] * source.pick([0, 2])
        content = "\n".join(lines)
    return content.encode("utf-8", "surrogatepass")


def mutated_tree(source: Source, tree: Any) -> Any:
    """JSON-like data with a few entries changed, removed or added; two in five are unchanged."""
    tree = copy.deepcopy(tree)
    for _ in range(source.pick([0, 0, 1, 1, 2])):
        tree = _mutate(source, tree)
    return tree


_JSON_VALUES: list[Any] = [
    *[None, True, 0, 1, -1, 7, 2**31, 2**40, 2**63, 2**70, 10**400, 0.5, -2.0, 1e39, math.inf, math.nan],
    *["", "x", "item", "price", "categorical", "request", "numeric", "dense", "\x00\n", "\ud800", "y" * 5_000],
    *[[], {}, [1], [[]], {"a": 1}, ["log1p"], [0, 1], [1, 0], ["standardize", "standardize"], "log1p"],
    *["NAR4RecEvaluator", "DeGReGenerator", "degre", "../../x", "/etc/passwd"],
]


def _mutate(source: Source, tree: Any) -> Any:
    if not isinstance(tree, dict | list) or not tree or source.number(0, 9) == 0:
        return copy.deepcopy(source.pick(_JSON_VALUES))
    place: Any = source.pick(sorted(tree, key=str) if isinstance(tree, dict) else range(len(tree)))
    how = source.pick(["in", "in", "in", "in", "remove", "again"])
    if how == "in":
        tree[place] = _mutate(source, tree[place])
    elif how == "remove":
        del tree[place]
    elif isinstance(tree, list):
        tree.append(tree[place])
    else:
        tree[source.pick([f"{place}s", "extra", "", "name", "\ud800"])] = tree[place]
    return tree
