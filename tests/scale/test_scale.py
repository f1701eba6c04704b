"""The short version of `make scale`: memory does not grow with the table, and threads get their own answers."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from qa.scale.service import Call, Service, calls, eager_pipeline, serve
from qa.scale.usage import anonymous, run
from rerankzoo.data import datamodule, loader
from rerankzoo.data import folder as folder_module
from rerankzoo.data.folder import list_array, write_data_folder
from rerankzoo.features import FeatureSchema, FieldSpec, TargetSpec, encoding
from rerankzoo.mining import mine_folder
from rerankzoo.models.degre import DeGReConfig, DeGReEvaluator
from rerankzoo.training.optimizer import make_optimizer

NUM_CANDIDATES, SLATE_SIZE, WIDTH, BLOCK = 8, 3, 128, 500
ROW_BYTES = NUM_CANDIDATES * WIDTH * 4


# --- tables ---------------------------------------------------------------------------------------------------------


class Peak:
    """The most anonymous memory that this process holds while a block runs, in bytes."""

    def __enter__(self) -> Peak:
        self.bytes, self._ended = anonymous(), Event()
        self._thread = Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.005):
            self.bytes = max(self.bytes, anonymous())


def wide_blocks(num_requests: int) -> Iterator[pa.Table]:
    """Wide rows: 4 KiB of random numbers each, which do not compress."""
    rng = np.random.default_rng(0)
    for start in range(0, num_requests, BLOCK):
        size = min(BLOCK, num_requests - start)
        order = rng.permuted(np.tile(np.arange(NUM_CANDIDATES), (size, 1)), axis=1)
        yield pa.table(
            {
                "item_id": list_array(rng.integers(50, size=(size, NUM_CANDIDATES))),
                "vector": list_array(rng.random((size, NUM_CANDIDATES, WIDTH), dtype=np.float32)),
                "slate": list_array(order[:, :SLATE_SIZE]),
                "click": list_array(rng.integers(0, 2, (size, SLATE_SIZE)).astype(np.float32)),
            }
        )


def write_wide_folder(folder: Path, num_requests: int) -> None:
    """A log of wide rows, written in blocks."""
    schema = FeatureSchema(
        name="wide",
        item_id="item_id",
        fields=(
            FieldSpec(name="item_id", group="candidate", kind="categorical"),
            FieldSpec(name="vector", group="candidate", kind="dense", size=WIDTH, transforms=("standardize",)),
        ),
        targets=(TargetSpec(name="click"),),
    )
    sizes = {"train": num_requests, "validation": 8}
    blocks = ((split, block) for split, size in sizes.items() for block in wide_blocks(size))
    write_data_folder(folder, blocks, schema, {"source": "test", "protocol": "random rows"})


def train_and_mine(folder: Path, out: Path) -> None:
    """Opens a log, fits its extractor, reads its utilities, trains for some steps and mines some requests."""
    data = datamodule.RerankingDataModule(str(folder), batch_size=16)
    data.setup()
    data.utility_quantile(0.8)
    torch.manual_seed(0)
    config = DeGReConfig(
        feature_schema=data.extractor.schema.to_dict(),
        slate_size=SLATE_SIZE,
        hidden_size=8,
        embedding_size=4,
        num_attention_heads=1,
        intermediate_size=8,
        num_hidden_layers=1,
    )
    model = DeGReEvaluator(config).train()
    optimizer = make_optimizer(model, 1e-3, 0.0)
    for _, batch in zip(range(40), data.train_dataloader(), strict=False):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(out / "evaluator")
    data.extractor.save_pretrained(out / "evaluator")
    mine_folder([str(out / "evaluator")], folder, out / "mined", num_requests=64, num_validation=0, num_beams=2, keep=1)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    # What is read at a time is part of the memory of either table.
    monkeypatch.setattr(folder_module, "ROW_GROUP", BLOCK)
    monkeypatch.setattr(folder_module, "RECORD_BATCH", BLOCK)
    monkeypatch.setattr(encoding, "_SLICE_ROWS", BLOCK)
    monkeypatch.setattr(loader, "MAX_UTILITY_ROWS", 1_000)
    peaks = {}
    for size in (2_000, 2_000, 20_000):  # the first one also loads code
        folder = tmp_path / f"{len(peaks)}-{size}"
        write_wide_folder(folder, size)
        with Peak() as peak:
            train_and_mine(folder, folder / "out")
        peaks[size] = peak.bytes
    table = 18_000 * ROW_BYTES
    assert peaks[20_000] - peaks[2_000] < table / 2, {size: f"{peak / 2**20:.0f} MiB" for size, peak in peaks.items()}


# --- service --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_threads_get_their_own_answers() -> None:
    pipeline = eager_pipeline()
    service = serve(pipeline, calls(pipeline), requests=600, threads=8)
    assert service.requests >= 600
    assert service.wrong == 0


def test_an_answer_to_another_request_is_seen() -> None:
    class Unsafe:
        """Keeps the request where all threads write."""

        def __call__(self, request: Any) -> Any:
            self.request = request
            time.sleep(0.0005)
            return self.request

    expected = [Call({"item_id": [number]}, {}, {"item_id": [number]}) for number in range(8)]
    assert serve(Unsafe(), expected, requests=200, threads=8).wrong > 0  # type: ignore[arg-type]
    assert serve(Unsafe(), expected, requests=200, threads=1).wrong == 0  # type: ignore[arg-type]


def test_what_a_thread_raises_ends_the_service() -> None:
    def fails(request: Any) -> Any:
        raise ValueError("no answer")

    with pytest.raises(ValueError, match="no answer"):
        serve(fails, [Call({}, {}, None)], requests=10)  # type: ignore[arg-type]


def test_growth_is_the_slope_after_the_warm_up() -> None:
    memory = [(answered, 10**9 + min(answered, 1_000) * 5_000 + answered * 7) for answered in range(0, 10_001, 100)]
    assert Service(10_000, 0, memory).growth() == pytest.approx(70_000)


# --- measuring ------------------------------------------------------------------------------------------------------


def test_usage_sees_memory_and_holds_the_limit(tmp_path: Path) -> None:
    def hold() -> None:
        held = bytearray(b"1") * (200 * 2**20)
        time.sleep(0.3)
        print(f"held {len(held)}")

    usage = run(hold, tmp_path / "output")
    assert usage.peak > 200 * 2**20
    assert usage.wall >= 0.3
    assert (tmp_path / "output").read_text() == f"held {200 * 2**20}\n"
    assert run(lambda: time.sleep(0.2), tmp_path / "output").peak < usage.peak - 150 * 2**20
    with pytest.raises(RuntimeError, match="MemoryError"):
        run(lambda: bytearray(4 * 2**30), tmp_path / "output", data_limit=4 * 2**30)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_files_that_are_mapped_are_not_anonymous(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(64 * 2**20))
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    before = anonymous()
    assert mapped.sum() == 0
    assert anonymous() - before < 16 * 2**20
