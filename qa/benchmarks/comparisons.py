"""The comparisons: each checks that its sides give the same, then times them in turns.

B requests, N candidates, M positions, W beams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from qa.benchmarks import peers, setting
from qa.benchmarks.harness import Ratio, milliseconds
from qa.benchmarks.setting import full_batch, make_extractor, make_model, make_requests
from rerankzoo.backends import ExportedModel, Format, GraphSizes
from rerankzoo.data.loader import RequestLoader
from rerankzoo.generation import BeamStep, MatrixScorer, beam_search
from rerankzoo.generation.contrastive import contrastive_search
from rerankzoo.layers import upstream_rank
from rerankzoo.mining import _step_targets, mine_batch, tempered_softmax, value_spread
from rerankzoo.models.degre import DeGReEvaluator, DeGReGenerator
from rerankzoo.models.nar4rec import NAR4RecForReranking
from rerankzoo.models.prm import PRMForReranking
from rerankzoo.serving import export_model
from rerankzoo.serving.bench import Call, count_flops, gemm, in_turns
from rerankzoo.training.optimizer import make_optimizer

ALPHA = 0.3  # of contrastive decoding
Batch = dict[str, Tensor]


def _named(times: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g} ms" for name, value in times.items())


def floor_ratio(size: int, flops: int, operations: int, times: dict[str, float], must: float, aim: float) -> Ratio:
    """The best path against the time that its operations would take at the rate of the GEMM beside it."""
    floor = times["gemm"] * flops / operations
    ratios = {name: times[name] / floor for name in ("eager", "onnx", "aoti")}
    named = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    note = f"{named}; {flops / 1e6:.0f} MFLOP at {operations / times['gemm'] / 1e6:.0f} GFLOP/s"
    return Ratio(f"best path, batch {size}: ours / FLOP floor", "at_most", min(ratios.values()), must, aim, note)


def check_same(found: dict[str, Tensor]) -> None:
    """Raises unless all sides of a comparison return the same slates."""
    (first, expected), *others = found.items()
    for name, slates in others:
        if not torch.equal(slates, expected):
            different = int((slates != expected).flatten(1).any(-1).sum())
            raise RuntimeError(f"{name} and {first} differ in {different} of {len(expected)} requests")


class Comparisons:
    """All comparisons, with what they share.

    Args:
        seconds: Wall time of each.
        exports: Folder for exported graphs; those that are there already are used again.
    """

    def __init__(self, seconds: float, exports: Path) -> None:
        self.seconds = seconds
        self.exports = exports
        self.generator: DeGReGenerator = make_model(DeGReGenerator)
        self.selector: NAR4RecForReranking = make_model(NAR4RecForReranking, num_position_layers=2)
        self.evaluator: DeGReEvaluator = make_model(DeGReEvaluator)

    def all(self) -> Iterator[Callable[[], list[Ratio]]]:
        """Every comparison, in the order of the table."""
        yield self.single_request
        yield self.small_batch
        yield self.naive_greedy
        yield self.beams
        yield self.contrastive
        yield self.selector_against_generator
        yield self.mining
        yield self.soft_labels
        yield self.loader_and_training
        yield self.vocabulary

    def _times(self, calls: dict[str, Call], seconds: float | None = None) -> dict[str, float]:
        """Milliseconds of each call, without gradients."""
        with torch.no_grad():
            return milliseconds(in_turns(calls, seconds or self.seconds))

    # --- exported graphs --------------------------------------------------------------------------------------------

    def exported(self, model: Any, format: Format, batch_size: int = 1, **decoding: Any) -> ExportedModel:  # noqa: A002
        """A model's graph with m = 6, n = 50."""
        beams = f"-{decoding['num_beams']}-beams" if "num_beams" in decoding else ""
        folder = self.exports / f"{type(model).__name__}-{format}-{batch_size}{beams}"
        if not folder.is_dir():
            config = model.generation_config.merged(slate_size=6, **decoding)
            sizes = GraphSizes(batch_size, 50) if format == "aoti" else None
            export_model(model, make_extractor(), folder, format, config, sizes)
        return ExportedModel.from_pretrained(folder, format)

    def paths(self, model: Any, batch: Batch, **decoding: Any) -> dict[str, Call]:
        """All ways to decode m = 6, n = 50: eager and both graphs."""
        size = len(batch["candidate_mask"])
        onnx, aoti = self.exported(model, "onnx", **decoding), self.exported(model, "aoti", size, **decoding)
        return {
            "eager": partial(model.generate, **batch, slate_size=6, **decoding),
            "onnx": partial(onnx.generate, **batch),
            "aoti": partial(aoti.generate, **batch),
        }

    # --- decoding ---------------------------------------------------------------------------------------------------

    def peers_of(self, batch: Batch, slate_size: int, num_beams: int = 1) -> dict[str, Call]:
        """The generator's peers, and its encoder, which all of them share."""
        model, mask = self.generator, batch["candidate_mask"]
        wrapper = peers.TransformersGenerator(model, mask.shape[1]).eval()
        naive: Callable[..., Tensor] = peers.naive_greedy
        if num_beams > 1:
            naive = partial(peers.naive_beam, num_beams=num_beams)
        return {
            "transformers": lambda: wrapper.slates(model.encode(batch), mask, slate_size, num_beams),
            "naive": lambda: naive(model, model.encode(batch), mask, slate_size),
        }

    def parts_of(self, batch: Batch) -> dict[str, Call]:
        """What a generation spends before its first position."""
        model = self.generator
        return {
            "encode": lambda: model.encode(batch),
            "fields": lambda: model.item_encoder(batch),
        }

    def single_request(self) -> list[Ratio]:
        """Greedy, one request: transformers, eager, graphs and the floor."""
        batch = full_batch(1, 50)
        calls = {**self.paths(self.generator, batch), **self.peers_of(batch, 6)}
        with torch.no_grad():
            check_same({name: call() for name, call in calls.items()})
        products, operations = gemm(50, setting.SIZES["hidden_size"])
        times = self._times({**calls, **self.parts_of(batch), "gemm": products}, 2 * self.seconds)
        best = min(("onnx", "aoti"), key=times.__getitem__)
        decoder = (times["transformers"] - times["encode"]) / (times["eager"] - times["encode"])
        return [
            Ratio(
                "eager greedy, batch 1: GenerationMixin / ours",
                "at_least",
                times["transformers"] / times["eager"],
                2.0,
                2.5,
                f"decoder alone {decoder:.2f}; {self._shares(times)}",
            ),
            Ratio(
                "exported whole-graph greedy, batch 1: GenerationMixin / ours",
                "at_least",
                times["transformers"] / times[best],
                4.0,
                6.0,
                f"onnx {times['transformers'] / times['onnx']:.2f}, aoti {times['transformers'] / times['aoti']:.2f}",
            ),
            floor_ratio(1, count_flops(calls["eager"]), operations, times, 10.0, 4.0),
        ]

    def small_batch(self) -> list[Ratio]:
        """Greedy, 32 requests, against the floor."""
        batch = full_batch(32, 50)
        calls = self.paths(self.generator, batch)
        with torch.no_grad():
            check_same({name: call() for name, call in calls.items()})
        products, operations = gemm(32 * 50, setting.SIZES["hidden_size"])
        times = self._times({**calls, "gemm": products})
        return [floor_ratio(32, count_flops(calls["eager"]), operations, times, 4.0, 2.5)]

    def _shares(self, times: dict[str, float]) -> str:
        fields, encode = times["fields"] / times["eager"], times["encode"] / times["eager"]
        return (
            f"of ours: feature embedding and field attention {fields:.0%}, encoder {encode - fields:.0%}, "
            f"decoder {1 - encode:.0%}"
        )

    def naive_greedy(self) -> list[Ratio]:
        """Greedy, 32 requests, n = 100, m = 10, against the whole prefix again at every position."""
        batch = full_batch(32, 100)
        calls = {"eager": partial(self.generator.generate, **batch, slate_size=10), **self.peers_of(batch, 10)}
        with torch.no_grad():
            check_same({name: call() for name, call in calls.items()})
        times = self._times({**calls, **self.parts_of(batch)}, 2 * self.seconds)
        decoder = (times["naive"] - times["encode"]) / (times["eager"] - times["encode"])
        row = "eager greedy batch 32, n=100, m=10: naive full prefix / ours"
        note = f"decoder alone {decoder:.2f}; {self._shares(times)}"
        return [Ratio(row, "at_least", times["naive"] / times["eager"], 1.5, 1.7, note)]

    def beams(self) -> list[Ratio]:
        """Eight beams: one request against transformers, 32 against naive; eager and exported."""
        found = []
        sides = [(1, "transformers", "GenerationMixin", 2.5, 3.0), (32, "naive", "naive", 3.5, 5.0)]
        for size, peer, name, must, aim in sides:
            batch = full_batch(size, 50)
            calls = {**self.paths(self.generator, batch, num_beams=8), peer: self.peers_of(batch, 6, 8)[peer]}
            with torch.no_grad():
                check_same({key: call() for key, call in calls.items()})
            times = self._times({**calls, **self.parts_of(batch)}, 2 * self.seconds)
            decoder = (times[peer] - times["encode"]) / (times["eager"] - times["encode"])
            note = f"decoder alone {decoder:.2f}; {self._shares(times)}"
            row = f"beam 8, batch {size}: {name} / ours"
            found.append(Ratio(f"eager {row}", "at_least", times[peer] / times["eager"], must, aim, note))
            graphs = {graph: times[peer] / times[graph] for graph in ("onnx", "aoti")}
            note = ", ".join(f"{graph} {ratio:.2f}" for graph, ratio in graphs.items())
            found.append(Ratio(f"exported {row}", "at_least", max(graphs.values()), must, aim, note))
        return found

    # --- contrastive ------------------------------------------------------------------------------------------------

    def contrastive(self) -> list[Ratio]:
        """Contrastive selection, 32 requests, against a Python loop, and its share of NAR4Rec's time."""
        batch, model = full_batch(32, 50), self.selector
        with torch.no_grad():
            output = model(**batch)
            scorer = MatrixScorer(lambda _: (output.logits, output.candidate_states))
            calls: dict[str, Call] = {
                "ours": torch.inference_mode()(lambda: contrastive_search(scorer, batch, 6, ALPHA, None).slates[:, 0]),
                "loop": lambda: peers.python_contrastive(
                    output.logits, output.candidate_states, batch["candidate_mask"], 6, ALPHA
                )[0],
                "whole": lambda: model.generate(**batch, slate_size=6, penalty_alpha=ALPHA),
            }
            check_same({name: call() for name, call in calls.items()})
        times = self._times(calls)
        share = times["ours"] / times["whole"]
        row = "contrastive selection, batch 32: "
        return [
            Ratio(row + "Python loop / ours", "at_least", times["loop"] / times["ours"], 25, 40, _named(times)),
            Ratio(row + "its share of NAR4Rec's time", "at_most", share, 0.15, 0.08),
        ]

    def selector_against_generator(self) -> list[Ratio]:
        """One request: NAR4Rec's contrastive decoding against DeGRe's greedy one, each on its best path."""
        batch = full_batch(1, 50)
        selector = self.paths(self.selector, batch, penalty_alpha=ALPHA)
        generator = self.paths(self.generator, batch)
        with torch.no_grad():
            check_same({name: call() for name, call in selector.items()})
        calls = {f"selector {name}": call for name, call in selector.items()}
        times = self._times({**calls, **generator})
        best = min(times[name] for name in calls), min(times[name] for name in generator)
        note = ", ".join(f"{name} {times[f'selector {name}'] / times[name]:.2f}" for name in generator)
        row = "NAR4Rec contrastive / DeGRe-G greedy, batch 1, best path of each"
        return [Ratio(row, "at_most", best[0] / best[1], 1.0, 0.6, note)]

    # --- mining -----------------------------------------------------------------------------------------------------

    def mining(self) -> list[Ratio]:
        """Mining with 8 beams against scoring every extension of every prefix from its start."""
        found = []
        for size, number, length, must, aim in ((8, 50, 6, 4.0, 6.0), (4, 100, 10, 6.0, 8.0)):
            batch = full_batch(size, number)
            mined = mine_batch(self.evaluator.scorer(), batch, length, num_beams=8)
            slates, values = peers.naive_mining(self.evaluator, batch, length, 8)
            check_same({"mined": mined.slates, "naive": slates[:, : mined.slates.shape[1]]})
            torch.testing.assert_close(mined.values, values[:, : mined.values.shape[1]], rtol=1e-4, atol=1e-5)
            calls: dict[str, Call] = {
                "ours": partial(mine_batch, self.evaluator.scorer(), batch, length, num_beams=8),
                "naive": partial(peers.naive_mining, self.evaluator, batch, length, 8),
            }
            times = self._times(calls, 2 * self.seconds)
            row = f"mining, beam 8: naive batched / ours, n={number} m={length}"
            note = f"{size / times['ours'] * 1e3:.0f} requests/s"
            found.append(Ratio(row, "at_least", times["naive"] / times["ours"], must, aim, note))
        return found

    def soft_labels(self) -> list[Ratio]:
        """What reading the soft labels off the search adds to mining."""
        batch, history = full_batch(8, 50), list[BeamStep]()
        with torch.no_grad():
            beam_search(self.evaluator.scorer(), batch, 6, 8, 4, history)
        spread = value_spread(history, 8)
        calls: dict[str, Call] = {
            "labels": lambda: tempered_softmax(_step_targets(history, 8, 4, True), spread * 0.3),
            "all": partial(mine_batch, self.evaluator.scorer(), batch, 6, num_beams=8),
        }
        times = self._times(calls)
        return [Ratio("soft labels' share of mining time", "at_most", times["labels"] / times["all"], 0.05, 0.01)]

    # --- training ---------------------------------------------------------------------------------------------------

    def loader_and_training(self) -> list[Ratio]:
        """The loader against `set_format("torch")` and padding, and training steps of PRM's size."""
        step, plain = training_sides()
        steps = milliseconds(in_turns({"ours": step, "plain": plain}, 2 * self.seconds))
        dataset = Dataset(pa.Table.from_pylist(logged_requests(2048)))
        loader = RequestLoader(dataset, make_extractor(), 256, shuffle=True)
        collated = collate_loader(dataset, 256)
        check_loaders(dataset)
        calls: dict[str, Call] = {"ours": lambda: [None for _ in loader], "collate": lambda: next(iter(collated))}
        times = milliseconds(in_turns(calls, 2 * self.seconds))
        ours = times["ours"] / len(loader)
        return [
            Ratio(
                'loader shuffled: rows/s against `set_format("torch")` + collate',
                "at_least",
                times["collate"] / ours,
                30,
                90,
                f"{256 / ours * 1e3:.0f} rows/s; ours also turns ids and numbers into the model's",
            ),
            Ratio("loader shuffled: share of a training step", "at_most", ours / steps["ours"], 0.03, 0.01),
            Ratio(
                "training step, PRM-sized listwise model: `nn.TransformerEncoder` + Adam / ours",
                "at_least",
                steps["plain"] / steps["ours"],
                1.15,
                1.3,
                f"{256 / steps['ours'] * 1e3:.0f} lists/s",
            ),
        ]

    def vocabulary(self) -> list[Ratio]:
        """A training step with a million items against one with 20,000."""
        calls = {name: training_sides(number)[0] for name, number in (("large", 1_000_000), ("small", 20_000))}
        times = milliseconds(in_turns(calls, 2 * self.seconds))
        row = "1M-id embedding against 20k-id, training step"
        return [Ratio(row, "at_most", times["large"] / times["small"], 1.3, 1.1)]


