"""Measuring what a model costs to serve: latency, throughput, memory, and how far it is from the hardware's floor.

B requests, N candidates, M positions, W beams.
"""

from __future__ import annotations

import copy
import gc
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from rerankzoo.atomic_writing import write_atomically
from rerankzoo.backends import Backend, ExportedModel, GraphSizes
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.generation import RerankingGenerationConfig
from rerankzoo.pipeline import RerankingPipeline
from rerankzoo.serving.export import export_model
from rerankzoo.serving.inputs import random_batch, random_requests
from rerankzoo.serving.measure import Call, count_flops, describe_machine, gemm_rate, in_turns

HISTORY_LENGTH = 20  # of the random requests, where the schema has history fields


@dataclass(frozen=True)
class Load:
    """What is asked of a model at a time.

    Args:
        num_candidates: N.
        slate_size: M.
        batch_size: B.
        num_beams: W; 1 decodes as the model's own generation config says.
    """

    num_candidates: int
    slate_size: int
    batch_size: int
    num_beams: int = 1

    @property
    def decoding(self) -> dict[str, int]:
        """Its decoding parameters."""
        return {"slate_size": self.slate_size, **({"num_beams": self.num_beams} if self.num_beams > 1 else {})}


@dataclass(frozen=True)
class Measured:
    """What a load costs with a backend.

    Attributes:
        backend: What decoded.
        num_candidates: N.
        slate_size: M.
        batch_size: B.
        num_beams: W.
        p50_ms: Median latency of a call by the wall clock, milliseconds.
        p99_ms: Its 99th percentile.
        cpu_ms: Median CPU time of a call.
        requests_per_second: Of one core: B over the mean CPU time.
        peak_memory_mb: Largest resident memory of the whole process while it was measured; `None` where the system does
            not tell.
        mflops: Floating-point operations of a call, in millions, counted in eager mode.
        floor_ratio: CPU time over the time that these operations take at the rate of the machine's GEMM.
    """

    backend: Backend
    num_candidates: int
    slate_size: int
    batch_size: int
    num_beams: int
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    requests_per_second: float
    peak_memory_mb: float | None
    mflops: float
    floor_ratio: float


def bench_model(
    model: Any,
    extractor: RerankingFeatureExtractor,
    loads: Sequence[Load],
    backends: Sequence[Backend] = ("eager",),
    seconds: float = 2.0,
) -> Iterator[Measured]:
    """Measures a model on random requests.

    Args:
        model: A model that generates slates.
        extractor: Its feature extractor.
        loads: What to ask of it.
        backends: `"eager"`, `"onnx"`, `"aoti"`. Graphs are exported first: one per decoding for ONNX, one per load for
            AOTInductor, which compiles for a minute or so.
        seconds: Wall time of each load and backend.

    Yields:
        One entry per load and backend, as soon as it is measured.

    Raises:
        ValueError: If a load has more positions than the model; before anything is measured.
        ExportError: If the model cannot be exported.
    """
    for load in loads:
        if load.slate_size > model.config.slate_size:
            raise ValueError(f"slate_size {load.slate_size} exceeds the model's {model.config.slate_size}")
    # The counter of operations hooks into gradients, which a view of a parameter has no function for under no_grad.
    model = copy.deepcopy(model).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        graphs = _Graphs(model, extractor, Path(folder))
        for load in loads:
            batch = random_batch(extractor.schema, load.batch_size, load.num_candidates, HISTORY_LENGTH)
            batch["candidate_mask"] = torch.ones_like(batch["candidate_mask"])
            eager = partial(model.generate, **batch, **load.decoding)
            flops = count_flops(eager)
            floor = flops / gemm_rate(load.batch_size * load.num_candidates, model.config.hidden_size)
            for backend in backends:
                decoder: Any = model if backend == "eager" else graphs.get(backend, load)
                decoding = load.decoding if backend == "eager" else {}
                yield _measure(partial(decoder.generate, **batch, **decoding), backend, load, seconds, flops, floor)


