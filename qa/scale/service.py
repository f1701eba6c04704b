"""Long service: one pipeline called from several threads, its answers and its memory.

Calls of one and of many requests take turns, with every decoding that the backend has. Every answer must equal, to the
bit, what one thread got before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch

from qa.benchmarks.setting import make_extractor, make_model, make_requests
from qa.scale.usage import resident
from rerankzoo import AtMost, Exclude, RerankingGenerationConfig, RerankingPipeline
from rerankzoo.models.degre import DeGReEvaluator, DeGReGenerator
from rerankzoo.serving import export_model

NUM_THREADS = 8
#: Requests of a call that brings many.
BATCH = 31
MODEL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 1}
SLATE_SIZE = 4
#: What eager decoding is asked for in turns; a graph has one decoding.
DECODINGS: tuple[dict[str, Any], ...] = (
    {},
    {"num_beams": 4},
    {"penalty_alpha": 0.2},
    {"num_beams": 4, "num_return_sequences": 4},
    {"constraints": (AtMost(2, "category"), Exclude([7, 11]))},
)


@dataclass(frozen=True)
class Call:
    """One call: its requests, its parameters, and the answer that one thread got."""

    requests: Any
    parameters: Mapping[str, Any]
    answer: Any

    @property
    def size(self) -> int:
        """Requests of the call."""
        return 1 if isinstance(self.requests, dict) else len(self.requests)


@dataclass
class Service:
    """What a long service was like.

    Attributes:
        requests: How many were answered.
        wrong: How many answers were not those of one thread.
        memory: (requests answered, VmRSS in bytes), looked at as the service went on.
    """

    requests: int
    wrong: int
    memory: list[tuple[int, int]]

    def growth(self, warm_up: float = 0.2) -> float:
        """Bytes of VmRSS per 10,000 requests after the first `warm_up` of them: the slope of a line through them."""
        answered, bytes_ = np.array(self.memory, dtype=float).T
        late = answered >= warm_up * answered[-1]
        return float(np.polyfit(answered[late], bytes_[late], 1)[0] * 10_000)


def calls(pipeline: RerankingPipeline, decodings: Sequence[Mapping[str, Any]] = DECODINGS) -> list[Call]:
    """The calls of the service, with what one thread gets for them."""
    pool, found = _pool(), []
    for number, decoding in enumerate(decodings):
        single, many = pool[number], pool[number + 1 : number + 1 + BATCH]
        found += [Call(one, decoding, pipeline(one, **decoding)) for one in (single, many)]
    return found


def serve(pipeline: RerankingPipeline, expected: Sequence[Call], requests: int, threads: int = NUM_THREADS) -> Service:
    """Calls the pipeline from several threads until so many requests are answered.

    Raises:
        Exception: What a call raised.
    """
    numbers, lock = count(), Lock()
    service = Service(0, 0, [])

    def answer() -> None:
        while service.requests < requests:
            call = expected[next(numbers) % len(expected)]
            right = pipeline(call.requests, **call.parameters) == call.answer
            with lock:
                service.requests += call.size
                service.wrong += 0 if right else call.size
                if not service.memory or service.requests - service.memory[-1][0] >= requests // 200:
                    service.memory.append((service.requests, resident()))

    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(answer) for _ in range(threads)]:
            future.result()
    return service


def eager_pipeline() -> RerankingPipeline:
    """DeGRe's generator and evaluator with random weights, of 12 candidates and 4 positions."""
    generator, evaluator = (make_model(kind, **MODEL) for kind in (DeGReGenerator, DeGReEvaluator))
    generator.generation_config = RerankingGenerationConfig(slate_size=SLATE_SIZE)
    return RerankingPipeline(generator, make_extractor(), evaluator)


def onnx_pipeline(folder: Path) -> RerankingPipeline:
    """The same generator, greedy, as a graph."""
    pipeline = eager_pipeline()
    export_model(pipeline.model, pipeline.extractor, folder / "onnx", "onnx")
    return RerankingPipeline.from_pretrained(str(folder / "onnx"), backend="onnx")


def measure(requests: int, work: Path) -> dict[str, Any]:
    """A long service of each backend."""
    torch.set_num_threads(1)
    backends: dict[str, Callable[[], RerankingPipeline]] = {
        "eager": eager_pipeline,
        "onnx": lambda: onnx_pipeline(work),
    }
    found = {}
    for name, make in backends.items():
        pipeline = make()
        service = serve(pipeline, calls(pipeline, DECODINGS if name == "eager" else ({},) * len(DECODINGS)), requests)
        found[name] = {
            "requests": service.requests,
            "wrong": service.wrong,
            "bytes per 10,000 requests": service.growth(),
            "memory": service.memory,
        }
    return found


def rows(found: Mapping[str, Any]) -> Iterable[str]:
    """The figures as a Markdown table."""
    yield "| backend | requests | wrong answers | VmRSS at the end, MiB | KiB per 10,000 requests |"
    yield "|---|---:|---:|---:|---:|"
    for name, entry in found.items():
        growth, end = entry["bytes per 10,000 requests"] / 2**10, entry["memory"][-1][1] / 2**20
        yield f"| {name} | {entry['requests']:,} | {entry['wrong']} | {end:.0f} | {growth:.0f} |"


def _pool() -> list[dict[str, Any]]:
    """Requests of 6 to 12 candidates."""
    rng = np.random.default_rng(0)
    found = []
    for request in make_requests(2 * BATCH, 12):
        kept = int(rng.integers(6, 13))
        found.append({key: value[:kept] if isinstance(value, list) else value for key, value in request.items()})
    return found