def training_sides(num_items: int = setting.NUM_ITEMS, num_requests: int = 256) -> tuple[Call, Call]:
    """One step of PRM, and of a plain `nn.TransformerEncoder` with the same weights; lists of 50."""
    model = make_model(PRMForReranking, num_items, intermediate_size=128).train()
    batch = full_batch(num_requests, 50, num_items)
    batch["slates"] = torch.rand(num_requests, 1, 50).argsort(-1)[..., : setting.SLATE_SIZE]
    batch["feedback"] = torch.rand(num_requests, 1, setting.SLATE_SIZE, 1).round()
    optimizer = make_optimizer(model, 1e-3, 0.01)

    def ours() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model(**batch).loss
        loss.backward()
        optimizer.step()
        return loss

    plain, inputs = plain_prm(model, batch)
    with torch.no_grad():
        scores = model(**batch).logits[:, 0]
        torch.testing.assert_close(plain(*inputs).sigmoid(), scores, rtol=1e-4, atol=1e-5)
    adam = torch.optim.Adam(plain.parameters(), 1e-3)
    chosen, labels = batch["slates"][:, 0], batch["feedback"][:, 0, :, 0]

    def theirs() -> Tensor:
        adam.zero_grad()
        loss = F.binary_cross_entropy_with_logits(plain(*inputs).gather(1, chosen), labels)
        loss.backward()
        adam.step()
        return loss

    return ours, theirs