def _measure(call: Call, backend: Backend, load: Load, seconds: float, flops: int, floor: float) -> Measured:
    gc.collect()
    told = _forget_peak_memory()
    times = in_turns({backend: call}, seconds)[backend]
    cpu = float(np.median(times.cpu))
    return Measured(
        backend=backend,
        **asdict(load),
        p50_ms=float(np.median(times.wall)) * 1e3,
        p99_ms=float(np.quantile(times.wall, 0.99)) * 1e3,
        cpu_ms=cpu * 1e3,
        requests_per_second=load.batch_size / float(times.cpu.mean()),
        peak_memory_mb=_peak_memory() if told else None,
        mflops=flops / 1e6,
        floor_ratio=cpu / floor,
    )


class _Graphs:
    """Exports what is asked for, once."""

    def __init__(self, model: Any, extractor: RerankingFeatureExtractor, folder: Path) -> None:
        self.model, self.extractor, self.folder = model, extractor, folder

    def get(self, backend: Backend, load: Load) -> ExportedModel:
        """The graph of a load."""
        if backend == "eager":
            raise ValueError("backend 'eager' has no graph")
        name = f"{backend}-{load.slate_size}-{load.num_beams}"
        if backend == "aoti":
            name += f"-{load.num_candidates}-{load.batch_size}"
        if not (self.folder / name).is_dir():
            config: RerankingGenerationConfig = self.model.generation_config.merged(**load.decoding)
            history = HISTORY_LENGTH if self.extractor.schema.select("history", "categorical") else None
            sizes = GraphSizes(load.batch_size, load.num_candidates, history) if backend == "aoti" else None
            export_model(self.model, self.extractor, self.folder / name, backend, config, sizes)
        return ExportedModel.from_pretrained(self.folder / name, backend)


