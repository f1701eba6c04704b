"""Where a batch job runs: in this process, or on the workers of a Ray cluster.

A job is cut into *units*, such as the files of a folder. A unit is worked on by one worker from its beginning to its
end, on one thread unless asked otherwise, and leaves its result in a place of its own, whole or not at all. So what a
job makes does not depend on the engine, on the number of workers, or on how often one of them was killed; a job that
was stopped goes on with the units that are missing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast, get_args

import torch

Engine = Literal["local", "ray"]
Unit = TypeVar("Unit")
#: What a worker loads once, such as a model, made into what works on one unit and tells how many requests it had.
Worker = Callable[[Unit], int]


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Who works on the units of a job; what the job makes does not depend on it, but for the number of threads.

    Attributes:
        engine: local: this process, one unit after the other. ray: Ray Data's actors, one worker each; a unit of one
            that was killed is given to another.
        address: Of a running Ray cluster, such as auto or ray://head:10001; default: one that is started here for the
            job, with as many CPUs as the workers need.
        num_workers: Of Ray.
        gpus_per_worker: Of Ray; a worker finds it as its only accelerator.
        threads_per_worker: Of torch. The last bits of a sum depend on it.

    Raises:
        ValueError: If the engine is unknown, or a number out of its range.
    """

    engine: Engine = "local"
    address: str | None = None
    num_workers: int = 1
    gpus_per_worker: float = 0.0
    threads_per_worker: int = 1

    def __post_init__(self) -> None:
        if self.engine not in get_args(Engine):
            raise ValueError(f"engine must be one of {', '.join(get_args(Engine))}, got {self.engine!r}")
        for name in ("num_workers", "threads_per_worker"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.gpus_per_worker < 0:
            raise ValueError(f"gpus_per_worker must not be negative, got {self.gpus_per_worker}")
        if self.engine == "local":
            for name, value in {"address": None, "num_workers": 1, "gpus_per_worker": 0}.items():
                if getattr(self, name) != value:
                    raise ValueError(f"{name} is of the engine 'ray', got {getattr(self, name)!r} with 'local'")


def run_units(
    make_worker: Callable[[], Worker[Unit]],
    units: Sequence[Unit],
    workers: Workers,
    on_progress: Callable[[int], None] | None = None,
) -> int:
    """Works on all units, in any order.

    Args:
        make_worker: Makes a worker. For Ray it travels in a pickle, and so do the units.
        units: What there is to do.
        workers: Who does it.
        on_progress: Called with the number of requests of each unit when it is done.

    Returns:
        The number of requests.

    Raises:
        ImportError: If Ray is asked for and not installed.
    """
    total = 0
    for count in (_locally if workers.engine == "local" else _on_ray)(make_worker, units, workers):
        total += count
        if on_progress is not None:
            on_progress(count)
    return total


def _locally(make_worker: Callable[[], Worker[Unit]], units: Sequence[Unit], workers: Workers) -> Iterator[int]:
    if not units:
        return
    with _torch_threads(workers.threads_per_worker):
        work = make_worker()
        for unit in units:
            yield work(unit)


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Actor:
    """A worker as Ray Data keeps one in each process."""

    def __init__(self, make_worker: Callable[[], Worker[Any]], threads: int) -> None:
        torch.set_num_threads(threads)
        self.work = make_worker()

    def __call__(self, row: dict[str, Any]) -> dict[str, int]:
        return {"requests": self.work(row["item"])}


@contextmanager
def ray_cluster(address: str | None, num_cpus: int) -> Iterator[Any]:
    """Yields the module `ray`, connected: to the cluster of an address, or to one that is started here and ended again.

    A connection that is there already is used, and stays.

    Raises:
        ImportError: If Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError("this needs Ray: pip install 'rerankzoo[ray]'") from error
    started_here = not ray.is_initialized()
    if started_here:
        # Ray lets workers wait for everything else (niceness 15), but they do what this process would.
        here: dict[str, Any] = {} if address else {"num_cpus": num_cpus, "_system_config": {"worker_niceness": 0}}
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **here)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        if started_here:
            ray.shutdown()


def _on_ray(make_worker: Callable[[], Worker[Unit]], units: Sequence[Unit], workers: Workers) -> Iterator[int]:
    if not units:
        return
    threads = workers.threads_per_worker
    with ray_cluster(workers.address, workers.num_workers * threads) as ray:
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = ray.data.from_items(list(units), override_num_blocks=len(units))
        done = rows.map(
            cast(Any, _Actor),
            fn_constructor_args=(make_worker, threads),
            compute=ray.data.ActorPoolStrategy(size=workers.num_workers),
            num_cpus=threads,
            num_gpus=workers.gpus_per_worker,
        )
        for row in done.iter_rows():
            yield row["requests"]