def plain_prm(model: PRMForReranking, batch: Batch) -> tuple[peers.PlainListwise, tuple[Tensor, ...]]:
    """A plain model with the weights of a PRM, and its inputs."""
    table, size = model.features.embedding, model.config.embedding_size
    sizes = {**setting.SIZES, "intermediate_size": model.config.intermediate_size}
    plain = peers.PlainListwise(list(table.num_embeddings), size, len(setting.NUMERIC) + 1, sizes)
    request, own = model.features.request_projection, model.features.candidate_projection
    weights = [request.weight[:, :size], own.weight[:, : 5 * size], request.weight[:, size:], own.weight[:, 5 * size :]]
    state = {
        "projection.weight": torch.cat(weights, dim=1),
        "projection.bias": own.bias,
        "positions.weight": model.positions.weight,
        "head.weight": model.heads.weight,
        "head.bias": model.heads.bias,
        "encoder.norm.weight": model.norm.weight,
        "encoder.norm.bias": model.norm.bias,
    }
    for number, part in enumerate(table.table.weight.split(table.num_embeddings)):
        state[f"tables.{number}.weight"] = torch.cat([torch.zeros_like(part[:1]), part[1:]])
    names = {
        "attention.query_key_value.weight": "self_attn.in_proj_weight",
        "attention.query_key_value.bias": "self_attn.in_proj_bias",
        "attention.output": "self_attn.out_proj",
        "attention_norm": "norm1",
        "feed_forward_norm": "norm2",
        "feed_forward.0": "linear1",
        "feed_forward.2": "linear2",
    }
    for key, value in model.layers.state_dict().items():
        number, _, rest = key.partition(".")
        ours = next(name for name in names if rest.startswith(name))
        state[f"encoder.layers.{number}.{rest.replace(ours, names[ours])}"] = value
    plain.load_state_dict(state)
    shape = batch["candidate_mask"].shape
    ids = torch.cat([batch["request_categorical"].unsqueeze(1).expand(*shape, -1), batch["candidate_categorical"]], -1)
    numbers = torch.cat([batch["request_numeric"].unsqueeze(1).expand(*shape, -1), batch["candidate_numeric"]], -1)
    rank = upstream_rank(batch["candidate_numeric"][..., model.upstream_column], batch["candidate_mask"])
    return plain, (ids, numbers, rank, batch["candidate_mask"])


