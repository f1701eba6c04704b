"""Load tests of `rerankzoo serve` on loopback: speed beside other servers, and a long run with hostile calls.

    OMP_NUM_THREADS=1 python -m qa.serve speed --out outputs/serve    # the tables of docs/serve.md
    OMP_NUM_THREADS=1 python -m qa.serve long --requests 100000 --out outputs/serve

The model is that of `make bench`: DeGRe's generator with random weights, D = 64, 2 + 2 layers, 10 fields, 50
candidates, 6 positions. Clients send one request a call and wait for its answer. Servers take turns in short runs, so
that other work on the machine slows all of them alike. LitServe is measured where it is installed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch

from qa.benchmarks.setting import make_extractor, make_model, make_requests
from rerankzoo import RerankingGenerationConfig, RerankingPipeline
from rerankzoo.models.degre import DeGReGenerator
from rerankzoo.serving import export_model

NUM_CANDIDATES, SLATE_SIZE = 50, 6
OURS = "from rerankzoo.cli.main import main; import sys; sys.exit(main(sys.argv[1:]))"
PLAIN = """
import sys, uvicorn
from typing import Any
from fastapi import FastAPI
from rerankzoo import RerankingPipeline
pipeline = RerankingPipeline.from_pretrained(sys.argv[1])
app = FastAPI()
@app.post("/rerank")
async def rerank(body: dict[str, Any]) -> Any:
    return {"slates": pipeline(body["requests"])}
@app.get("/health")
async def health() -> str:
    return "ok"
uvicorn.run(app, port=int(sys.argv[2]), log_level="warning", access_log=False)
"""
LITSERVE = """
import sys, litserve
from rerankzoo import RerankingPipeline
class API(litserve.LitAPI):
    def setup(self, device):
        self.pipeline = RerankingPipeline.from_pretrained(sys.argv[1])
    def decode_request(self, request):
        return request["requests"][0]
    def batch(self, inputs):
        return inputs
    def predict(self, requests):
        return self.pipeline(requests)
    def unbatch(self, output):
        return output
    def encode_response(self, output):
        return {"slates": [output]}
if __name__ == "__main__":
    api = API(max_batch_size=32, batch_timeout=0.002, api_path="/rerank")
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(port=int(sys.argv[2]), log_level="warning", generate_client_file=False)
"""


@dataclass
class Server:
    """A running server."""

    name: str
    port: int
    process: psutil.Process
    runs: list[dict[str, float]] = field(default_factory=list)

    def cpu(self) -> float:
        """CPU seconds of it and its processes so far."""
        family = [self.process, *self.process.children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in family)

    def memory(self) -> int:
        """Bytes of resident memory."""
        return sum(process.memory_info().rss for process in [self.process, *self.process.children(recursive=True)])


@contextlib.contextmanager
def running(name: str, code: str, *arguments: str, work: Path) -> Iterator[Server]:
    """A server in a process of its own; `{port}` among its arguments is its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = work / f"{name.replace(' ', '-')}.py"  # a file: LitServe's processes import it again
    script.write_text(code)
    words = [argument.replace("{port}", str(port)) for argument in arguments]
    with (work / f"{script.stem}.log").open("w") as log:
        started = subprocess.Popen([sys.executable, str(script), *words], stdout=log, stderr=log)
    try:
        _wait(port, started)
        yield Server(name, port, psutil.Process(started.pid))
    finally:
        children = psutil.Process(started.pid).children(recursive=True) if started.poll() is None else []
        started.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(20)
        for process in (started, *children):
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.kill()


