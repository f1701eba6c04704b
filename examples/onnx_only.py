"""A graph that takes raw columns: this file needs numpy and onnxruntime, neither torch nor rerankzoo.

More: docs/export.md. Run:

    rerankzoo export model_cards/degre-simulator --format onnx --with-features --out outputs/graph
    python examples/onnx_only.py outputs/graph
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

TYPES = {"double": np.float64, "int64": np.int64, "string": np.object_}


def main(folder: str) -> list[int]:
    """Returns the positions of the chosen items among the candidates of one request."""
    described = json.loads(Path(folder, "export.json").read_text(encoding="utf-8"))["features"]
    session = ort.InferenceSession(str(Path(folder, described["graph"])), providers=["CPUExecutionProvider"])

    # Every input is described by name, type, shape, meaning and an example; all examples together are one request. Real
    # requests are padded to the longest; graph_client.py, beside the graph, does that, and hashes strings.
    feeds = {}
    for entry in described["inputs"]:
        print(f"{entry['name']:28} {entry['type']:7} {entry['shape']}  {entry['meaning']}")
        feeds[entry["name"]] = np.array(entry["example"], dtype=TYPES[entry["type"]])

    slates, _, scores = session.run(None, feeds)
    print("slate", slates[0].tolist(), "scores", scores[0].tolist())
    chosen: list[int] = slates[0].tolist()
    return chosen


if __name__ == "__main__":
    main(sys.argv[1])
