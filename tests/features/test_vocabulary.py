from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankzoo.features.encoding import (
    IntegerVocabulary,
    StringVocabulary,
    begins_with,
    extended_vocabulary,
    hash_integers,
    hash_strings,
    vocabulary_digest,
    vocabulary_from_arrays,
)

# Ids are part of every saved model: these numbers must never change.
HASHED_INTEGERS = [537, 467, 938, 77]
HASHED_STRINGS = [758, 930, 74]

INT64 = st.integers(-(2**63), 2**63 - 1)


@given(st.sets(st.one_of(st.integers(-50, 50), INT64)), st.lists(st.one_of(st.integers(-60, 60), INT64)))
def test_integer_ids_equal_a_dictionary(known: set[int], values: list[int]) -> None:
    vocabulary = IntegerVocabulary(np.array(sorted(known), dtype=np.int64))
    expected = {value: index for index, value in enumerate(sorted(known), start=2)}
    ids = vocabulary.encode(np.array(values, dtype=np.int64))
    assert ids.tolist() == [expected.get(value, 1) for value in values]


@given(st.sets(st.text()), st.lists(st.text()))
def test_string_vocabularies_survive_storage(known: set[str], values: list[str]) -> None:
    vocabulary = StringVocabulary(sorted(known))
    restored = vocabulary_from_arrays(vocabulary.to_arrays())
    assert restored.values == vocabulary.values
    assert vocabulary_digest(restored) == vocabulary_digest(vocabulary)
    assert restored.encode(values).tolist() == vocabulary.encode(values).tolist()


@given(st.sets(st.one_of(st.integers(-50, 50), INT64)), st.sets(st.one_of(st.integers(-60, 60), INT64)))
def test_extended_integers_keep_their_ids(known: set[int], more: set[int]) -> None:
    old, new = (IntegerVocabulary(np.array(sorted(values), dtype=np.int64)) for values in (known, more))
    longer = extended_vocabulary(old, new)
    order = [*sorted(known), *sorted(more - known)]
    assert longer.encode(np.array(order, dtype=np.int64)).tolist() == list(range(2, 2 + len(order)))
    restored = vocabulary_from_arrays(longer.to_arrays())
    assert vocabulary_digest(restored) == vocabulary_digest(longer)
    assert begins_with(longer, old)
    assert begins_with(old, longer) == (not more - known)


@given(st.sets(st.text()), st.sets(st.text()))
def test_extended_strings_keep_their_ids(known: set[str], more: set[str]) -> None:
    old, new = StringVocabulary(sorted(known)), StringVocabulary(sorted(more))
    longer = extended_vocabulary(old, new)
    assert longer.values == [*sorted(known), *sorted(more - known)]
    assert begins_with(longer, old)
    assert begins_with(old, longer) == (not more - known)


def test_vocabularies_of_two_types_are_not_mixed() -> None:
    integers, strings = IntegerVocabulary(np.array([1], dtype=np.int64)), StringVocabulary(["1"])
    empty = IntegerVocabulary(np.empty(0, dtype=np.int64))
    assert extended_vocabulary(empty, strings) is strings
    assert begins_with(strings, empty)
    assert not begins_with(strings, integers)
    with pytest.raises(TypeError, match="IntegerVocabulary cannot be extended by a StringVocabulary"):
        extended_vocabulary(integers, strings)


def test_integer_hash_is_splitmix64() -> None:
    # 0xE220A8397B1DCDAF is SplitMix64's published first output for seed 0.
    assert hash_integers(np.array([0], dtype=np.int64), 1000).tolist() == [0xE220A8397B1DCDAF % 1000 + 2]
    ids = hash_integers(np.array([0, 1, -1, 2**62], dtype=np.int64), 1000)
    assert ids.tolist() == HASHED_INTEGERS


def test_string_hash_is_blake2b() -> None:
    assert hash_strings(["", "a", "ünï"], 1000).tolist() == HASHED_STRINGS
    digest = hashlib.blake2b("ünï".encode(), digest_size=8).digest()
    assert HASHED_STRINGS[2] == int.from_bytes(digest, "little") % 1000 + 2


@pytest.mark.parametrize("size", [1, 7])
def test_hashes_stay_in_their_range(size: int) -> None:
    values = np.arange(-500, 500, dtype=np.int64)
    for ids in (hash_integers(values, size), hash_strings([str(value) for value in values], size)):
        assert set(ids.tolist()) == set(range(2, size + 2))