# --- loading --------------------------------------------------------------------------------------------------------


def logged_requests(count: int) -> list[dict[str, Any]]:
    """Logged requests with 30 to 50 candidates."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        size = int(rng.integers(30, 51))
        row = make_requests(1, size, seed=number)[0]
        row["slate"] = rng.permutation(size)[:6].tolist()
        row["click"] = rng.integers(0, 2, 6).astype(float).tolist()
        rows.append(row)
    return rows


def collate_loader(dataset: Dataset, batch_size: int, shuffle: bool = True) -> torch.utils.data.DataLoader:
    """A `DataLoader` over `set_format("torch")` that pads every column, as the documentation of datasets has it."""

    def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {
            key: pad_sequence([row[key] for row in rows], batch_first=True)
            if rows[0][key].dim()
            else torch.stack([row[key] for row in rows])
            for key in rows[0]
        }

    formatted = dataset.with_format("torch")
    return torch.utils.data.DataLoader(formatted, batch_size, shuffle=shuffle, collate_fn=collate)


def check_loaders(dataset: Dataset) -> None:
    """Raises unless both loaders give the same numbers."""
    theirs = next(iter(collate_loader(dataset, 64, shuffle=False)))
    ours = next(iter(RequestLoader(dataset, make_extractor(), 64)))
    expected = torch.stack([theirs[name] for name in setting.NUMERIC], dim=-1)
    torch.testing.assert_close(ours["candidate_numeric"], expected)
    torch.testing.assert_close(ours["slates"][:, 0], theirs["slate"])
