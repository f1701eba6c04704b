"""Tonight's requests on a cluster: Parquet files in, ordered items out, by actors of Ray Data with one model each.

Needs the extra "ray". More: docs/batch-jobs.md. Run: python examples/ray_rerank.py
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from rerankzoo import AtMost, example
from rerankzoo.data.simulator import Simulator, SimulatorSettings
from rerankzoo.engines import Workers
from rerankzoo.reranking import rerank_folder


def main(requests: int = 2_000, files: int = 4, root: str = "outputs/examples/ray") -> pd.DataFrame:
    """Returns what was written: for each request the items in their order."""
    simulator, folder = Simulator(SimulatorSettings.named("strong")), Path(root, "requests")
    folder.mkdir(parents=True, exist_ok=True)
    log = simulator.requests("test", requests)
    size = -(-requests // files)  # a file is what one actor takes at a time
    for number in range(files):
        pq.write_table(log.slice(number * size, size), folder / f"part-{number}.parquet")

    # The same job in this process: workers=Workers(). Both write the same bytes, and go on where they were stopped.
    rerank_folder(
        str(example("degre-simulator")),
        str(folder),  # or s3://, gs://: whatever fsspec knows
        f"{root}/slates",
        keep=["user_id"],
        constraints=[AtMost(2, "category")],
        num_beams=4,
        workers=Workers(engine="ray", num_workers=2),  # address="auto": a cluster that is running
    )
    slates = pd.concat(pd.read_parquet(path) for path in sorted(Path(root, "slates").glob("*.parquet")))
    print(slates.head())
    return slates


if __name__ == "__main__":
    main()
