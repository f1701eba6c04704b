"""A first schema file from the columns of a log, for a person to edit: names, types, cardinalities, suspected leaks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import yaml

from rerankzoo.atomic_writing import write_text
from rerankzoo.data.long_format.checks import LEAK_AUC, predictive
from rerankzoo.data.long_format.loading import Source, open_sources, quoted
from rerankzoo.data.long_format.spec import LogSpec, LogTables
from rerankzoo.data.work_database import work_database
from rerankzoo.errors import RerankingDataError, shown

if TYPE_CHECKING:
    import duckdb

#: What a column is called that has a role; the first that fits is taken, and any number of targets.
_ROLES = {
    "request": r"(request|search|session|impression|page_?view|query|slate|visit)_?id",
    "time": r".*(time|timestamp|time_?stamp|_ts|_at|date)(_?ms)?|ts",
    "user": r"(user|customer|member|visitor|account)(_?id)?|uid",
    "item": r"(item|product|article|video|news|movie|doc|ad|adgroup|hotel|offer)_?id|sku|item|product",
    "position": r"(display_?)?(position|pos|rank|slot)",
    "propensity": r"propensity(_score)?|(logging_)?prob(ability)?",
    "score": r"(.*_)?score|pctr|prediction",
    "surface": r"page(_type)?|surface|tab|placement",
    "target": r"(is_)?(click|clk|like|order|purchase|buy|bought|cart|conversion|follow|share|long_view|booking)(ed|s)?",
}
_KEYS = ("request", "time", "user", "position", "propensity")  # they are no features
_SAMPLE_ROWS = 200_000
_IDS = r".*(id|code|type|category|class|level|brand|hour|day)"
_FEW, _MANY = 1_000, 100_000  # values: beyond the first rare ones become unknown, beyond the second they are hashed
_SKEWED = 100  # times the third quartile


def infer_schema(tables: LogTables, path: Path) -> list[str]:
    """Writes a schema file with the key `log`, from the names and values of a sample of whole requests.

    Args:
        tables: Where the rows are.
        path: The file; it must not be there.

    Returns:
        What a person should look at, which also stands in the file as comments.

    Raises:
        FileExistsError: If the file is there.
        RerankingDataError: If no column looks like a request id, a time, an item or feedback.
    """
    if path.exists():
        raise FileExistsError(f"{path} is there already; --infer writes a new file")
    with work_database(path, "1GB") as connection:
        data, doubts = _infer(connection, open_sources(connection, tables))
    lines = [f"# {line}\n" for line in ("Inferred: read it before you use it (docs/real-logs.md).", *doubts)]
    lines.append(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None))
    write_text(path, "".join(lines))
    LogSpec.from_yaml(path)
    return doubts


def _infer(connection: duckdb.DuckDBPyConnection, sources: dict[str, Source]) -> tuple[dict[str, Any], list[str]]:
    impressions = sources["impressions"]
    roles, targets = _roles(impressions)
    request = quoted(roles["request"])
    [(count,)] = connection.execute(f"SELECT count(*) FROM {impressions.sql}").fetchall()
    part = f"hash({request}) % {-(-count // _SAMPLE_ROWS) or 1} = 0"
    connection.execute(f"CREATE TABLE sample AS SELECT * FROM {impressions.sql} WHERE {part}")
    within = ", ".join(f"max(d{n})" for n in range(len(impressions.types)))
    each = ", ".join(f"count(DISTINCT {quoted(name)}) AS d{n}" for n, name in enumerate(impressions.types))
    most = connection.execute(f"SELECT {within} FROM (SELECT {each} FROM sample GROUP BY {request})").fetchall()[0]
    fixed = {name for name, values in zip(impressions.types, most, strict=True) if values <= 1}
    positives = {name: _column(connection, name).to_numpy().astype(float) > 0 for name in targets}
    fields: dict[str, dict[str, Any]] = {}
    doubts: list[str] = []
    for name in [name for name in ("candidates", "impressions", "items", "users") if name in sources]:
        sql = "sample" if name == "impressions" else sources[name].sql
        for stats in connection.execute(f"SUMMARIZE SELECT * FROM {sql}").fetchall():
            column = stats[0]
            if column in fields or column in targets or column in [roles.get(key) for key in _KEYS]:
                continue
            of_item = column in (roles["item"], roles.get("score"))
            is_fixed = name == "impressions" and column in fixed and not of_item
            group = "request" if name == "users" or is_fixed else "candidate"
            if group == "candidate" and name == "impressions" and "candidates" in sources:
                doubts.append(f"{column} is left out: it is known of shown items only")
                continue
            field, doubt = _field(stats, group, column == roles["item"])
            for target, labels in positives.items() if field and name == "impressions" else ():
                if (found := predictive(_column(connection, column), labels)) >= LEAK_AUC:
                    field, doubt = None, f"it predicts {target} with an AUC of {found:.3f}: known only afterwards?"
            doubts += [f"{column}{'' if field else ' is left out'}: {doubt}"] if doubt else []
            fields |= {column: field} if field else {}
    return _schema(connection, roles, targets, fields), doubts


def _roles(source: Source) -> tuple[dict[str, str], list[str]]:
    """The columns that have a role by their name, and the targets."""
    found: dict[str, str] = {}
    targets = []
    for column in source.types:
        fits = [role for role, pattern in _ROLES.items() if re.fullmatch(pattern, column, re.IGNORECASE)]
        targets += [column] if "target" in fits else []
        found |= {fits[0]: column} if fits and fits[0] not in found else {}
    for role in ("request", "time", "item", "target"):
        if role not in found:
            there = shown(list(source.types))
            raise RerankingDataError(f"no column is called like one ({_ROLES[role]}); there are {there}", field=role)
    return found, targets


def _column(connection: duckdb.DuckDBPyConnection, name: str) -> pa.ChunkedArray:
    return connection.sql(f"SELECT {quoted(name)} AS x FROM sample").to_arrow_table().column("x")


def _field(stats: tuple[Any, ...], group: str, is_item: bool) -> tuple[dict[str, Any] | None, str]:
    """A field from what SUMMARIZE says of a column, and what is to be said of it."""
    name, kind, low, high, unique, _, _, _, _, upper, count, missing = stats
    doubt = f"{missing:.0f} % are missing" if missing and missing > 50 else ""
    if kind.endswith("]") or kind.startswith(("TIME", "DATE", "STRUCT", "MAP", "BLOB")):
        return None, f"it holds {kind}"
    if unique <= 1 and not is_item:
        return None, f"it is always {low}"
    field = {"name": name, "group": group}
    is_number = bool(re.match(r"U?(TINY|SMALL|BIG|HUGE)?INT|FLOAT|DOUBLE|DECIMAL", kind))
    if is_number and not is_item and not re.fullmatch(_IDS, name, re.IGNORECASE):
        skewed = float(low) >= 0 and float(high) > _SKEWED * max(float(upper), 1.0)
        return {**field, "kind": "numeric", "transforms": [*(["log1p"] if skewed else []), "standardize"]}, doubt
    if re.match("FLOAT|DOUBLE|DECIMAL", kind) or (unique > 0.9 * count and not is_item and group == "request"):
        return None, f"{unique:,} values of {kind} in {count:,} rows: an id of each row?"
    field["kind"] = "categorical"
    if unique > _MANY and not is_item:
        return {**field, "hash_size": 1 << (2 * unique - 1).bit_length()}, f"about {unique:,} values: hashed"
    return (field | {"min_count": 5} if unique > _FEW else field), doubt


def _schema(
    connection: duckdb.DuckDBPyConnection, roles: dict[str, str], targets: list[str], fields: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The schema file."""
    log: dict[str, Any] = {key: roles[key] for key in ("request", "time", "user", "position") if key in roles}
    surface = fields.get(roles.get("surface", ""), {})
    if (surface.get("group"), surface.get("kind")) == ("request", "categorical"):
        log["surface"] = surface["name"]
    listed = list(fields.values())
    if "user" in roles:
        listed.append({"name": "history", "group": "history", "kind": "categorical", "shares": roles["item"]})
        listed.append({"name": "history_time", "group": "history", "kind": "time"})
        log["history"] = {"feedback": targets[0], "length": 50, "gap": 0}
    query = f"SELECT quantile_disc({quoted(roles['time'])}, [0.8, 0.9]), any_value({quoted(roles['time'])}) FROM sample"
    ends, example = connection.execute(query).fetchall()[0]
    if isinstance(example, int | float):
        log["time_unit"] = "s" if example < 1e11 else "ms" if example < 1e14 else "us"
    else:
        ends = map(str, ends)
    log["split"] = dict(zip(("validation", "test"), ends, strict=True))
    data: dict[str, Any] = {"name": "log", "item_id": roles["item"]}
    data |= {"upstream_score": roles["score"]} if roles.get("score") in fields else {}
    data |= {"propensity": roles["propensity"]} if "propensity" in roles and "position" in roles else {}
    labels = {} if "position" in roles else {name: {"candidate_feedback": f"all_{name}"} for name in targets}
    listed_targets = [{"name": name} | labels.get(name, {}) for name in targets]
    return {**data, "fields": listed, "targets": listed_targets, "log": log}