def _wait(port: int, started: subprocess.Popen[bytes], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and started.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise RuntimeError(f"{started.args} did not start")


class Client:
    """A connection that is kept, as small as can be: the clients share the machine with the server."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: asyncio.StreamReader | None = None

    async def __call__(self, message: bytes) -> tuple[int, bytes]:
        """Sends a whole HTTP message; returns status and body."""
        if self.reader is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writer.write(message)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        body = await self.reader.readexactly(length)
        if b"connection: close" in head.lower():
            self.writer.close()
            self.reader = None
        return int(head[9:12]), body


def message(body: bytes) -> bytes:
    """An HTTP message with a body."""
    head = f"POST /rerank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


async def load(server: Server, messages: Sequence[bytes], clients: int, seconds: float) -> dict[str, float]:
    """Closed loop: every client sends its next call once it has its answer."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def work(number: int) -> None:
        client, at = Client(server.port), number
        while (start := time.perf_counter()) < end:
            status, body = await client(messages[at % len(messages)])
            if status != 200:
                raise RuntimeError(f"{server.name}: {status} {body[:200]!r}")
            latencies.append(time.perf_counter() - start)
            at += clients

    cpu, start = server.cpu(), time.perf_counter()
    await asyncio.gather(*(work(number) for number in range(clients)))
    wall = time.perf_counter() - start
    return {
        "requests a second": len(latencies) / wall,
        "p50 ms": 1e3 * float(np.quantile(latencies, 0.5)),
        "p99 ms": 1e3 * float(np.quantile(latencies, 0.99)),
        "server CPU ms a request": 1e3 * (server.cpu() - cpu) / len(latencies),
    }


def make_checkpoints(work: Path) -> tuple[Path, Path]:
    """The model's folder, and that of its graph."""
    torch.set_num_threads(1)
    model, extractor = make_model(DeGReGenerator), make_extractor()
    model.generation_config = RerankingGenerationConfig(slate_size=SLATE_SIZE)
    RerankingPipeline(model, extractor).save_pretrained(work / "model")
    export_model(model, extractor, work / "onnx", "onnx")
    return work / "model", work / "onnx"


def speed(seconds: float, rounds: int, work: Path) -> dict[str, Any]:
    """All servers under 32 clients, ours by batch size, and by number of clients."""
    model, graph = map(str, make_checkpoints(work))
    servers = {
        "plain FastAPI loop": (PLAIN, model, "{port}"),
        **{f"serve --max-batch {size}": (OURS, "serve", model, "--port", "{port}", "--max-batch", str(size))
           for size in (1, 8, 32, 128)},
        "serve --backend onnx": (OURS, "serve", graph, "--port", "{port}", "--backend", "onnx"),
        "serve --backend onnx --max-batch 1":
            (OURS, "serve", graph, "--port", "{port}", "--backend", "onnx", "--max-batch", "1"),
    }  # fmt: skip
    if importlib.util.find_spec("litserve"):
        servers["LitServe, 32"] = (LITSERVE, model, "{port}")
    bodies = [json.dumps({"requests": [request]}).encode() for request in make_requests(64, NUM_CANDIDATES)]
    messages = list(map(message, bodies))
    found: dict[str, Any] = {"bytes of a call": len(bodies[0]), "runs": {}}
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(running(name, *words, work=work)) for name, words in servers.items()]
        for round_ in range(rounds + 1):
            for server in started:
                for clients in (1, 32):
                    run = asyncio.run(load(server, messages, clients, seconds if round_ else 1.0))
                    if round_:  # the first is a warm-up
                        found["runs"].setdefault(server.name, {}).setdefault(str(clients), []).append(run)
    return found


def rows(found: dict[str, Any]) -> Iterator[str]:
    """Medians over rounds, as a Markdown table."""
    names = ("requests a second", "p50 ms", "p99 ms", "server CPU ms a request")
    yield f"| server | clients | {' | '.join(names)} |"
    yield f"|---|---:|{'---:|' * len(names)}"
    for server, by_clients in found["runs"].items():
        for clients, runs in by_clients.items():
            values = " | ".join(f"{median(run[name] for run in runs):.2f}" for name in names)
            yield f"| {server} | {clients} | {values} |"
    for kind in ("serve --max-batch 32", "serve --backend onnx"):
        one = "serve --max-batch 1" if "onnx" not in kind else f"{kind} --max-batch 1"
        for name in (names[0], names[3]):
            ratios = [
                (run[name] / alone[name]) ** (1 if name == names[0] else -1)
                for run, alone in zip(found["runs"][kind]["32"], found["runs"][one]["32"], strict=True)
            ]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            yield f"\n{kind} / one at a time, 32 clients, by {name}: {median(ratios):.2f} ({spread})"