def _forget_peak_memory() -> bool:
    """Starts the peak of this process's resident memory anew; False where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _peak_memory() -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


# --- from JSON to JSON ----------------------------------------------------------------------------------------------


def end_to_end(
    pipeline: RerankingPipeline, requests: Sequence[Mapping[str, Any]], seconds: float = 2.0, **parameters: Any
) -> dict[str, float]:
    """Where the time goes from the JSON of some requests to the JSON of their answers.

    Args:
        pipeline: What serves.
        requests: Raw requests.
        seconds: Wall time of the measurement.
        **parameters: Decoding parameters.

    Returns:
        Milliseconds of CPU time, medians: `"parse"` (JSON to Python), `"extract"` (features), `"decode"` (the model),
        `"answer"` (the rest: item ids, dictionaries, JSON) and `"whole"`.
    """
    text = json.dumps(list(requests))
    inputs: dict[str, Any] = {**pipeline.extractor(requests), **parameters}

    def serve() -> str:
        return json.dumps(pipeline(json.loads(text), **parameters))

    calls: dict[str, Call] = {
        "parse": partial(json.loads, text),
        "extract": partial(pipeline.extractor, requests),
        "decode": partial(pipeline.model.generate, evaluator=pipeline.evaluator, **inputs),
        "whole": serve,
    }
    times = {name: float(np.median(spent.cpu)) * 1e3 for name, spent in in_turns(calls, seconds).items()}
    whole = times.pop("whole")
    return {**times, "answer": max(0.0, whole - sum(times.values())), "whole": whole}


def bench_pipeline(pipeline: RerankingPipeline, loads: Sequence[Load], seconds: float) -> dict[Load, dict[str, float]]:
    """`end_to_end` for random requests of some loads."""
    found = {}
    for load in loads:
        requests = random_requests(pipeline.extractor, load.batch_size, load.num_candidates, HISTORY_LENGTH)
        found[load] = end_to_end(pipeline, requests, seconds, **load.decoding)
    return found


# --- telling it -----------------------------------------------------------------------------------------------------


def loads_of(
    candidates: Sequence[int], slates: Sequence[int], batches: Sequence[int], num_beams: Sequence[int]
) -> list[Load]:
    """Every combination."""
    return [Load(*sizes) for sizes in product(candidates, slates, batches, num_beams)]


def print_measured(measured: Sequence[Measured]) -> None:
    """A table."""
    table = Table(title="One call on random requests", title_justify="left")
    names = (
        "backend",
        "n",
        "m",
        "batch",
        "beams",
        "p50 ms",
        "p99 ms",
        "CPU ms",
        "requests/s",
        "MB",
        "MFLOP",
        "x floor",
    )
    for name in names:
        table.add_column(name, justify="left" if name == "backend" else "right")
    for entry in measured:
        sizes = (entry.num_candidates, entry.slate_size, entry.batch_size, entry.num_beams)
        memory = "-" if entry.peak_memory_mb is None else f"{entry.peak_memory_mb:.0f}"
        table.add_row(
            entry.backend,
            *map(str, sizes),
            *(f"{value:.2f}" for value in (entry.p50_ms, entry.p99_ms, entry.cpu_ms)),
            f"{entry.requests_per_second:.0f}",
            memory,
            f"{entry.mflops:.1f}",
            f"{entry.floor_ratio:.1f}",
        )
    Console(width=120).print(table)


def print_shares(shares: Mapping[Any, Mapping[str, float]]) -> None:
    """A table of `end_to_end` by load, or by whatever the keys are."""
    table = Table(title="From JSON to JSON, CPU time", title_justify="left")
    for name in ("requests", "parse", "extract", "decode", "answer", "whole ms"):
        table.add_column(name, justify="left" if name == "requests" else "right")
    for key, times in shares.items():
        label = f"{key.batch_size} x {key.num_candidates}, m={key.slate_size}" if isinstance(key, Load) else str(key)
        parts = (f"{times[name] / times['whole']:.0%}" for name in ("parse", "extract", "decode", "answer"))
        table.add_row(label, *parts, f"{times['whole']:.2f}")
    Console(width=120).print(table)


def write_bench(folder: Path, measured: Sequence[Measured], shares: Mapping[Load, Mapping[str, float]]) -> None:
    """Writes `bench.json` and `bench.svg` (latency by number of requests) into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    ends = [
        {**asdict(load), **{f"{name}_ms": value for name, value in times.items()}} for load, times in shares.items()
    ]
    calls = [asdict(entry) for entry in measured]
    text = json.dumps({"machine": describe_machine(), "calls": calls, "end_to_end": ends}, indent=2) + "\n"
    write_atomically(folder / "bench.json", lambda path: path.write_text(text, encoding="utf-8"))
    _plot(folder / "bench.svg", measured)


def _plot(path: Path, measured: Sequence[Measured]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (latency, throughput) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    key: Callable[[Measured], tuple] = lambda entry: (  # noqa: E731
        entry.backend,
        entry.num_candidates,
        entry.slate_size,
        entry.num_beams,
    )
    for series in dict.fromkeys(map(key, measured)):
        entries = sorted((entry for entry in measured if key(entry) == series), key=lambda entry: entry.batch_size)
        label = f"{series[0]}, n={series[1]} m={series[2]}" + (f" W={series[3]}" if series[3] > 1 else "")
        sizes = [entry.batch_size for entry in entries]
        latency.plot(sizes, [entry.p50_ms for entry in entries], marker="o", label=label)
        throughput.plot(sizes, [entry.requests_per_second for entry in entries], marker="o")
    latency.set(ylabel="latency p50, ms")
    throughput.set(ylabel="requests per second and core")
    for panel in (latency, throughput):
        panel.set(xlabel="requests per call", xscale="log", yscale="log")
        panel.grid(alpha=0.3)
    latency.legend(frameon=False, fontsize=7)
    figure.savefig(path)
    pyplot.close(figure)
