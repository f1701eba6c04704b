"""How far a request travels: our files, functions and Python calls between a raw request and its slate.

One request of ten candidates through a tiny eager DeGRe pipeline, decoded greedily, counted by cProfile:

    python qa/request_calls.py [another checkout]
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MAIN = Path(__file__).resolve()


def make_requests(count: int, num_candidates: int, categorical: Sequence[str], numeric: Sequence[str]) -> list[dict]:
    """Raw requests, as they come from JSON."""
    return [
        {
            "user_id": row % 50,
            "item_id": [(17 * row + 3 * place) % 997 for place in range(num_candidates)],
            **{name: [(row + place) % 13 for place in range(num_candidates)] for name in categorical},
            **{name: [(row + place) % 11 / 10 for place in range(num_candidates)] for name in numeric},
        }
        for row in range(count)
    ]


def make_pipeline(categorical: Sequence[str], numeric: Sequence[str], **sizes: int) -> Any:
    """A DeGRe pipeline with random weights, made by whichever rerankzoo is imported.

    Args:
        categorical: Fields of a candidate, beside its id.
        numeric: Fields of a candidate; the first is the upstream score.
        **sizes: Of the `DeGReConfig`.
    """
    import torch

    from rerankzoo import DeGReConfig, DeGReGenerator, RerankingFeatureExtractor, RerankingPipeline
    from rerankzoo.features import FeatureSchema, FieldSpec, TargetSpec

    ids = [FieldSpec(name=name, group="candidate", kind="categorical") for name in ("item_id", *categorical)]
    numbers = [FieldSpec(name=name, group="candidate", kind="numeric") for name in numeric]
    schema = FeatureSchema(
        name="request",
        item_id="item_id",
        fields=(FieldSpec(name="user_id", group="request", kind="categorical"), *ids, *numbers),
        targets=(TargetSpec(name="click"),),
        upstream_score=numeric[0],
    )
    torch.set_num_threads(1)
    torch.manual_seed(0)
    extractor = RerankingFeatureExtractor(schema).fit(make_requests(50, 20, categorical, numeric))
    config = DeGReConfig(feature_schema=extractor.schema.to_dict(), **sizes)
    return RerankingPipeline(DeGReGenerator(config), extractor)


def count_calls(call: Any, package: str) -> tuple[Counter[str], int]:
    """Python calls into a package by its file, and the number of its functions that are called."""
    profile = cProfile.Profile()
    profile.runcall(call)
    stats: dict[tuple[str, int, str], Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    calls = {place: counts[1] for place, counts in stats.items() if place[0].startswith(package)}
    files = Counter[str]()
    for (path, _, _), count in calls.items():
        files[path.removeprefix(package)] += count
    return files, len(calls)


def make_call() -> tuple[Any, str]:
    """The call that is counted, after a first one, and the folder of the package that is imported."""
    import rerankzoo

    fields = ("category",), ("score",)
    pipeline, [request] = make_pipeline(*fields), make_requests(1, 10, *fields)
    pipeline(request)
    return lambda: pipeline(request), f"{Path(rerankzoo.__file__).parent}{os.sep}"


def report() -> None:
    """Prints what a request costs the package that is imported, and which of its files have the calls."""
    call, package = make_call()
    files, functions = count_calls(call, package)
    changes = count_file_changes(call, package)
    print(f"  {len(files)} files, {functions} functions, {files.total()} calls, {changes} changes of file")
    parts = Counter[str]()
    for name, count in files.items():
        parts[name.split(os.sep)[0]] += count
    print("  " + ", ".join(f"{part} {count}" for part, count in parts.most_common()))
    for name, count in files.most_common():
        print(f"  {count:6d}  {name}")


def count_file_changes(call: Any, package: str) -> int:
    """How often execution enters another file of ours than the one it last entered a function of."""
    visited = [""]

    def note(frame: Any, event: str, _: Any) -> None:
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(package) and path != visited[-1]:
            visited.append(path)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return len(visited) - 1


def environment(checkout: Path) -> dict[str, str]:
    """Of a process that imports the rerankzoo of a checkout."""
    return {**os.environ, "PYTHONPATH": str(checkout.resolve()), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def main() -> None:
    """Counts for this checkout, and for another one if its path is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, nargs="?", help="another checkout, to compare with")
    parser.add_argument("--imported", action="store_true", help=argparse.SUPPRESS)  # counts what is imported
    options = parser.parse_args()
    if options.imported:
        report()
        return
    for checkout in filter(None, (ROOT, options.other)):
        print(checkout, flush=True)
        subprocess.run([sys.executable, MAIN, "--imported"], env=environment(checkout), check=True)


if __name__ == "__main__":
    main()
