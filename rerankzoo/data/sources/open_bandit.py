"""Open Bandit (Saito et al. 2021, arXiv 2008.07146): exposures with the logger's true probabilities."""

from __future__ import annotations

from types import MappingProxyType
from typing import Literal

from rerankzoo.data.long_format import LogSpec, LogTables, SplitSpec
from rerankzoo.data.sources.public_log import PublicLog, RawFile, categorical, numeric, typed
from rerankzoo.features.schema import FeatureSchema, TargetSpec

NUM_ROWS = MappingProxyType(
    {
        ("random", "all"): 1_374_327, ("random", "men"): 452_949, ("random", "women"): 864_585,
        ("bts", "all"): 12_168_084, ("bts", "men"): 4_077_727, ("bts", "women"): 7_765_497,
    }
)  # fmt: skip
"""Table 1 of the paper."""
NUM_ITEMS = MappingProxyType({"all": 80, "men": 34, "women": 46})

_USER = tuple(f"user_feature_{number}" for number in range(4))
_ITEM = tuple(f"item_feature_{number}" for number in range(1, 4))


def open_bandit(
    policy: Literal["random", "bts"] = "random", campaign: Literal["all", "men", "women"] = "men"
) -> PublicLog:
    """Open Bandit.

    Args:
        policy: Who chose: at random, or Bernoulli Thompson sampling; the raw folder is its and the campaign's.
        campaign: Which of the three pages.
    """
    affinities = [f"user-item_affinity_{item}" for item in range(NUM_ITEMS[campaign])]
    columns = "timestamp VARCHAR, item_id INTEGER, position INTEGER, click INTEGER, propensity_score DOUBLE"
    schema = FeatureSchema(
        name=f"open-bandit-{campaign}",
        item_id="item_id",
        fields=(
            *categorical("request", "place", "hour", *_USER),
            *categorical("candidate", "item_id", *_ITEM),
            numeric("candidate", "item_feature_0"),
            numeric("candidate", "affinity", "log1p"),
        ),
        targets=(TargetSpec(name="click"),),
        propensity="propensity_score",
    )
    return PublicLog(
        name="open-bandit",
        title="Open Bandit, three places of a fashion site, with true propensities",
        size="0.5 to 12.2 million rows",
        licence="licence not stated with the sample",
        url="https://research.zozo.com/data.html",
        files=(
            RawFile(
                f"{campaign}.csv", "exposures", f"{columns}, {typed('VARCHAR', *_USER)}, {typed('FLOAT', *affinities)}"
            ),
            RawFile(
                "item_context.csv",
                "item_context",
                f"item_id INTEGER, item_feature_0 DOUBLE, {typed('VARCHAR', *_ITEM)}",
            ),
        ),
        published={
            "rows": ("SELECT count(*) FROM exposures", NUM_ROWS[policy, campaign]),
            "items": ("SELECT count(DISTINCT item_id) FROM exposures", NUM_ITEMS[campaign]),
        },
        protocol=(
            f"policy {policy}, campaign {campaign}: one request per row, its place (1 to 3) a request field and its "
            "slate that one item, since rows of a page are not tied together; candidates = all items of the campaign; "
            "propensity = the logger's own; train 24 to 28 November 2019, validation 29, test 30 (UTC). It says "
            "nothing of what items do to their neighbours"
        ),
        spec=LogSpec(
            schema=schema,
            request="request",
            time="time",
            position="position",
            split=SplitSpec(validation="2019-11-29", test="2019-11-30"),
        ),
        tables=LogTables(
            impressions=f"""
                SELECT rowid AS request, replace(timestamp, '+00:00', '')::TIMESTAMP AS time, item_id, 1 AS position,
                    position AS place, click, propensity_score, hour(time + INTERVAL 9 HOUR) AS hour, {", ".join(_USER)}
                FROM exposures""",
            candidates=f"""
                SELECT exposures.rowid AS request, items.item_id,
                    [{", ".join(f'"{name}"' for name in affinities)}][items.item_id + 1] AS affinity
                FROM exposures CROSS JOIN item_context AS items""",
            items="FROM item_context",
        ),
    )
