"""What a model costs to serve: latency, throughput, memory, and how far it is from the hardware's floor.

CPU time counts, because other processes lengthen what the clock on the wall shows, and calls take turns, because by the
shared caches they slow down the former too, and then all that is compared alike.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Column, Table
from torch.utils.flop_counter import FlopCounterMode

from rerankzoo.atomic_writing import write_json
from rerankzoo.backends import Backend, ExportedModel, Format, GraphSizes
from rerankzoo.batch import to_device
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.pipeline import RerankingPipeline
from rerankzoo.serving.export import export_model
from rerankzoo.serving.random_inputs import random_batch, random_requests

HISTORY_LENGTH = 20  # of the random requests, where the schema has history fields
Call = Callable[[], Any]
WARM_UP = 2  # calls before the clock starts: the first ones fill caches and allocate


class Times(NamedTuple):
    """Seconds of each call, in rounds: CPU time of the process, and what a clock on the wall shows."""

    cpu: np.ndarray
    wall: np.ndarray

    def on(self, device: torch.device) -> np.ndarray:
        """The time that counts: of a CPU its own, of an accelerator the wall's."""
        return self.cpu if device.type == "cpu" else self.wall


def in_turns(calls: Mapping[str, Call], seconds: float, fewest: int = 7) -> dict[str, Times]:
    """Times calls, by name, one after the other, round by round.

    Args:
        calls: What to time.
        seconds: Wall time after which no round is begun, unless there were fewer than `fewest`.
        fewest: Rounds at least.
    """
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    end, rounds = time.monotonic() + seconds, 0
    gc.collect()
    while rounds < fewest or time.monotonic() < end:
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
        rounds += 1
    return {name: Times(*np.array(values).T) for name, values in times.items()}


def finished(call: Call, device: torch.device) -> Call:
    """A call that ends when the device is done: an accelerator answers before it has computed."""

    def wait() -> Any:
        result = call()
        torch.accelerator.synchronize(device)
        return result

    return call if device.type == "cpu" else wait


def count_flops(call: Call) -> int:
    """Floating-point operations of the matrix products and attentions of a call in eager mode."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def gemm(rows: int, hidden_size: int, device: torch.device | str = "cpu") -> tuple[Call, int]:
    """Products in single precision at the rate of the device's GEMM, and how many operations they are.

    To be timed in turns with what is held against that rate, which changes from one second to the next where others use
    the same core.

    Args:
        rows: Of the left matrix, `rows` x D; the right one, D x 4 D, is as wide as a feed-forward layer.
        hidden_size: D.
        device: Where.
    """
    device, random = torch.device(device), torch.Generator().manual_seed(0)
    left = torch.randn(rows, hidden_size, generator=random).to(device)
    right = torch.randn(hidden_size, 4 * hidden_size, generator=random).to(device)
    out = torch.empty(rows, 4 * hidden_size, device=device)
    flops = 8 * rows * hidden_size**2
    repeats = min(1000, 1 + 1_000_000_000 // flops)  # the first of a turn finds other data in the caches

    def multiply() -> None:
        for _ in range(repeats):
            torch.mm(left, right, out=out)

    return finished(multiply, device), repeats * flops


@dataclass(frozen=True)
class Load:
    """What is asked of a model at a time; with one beam, the model's own generation config says how."""

    num_candidates: int
    slate_size: int
    batch_size: int
    num_beams: int = 1

    @property
    def decoding(self) -> dict[str, int]:
        """Its decoding parameters."""
        return {"slate_size": self.slate_size} | ({"num_beams": self.num_beams} if self.num_beams > 1 else {})


def loads_of(*choices: Sequence[int]) -> list[Load]:
    """Every combination of some numbers of candidates, positions, requests and beams."""
    return [Load(*sizes) for sizes in product(*choices)]


