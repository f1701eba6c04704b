"""Requests a second of `rerankzoo rerank`: two Ray workers beside one local process, on the same files.

    python -m qa.batch_jobs                 # 64 files of 4,000 requests, 50 candidates, slates of 6
    python -m qa.batch_jobs --files 8 --requests 2000

What is compared is written by both, and must be equal byte for byte. Ray is started before the clock, the workers load
their models within it, as a local process does.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from rerankzoo.data.folder import write_parquet
from rerankzoo.data.simulator import Simulator, SimulatorSettings
from rerankzoo.engines import Workers, ray_cluster
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.models.degre import DeGReConfig, DeGReGenerator
from rerankzoo.pipeline import RerankingPipeline
from rerankzoo.reranking import rerank_folder


def measure(folder: Path, files: int, requests: int, workers: int) -> None:
    """Makes model and requests, reranks them in both ways and prints the rates."""
    torch.manual_seed(0)
    simulator = Simulator(SimulatorSettings.named("large"))
    extractor = RerankingFeatureExtractor(simulator.schema).fit(simulator.requests("train", 2000))
    model = DeGReGenerator(DeGReConfig(feature_schema=extractor.schema.to_dict(), slate_size=6))
    RerankingPipeline(model, extractor).save_pretrained(folder / "model")
    source = folder / "requests"
    source.mkdir()
    table = simulator.requests("test", requests)
    for number in range(files):
        write_parquet(table, source / f"{number:03d}.parquet")
    times = {}
    jobs = {"local": Workers(), "ray": Workers(engine="ray", num_workers=workers)}
    with ray_cluster(None, workers):
        for name, asked in jobs.items():
            start = time.perf_counter()
            count = rerank_folder(str(folder / "model"), str(source), str(folder / name), workers=asked)
            times[name] = time.perf_counter() - start
            print(f"{name}: {count / times[name]:,.0f} requests/s ({times[name]:.1f} s)")
    for path in (folder / "local").glob("*.parquet"):
        if path.read_bytes() != (folder / "ray" / path.name).read_bytes():
            raise SystemExit(f"{path.name} differs")
    print(f"Ray with {workers} workers / one local process: {times['local'] / times['ray']:.2f}; equal byte for byte")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=64)
    parser.add_argument("--requests", type=int, default=4000, help="of each file")
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name), asked.files, asked.requests, asked.workers)


if __name__ == "__main__":
    main()
