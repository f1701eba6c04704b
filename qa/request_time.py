"""What a request costs from JSON to JSON, beside another checkout of rerankzoo such as the commit before.

One request of 50 candidates and 10 fields through an eager DeGRe pipeline of D = 64, decoded greedily into six
positions, on one thread. Two processes take turns, so that other work on the machine slows down both alike:

    git worktree add ../before 613eba1
    python qa/request_time.py ../before
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from request_calls import ROOT, environment, make_pipeline, make_requests

MAIN = Path(__file__).resolve()
FIELDS = ("category", "brand", "shop", "color"), ("score", "price", "rating", "age", "stock")
SIZES = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_decoder_layers": 2, "slate_size": 6}


def serve_turns(calls: int) -> None:
    """Answers each line of the standard input by the milliseconds of CPU time of a request, a median of some calls."""
    pipeline = make_pipeline(*FIELDS, **SIZES)
    text = json.dumps(make_requests(1, 50, *FIELDS)[0])
    answer = ""
    for line in sys.stdin:
        times = []
        for _ in range(calls):
            start = time.process_time()
            answer = json.dumps(pipeline(json.loads(text)))
            times.append(1e3 * (time.process_time() - start))
        items = [item["item_id"] for item in json.loads(answer)]
        print(json.dumps({"turn": line.strip(), "ms": statistics.median(times), "items": items}), flush=True)


def measure(checkouts: list[Path], turns: int, calls: int) -> list[list[float]]:
    """CPU milliseconds of a request by checkout and turn.

    Raises:
        RuntimeError: If two checkouts answer with other items.
    """
    command = [sys.executable, str(MAIN), "--calls", str(calls), "--serve"]
    pipe = subprocess.PIPE
    sides = [subprocess.Popen(command, env=environment(path), stdin=pipe, stdout=pipe, text=True) for path in checkouts]
    times: list[list[float]] = [[] for _ in sides]
    try:
        for turn in range(turns + 1):
            answers = []
            for side, spent in zip(sides, times, strict=True):
                print(turn, file=side.stdin, flush=True)
                answers.append(json.loads(side.stdout.readline()))  # type: ignore[union-attr]
                if turn:  # the first warms up
                    spent.append(answers[-1]["ms"])
            if any(answer["items"] != answers[0]["items"] for answer in answers):
                raise RuntimeError(f"the answers differ: {[answer['items'] for answer in answers]}")
    finally:
        for side in sides:
            side.terminate()
            side.wait()
    return times


def main() -> None:
    """Measures this checkout and, if its path is given, another one in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, nargs="?", help="another checkout, to compare with")
    parser.add_argument("--turns", type=int, default=20, help="of each checkout (default: 20)")
    parser.add_argument("--calls", type=int, default=20, help="in a turn (default: 20)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)  # one side of the measurement
    options = parser.parse_args()
    if options.serve:
        serve_turns(options.calls)
        return
    checkouts = [path for path in (ROOT, options.other) if path is not None]
    times = measure(checkouts, options.turns, options.calls)
    for path, spent in zip(checkouts, times, strict=True):
        print(f"{statistics.median(spent):.2f} ms of CPU time, JSON to JSON  {path}")
    if options.other is not None:
        ratio = statistics.median(own / other for own, other in zip(*times, strict=True))
        print(f"ratio {ratio:.3f} (median of {options.turns} turns)")


if __name__ == "__main__":
    main()
