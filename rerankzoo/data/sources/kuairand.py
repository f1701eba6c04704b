"""KuaiRand (Gao et al. 2022, arXiv 2208.08696): short videos, with exposures drawn at random kept apart."""

from __future__ import annotations

from types import MappingProxyType
from typing import Literal

from rerankzoo.data.long_format import HistorySpec, LogSpec, LogTables, SplitSpec
from rerankzoo.data.sources.public_log import PublicLog, RawFile, categorical, history, history_time, numeric, typed
from rerankzoo.features.schema import FeatureSchema, TargetSpec

NUM_STANDARD = MappingProxyType({"pure": 1_436_609, "1k": 11_713_045})
NUM_RANDOM = MappingProxyType({"pure": 1_186_059, "1k": 43_028})
NUM_USERS = MappingProxyType({"pure": 27_285, "1k": 1_000})
NUM_POOL = MappingProxyType({"pure": 7_583, "1k": 7_388})
"""The table of the data set's README: exposures by the 15 policies and at random, users, videos shown at random."""

SLATE_SIZE, GAP_SECONDS, NUM_CANDIDATES, HISTORY_LENGTH = 10, 600, 50, 50
VALIDATION_MS, TEST_MS = 1_651_507_200_000, 1_651_766_400_000  # 3 and 6 May 2022, 00:00 in China

_SIGNALS = ("is_click", "long_view", "is_like")
_PROFILE = (
    "user_active_degree", "is_live_streamer", "is_video_author", "follow_user_num_range", "fans_user_num_range",
    "friend_user_num_range", "register_days_range",
)  # fmt: skip
_VIDEO = ("author_id", "video_type", "upload_type", "music_type", "tag")

# Rows of the standard log in the order of each user's time on each tab; a pause begins a session, ten videos a slate.
_SESSIONS = f"""
    WITH ordered AS (
        SELECT *, row_number() OVER feed AS place,
            coalesce(time_ms - lag(time_ms) OVER feed > {1_000 * GAP_SECONDS}, true) AS begins
        FROM standard WINDOW feed AS (PARTITION BY user_id, tab ORDER BY time_ms, line)),
    sessions AS (
        SELECT *, max(place) FILTER (begins) OVER (PARTITION BY user_id, tab ORDER BY place) AS first FROM ordered)
    SELECT * EXCLUDE (line, place, begins, first),
        concat_ws('-', user_id, tab, first, (place - first) // {SLATE_SIZE}) AS request,
        (place - first) % {SLATE_SIZE} AS position,
        hour(make_timestamp(min(time_ms) OVER (PARTITION BY request) * 1000) + INTERVAL 8 HOUR) AS hour
    FROM sessions QUALIFY count(DISTINCT video_id) OVER (PARTITION BY request) > 1"""

# One request per random exposure, of its place in the feed alone.
_DRAWN = f"""
    SELECT *, rowid AS request, 0 AS position, hour(make_timestamp(time_ms * 1000) + INTERVAL 8 HOUR) AS hour,
        1.0 / least({NUM_CANDIDATES}, (SELECT count(DISTINCT video_id) FROM drawn)) AS propensity
    FROM drawn"""

# A pool in any order, and of it an arithmetic progression of drawn step in which the shown video has a drawn place:
# given the set, each of its videos was equally likely to be the one that was shown.
_DRAWN_CANDIDATES = f"""
    WITH pool AS (SELECT video_id, row_number() OVER (ORDER BY video_id) - 1 AS place, count(*) OVER () AS size
        FROM (SELECT DISTINCT video_id FROM drawn)),
    steps AS (
        SELECT drawn.rowid AS request, place, size, least(size, {NUM_CANDIDATES}) AS kept,
            1 + (md5_number_lower('step-' || drawn.rowid) % greatest(1, size // {NUM_CANDIDATES}))::BIGINT AS step,
            (md5_number_lower('place-' || drawn.rowid) % least(size, {NUM_CANDIDATES}))::BIGINT AS own
        FROM drawn JOIN pool USING (video_id)),
    members AS (
        SELECT request, (place + (range - own + kept) * step + size - kept * step % size) % size AS place
        FROM steps, range({NUM_CANDIDATES}) WHERE range < kept)
    SELECT request, pool.video_id FROM members JOIN pool USING (place)"""


