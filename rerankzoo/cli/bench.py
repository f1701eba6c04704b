"""`rerankzoo bench`: measures what a model costs to serve on this machine."""

from __future__ import annotations

from pathlib import Path

from jsonargparse.typing import PositiveFloat, PositiveInt
from rich.progress import Progress
from transformers.utils.logging import disable_progress_bar

from rerankzoo.backends import Backend
from rerankzoo.cli.options import choose_device
from rerankzoo.models.auto import AutoModelForReranking, load_checkpoint
from rerankzoo.pipeline import RerankingPipeline
from rerankzoo.serving.bench import bench_model, bench_pipeline, loads_of, print_measured, print_shares, write_bench


def bench(
    model: str,
    *,
    n: tuple[PositiveInt, ...] = (50,),
    m: tuple[PositiveInt, ...] | None = None,
    batch: tuple[PositiveInt, ...] = (1, 32),
    num_beams: tuple[PositiveInt, ...] = (1,),
    backend: tuple[Backend, ...] = ("eager",),
    seconds: PositiveFloat = 2.0,
    device: str = "auto",
    out: Path | None = None,
) -> None:
    """Measures latency, throughput and memory of a model on random requests of its schema.

    With as many threads as torch has (OMP_NUM_THREADS), beside what the machine's GEMM could reach. Every combination
    of the values between commas is measured.

    Args:
        model: Folder or Hub id of a generator with its extractor.
        n: Candidates.
        m: Positions (default: the model's).
        batch: Requests.
        num_beams: Beams.
        backend: Of eager, onnx, aoti; graphs are exported for the measurement, and aoti compiles each combination for a
            minute or more.
        seconds: Of each measurement.
        device: Where the model runs, such as cpu or cuda:1; auto: the accelerator where there is one. Graphs run on
            the CPU.
        out: Folder for bench.json and bench.svg.
    """
    disable_progress_bar()
    place = choose_device(device)  # before anything is loaded
    generator, extractor = load_checkpoint(model, AutoModelForReranking)
    generator.to(place)
    loads = loads_of(n, m or (generator.config.slate_size,), batch, num_beams)
    with Progress(transient=True) as progress:
        steps = bench_model(generator, extractor, loads, backend, seconds)
        measured = list(progress.track(steps, len(loads) * len(backend), description="measuring"))
    shares = bench_pipeline(RerankingPipeline(generator, extractor), loads, seconds)
    print_measured(measured)
    print_shares(shares)
    if out is not None:
        write_bench(out, measured, shares)
        print(f"wrote {out / 'bench.json'} and bench.svg")
