from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rerankzoo.models.degre import DeGReEvaluator
from rerankzoo.models.digest import weights_digest
from rerankzoo.training.request_means import mean_over_processes, real_requests
from tests.families import HEADS
from tests.training import processes
from tests.training.processes import MODELS, STEPS, largest_difference


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    """Every model, from one start of two processes; then a loss that is no number in one of them."""
    processes.write_folders(tmp_path)
    started = processes.start(tmp_path)
    try:
        alone = processes.train_all(tmp_path, 1)  # meanwhile
        output, _ = started.communicate(timeout=600)
    finally:
        started.terminate()
    assert started.returncode == 0, output[-3000:]
    first, second = (processes.read(tmp_path, rank) for rank in range(2))
    for name in MODELS:
        assert first[name] == second[name], name  # every process sees the same
        check_same(name, alone[name], first[name])
    check_stopped(tmp_path / "poisoned" / "nonfinite", first["poisoned"], second["poisoned"])
    one, together = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("mined", "mined-together")
    )
    assert len(one) > 8
    assert one == together  # each has mined its share of the shards
    assert first["rewarded"] == second["rewarded"]  # the same weights, and a companion that is not wrapped
    assert first["rewarded"]["start"] != first["rewarded"]["trained"]
    evaluator = DeGReEvaluator.from_pretrained(tmp_path / "evaluator")
    assert (first["rewarded"]["kind"], first["rewarded"]["companion"]) == ("DeGReEvaluator", weights_digest(evaluator))
    assert first["rewarded"]["metrics"].keys() >= {"train/value", "val/value", "val/policy_loss"}


def check_same(name: str, alone: dict[str, Any], together: dict[str, Any]) -> None:
    """With uneven shares in training, validation, test and prediction: see `SIZES`."""
    assert alone.keys() == together.keys()
    assert len(alone["losses"]) == STEPS
    assert sum(alone["losses"][-5:]) < sum(alone["losses"][:5]), name  # single batches differ
    # Before training the weights are the same, and all rows count once.
    assert largest_difference(alone["validations"][0], together["validations"][0]) < 1e-6, name
    for kind in alone.keys() & {"losses", "validations", "test"}:
        assert largest_difference(alone[kind], together[kind]) < 1e-4, (name, kind)
    if "table" in alone:
        assert alone["table"]["request_index"] == list(range(processes.SIZES["test"]))
        for column in ("request_index", "slate", "item_ids"):
            assert alone["table"][column] == together["table"][column], (name, column)
        assert together["table"]["score"] == pytest.approx(alone["table"]["score"], abs=1e-4)


def check_stopped(folder: Path, first: str, second: str) -> None:
    """Both processes stop at once; the one that it concerns leaves its batch."""
    file = folder / "step-2-rank-1.safetensors"
    assert sorted(path.name for path in folder.iterdir()) == [file.with_suffix(".json").name, file.name]
    assert f"another process is not finite at step 2 of epoch 0; {folder} holds its batch" in first
    assert f"the loss is nan at step 2 of epoch 0; its batch is {file}" in second
    record = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    batch = load_file(file)
    assert (record["rank"], record["processes"]) == (1, 2)
    assert record["request_index"] == batch["request_index"].tolist()
    assert record["nonfinite_requests"] == record["request_index"][1:2]


def test_every_model_is_compared() -> None:
    heads = {head.__name__ for head in HEADS}
    assert {architecture for architecture, *_ in MODELS.values()} == heads


@pytest.mark.parametrize("sizes", [(3, 3), (5, 2), (4, 0)])
def test_mean_over_processes(sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean of means x factor is the mean over all requests, by hand: one loss per request, 1, 2, 3..."""
    values = torch.arange(1.0, sum(sizes) + 1).split(sizes)
    batches = [
        {"candidate_mask": torch.ones(max(size, 1), 2, dtype=torch.bool), "request_index": torch.arange(size)}
        if size
        else {"candidate_mask": torch.zeros(1, 2, dtype=torch.bool), "request_index": torch.tensor([-1])}
        for size in sizes
    ]
    assert [int(real_requests(batch).sum()) for batch in batches] == list(sizes)
    own = [value.mean() if len(value) else torch.tensor(0.0) for value in values]
    sums = torch.tensor([torch.cat(values).sum(), float(sum(sizes))])
    parts = []
    for mean, batch in zip(own, batches, strict=True):
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.copy_(sums))
        means, factor = mean_over_processes(mean.view(1), batch, len(sizes))
        assert means.tolist() == pytest.approx([(1 + sum(sizes)) / 2])
        parts.append(float(mean * factor))
    assert sum(parts) / len(parts) == pytest.approx((1 + sum(sizes)) / 2)