def kuairand(variant: Literal["pure", "1k"] = "1k", exposures: Literal["standard", "random"] = "standard") -> PublicLog:
    """KuaiRand.

    Args:
        variant: 1K has whole feeds of 1,000 users; Pure has of all feeds only the 7,583 videos of the random pool, so
            that the neighbours of a video are not known and its folder has labels of candidates, but no slates.
        exposures: The feeds of the platform's policies, or the exposures drawn at random, one request each.
    """
    log = f"{typed('BIGINT', 'user_id', 'video_id', 'time_ms')}, {typed('INTEGER', *_SIGNALS, 'tab')}"
    is_random, has_slates = exposures == "random", exposures == "random" or variant == "1k"
    how = {
        "random": (
            f"one request per random exposure, candidates the shown video and {NUM_CANDIDATES - 1} more of the random "
            f"pool such that the shown one was drawn with probability 1/{NUM_CANDIDATES}; its neighbours in the feed "
            "are not known"
        ),
        "standard": (
            f"sessions of a user on a tab, ended by {GAP_SECONDS} s of pause and cut after {SLATE_SIZE} videos, of at "
            "least two; candidates = the shown videos; videos that were drawn at random in between are not among them"
        ),
    }[exposures]
    return PublicLog(
        name=f"kuairand-{variant}",
        title="KuaiRand, feeds of short videos, and random exposures apart",
        size="1.4 (Pure) or 11.7 million rows (1K)",
        licence="CC BY-SA 4.0",
        url="https://zenodo.org/records/10439422",
        files=(
            RawFile(f"log_standard_4_08_to_4_21_{variant}.csv", "early", log),
            RawFile(f"log_standard_4_22_to_5_08_{variant}.csv", "late", log),
            RawFile(f"log_random_4_22_to_5_08_{variant}.csv", "drawn", log),
            RawFile(f"user_features_{variant}.csv", "profiles", f"user_id BIGINT, {typed('VARCHAR', *_PROFILE)}"),
            RawFile(
                f"video_features_basic_{variant}.csv",
                "videos",
                f"video_id BIGINT, {typed('VARCHAR', *_VIDEO)}, video_duration DOUBLE",
            ),
        ),
        published={
            "standard exposures": ("SELECT count(*) FROM standard", NUM_STANDARD[variant]),
            "random exposures": ("SELECT count(*) FROM drawn", NUM_RANDOM[variant]),
            "users": ("SELECT count(DISTINCT user_id) FROM standard", NUM_USERS[variant]),
            "videos shown at random": ("SELECT count(DISTINCT video_id) FROM drawn", NUM_POOL[variant]),
        },
        protocol=(
            f"{variant}, {exposures} exposures: {how}; "
            f"{'' if has_slates else 'no slates, since the feeds have holes; '}train to 2 May 2022, validation 3 to 5 "
            "May, test 6 to 8 May in China time (ours: none is published)"
        ),
        spec=LogSpec(
            schema=_schema(has_slates),
            request="request",
            time="time_ms",
            time_unit="ms",
            user="user_id",
            position="position" if has_slates else None,
            surface="tab",
            history=HistorySpec(length=HISTORY_LENGTH),
            split=SplitSpec(validation=VALIDATION_MS, test=TEST_MS),
        ),
        tables=LogTables(
            impressions=_DRAWN if is_random else _SESSIONS,
            candidates=_DRAWN_CANDIDATES if is_random else None,
            items="FROM videos",
            users="FROM profiles",
            events="FROM standard WHERE is_click = 1",
        ),
        prepare=lambda connection: connection.execute("""
            CREATE OR REPLACE VIEW standard AS
            SELECT *, rowid AS line FROM early UNION ALL SELECT *, 1_000_000_000_000 + rowid FROM late"""),
    )


def _schema(has_slates: bool) -> FeatureSchema:
    return FeatureSchema(
        name="kuairand",
        item_id="video_id",
        fields=(
            *categorical("request", "tab", "hour", *_PROFILE),
            *categorical("candidate", "video_id", *_VIDEO, min_count=5),
            numeric("candidate", "video_duration", "log1p"),
            history("history_video_id", "video_id"),
            history_time(),
        ),
        targets=tuple(
            TargetSpec(name=name, candidate_feedback=None if has_slates else f"candidate_{name}") for name in _SIGNALS
        ),
        propensity="propensity",
    )
