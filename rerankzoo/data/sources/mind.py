"""MIND (Wu et al. 2020, ACL): impressions of a news site, whose order was shuffled before they were published."""

from __future__ import annotations

from types import MappingProxyType
from typing import Literal

from rerankzoo.data.long_format import HistorySpec, LogSpec, LogTables, SplitSpec
from rerankzoo.data.sources.public_log import PublicLog, RawFile, categorical, history, typed
from rerankzoo.features.schema import FeatureSchema, TargetSpec

NUM_IMPRESSIONS = MappingProxyType({"small": (156_965, 73_152), "large": (2_232_748, 376_471)})
"""Of the train and the dev part."""
HISTORY_LENGTH = 50
#: Half of the dev part's only day: the first half is validation, as ReChorus splits it.
_TEST = "2019-11-15 12:00:00"

_BEHAVIORS = "impression BIGINT, " + typed("VARCHAR", "user", "time", "history", "shown")
_NEWS = typed(
    "VARCHAR", "news", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities"
)


def mind(variant: Literal["small", "large"] = "small") -> PublicLog:
    """MIND.

    Args:
        variant: Of 50,000 users, or all of them.
    """
    train, dev = NUM_IMPRESSIONS[variant]
    return PublicLog(
        name=f"mind-{variant}",
        title="MIND, impressions of a news site in shuffled order",
        size="0.23 (small) or 2.6 million impressions (large)",
        licence="Microsoft Research licence terms, for research",
        url="https://msnews.github.io",
        files=tuple(
            RawFile(f"{part}/{name}.tsv", f"{part}_{name}", columns, "\t", header=False)
            for part in ("train", "dev")
            for name, columns in (("behaviors", _BEHAVIORS), ("news", _NEWS))
        ),
        published={
            "train impressions": ("SELECT count(*) FROM train_behaviors", train),
            "dev impressions": ("SELECT count(*) FROM dev_behaviors", dev),
        },
        protocol=(
            f"{variant}: one request per impression with both labels; the order shown was shuffled before publication, "
            "so that there are no slates: candidates = the impression, with labels; history = the clicks listed with "
            "the impression; train = the train part (9 to 14 November 2019), validation and test = the dev part (15 "
            "November) before and from noon; the labels of the official test part are not published"
        ),
        spec=LogSpec(
            schema=FeatureSchema(
                name="mind",
                item_id="news",
                fields=(
                    *categorical("request", "hour"),
                    *categorical("candidate", "news", "category", "subcategory"),
                    history("history_news", "news"),
                ),
                targets=(TargetSpec(name="click", candidate_feedback="candidate_click"),),
                position_discount="log2",
            ),
            request="request",
            time="time",
            user="request",  # a history belongs to its impression
            history=HistorySpec(length=HISTORY_LENGTH),
            split=SplitSpec(validation="2019-11-15", test=_TEST),
        ),
        tables=LogTables(
            impressions="""
                SELECT request, time, hour(time) AS hour, left(entry, length(entry) - 2) AS news,
                    CASE right(entry, 2) WHEN '-1' THEN 1 WHEN '-0' THEN 0 END AS click
                FROM (SELECT request, time, unnest(string_split(shown, ' ')) AS entry FROM behaviors)
                QUALIFY min(click) OVER (PARTITION BY request) < max(click) OVER (PARTITION BY request)""",
            items="""
                SELECT DISTINCT ON (news) news, category, subcategory
                FROM (FROM train_news UNION ALL FROM dev_news)""",
            events="""
                SELECT request, time - (len(past) - place) * INTERVAL 1 SECOND AS time, past[place + 1] AS news
                FROM (SELECT request, time, string_split(history, ' ') AS past, unnest(range(len(past))) AS place
                    FROM behaviors WHERE history IS NOT NULL)""",
        ),
        prepare=lambda connection: connection.execute("""
            CREATE OR REPLACE VIEW behaviors AS
            SELECT concat_ws('-', part, impression) AS request, strptime(time, '%m/%d/%Y %I:%M:%S %p') AS time, history,
                shown
            FROM (SELECT 'train' AS part, * FROM train_behaviors UNION ALL SELECT 'dev', * FROM dev_behaviors)"""),
    )
