"""Timing: CPU time of calls taken in turns, floating-point operations, and what the machine's GEMM reaches.

CPU time, because other processes lengthen what the clock on the wall shows; in turns, because by the shared caches they
slow down the former too, and then all that is compared alike.
"""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

Call = Callable[[], Any]

#: Calls before the clock starts: the first ones fill caches and allocate.
WARM_UP = 2


def describe_machine() -> dict[str, Any]:
    """Processor, accelerator, cores, threads that torch uses, load, torch's version; what is not there is left out."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    device_name = accelerator and getattr(torch.get_device_module(accelerator), "get_device_name", str)
    known = {
        "processor": named[0] if named else platform.processor(),
        "accelerator": device_name and device_name(accelerator),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
    }
    return {name: value for name, value in known.items() if value not in (None, "")}


class Times(NamedTuple):
    """Seconds of each call, in rounds: CPU time of the process, and what a clock on the wall shows."""

    cpu: np.ndarray
    wall: np.ndarray

    def on(self, device: torch.device) -> np.ndarray:
        """The time that counts: of a CPU its own, of an accelerator the wall's."""
        return self.cpu if device.type == "cpu" else self.wall


def in_turns(calls: Mapping[str, Call], seconds: float, fewest: int = 7) -> dict[str, Times]:
    """Times calls one after the other, round by round.

    Args:
        calls: What to time, by name.
        seconds: Wall time after which no round is begun, unless there were fewer than `fewest`.
        fewest: Rounds at least.

    Returns:
        The times of each, by name.
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


def gemm_rate(rows: int, hidden_size: int, device: torch.device | str = "cpu", seconds: float = 0.2) -> float:
    """Operations per second of `Times.on` that the device's GEMM reaches in single precision.

    Args:
        rows: Of the left matrix, `rows` x D; the right one, D x 4 D, is as wide as a feed-forward layer.
        hidden_size: D.
        device: Where.
        seconds: Wall time of the measurement.
    """
    device, random = torch.device(device), torch.Generator().manual_seed(0)
    left = torch.randn(rows, hidden_size, generator=random).to(device)
    right = torch.randn(hidden_size, 4 * hidden_size, generator=random).to(device)
    out = torch.empty(rows, 4 * hidden_size, device=device)
    flops = 8 * rows * hidden_size**2
    repeats = max(1, 20_000_000 // flops)  # a single small product is too short for the clock

    def multiply() -> None:
        for _ in range(repeats):
            torch.mm(left, right, out=out)

    times = in_turns({"gemm": finished(multiply, device)}, seconds)["gemm"]
    return flops * repeats / float(np.median(times.on(device)))