@dataclass(frozen=True, kw_only=True)
class Measured(Load):
    """What a load costs with a backend.

    Attributes:
        backend: What decoded.
        device: Where. On an accelerator the clock on the wall counts, on a CPU its own time.
        p50_ms: Median latency of a call by the wall clock, milliseconds.
        p99_ms: Its 99th percentile.
        cpu_ms: Median CPU time of a call.
        requests_per_second: Of one core, or of the accelerator.
        peak_memory_mb: Largest resident memory of the whole process while it was measured, or memory taken of the
            accelerator; `None` where the system does not tell.
        mflops: Floating-point operations of a call, in millions, counted in eager mode.
        floor_ratio: The time over what these operations take at the rate of the device's GEMM.
    """

    backend: Backend
    device: str
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
        model: A model that generates slates; measured where it is. Graphs run on the CPU.
        extractor: Its feature extractor.
        loads: What to ask of it.
        backends: Graphs are exported first: one per decoding for ONNX, one per load for AOTInductor, which compiles for
            a minute or so.
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
        for load in loads:
            batch = random_batch(extractor, load.batch_size, load.num_candidates, HISTORY_LENGTH, ragged=False)
            flops = count_flops(partial(model.generate, **to_device(batch, model.device), **load.decoding))
            for backend in backends:
                decoder: Any = model if backend == "eager" else _export(model, extractor, Path(folder), backend, load)
                options = load.decoding if backend == "eager" else {}
                call = partial(decoder.generate, **to_device(batch, decoder.device), **options)
                times, memory = _measure(call, seconds, decoder.device)
                spent, milliseconds = times.on(decoder.device), 1e3 * times.wall
                sizes = load.batch_size * load.num_candidates, model.config.hidden_size
                yield Measured(
                    **asdict(load),
                    backend=backend,
                    device=str(decoder.device),
                    p50_ms=float(np.median(milliseconds)),
                    p99_ms=float(np.quantile(milliseconds, 0.99)),
                    cpu_ms=float(np.median(times.cpu)) * 1e3,
                    requests_per_second=load.batch_size / float(spent.mean()),
                    peak_memory_mb=memory,
                    mflops=flops / 1e6,
                    floor_ratio=_floor_ratio(call, flops, *sizes, decoder.device, min(seconds, 0.5)),
                )


def _measure(call: Call, seconds: float, device: torch.device) -> tuple[Times, float | None]:
    """The times of a call, and the peak of memory meanwhile in MB, where the system tells it."""
    status, module = Path("/proc/self/status"), torch.get_device_module(device)
    on_cpu, counts = device.type == "cpu", hasattr(module, "reset_peak_memory_stats")  # Apple's does not
    if on_cpu and status.is_file():
        status.with_name("clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    elif counts:
        module.reset_peak_memory_stats(device)
    times = in_turns({"call": finished(call, device)}, seconds)["call"]
    if not on_cpu:
        return times, module.max_memory_allocated(device) / 2**20 if counts else None
    lines = status.read_text(encoding="ascii").splitlines() if status.is_file() else []
    return times, next((float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)


def _floor_ratio(call: Call, flops: int, rows: int, hidden_size: int, device: torch.device, seconds: float) -> float:
    products, operations = gemm(rows, hidden_size, device)
    times = in_turns({"call": finished(call, device), "gemm": products}, seconds)
    spent, floor = (float(np.median(times[name].on(device))) for name in ("call", "gemm"))
    return spent / floor * operations / flops


def _export(
    model: Any, extractor: RerankingFeatureExtractor, folder: Path, backend: Format, load: Load
) -> ExportedModel:
    """The graph of a load, exported unless it was before."""
    name, sizes = f"{backend}-{load.slate_size}-{load.num_beams}", None
    if backend == "aoti":
        name = f"{name}-{load.num_candidates}-{load.batch_size}"
        history = HISTORY_LENGTH if extractor.schema.has_history else None
        sizes = GraphSizes(load.batch_size, load.num_candidates, history)
    graph = folder / name
    if not graph.is_dir():
        export_model(model, extractor, graph, backend, model.generation_config.merged(**load.decoding), sizes)
    return ExportedModel.from_pretrained(graph, backend)


def end_to_end(
    pipeline: RerankingPipeline, requests: Sequence[Mapping[str, Any]], seconds: float = 2.0, **parameters: Any
) -> dict[str, float]:
    """Where the time goes from the JSON of some requests to the JSON of their answers.

    Args:
        pipeline: What serves, wherever it is.
        requests: Raw requests.
        seconds: Wall time.
        **parameters: Of decoding.

    Returns:
        Milliseconds, medians: `"parse"` (JSON to Python), `"extract"` (features), `"decode"` (the model), `"answer"`
        (the rest: item ids, dictionaries, JSON) and `"whole"`. CPU time, or on an accelerator the clock on the wall.
    """
    text, device = json.dumps(list(requests)), torch.device(pipeline.device)
    inputs: dict[str, Any] = {**to_device(pipeline.extractor(requests), device), **parameters}
    decode = partial(pipeline.model.generate, evaluator=pipeline.evaluator, **inputs)
    calls: dict[str, Call] = {
        "parse": partial(json.loads, text),
        "extract": partial(pipeline.extractor, requests),
        "decode": finished(decode, device),
        "whole": lambda: json.dumps(pipeline(json.loads(text), **parameters)),
    }
    times = {name: float(np.median(spent.on(device))) * 1e3 for name, spent in in_turns(calls, seconds).items()}
    whole = times.pop("whole")
    return {**times, "answer": max(0.0, whole - sum(times.values())), "whole": whole}


def bench_pipeline(pipeline: RerankingPipeline, loads: Sequence[Load], seconds: float) -> dict[Load, dict[str, float]]:
    """`end_to_end` for random requests of some loads."""
    shares = {}
    for load in loads:
        requests = random_requests(pipeline.extractor, load.batch_size, load.num_candidates, HISTORY_LENGTH)
        shares[load] = end_to_end(pipeline, requests, seconds, **load.decoding)
    return shares


def print_measured(measured: Sequence[Measured]) -> None:
    """A table."""
    header = "n, m, batch, beams, backend, device, p50 ms, p99 ms, CPU ms, requests/s, MB, MFLOP, x floor"
    cells = [["-" if value is None else value for value in asdict(entry).values()] for entry in measured]
    lines = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in line] for line in cells]
    _print_table("One call on random requests", header, lines)