#: Calls that must be refused, from a good body.
HOSTILE = (
    lambda body: body[: len(body) // 2],
    lambda body: b"[" * 50_000,
    lambda body: b'{"requests": [{}]}',
    lambda body: body.replace(b'"price": [', b'"price": [1e999, '),
    lambda body: body.replace(b'"brand": [', b'"brand": ["\\ud800", '),
    lambda body: body[:-1] + b', "parameters": {"num_beams": 100000}}',
    lambda body: body[:-1] + b', "parameters": {"on_error": true}}',
    lambda body: body[:-1] + b', "constraints": [{"type": "Pin", "items": [-1], "position": 0}]}',
    lambda body: body[:-1] + b', "constraints": [{"type": "Exclude", "items": ["x"]}]}',
    lambda body: b"\x00\xff" * 1000,
)


def long(requests: int, work: Path, clients: int = 16) -> dict[str, Any]:
    """A long run: one call in a hundred is hostile, and in the middle a new checkpoint takes the old one's place."""
    model, _ = make_checkpoints(work)
    torch.manual_seed(1)
    second = DeGReGenerator(make_model(DeGReGenerator).config)
    second.generation_config = RerankingGenerationConfig(slate_size=SLATE_SIZE)
    RerankingPipeline(second, make_extractor()).save_pretrained(work / "second")
    raw = make_requests(64, NUM_CANDIDATES)
    pipelines = [RerankingPipeline.from_pretrained(work / name) for name in ("model", "second")]
    expected = [[[item["index"] for item in items] for items in pipeline(raw)] for pipeline in pipelines]
    bodies = [json.dumps({"requests": [request]}).encode() for request in raw]
    found: dict[str, Any] = {"answered": 0, "refused": 0, "wrong": 0, "by the second model": 0, "memory": []}
    rng = random.Random(0)
    versions: list[str] = []

    async def work_on(server: Server) -> None:
        client = Client(server.port)
        while found["answered"] + found["refused"] < requests:
            at = rng.randrange(len(bodies))
            if rng.random() < 0.01:
                status, body = await client(message(rng.choice(HOSTILE)(bodies[at])))
                found["refused"] += 1
                found["wrong"] += status != 422
                continue
            status, body = await client(message(bodies[at]))
            answer = json.loads(body) if status == 200 else {"model": "", "slates": [[]]}
            if answer["model"] not in versions:
                versions.append(answer["model"])
            number = versions.index(answer["model"])
            found["answered"] += 1
            found["by the second model"] += number
            right = number < 2 and [item["index"] for item in answer["slates"][0]] == expected[number][at]
            found["wrong"] += not right
            if found["answered"] % (requests // 100) == 0:
                found["memory"].append((found["answered"], server.memory()))
            if found["answered"] == requests // 2:
                for file in (work / "second").iterdir():
                    shutil.copy(file, model / file.name)

    async def all_clients(server: Server) -> None:
        await asyncio.gather(*(work_on(server) for _ in range(clients)))

    with running("long", OURS, "serve", str(model), "--port", "{port}", work=work) as server:
        start = time.perf_counter()
        asyncio.run(all_clients(server))
        found["requests a second"] = requests / (time.perf_counter() - start)
    answered, memory = np.array(found["memory"], dtype=float).T
    for half, part in {"before": answered < 0.5 * requests, "after": answered > 0.55 * requests}.items():
        late = part & (answered > 0.2 * requests)
        found[f"MiB per 10,000 requests, {half} the reload"] = (
            np.polyfit(answered[late], memory[late], 1)[0] * 1e4 / 2**20
        )
    return found


def main() -> None:
    """Runs a test and writes what it found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("test", choices=("speed", "long"))
    parser.add_argument("--out", type=Path, default=Path("outputs/serve"))
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        found = (
            speed(options.seconds, options.rounds, work) if options.test == "speed" else long(options.requests, work)
        )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{options.test}.json").write_text(json.dumps(found, indent=2))
    told = rows(found) if options.test == "speed" else (f"{k}: {v}" for k, v in found.items() if k != "memory")
    print(*told, sep="\n")


if __name__ == "__main__":
    main()
