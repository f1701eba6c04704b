"""Avito context ads (Kaggle 2015): pages of up to five ads, of which only the contextual ones have clicks."""

from __future__ import annotations

from rerankzoo.data.long_format import LogSpec, LogTables, SplitSpec
from rerankzoo.data.sources.public_log import PublicLog, RawFile, categorical, numeric
from rerankzoo.features.schema import FeatureSchema, TargetSpec

NUM_ROWS, NUM_SEARCHES, NUM_ADS = 392_356_948, 112_159_462, 36_893_298
"""Rows of the three files, as public scripts that read them print."""
PAGE = 5


def avito() -> PublicLog:
    """Avito context ads."""
    return PublicLog(
        name="avito",
        title="Avito context ads, pages of five ads",
        size="392 million rows",
        licence="Kaggle competition rules (account needed)",
        url="https://www.kaggle.com/c/avito-context-ad-clicks/data",
        files=(
            RawFile(
                "trainSearchStream.tsv",
                "shown",
                "SearchID BIGINT, AdID BIGINT, Position INTEGER, ObjectType INTEGER, HistCTR DOUBLE, IsClick INTEGER",
                "\t",
            ),
            RawFile(
                "SearchInfo.tsv",
                "searches",
                "SearchID BIGINT, SearchDate TIMESTAMP, UserID BIGINT, IsUserLoggedOn INTEGER, SearchQuery VARCHAR, "
                "LocationID BIGINT, CategoryID BIGINT",
                "\t",
            ),
            RawFile("AdsInfo.tsv", "ads", "AdID BIGINT, CategoryID BIGINT, Price DOUBLE", "\t"),
        ),
        published={
            "shown ads": ("SELECT count(*) FROM shown", NUM_ROWS),
            "searches": ("SELECT count(*) FROM searches", NUM_SEARCHES),
            "ads": ("SELECT count(*) FROM ads", NUM_ADS),
        },
        protocol=(
            f"one request per search of {PAGE} ads; candidates = the shown ads; only contextual ads (object type 3) "
            "have clicks and a HistCTR, so that the value of a page is the clicks of its contextual ads: what other "
            "ads earn is not logged and counts as 0; train 25 April to 11 May 2015, validation 12 and 13 May, test "
            "from 14 May (ours)"
        ),
        spec=LogSpec(
            schema=FeatureSchema(
                name="avito",
                item_id="ad_id",
                fields=(
                    *categorical("request", "logged_on", "has_query", "hour"),
                    *categorical("request", "location", "search_category", min_count=10),
                    *categorical("candidate", "ad_id", min_count=20),
                    *categorical("candidate", "object_type", "category"),
                    numeric("candidate", "price", "log1p"),
                    numeric("candidate", "hist_ctr"),
                ),
                targets=(TargetSpec(name="click"),),
                upstream_score="hist_ctr",
            ),
            request="request",
            time="time",
            user="user",
            position="position",
            split=SplitSpec(validation="2015-05-12", test="2015-05-14"),
        ),
        tables=LogTables(
            impressions=f"""
                SELECT SearchID AS request, SearchDate AS time, UserID AS "user", AdID AS ad_id, Position AS position,
                    ObjectType AS object_type, HistCTR AS hist_ctr, coalesce(IsClick, 0) AS click,
                    IsUserLoggedOn AS logged_on, (SearchQuery IS NOT NULL)::INTEGER AS has_query,
                    hour(SearchDate) AS hour, LocationID AS location, CategoryID AS search_category
                FROM shown JOIN searches USING (SearchID)
                WHERE SearchID IN (SELECT SearchID FROM shown GROUP BY SearchID HAVING count(*) = {PAGE})""",
            items="SELECT AdID AS ad_id, CategoryID AS category, Price AS price FROM ads",
        ),
    )
