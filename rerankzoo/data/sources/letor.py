"""Learning-to-rank collections: svmlight files, `grade [qid:query] index:value ... [# comment]`, one line a document.

Which documents belong to a query is said by `qid:`, or by a file of counts beside the lines, as LightGBM (`FILE.query`)
and XGBoost (`FILE.group`) have them. A request is a query, its candidates are the query's documents, their grades the
labels of candidates; nothing was shown, so there are no slates. All features are one dense field.

What a line leaves out is 0. A number beyond float32 (Istella writes 1.797e308 where it has none) is a missing value.
The files are read twice, line by line: first what they hold is counted and held against what was published, then the
folder is written, a few megabytes at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa

from rerankzoo.data.folder import write_data_folder
from rerankzoo.errors import RerankingDataError, shown
from rerankzoo.features.schema import FLOAT32_MAX, FeatureSchema, FieldSpec, TargetSpec

#: Queries, documents and features of published collections, of all splits together; of MSLR in every fold.
COLLECTIONS = MappingProxyType(
    {
        "mslr-web10k": (10_000, 1_200_192, 136),
        "mslr-web30k": (31_531, 3_771_125, 136),
        "istella": (33_018, 10_454_629, 220),
        "istella-s": (33_018, 3_408_630, 220),
    }
)
_COUNTS = (".query", ".group")
_VALIDATION_SHARE = 0.2
_TABLE_VALUES = 4_000_000  # features of the queries that are written together
_MOST_FEATURES = 10_000

Line = tuple[str, str | None, str]  # grade, query, features
Request = tuple[str, np.ndarray, np.ndarray, np.ndarray]  # query, ids (N), grades (N) and features (N, F)


def convert_letor(
    out: str | Path,
    train: Path,
    test: Path,
    validation: Path | None = None,
    *,
    collection: str | None = None,
    seed: int = 0,
) -> None:
    """Writes a data folder of svmlight files.

    Args:
        out: The folder.
        train: Lines to learn from.
        test: Lines to test on.
        validation: Lines to choose by; default: a fifth of the queries of `train`, drawn at random.
        collection: One of `COLLECTIONS`, whose published counts the files must have; `None`: any other.
        seed: Of the validation split.

    Raises:
        RerankingDataError: If a line cannot be read, or a query's documents do not stand together, with file and line;
            if counts are not those published.
        FileNotFoundError: If a file is missing.
        OutputError: If the folder cannot be written; it is as it was.
    """
    files = {"train": train, "validation": validation, "test": test}
    scans = {split: _scan(split, path) for split, path in files.items() if path is not None}
    first = 0 if any(scan.lowest == 0 for scan in scans.values()) else 1
    columns = range(first, max(scan.highest for scan in scans.values()) + 1)
    found = sum(len(scan.sizes) for scan in scans.values()), sum(scan.rows for scan in scans.values()), len(columns)
    what = "{:,} queries with {:,} documents of {:,} features"
    if collection is not None and found != COLLECTIONS[collection]:
        message = f"expected {what.format(*COLLECTIONS[collection])}, got {what.format(*found)}"
        raise RerankingDataError(message, field=collection)
    drawn = np.zeros(len(scans["train"].sizes), dtype=bool)
    if validation is None:
        order = np.random.default_rng(seed).permutation(len(drawn))
        drawn[order[: max(1, int(_VALIDATION_SHARE * len(drawn)))]] = True
    held_out = "a fifth of the training queries, drawn at random" if validation is None else validation.name
    metadata = {
        "source": collection or "letor",
        "protocol": f"{what.format(*found)}, from {train.name}, {test.name}; validation: {held_out}",
        "seed": seed,
    }
    before = np.cumsum([0, *(scan.rows for scan in scans.values())]).tolist()
    parts = (_tables(*each, columns, drawn) for each in zip(scans.values(), before, strict=False))
    write_data_folder(out, chain.from_iterable(parts), letor_schema(len(columns)), metadata)


def letor_schema(size: int) -> FeatureSchema:
    """The schema of folders of this many features."""
    features = FieldSpec(
        name="features", group="candidate", kind="dense", size=size, transforms=("quantile", "standardize")
    )
    target = TargetSpec(name="relevance", candidate_feedback="grade", gain="exponential")
    return FeatureSchema(
        name="letor", item_id="document", fields=(features,), targets=(target,), position_discount="log2"
    )


@dataclass
class _Scan:
    """What a file holds."""

    split: str
    path: Path
    rows: int = 0
    sizes: list[int] = field(default_factory=list)  # documents of each query
    queries: list[str] = field(default_factory=list)
    lowest: int = _MOST_FEATURES  # index of a feature
    highest: int = 0

    def error(self, row: int, message: str) -> RerankingDataError:
        """An error about a line, counted from 0."""
        return RerankingDataError(f"{self.path}, line {row + 1}: {message}", field="features")

    def widen(self, features: str) -> None:
        """Sees to the first and the last index of a line, if it has any."""
        if not features:
            return
        ends = features.partition(":")[0], features.rpartition(":")[0].rpartition(" ")[2]
        if not all(end.isdecimal() and int(end) <= _MOST_FEATURES for end in ends):
            raise self.error(self.rows, f"an index from 0 to {_MOST_FEATURES:,} is required, got {shown(ends)}")
        self.lowest, self.highest = min(self.lowest, int(ends[0])), max(self.highest, int(ends[1]))


def _scan(split: str, path: Path) -> _Scan:
    scan, beside = _Scan(split, path), [path.with_name(path.name + end) for end in _COUNTS]
    starts: dict[str | None, int] = {}
    for query, lines in groupby(_lines(path), key=itemgetter(1)):
        if query in starts:
            raise scan.error(scan.rows, f"query {shown(query)} began before: its documents must stand together")
        starts[query] = scan.rows
        for _, _, features in lines:
            scan.widen(features)
            scan.rows += 1
    counts = next((file for file in beside if file.is_file()), None)
    if counts is None and None in starts:
        message = f"expected qid:, or a file {beside[0].name} with the number of documents of each query"
        raise scan.error(starts[None], message)
    if counts is None:
        scan.queries = [str(query) for query in starts]
        scan.sizes = np.diff([*starts.values(), scan.rows]).tolist()
    else:
        texts = counts.read_text(encoding="utf-8").split()
        if wrong := [text for text in texts if not text.isdecimal() or int(text) < 1]:
            raise RerankingDataError(f"{counts}: a number of documents is required, got {shown(wrong[0])}", field="qid")
        scan.queries, scan.sizes = list(map(str, range(len(texts)))), list(map(int, texts))
    if not scan.rows or sum(scan.sizes) != scan.rows:
        message = f"{counts or path}: {sum(scan.sizes):,} documents, the file has {scan.rows:,} lines"
        raise RerankingDataError(message, field="qid")
    return scan


def _lines(path: Path) -> Iterator[Line]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if not (text := line.partition("#")[0].strip()):
                continue
            grade, _, rest = text.partition(" ")
            query = None
            if rest.startswith("qid:"):
                query, _, rest = rest[4:].partition(" ")
            yield grade, query, rest.strip()


def _tables(scan: _Scan, before: int, columns: range, drawn: np.ndarray) -> Iterator[tuple[str, pa.Table]]:
    """The requests of a file, in tables of a few megabytes; `drawn` ones of the training split are for validation.

    Documents are numbered from `before` on.
    """
    lines, row = _lines(scan.path), 0
    limit = max(1, _TABLE_VALUES // (len(columns) * max(scan.sizes)))
    waiting: dict[str, list[Request]] = {}
    for number, (query, count) in enumerate(zip(scan.queries, scan.sizes, strict=True)):
        split = "validation" if scan.split == "train" and drawn[number] else scan.split
        requests = waiting.setdefault(split, [])
        grades, features = _documents(scan, row, list(islice(lines, count)), columns)
        requests.append((query, before + row + np.arange(count), grades, features))
        row += count
        if len(requests) >= limit:
            yield split, _table(waiting.pop(split))
    for split, requests in waiting.items():
        yield split, _table(requests)


def _documents(scan: _Scan, row: int, lines: list[Line], columns: range) -> tuple[np.ndarray, np.ndarray]:
    """Grades (N) and features (N, F) of a query's lines, NaN where one is missing; the first line is this row."""
    counts = [features.count(":") for _, _, features in lines]
    try:
        grades = np.array([grade for grade, _, _ in lines], dtype=np.float64)
        text = " ".join(features for _, _, features in lines).replace(":", " ")
        index, values = np.array(text.split(), dtype=np.float64).reshape(sum(counts), 2).T
    except ValueError:
        for number, line in enumerate(lines if len(lines) > 1 else ()):  # which of them?
            _documents(scan, row + number, [line], columns)
        text = shown(" ".join(map(str, lines[0])))
        raise scan.error(row, f"expected a grade and pairs index:value, got {text}") from None
    document = np.repeat(np.arange(len(lines)), counts)
    wrong = ~np.isin(index, columns) | np.isnan(values)
    wrong[1:] |= (np.diff(document) == 0) & (np.diff(index) <= 0)
    bad = np.union1d(document[wrong], np.flatnonzero(~np.isfinite(grades)))
    if len(bad):
        text = shown(" ".join(map(str, lines[bad[0]])))
        raise scan.error(row + int(bad[0]), f"expected a grade and numbers with growing indexes, got {text}")
    features = np.zeros((len(lines), len(columns)))
    features[document, index.astype(np.int64) - columns.start] = np.where(np.abs(values) > FLOAT32_MAX, np.nan, values)
    return grades, features


def _table(requests: list[Request]) -> pa.Table:
    queries, documents, grades, features = zip(*requests, strict=True)
    offsets = np.cumsum([0, *map(len, grades)], dtype=np.int32)
    values = np.concatenate(features).astype(np.float32)
    ends = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    vectors = pa.ListArray.from_arrays(ends, pa.array(values.ravel(), mask=np.isnan(values.ravel())))
    lists = {
        "document": np.concatenate(documents),
        "features": vectors,
        "grade": np.concatenate(grades).astype(np.float32),
    }
    columns = {name: pa.ListArray.from_arrays(offsets, pa.array(part)) for name, part in lists.items()}
    return pa.table({"query": pa.array(queries), **columns})