def print_shares(shares: Mapping[Any, Mapping[str, float]]) -> None:
    """A table of `end_to_end` by load, or by whatever the keys are."""
    lines = []
    for key, times in shares.items():
        label = f"{key.batch_size} x {key.num_candidates}, m={key.slate_size}" if isinstance(key, Load) else str(key)
        parts = [f"{time / times['whole']:.0%}" for name, time in times.items() if name != "whole"]
        lines.append([label, *parts, f"{times['whole']:.2f}"])
    _print_table("From JSON to JSON", "requests, parse, extract, decode, answer, whole ms", lines)


def _print_table(title: str, header: str, lines: Sequence[Sequence[str]]) -> None:
    first, *others = header.split(", ")
    table = Table(first, *(Column(name, justify="right") for name in others), title=title, title_justify="left")
    for line in lines:
        table.add_row(*line)
    Console(width=120).print(table)


def describe_machine() -> dict[str, Any]:
    """Processor, accelerator, cores, threads that torch uses, load, torch's version; what is not there is left out."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    known = {
        "processor": named[0] if named else platform.processor(),
        "accelerator": accelerator
        and getattr(torch.get_device_module(accelerator), "get_device_name", str)(accelerator),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
    }
    return {name: value for name, value in known.items() if value not in (None, "")}


def write_bench(folder: Path, measured: Sequence[Measured], shares: Mapping[Load, Mapping[str, float]]) -> None:
    """Writes `bench.json` and `bench.svg` (latency by number of requests) into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    ends = [{**asdict(load), **{f"{name}_ms": time for name, time in times.items()}} for load, times in shares.items()]
    figures = {"machine": describe_machine(), "calls": [asdict(entry) for entry in measured], "end_to_end": ends}
    write_json(folder / "bench.json", figures)
    _plot(folder / "bench.svg", measured)


def _plot(path: Path, measured: Sequence[Measured]) -> None:
    from matplotlib.figure import Figure

    series: dict[str, list[Measured]] = {}
    for entry in sorted(measured, key=lambda entry: entry.batch_size):
        beams = f" W={entry.num_beams}" if entry.num_beams > 1 else ""
        label = f"{entry.backend}, n={entry.num_candidates} m={entry.slate_size}{beams}"
        series.setdefault(label, []).append(entry)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    names = {"p50_ms": "latency p50, ms", "requests_per_second": "requests per second"}
    for panel, (name, label) in zip(panels, names.items(), strict=True):
        for entries in series.values():
            panel.plot([entry.batch_size for entry in entries], [getattr(entry, name) for entry in entries], marker="o")
        panel.set(xlabel="requests per call", ylabel=label, xscale="log", yscale="log")
        panel.grid(alpha=0.3)
    panels[0].legend(series, frameon=False, fontsize=7)
    figure.savefig(path)
