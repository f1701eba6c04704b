"""RL4RS (Wang et al. 2023, arXiv 2110.11073), dataset A: slates of nine items of a game's shop, three rows of three."""

from __future__ import annotations

from typing import Literal

from rerankzoo.data.long_format import LogSpec, LogTables, SplitSpec
from rerankzoo.data.sources.public_log import PublicLog, RawFile, categorical, history, numeric, typed
from rerankzoo.features.schema import FeatureSchema, FieldSpec, TargetSpec

NUM_ITEMS, SLATE_SIZE, ITEM_SIZE = 283, 9, 40
NUM_PORTRAIT = 10
"""The categorical entries of a user's portrait, which come before the dense ones."""


def rl4rs(policy: Literal["sl", "rl"] = "sl") -> PublicLog:
    """RL4RS.

    Args:
        policy: The log of the supervised ranker, or that after a policy learned by reinforcement was deployed.
    """
    texts = typed("VARCHAR", "exposed_items", "user_feedback", "user_seqfeature", "user_protrait")
    portrait = [f"portrait_{number}" for number in range(NUM_PORTRAIT)]
    return PublicLog(
        name=f"rl4rs-{policy}",
        title="RL4RS, slates of nine items of a game's shop",
        size="2.7 (sl) or 2.2 GB (rl)",
        licence="CC BY 4.0",
        url="https://zenodo.org/record/6622390",
        files=(
            RawFile(
                f"rl4rs_dataset_a_{policy}.csv",
                "slates",
                f"{typed('BIGINT', 'timestamp', 'session_id', 'sequence_id')}, {texts}",
                "@",
            ),
            RawFile(
                "item_info.csv",
                "item_info",
                "item_id INTEGER, item_vec VARCHAR, price DOUBLE, location INTEGER, special_item INTEGER",
                " ",
            ),
        ),
        published={"items": ("SELECT count(*) FROM item_info", NUM_ITEMS)},
        protocol=(
            f"dataset A, {policy}: one request per slate of {SLATE_SIZE}; candidates = the shown items, since whole "
            "candidate sets are not logged; an item belongs to one of three rows (location), so that moving it to "
            "another row means nothing; split of the authors' script by the last digit of the session, 0 to 5 train "
            "and 6 to 9 test, of which digit 5 is validation here"
        ),
        spec=LogSpec(
            schema=FeatureSchema(
                name="rl4rs-a",
                item_id="item_id",
                fields=(
                    *categorical("request", *portrait),
                    FieldSpec(name="portrait", group="request", kind="dense", size=32),
                    *categorical("candidate", "item_id", "location", "special_item"),
                    numeric("candidate", "price", "log1p"),
                    FieldSpec(name="item_vec", group="candidate", kind="dense", size=ITEM_SIZE),
                    history("bought", "item_id"),
                ),
                targets=(TargetSpec(name="purchase", value="price"),),
            ),
            request="request",
            time="timestamp",
            position="position",
            split=SplitSpec(column="split"),
        ),
        tables=LogTables(
            impressions=f"""
                WITH parsed AS (
                    SELECT *, string_split(user_protrait, ',')::DOUBLE[] AS entries FROM slates)
                SELECT concat_ws('-', session_id, sequence_id) AS request, timestamp,
                    unnest(string_split(exposed_items, ',')::INTEGER[]) AS item_id,
                    unnest(range({SLATE_SIZE})) AS position,
                    unnest(string_split(user_feedback, ',')::INTEGER[]) AS purchase,
                    string_split(user_seqfeature, ',')::INTEGER[] AS bought,
                    {", ".join(f"entries[{at + 1}]::INTEGER AS {name}" for at, name in enumerate(portrait))},
                    entries[{NUM_PORTRAIT + 1}:]::FLOAT[] AS portrait,
                    CASE WHEN session_id % 10 < 5 THEN 'train' WHEN session_id % 10 = 5 THEN 'validation'
                        ELSE 'test' END AS split
                FROM parsed""",
            items="SELECT * EXCLUDE (item_vec), string_split(item_vec, ',')::FLOAT[] AS item_vec FROM item_info",
        ),
    )
