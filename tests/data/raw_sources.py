"""Small raw files of exactly the formats in which public data sets are published, one function each."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

OBD_SECONDS = 1_574_553_600  # 2019-11-24 00:00 UTC
KUAIRAND_MS = 1_649_347_200_000  # 2022-04-08 00:00 in China
AVITO_DAY = np.datetime64("2015-04-25")
HASHES = [f"{number:032x}" for number in (0xCEF3, 0x03A5, 0x7BC9)]

KUAIRAND_LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
KUAIRAND_USERS = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,"
    "follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,register_days,"
    "register_days_range," + ",".join(f"onehot_feat{number}" for number in range(18))
)
KUAIRAND_VIDEOS = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
    "music_id,music_type,tag"
)


def write_csv(path: Path, header: str | None, rows: Iterable[Sequence[Any]], delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        if header is not None:
            writer.writerow(header.split(","))
        writer.writerows(rows)


def write_open_bandit(folder: Path, campaign: str = "men", items: int = 34, rows: int = 210) -> None:
    """`{campaign}.csv` and `item_context.csv` over seven days; both have a first column without a name."""
    rng = np.random.default_rng(0)
    affinities = ",".join(f"user-item_affinity_{item}" for item in range(items))
    users = ",".join(f"user_feature_{number}" for number in range(4))
    header = f",timestamp,item_id,position,click,propensity_score,{users},{affinities}"
    seconds = np.sort(rng.integers(0, 7 * 86_400, rows))
    lines = []
    for row, second in enumerate(seconds):
        time = str(np.datetime64(int(OBD_SECONDS + second), "s")).replace("T", " ")
        item, affinity = int(rng.integers(items)), np.zeros(items)
        affinity[row % items] = row % 3
        line = [row, f"{time}.{row:06d}+00:00", item, 1 + row % 3, int(rng.random() < 0.2), f"{1 / items}"]
        lines.append([*line, *(HASHES[(row + number) % 3] for number in range(4)), *affinity])
    write_csv(folder / f"{campaign}.csv", header, lines)
    context = [[item, item, -0.5 + item, *(HASHES[(item + k) % 3] for k in range(3))] for item in range(items)]
    write_csv(
        folder / "item_context.csv", ",item_id,item_feature_0,item_feature_1,item_feature_2,item_feature_3", context
    )


def kuairand_row(user: int, video: int, ms: int, tab: int, click: int, is_random: int = 0) -> list[Any]:
    time = np.datetime64(ms + 8 * 3_600_000, "ms").astype(object)
    moment = [time.strftime("%Y%m%d"), int(time.strftime("%H%M")), ms]
    return [user, video, *moment, click, click * (video % 2), 0, 0, 0, 0, click, 900, 8_000, 0, 0, 0, is_random, tab]


def write_kuairand(folder: Path, variant: str = "1k") -> None:
    """Sessions of 1 to 7 videos on two tabs over 31 days, and random exposures from 22 April on."""
    rng = np.random.default_rng(1)
    early, late, drawn = [], [], []
    for user in range(8):
        for day in range(31):
            start = KUAIRAND_MS + day * 86_400_000 + int(rng.integers(3_600_000, 70_000_000))
            for step in range(int(rng.integers(1, 8))):
                video, click = int(rng.integers(30)), int(rng.random() < 0.4)
                row = kuairand_row(user, video, start + 20_000 * step, day % 2, click)
                (early if day < 14 else late).append(row)
            if day >= 14:
                drawn.append(kuairand_row(user, int(rng.integers(20, 30)), start + 7_000, day % 2, day % 2, 1))
    for name, rows in {
        "log_standard_4_08_to_4_21": early,
        "log_standard_4_22_to_5_08": late,
        "log_random_4_22_to_5_08": drawn,
    }.items():
        rng.shuffle(rows)
        write_csv(folder / f"{name}_{variant}.csv", KUAIRAND_LOG, rows)
    users = [
        [user, "full_active", 0, 0, user % 2, 5, "(0,10]", 312, "[100,1k)", 0, "0", 3624, "730+", *[1] * 18]
        for user in range(7)  # the eighth has no profile
    ]
    write_csv(folder / f"user_features_{variant}.csv", KUAIRAND_USERS, users)
    videos = []
    for video in range(30):
        upload = ["NORMAL", "2022-03-01", "ShortImport", 1, "" if video == 3 else 17_200.0, 720, 1280, 9, 4]
        videos.append([video, video % 5, *upload, "12,65" if video % 2 else "39"])
    write_csv(folder / f"video_features_basic_{variant}.csv", KUAIRAND_VIDEOS, videos)


def write_movielens_1m(folder: Path, users: int = 30, items: int = 24, each: int = 22) -> None:
    """Every user rates `each` items; the last of them, of some, at the end of the 30 days. Two share each second."""
    rng = np.random.default_rng(2)
    rows = []
    for user in range(users):
        for step, item in enumerate(rng.permutation(items)[:each]):
            day = user % 20 if step < 14 or user % 3 == 2 else (25 if user % 3 else 29)
            rows.append((1 + user, 1 + item, int(rng.integers(1, 6)), 978_300_000 + day * 86_400 + 30 * (step // 2)))
    rng.shuffle(rows)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ratings.dat").write_text("".join("::".join(map(str, row)) + "\n" for row in rows))
    movies = [f"{1 + item}::Caf\xe9: {item} ({1950 + item})::Comedy|War\n" for item in range(items)]
    (folder / "movies.dat").write_text("".join(movies), encoding="latin-1")
    people = [f"{1 + user}::{'MF'[user % 2]}::25::{user % 7}::0-1\n" for user in range(users)]
    (folder / "users.dat").write_text("".join(people))


def write_finn(folder: Path, users: int = 40, interactions: int = 20, positions: int = 25) -> None:
    """`data.npz`, `itemattr.npz` and `ind2val.json`: 0 pads, 1 is "no click" and stands first in every slate."""
    rng = np.random.default_rng(3)
    items = 60
    slate = np.zeros((users, interactions, positions), dtype=np.int32)
    click = np.zeros((users, interactions), dtype=np.int32)
    index, lengths, kind = click.copy(), click.copy(), click.copy()
    for user in range(users):
        for step in range(int(rng.integers(6, interactions + 1))):
            size = int(rng.integers(2, positions))
            slate[user, step, : size + 1] = [1, *rng.choice(np.arange(3, items), size, replace=False)]
            index[user, step] = rng.integers(size + 1)
            click[user, step] = slate[user, step, index[user, step]]
            lengths[user, step], kind[user, step] = size + 1, 1 + step % 2
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"userId": np.arange(users, dtype=np.int32), "click": click, "click_idx": index}
    arrays |= {"slate_lengths": lengths, "slate": slate, "interaction_type": kind}
    np.savez_compressed(folder / "data.npz", **arrays)
    np.savez_compressed(folder / "itemattr.npz", category=np.arange(items) % 7.0)
    names = {"category": {str(k): f"BAP,{k}" for k in range(7)}, "interaction_type": {"1": "search", "2": "rec"}}
    (folder / "ind2val.json").write_text(json.dumps(names))


def write_avito(folder: Path, searches: int = 260) -> None:
    """`trainSearchStream.tsv`, `SearchInfo.tsv` and `AdsInfo.tsv`; only contextual ads (ObjectType 3) have a click."""
    rng = np.random.default_rng(4)
    stream, info = [], []
    for search in range(1, 1 + searches):
        day = AVITO_DAY + int((search - 1) * 28 // searches)
        query = 'коляска "зима"' if search % 3 == 0 else ""
        info.append([search, f"{day} 10:0{search % 10}:00.0", 900 + search, search % 30, search % 2, query, 50, 23, ""])
        for position, ad in zip((1, 2, 6, 7, 8)[: 5 - search % 4 // 3], rng.permutation(40), strict=False):
            kind = 3 if position in (1, 7) else 1 + search % 2
            known = [f"{rng.random() / 50:.6f}", int(rng.random() < 0.2)] if kind == 3 else ["", ""]
            stream.append([search, ad, position, kind, *known])
    header = "SearchID,AdID,Position,ObjectType,HistCTR,IsClick"
    write_csv(folder / "trainSearchStream.tsv", header, stream, "\t")
    header = "SearchID,SearchDate,IPID,UserID,IsUserLoggedOn,SearchQuery,LocationID,CategoryID,SearchParams"
    write_csv(folder / "SearchInfo.tsv", header, info, "\t")
    ads = [[ad, 1 + ad % 4, 20 + ad % 3, "{45:'a'}", "" if ad == 5 else 100.0 + ad, f"ad {ad}", 1] for ad in range(38)]
    write_csv(folder / "AdsInfo.tsv", "AdID,LocationID,CategoryID,Params,Price,Title,IsContext", ads, "\t")


def write_rl4rs(folder: Path, sessions: int = 60) -> None:
    """`rl4rs_dataset_a_sl.csv` and `_rl.csv` (between `@`, with a header) and `item_info.csv` (between blanks)."""
    rng = np.random.default_rng(5)
    items = 30
    vectors = rng.normal(size=(items + 1, 40)).round(4)
    header = "timestamp@session_id@sequence_id@exposed_items@user_feedback@user_seqfeature@user_protrait@item_feature"
    for name, policy in {"sl": 0, "rl": 1}.items():
        lines = [f"{header}@behavior_policy_id"]
        for session in range(1, 1 + sessions):
            shown = [1 + 10 * row + k for row in range(3) for k in rng.permutation(10)[:3]]
            bought = [int(rng.random() < 0.3) for _ in shown]
            portrait = [*rng.integers(0, 5, 10), *rng.normal(size=32).round(4)]
            features = ";".join(",".join(map(str, vectors[item])) for item in shown)
            fields = [shown, bought, rng.integers(1, items, session % 4 + 1), portrait]
            texts = [",".join(map(str, field)) for field in fields]
            lines.append("@".join(map(str, [1_600_000_000 + session, session, 1, *texts, features, policy])))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"rl4rs_dataset_a_{name}.csv").write_text("\n".join(lines) + "\n")
    info = ["item_id item_vec price location special_item"]
    for item in range(1, items + 1):
        info.append(f"{item} {','.join(map(str, vectors[item]))} {5.0 + item} {1 + (item - 1) // 10} {item % 3}")
    (folder / "item_info.csv").write_text("\n".join(info))


def write_mind(folder: Path, impressions: int = 40) -> None:
    """`train` and `dev`, each with `behaviors.tsv` and `news.tsv`; neither has a header."""
    rng = np.random.default_rng(6)
    for split, first_day, days in (("train", 9, 6), ("dev", 15, 1)):
        lines = []
        for number in range(1, 1 + impressions):
            day, hour = first_day + int(rng.integers(days)), int(rng.integers(24))
            time = f"11/{day}/2019 {(hour - 1) % 12 + 1}:05:{number % 60:02d} {'AM' if hour < 12 else 'PM'}"
            shown = rng.permutation(30)[: int(rng.integers(2, 9))]
            clicked = rng.integers(len(shown))
            text = " ".join(f"N{news}-{int(place == clicked)}" for place, news in enumerate(shown))
            past = " ".join(f"N{news}" for news in rng.integers(0, 30, number % 4))
            lines.append([number, f"U{number % 11}", time, past, text])
        (folder / split).mkdir(parents=True, exist_ok=True)
        text = "".join("\t".join(map(str, line)) + "\n" for line in lines)
        (folder / split / "behaviors.tsv").write_text(text)
        news = [
            f'N{item}\tnews\tnews{item % 3}\tSay "yes" {item}\t\thttps://x/{item}\t[]\t[{{"Label": "A"}}]\n'
            for item in range(30)
        ]
        (folder / split / "news.tsv").write_text("".join(news))


def write_prm(folder: Path, lists: int = 90, size: int = 30) -> None:
    """`set1.train.txt.part1` and `.part2`: Python literals between `|`; every tenth line has a null."""
    rng = np.random.default_rng(7)
    folder.mkdir(parents=True, exist_ok=True)
    for part in (1, 2):
        lines = []
        for number in range(lists):
            sparse = [[int(item), int(item) % 4, int(item) % 7, 3, 9] for item in rng.permutation(200)[:size]]
            basic, optional = rng.random((size, 7)).round(4).tolist(), rng.random((size, 12)).round(4).tolist()
            labels = [int(rng.random() < 0.1) for _ in range(size)]
            profile = "[null, 2, 3]" if number % 10 == 4 else str([number % 2, 2, 3])
            lines.append(f"{part * 1000 + number}|{profile}|{sparse}|{basic}|{optional}|{labels}\n")
        (folder / f"set1.train.txt.part{part}").write_text("".join(lines))
