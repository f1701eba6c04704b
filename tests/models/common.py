"""The checks that every model passes. A model gets them all from a subclass of a few lines:

    class TestNAR4RecForReranking(ScorerTestSuite):
        model_class = NAR4RecForReranking
        config_values = {"hidden_size": 32, ...}    # tiny, no dropout, every loss term on

| suite | of |
|---|---|
| `VariantTestSuite` | another config of a model that has a whole suite: its loss, gradients, padding |
| `ModelTestSuite` | any model: the same, saving, configs, precisions, Lightning |
| `GeneratorTestSuite` | any generator, by its slates: every strategy that it declares |
| `ScorerTestSuite` | a generator with a scorer: slates and scores are what the scorer says |
| `EvaluatorTestSuite` | any evaluator |

There is nothing to skip and nothing to override: a model that cannot pass a check needs another design, or the check
another wording. `test_auto.py` holds that every registered model has such a class.
"""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import fields
from itertools import permutations, product
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import onnx
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from torch import Tensor
from torch.export import Dim
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from rerankzoo.backends import ExportedModel
from rerankzoo.batch import ENTRIES, PADDING, gather_candidates, inputs, pad, take, trim
from rerankzoo.data.datamodule import RerankingDataModule
from rerankzoo.errors import SchemaMismatchError
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.features.utility import slate_utility
from rerankzoo.generation import RerankingGenerationConfig, Scorer, beam_search
from rerankzoo.generation.scorer import remaining_log_probs
from rerankzoo.layers import FeedbackHead, MultiHeadAttention
from rerankzoo.models.auto import AutoModelForReranking
from rerankzoo.models.base import EvaluatorOutput, RerankingPreTrainedModel, SlateEvaluator, SlateModelOutput
from rerankzoo.serving import export_model, random_batch
from rerankzoo.serving.export import SlateGraph
from rerankzoo.training import RerankingModule, SlateWriter
from tests.generation.common import play

Batch = dict[str, Tensor]

#: Calls of `generate`; the first word is the strategy.
CALLS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam": {"num_beams": 3},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 3},
    "contrastive of all": {"penalty_alpha": 0.3},
    "sample": {"do_sample": True, "temperature": 1.5},
    "sample of the best": {"do_sample": True, "top_k": 2},
    "mmr": {"mmr_diversity": 0.4},
    "dpp": {"dpp_diversity": 0.4},
}
#: Calls that give several slates; the first word is the strategy.
SEVERAL: dict[str, dict[str, Any]] = {"beam": {"num_beams": 6}, "sample": {"do_sample": True}}
PRECISIONS = [torch.float32, torch.bfloat16, torch.float16]
#: Large (its square is infinite), infinite, denormal.
EXTREMES = [1e30, torch.inf, 1e-40]


# --- helpers --------------------------------------------------------------------------------------------------------


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Same keys, same values up to the rounding of single precision."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def losses(output: Any) -> dict[str, Tensor]:
    """The loss and its terms."""
    return {"loss": output.loss, **output.loss_terms}


def real_entries(output: Any, batch: Batch, rows: Tensor | None = None, candidates: Tensor | None = None) -> Batch:
    """What a model says about real candidates or slate positions, without the loss.

    `rows` and `candidates` pick rows and candidates of batch and output first, in the given order.
    """
    rows = torch.arange(len(batch["candidate_mask"])) if rows is None else rows
    candidates = torch.arange(batch["candidate_mask"].shape[1]) if candidates is None else candidates
    mask, shown = batch["candidate_mask"][rows][:, candidates], batch["slates"][rows] >= 0
    if isinstance(output, SlateModelOutput):
        logits = output.logits[rows][..., candidates]
        if logits.dim() == 4:  # (B, S, M, N): scores given the slates
            found = {"logits": logits[shown.unsqueeze(-1) & mask[:, None, None]]}
        else:
            found = {"logits": logits.movedim(-1, 1)[mask]}
        if output.candidate_states is not None:
            found["candidate_states"] = output.candidate_states[rows][:, candidates][mask]
        return found
    assert isinstance(output, EvaluatorOutput)
    found = {"utilities": output.utilities[rows][shown.any(-1)]}
    for name in ("logits", "prefix_values"):
        if getattr(output, name) is not None:
            found[name] = output[name][rows][shown]
    assert len(found) > 1  # something is said of every position
    return found


def sizes_of(batch: Batch) -> dict[str, int]:
    """The size of every axis, by its letter."""
    named = ((ENTRIES[name].axes, tensor.shape) for name, tensor in batch.items())
    return {axis: size for axes, shape in named for axis, size in zip(axes, shape, strict=True) if axis not in "FT"}


def pick_candidates(batch: Batch, order: Tensor) -> Batch:
    """The batch with its candidates in another order; slates point to the same items."""
    moved = {
        name: tensor.index_select(ENTRIES[name].axes.index("N"), order) if "N" in ENTRIES[name].axes else tensor
        for name, tensor in batch.items()
    }
    moved["slates"] = torch.where(batch["slates"] < 0, PADDING, order.argsort()[batch["slates"].clamp_min(0)])
    return moved


def single_row(batch: Batch, row: int) -> Batch:
    """One request without anything that pads it."""
    return trim(take(batch, [row]))


#: What the batch format says padding holds; everywhere else it may hold anything.
KEPT_CLEAN = ("candidate_mask", "history_mask", "candidate_feedback_mask", "slates", "slate_weights", "soft_labels")


def with_padding(batch: Batch, **extra: int) -> Batch:
    """The batch with more padding on some axes: rubbish where the batch format does not say what it holds."""
    sizes = sizes_of(batch)
    padded = pad(batch, **{axis: sizes[axis] + more for axis, more in extra.items()})
    for name, tensor in padded.items():
        for axis in set(extra) & set(ENTRIES[name].axes) if name not in KEPT_CLEAN else ():
            rubbish = torch.nan if name == "feedback" else 1
            tensor.narrow(ENTRIES[name].axes.index(axis), sizes[axis], extra[axis]).fill_(rubbish)
    return padded


def autocast(dtype: torch.dtype) -> torch.autocast:
    """Autocast to a half precision on the CPU; nothing for float32."""
    return torch.autocast("cpu", torch.bfloat16 if dtype == torch.float32 else dtype, enabled=dtype != torch.float32)


def trained(model: RerankingPreTrainedModel) -> list[tuple[str, torch.nn.Parameter]]:
    """The parameters that are not frozen, with their names."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def assert_finite(loss: Tensor, model: RerankingPreTrainedModel) -> None:
    """A loss and all gradients are finite."""
    assert torch.isfinite(loss)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    sizes = torch.stack(torch._foreach_norm(gradients, torch.inf))
    assert torch.isfinite(sizes).all(), [
        name for (name, _), size in zip(model.named_parameters(), sizes, strict=True) if not torch.isfinite(size)
    ]


def with_numbers(batch: Batch, place: tuple[slice, slice], numbers: Tensor) -> Batch:
    """The batch with other numeric features, and values, at some requests and candidates."""
    changed = {key: batch[key].clone() for key in ("candidate_numeric", "candidate_value", "request_numeric")}
    changed["candidate_numeric"][place] = numbers[: changed["candidate_numeric"].shape[-1]]
    changed["candidate_value"][place] = numbers[:1].abs().clamp_max(1e30)  # infinite ones are refused before
    changed["request_numeric"][place[0]] = numbers[: changed["request_numeric"].shape[-1]]
    changed["candidate_value"].masked_fill_(~batch["candidate_mask"].unsqueeze(-1), 0.0)
    return {**batch, **changed}


def one_candidate(batch: Batch) -> Batch:
    """The batch with the first candidate of each request, which is the slate that was shown."""
    single = {
        key: value[:, :1] if key.startswith("candidate_") or key in ("slates", "feedback", "slate_weights") else value
        for key, value in batch.items()
    }
    for key in ("slates", "feedback"):
        single[key] = single[key][:, :, :1]
    single["slates"] = torch.zeros_like(single["slates"])
    if "slate_weights" in batch:
        single["slate_weights"] = torch.ones_like(single["slate_weights"])
        single["soft_labels"] = torch.ones_like(batch["soft_labels"][:, :1, :1, :1])
    return single


def without_slates(batch: Batch) -> Batch:
    """The batch with nothing but padding in its slates."""
    empty = {key: torch.zeros_like(batch[key]) for key in ("slate_weights", "soft_labels") if key in batch}
    return {**batch, **empty, "slates": torch.full_like(batch["slates"], -100)}


def blank(batch: Batch) -> Batch:
    """As many requests without candidates and slates."""
    return {**without_slates(batch), "candidate_mask": torch.zeros_like(batch["candidate_mask"])}


def assert_valid_slates(slates: Tensor, candidate_mask: Tensor) -> None:
    """All positions filled with distinct real candidates as far as there are any, then -100."""
    for row, mask in zip(
        slates.reshape(len(slates), -1, slates.shape[-1]).tolist(), candidate_mask.tolist(), strict=True
    ):
        size = sum(mask)
        for slate in row:
            filled = min(size, len(slate))
            assert slate[filled:] == [-100] * (len(slate) - filled)
            assert len(set(slate[:filled])) == filled
            assert all(0 <= index < len(mask) and mask[index] for index in slate[:filled])


def values_in_logged_order(batch: Batch) -> Tensor:
    """Candidate values (B, N, T) by which the first logged slate is the best one also for a model that sorts.

    They fall from position to position; what was not shown is worth nothing.
    """
    candidate = torch.arange(batch["candidate_mask"].shape[1])
    chosen = batch["slates"][:, 0].unsqueeze(-1) == candidate  # (B, M, N)
    value = torch.arange(chosen.shape[1], 0, -1.0).unsqueeze(-1)  # (M, 1): M, M - 1 ... 1
    return (chosen * value).sum(1).unsqueeze(-1).expand_as(batch["candidate_value"])


def large_batch(extractor: RerankingFeatureExtractor) -> Batch:
    """A request with 500 candidates, of which 50 were shown."""
    batch = random_batch(extractor, 1, 500)
    slates = torch.randperm(500, generator=torch.Generator().manual_seed(0))[:50].view(1, 1, 50)
    feedback = (slates % 7 == 0).float().unsqueeze(-1).expand(-1, -1, -1, len(extractor.schema.targets))
    return {**batch, "slates": slates, "feedback": feedback}


class WeighedItems:
    """An evaluator made by hand: later positions count more, and no two slates of these tests have one utility."""

    def score_slates(self, slates: Tensor, /, **batch: Tensor) -> Tensor:
        weights = torch.arange(1.0, slates.shape[-1] + 1)
        return (gather_candidates(batch["candidate_numeric"][..., 0], slates) * weights).sum(-1)


class PolicyOf(Scorer):
    """What sampling at temperature 1 draws from, spelled out: the softmax of any scorer's scores."""

    kind = "log_prob"

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError  # start is the other scorer's

    def start(self, batch: Batch) -> Any:
        return self.scorer.start(batch)

    def step(self, state: Any) -> Any:
        scores, cache = self.scorer.step(state)
        return remaining_log_probs(scores, state.available), cache

    def extend(self, state: Any, cache: Any, parent: Any, index: Tensor) -> Any:
        return self.scorer.extend(state, cache, parent, index)


class ValidationLosses(L.Callback):
    """The loss on the validation split, before training and after every epoch."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.losses.append(float(trainer.callback_metrics["val/loss"]))


def trainer(folder: Path, **kwargs: Any) -> L.Trainer:
    """A Lightning trainer that leaves nothing behind."""
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **kwargs,
    )


# --- what every config of a model does ------------------------------------------------------------------------------


class VariantTestSuite:
    """Checks of another config of a model: that its loss is right in the way that all losses are, and learned from.

    Attributes:
        model_class: The class under test.
        config_values: Fields of its config beside the schema: tiny sizes, `slate_size` 4, no dropout, and every loss
            term with a weight. NAR4Rec's `utility_threshold` must split the rows of the `batch` fixture.
    """

    model_class: ClassVar[type[RerankingPreTrainedModel]]
    config_values: ClassVar[dict[str, Any]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        replaced = sorted(
            name for name in vars(cls) if name.startswith("test") and any(hasattr(base, name) for base in cls.__bases__)
        )
        if replaced:
            raise TypeError(f"{cls.__name__} replaces {replaced}; no model may leave out or change a common test")

    def make_model(self, extractor: RerankingFeatureExtractor, seed: int = 0, **values: Any) -> Any:
        """A model with random weights, in evaluation mode."""
        torch.manual_seed(seed)
        config = self.model_class.config_class(
            feature_schema=extractor.schema.to_dict(), **{**self.config_values, **values}
        )
        return self.model_class(config).eval()

    def make_long_model(self, extractor: RerankingFeatureExtractor) -> Any:
        """One of 50 positions, and so the guide that it may carry."""
        guide = self.config_values.get("guide")
        carried = {} if guide is None else {"guide": {**guide, "slate_size": 50}}
        return self.make_shallow_model(extractor, slate_size=50, **carried)

    def make_shallow_model(self, extractor: RerankingFeatureExtractor, **values: Any) -> Any:
        """One with a single layer of every kind, for what takes long."""
        names = [entry.name for entry in fields(self.model_class.config_class)]
        layers = [name for name in names if name.startswith("num_") and name.endswith("_layers")]
        return self.make_model(extractor, **dict.fromkeys(layers, 1), **values)

    def test_order_of_candidates_does_not_matter(
        self, extractor: RerankingFeatureExtractor, mined_batch: Batch
    ) -> None:
        model, order = self.make_model(extractor), torch.tensor([5, 2, 6, 0, 3, 1, 4])  # padding moves into the middle
        moved = pick_candidates(mined_batch, order)
        with torch.no_grad():
            expected, found = model(**mined_batch), model(**moved)
        assert_close(real_entries(found, moved, candidates=order.argsort()), real_entries(expected, mined_batch))
        assert_close(losses(found), losses(expected))

    @pytest.mark.parametrize("extra", [{"N": 3}, {"L": 2}, {"S": 2}], ids=str)
    def test_padding_does_not_matter(
        self, extractor: RerankingFeatureExtractor, mined_batch: Batch, extra: dict[str, int]
    ) -> None:
        model, padded = self.make_model(extractor), with_padding(mined_batch, **extra)
        with torch.no_grad():
            expected, found = model(**mined_batch), model(**padded)
        assert_close(real_entries(found, padded), real_entries(expected, mined_batch))
        assert_close(losses(found), losses(expected))

    def test_padding_of_slates_does_not_matter(self, extractor: RerankingFeatureExtractor, mined_batch: Batch) -> None:
        model = self.make_model(extractor)
        short = pad(mined_batch, M=2)
        padded = with_padding(short, M=2)
        with torch.no_grad():
            expected, found = model(**short), model(**padded)
        assert_close(real_entries(found, padded), real_entries(expected, short))
        assert_close(losses(found), losses(expected))

    def test_batch_is_the_mean_of_its_rows(self, extractor: RerankingFeatureExtractor, mined_batch: Batch) -> None:
        model = self.make_model(extractor)
        with torch.no_grad():
            whole = model(**mined_batch)
            singles = [single_row(mined_batch, row) for row in range(len(mined_batch["slates"]))]
            outputs = [model(**single) for single in singles]
        for row, (single, output) in enumerate(zip(singles, outputs, strict=True)):
            assert_close(real_entries(output, single), real_entries(whole, mined_batch, rows=torch.tensor([row])))
        mean = {name: torch.stack([losses(output)[name] for output in outputs]).mean() for name in losses(whole)}
        assert_close(losses(whole), mean)

    def test_every_parameter_gets_a_gradient(self, extractor: RerankingFeatureExtractor, mined_batch: Batch) -> None:
        model = self.make_model(extractor).train()
        output = model(**mined_batch)
        assert all(term.item() > 0 for term in output.loss_terms.values()), output.loss_terms
        output.loss.backward()
        for name, parameter in trained(model):
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().max() > 0, name

    @pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
    @pytest.mark.parametrize("number", EXTREMES, ids=str)
    def test_extreme_numbers_do_no_harm(
        self, extractor: RerankingFeatureExtractor, mined_batch: Batch, number: float, dtype: torch.dtype
    ) -> None:
        """In the features and values of one candidate, of one request, of all; as both signs beside one another."""
        model = self.make_model(extractor).train()
        signs = torch.tensor([1.0, -1.0, -1.0]).repeat(mined_batch["candidate_numeric"].shape[-1])
        for place in ((slice(0, 1), slice(0, 1)), (slice(0, 1), slice(None)), (slice(None), slice(None))):
            batch = with_numbers(mined_batch, place, number * signs)
            if dtype == torch.float16:  # which has no gradient of a loss that weighs by values of that size
                batch["candidate_value"] = mined_batch["candidate_value"]
            model.zero_grad()
            with autocast(dtype):
                output = model(**batch)
            output.loss.backward()
            assert_finite(output.loss, model)
            for name, value in real_entries(output, batch).items():
                assert torch.isfinite(value).all(), name

    def test_nothing_to_learn_costs_nothing(self, extractor: RerankingFeatureExtractor, mined_batch: Batch) -> None:
        model = self.make_model(extractor).train()
        for batch in (one_candidate(mined_batch), without_slates(one_candidate(mined_batch)), blank(mined_batch)):
            model.zero_grad()
            loss = model(**batch).loss
            loss.backward()
            for name, parameter in trained(model):
                assert parameter.grad is not None, name  # or other processes would wait for it
            assert_finite(loss, model)
            if (batch["slates"] < 0).all():
                assert loss.item() == 0
                assert all((parameter.grad == 0).all() for _, parameter in trained(model))

    def test_overfits_eight_requests(self, extractor: RerankingFeatureExtractor, batch: Batch) -> None:
        model = self.make_model(extractor).train()
        # Only slates worth repeating for a generator; an evaluator learns to tell their positions apart.
        repeats = not hasattr(model, "score_slates")
        if repeats:
            batch["feedback"] = (batch["slates"] >= 0).unsqueeze(-1).expand_as(batch["feedback"]).float()
            batch["candidate_value"] = values_in_logged_order(batch)
        first = model(**batch).loss.item()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(120):
            optimizer.zero_grad()
            loss = model(**batch).loss
            loss.backward()
            assert_finite(loss, model)
            optimizer.step()
        assert loss.item() < 0.2 * first
        if repeats:
            assert torch.equal(model.eval().generate(**batch), batch["slates"][:, 0])


class GeneratorVariantTestSuite(VariantTestSuite):
    """The same, of a model that generates."""

    def test_is_traced_with_dynamic_axes(self, extractor: RerankingFeatureExtractor) -> None:
        model = self.make_shallow_model(extractor)
        batch = random_batch(extractor, num_requests=3, num_candidates=7, history_length=4)
        axes = {name: [Dim.DYNAMIC if axis in "BNL" else None for axis in ENTRIES[name].axes] for name in batch}
        graph = SlateGraph(model, RerankingGenerationConfig(slate_size=2))
        program = torch.export.export(graph, (batch,), dynamic_shapes=(axes,), strict=False)
        fresh = random_batch(extractor, num_requests=5, num_candidates=23, history_length=7, seed=99)
        assert torch.equal(program.module()(fresh)[0], model.generate(**fresh, slate_size=2))


# --- what every model does ------------------------------------------------------------------------------------------


class ModelTestSuite(VariantTestSuite):
    """Checks of any model."""

    def test_loads_all_parameters_and_buffers_that_it_saved(
        self, extractor: RerankingFeatureExtractor, batch: Batch, tmp_path: Path
    ) -> None:
        model = self.make_model(extractor)
        model.save_pretrained(tmp_path)
        loaded, info = self.model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values()), info
        for kind in ("named_parameters", "named_buffers"):
            saved, found = dict(getattr(model, kind)()), dict(getattr(loaded, kind)())
            assert saved.keys() == found.keys()
            for name, value in saved.items():
                assert found[name].dtype == value.dtype, name
                assert torch.equal(found[name], value), name
        with torch.no_grad():
            before, after = pytree.tree_leaves(model(**batch)), pytree.tree_leaves(loaded(**batch))
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    def test_initialises_every_tensor_that_a_checkpoint_lacks(self, extractor: RerankingFeatureExtractor) -> None:
        # Built on the meta device: whatever `_init_weights` does not know comes out as uninitialised memory.
        fresh = self.make_model(extractor)
        empty = self.model_class.from_pretrained(None, config=fresh.config, state_dict={})
        for (name, expected), found in zip(fresh.named_parameters(), empty.parameters(), strict=True):
            assert found.device.type == "cpu", name
            assert torch.isfinite(found).all(), name
            scale = float(expected.detach().std(correction=0))  # 0 of a single number
            assert float(found.detach().std(correction=0)) == pytest.approx(scale, rel=0.5), name
            assert float(found.detach().mean()) == pytest.approx(float(expected.detach().mean()), abs=scale), name
        for (name, expected), found in zip(fresh.named_buffers(), empty.buffers(), strict=True):
            assert torch.equal(found, expected), name

    def test_auto_model_finds_the_class(self, extractor: RerankingFeatureExtractor, tmp_path: Path) -> None:
        self.make_model(extractor).save_pretrained(tmp_path)
        assert type(AutoModel.from_pretrained(tmp_path)) is self.model_class

    def test_config_round_trip(self, extractor: RerankingFeatureExtractor, tmp_path: Path) -> None:
        config = self.make_model(extractor).config
        config.save_pretrained(tmp_path)
        for loaded in (type(config).from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
            assert type(loaded) is type(config)
            assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()
            assert loaded.schema == extractor.schema
        assert type(config).from_pretrained(tmp_path, slate_size=2).slate_size == 2

    def test_config_refuses_unknown_keys(self) -> None:
        with pytest.raises(ValueError, match="hiden_size"):
            self.model_class.config_class(**self.config_values, hiden_size=8)

    def test_a_saved_config_may_have_keys_that_are_unknown_here(
        self, extractor: RerankingFeatureExtractor, tmp_path: Path
    ) -> None:
        model = self.make_model(extractor)
        model.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
        (tmp_path / "config.json").write_text(json.dumps({**saved, "use_cache": False}), encoding="utf-8")
        loaded = self.model_class.from_pretrained(tmp_path)
        assert loaded.config.use_cache is False
        loaded.save_pretrained(tmp_path / "again")
        assert AutoConfig.from_pretrained(tmp_path / "again").use_cache is False

    def test_config_refuses_wrong_types(self) -> None:
        config_class = self.model_class.config_class
        inherited = {field.name for field in fields(PreTrainedConfig)}
        own = [field.name for field in fields(config_class) if field.name not in inherited]
        assert {"feature_schema", "slate_size", "hidden_size"} <= set(own)
        for name in own:
            for wrong in (object(), "4"):
                with pytest.raises(StrictDataclassFieldValidationError, match=name):
                    config_class(**{**self.config_values, name: wrong})

    def test_refuses_another_schema(self, extractor: RerankingFeatureExtractor, make_rows: Any) -> None:
        model = self.make_model(extractor)
        model.check_schema(extractor.schema)
        other = RerankingFeatureExtractor(extractor.schema).fit(make_rows(seed=7))
        with pytest.raises(SchemaMismatchError, match="fingerprint"):
            model.check_schema(other.schema)

    def test_travels_in_a_pickle_and_as_a_deep_copy(self, extractor: RerankingFeatureExtractor, batch: Batch) -> None:
        model = self.make_model(extractor)
        with torch.no_grad():
            expected = pytree.tree_leaves(model(**batch))
            for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):  # noqa: S301  (our own bytes)
                assert all(torch.equal(a, b) for a, b in zip(pytree.tree_leaves(other(**batch)), expected, strict=True))
        assert model.get_input_embeddings() is copy.copy(model).get_input_embeddings()
        assert model.get_input_embeddings().num_embeddings == sum(
            field.num_embeddings or 0 for field in extractor.schema.fields if field.shares is None
        )

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_computes_in_half_precision(
        self, extractor: RerankingFeatureExtractor, mined_batch: Batch, tmp_path: Path, dtype: torch.dtype
    ) -> None:
        model = self.make_model(extractor)
        model.save_pretrained(tmp_path)
        half = self.model_class.from_pretrained(tmp_path, dtype=dtype)
        assert half.dtype == dtype
        assert torch.equal(copy.deepcopy(model).to(dtype)(**mined_batch).loss, half(**mined_batch).loss)
        with torch.no_grad():
            expected, output = model(**mined_batch), half(**mined_batch)
        assert output.loss.dtype == torch.float32
        torch.testing.assert_close(output.loss, expected.loss, rtol=0.1, atol=0.1)
        # What is compared with what it would be worth: the same up to the precision of the products.
        for name, value in real_entries(output, mined_batch).items():
            exact = real_entries(expected, mined_batch)[name]
            usual = exact > -1e30
            torch.testing.assert_close(value.float()[usual], exact[usual], rtol=0.1, atol=0.15)

    def test_computes_with_quantised_linear_layers(
        self, extractor: RerankingFeatureExtractor, mined_batch: Batch
    ) -> None:
        model = self.make_model(extractor)
        quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, torch.qint8)
        assert any("quantized" in type(part).__module__ for part in quantised.modules())
        with torch.no_grad():
            expected, output = model(**mined_batch), quantised(**mined_batch)
        torch.testing.assert_close(output.loss, expected.loss, rtol=0.1, atol=0.1)

    def test_gradient_checkpointing_changes_nothing(
        self, extractor: RerankingFeatureExtractor, mined_batch: Batch
    ) -> None:
        gradients = []
        for checkpointing in (False, self.model_class.supports_gradient_checkpointing):
            model = self.make_model(extractor).train()
            if checkpointing:
                model.gradient_checkpointing_enable()
            model(**mined_batch).loss.backward()
            gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        assert_close(gradients[1], gradients[0])

    def test_order_of_requests_does_not_matter(self, extractor: RerankingFeatureExtractor, mined_batch: Batch) -> None:
        model, order = self.make_model(extractor), torch.tensor([3, 7, 0, 2, 6, 1, 5, 4])
        moved = {key: value[order] for key, value in mined_batch.items()}
        with torch.no_grad():
            expected, found = model(**mined_batch), model(**moved)
        assert_close(real_entries(found, moved), real_entries(expected, mined_batch, rows=order))
        assert_close(losses(found), losses(expected))

    @pytest.mark.parametrize("implementation", ["eager", "onnx"])  # the second is for graphs
    def test_other_attention_equals_sdpa(
        self,
        extractor: RerankingFeatureExtractor,
        mined_batch: Batch,
        monkeypatch: pytest.MonkeyPatch,
        implementation: str,
    ) -> None:
        model = self.make_model(extractor)
        assert model.config._attn_implementation == "sdpa"
        with torch.no_grad():
            expected = model(**mined_batch)
            model.config._attn_implementation = implementation
            if implementation == "eager":
                monkeypatch.delattr(F, "scaled_dot_product_attention")
            found = model(**mined_batch)
        assert_close(real_entries(found, mined_batch), real_entries(expected, mined_batch))
        assert_close(losses(found), losses(expected))

    def test_reads_500_candidates_and_50_positions(self, extractor: RerankingFeatureExtractor) -> None:
        model = self.make_long_model(extractor)
        loss = model(**large_batch(extractor)).loss
        loss.backward()
        assert_finite(loss, model)

    def test_refuses_slates_longer_than_its_own(self, extractor: RerankingFeatureExtractor, batch: Batch) -> None:
        model = self.make_model(extractor, slate_size=3)
        if model.num_positions is None:  # it knows of no positions, and learns from all of them
            assert torch.equal(model(**batch).loss, self.make_model(extractor)(**batch).loss)
            return
        with pytest.raises(ValueError, match="4 positions, the model has slate_size 3"):
            model(**batch)

    def test_output_is_read_like_any_transformers_output(
        self, extractor: RerankingFeatureExtractor, batch: Batch
    ) -> None:
        # Distributed training, torch.export and transformers' Trainer take outputs apart as dictionaries and tuples.
        output = self.make_model(extractor)(**batch)
        assert output.to_tuple()[0] is output["loss"]
        leaves = pytree.tree_leaves(output)
        assert len(leaves) == len(pytree.tree_leaves(dict(output.items()))) > 2
        labels = ("feedback", "slate_weights", "soft_labels", "candidate_feedback")
        assert "loss" not in self.make_model(extractor)(**{k: v for k, v in batch.items() if k not in labels})

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", PRECISIONS[1:], ids=str)
    def test_learns_in_half_precision(
        self, extractor: RerankingFeatureExtractor, mined_batch: Batch, dtype: torch.dtype
    ) -> None:
        model = self.make_shallow_model(extractor).train()
        expected = model(**mined_batch).loss.item()
        # Without clipping or scaling, and faster than anyone would: towards probabilities of 0 and 1.
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2, fused=True)
        seen = []
        for _ in range(60):
            optimizer.zero_grad()
            with autocast(dtype):
                loss = model(**mined_batch).loss
            assert loss.dtype == torch.float32
            loss.backward()
            seen.append(float(loss.detach()))
            assert_finite(loss, model)
            optimizer.step()
        assert seen[0] == pytest.approx(expected, rel=0.05)
        assert min(seen[-10:]) < 0.8 * seen[0]

    def test_a_slate_without_any_feedback_is_learned_from(
        self, extractor: RerankingFeatureExtractor, batch: Batch
    ) -> None:
        model = self.make_model(extractor).train()
        batch["feedback"] = torch.zeros_like(batch["feedback"])
        loss = model(**batch).loss
        loss.backward()
        assert_finite(loss, model)
        assert all(parameter.grad is not None for _, parameter in trained(model))

    def test_rare_feedback_is_expected_from_the_start(self, extractor: RerankingFeatureExtractor, batch: Batch) -> None:
        """At a base rate of 0.5 % it is no surprise that nothing happens: no step is needed to find that out."""
        model = self.make_model(extractor).eval()
        heads = [module for module in model.modules() if isinstance(module, FeedbackHead)]
        model.start_at([0.005] * len(extractor.schema.targets))
        with torch.no_grad():
            terms = model(**{**batch, "feedback": torch.zeros_like(batch["feedback"])}).loss_terms
        assert all(head.probabilities(head.bias).max() < 0.01 for head in heads)
        assert not heads or "feedback" not in terms or terms["feedback"] < 0.1, terms

    def test_blank_requests_do_not_matter(self, extractor: RerankingFeatureExtractor, mined_batch: Batch) -> None:
        """What a process without rows of a global batch gets adds nothing to the sum of the losses."""
        model, empty = self.make_model(extractor), blank(mined_batch)
        both = {key: torch.cat([value, empty[key]]) for key, value in mined_batch.items()}
        with torch.no_grad():
            expected, found = losses(model(**mined_batch)), losses(model(**both))
        assert_close({name: 2 * value for name, value in found.items()}, expected)

    def test_loss_decreases_under_the_lightning_module(self, data_folder: Path, tmp_path: Path) -> None:
        L.seed_everything(0, verbose=False)
        module = RerankingModule(
            self.model_class.__name__, self.config_values, learning_rate=5e-3, weight_decay=0.0, warmup_steps=2
        )
        data = RerankingDataModule(str(data_folder), batch_size=8)
        seen = ValidationLosses()
        trainer(tmp_path, max_epochs=8, num_sanity_val_steps=-1, callbacks=[seen]).fit(module, datamodule=data)
        assert len(seen.losses) == 9  # one before training; validation rows are the training rows
        assert seen.losses[-1] < 0.9 * seen.losses[0]
        assert seen.losses[-1] < seen.losses[4] < seen.losses[0]


# --- what generators do ---------------------------------------------------------------------------------------------

Call = dict[str, Any]


class GeneratorTestSuite(ModelTestSuite):
    """Checks of models with `generate()`, whatever it is that decodes.

    Attributes:
        own_calls: Parameters of `generate` for strategies of the model's own; the first word is the strategy.
    """

    own_calls: ClassVar[dict[str, Call]] = {}

    @classmethod
    def calls(cls, known: dict[str, Call]) -> dict[str, Call]:
        """Those of the strategies that the model declares."""
        return {name: call for name, call in known.items() if name.split()[0] in cls.model_class.strategies}

    @classmethod
    def every_call(cls) -> dict[str, Call]:
        """At least one of every strategy that the model declares."""
        found = cls.calls({**CALLS, **cls.own_calls})
        assert {name.split()[0] for name in found} == set(cls.model_class.strategies)
        return found

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        every = self.every_call()
        sure = {name: call for name, call in every.items() if not call.get("do_sample")}
        for argument, calls in (("call", every), ("sure_call", sure), ("several_call", self.calls(SEVERAL))):
            if argument in metafunc.fixturenames:
                metafunc.parametrize(argument, calls.values(), ids=calls)

    def config_of(self, call: Call, **parameters: Any) -> RerankingGenerationConfig:
        """The model's generation config."""
        return self.model_class.generation_config_class(**call, **parameters)

    @pytest.mark.parametrize("slate_size", [None, 3, 1])
    def test_generates_distinct_real_candidates(
        self, extractor: RerankingFeatureExtractor, batch: Batch, call: Call, slate_size: int | None
    ) -> None:
        moved = pick_candidates(batch, torch.tensor([5, 2, 6, 0, 3, 1, 4]))
        slates = self.make_model(extractor).generate(**moved, **call, slate_size=slate_size)
        assert slates.shape == (8, slate_size or 4)
        assert_valid_slates(slates, moved["candidate_mask"])

    def test_decodes_50_of_500_candidates(self, extractor: RerankingFeatureExtractor, call: Call) -> None:
        batch = inputs(large_batch(extractor))
        slates = self.make_long_model(extractor).generate(**batch, **call)
        assert slates.shape == (1, 50)
        assert_valid_slates(slates, batch["candidate_mask"])

    def test_pages_have_lengths_of_their_own(
        self, extractor: RerankingFeatureExtractor, batch: Batch, call: Call
    ) -> None:
        length = torch.tensor([2, 4, 1, 3, 2, 3, 4, 1])
        model, sizes = self.make_model(extractor), torch.minimum(length, batch["candidate_mask"].sum(1))
        slates = model.generate(**batch, **call, slate_length=length)
        assert (slates >= 0).sum(1).tolist() == sizes.tolist()
        assert (slates >= 0).long().diff(dim=1).max() <= 0  # padding stands at the end
        assert model.generate(**batch, **call, slate_length=length, slate_size=2).shape == (8, 2)

    def test_blank_requests_have_empty_slates(
        self, extractor: RerankingFeatureExtractor, batch: Batch, call: Call
    ) -> None:
        found = self.make_model(extractor).generate(**blank(batch), **call, return_dict_in_generate=True)
        assert found.slates.tolist() == [[-100] * 4] * 8
        assert found.scores.tolist() == [0.0] * 8

    @pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
    @pytest.mark.parametrize("number", EXTREMES, ids=str)
    def test_generates_valid_slates_from_extreme_numbers(
        self, extractor: RerankingFeatureExtractor, batch: Batch, number: float, dtype: torch.dtype
    ) -> None:
        model, every = self.make_model(extractor), (slice(None), slice(None))
        numbers = number * torch.tensor([1.0, -1.0, -1.0]).repeat(batch["candidate_numeric"].shape[-1])
        moved = pick_candidates(with_numbers(batch, every, numbers), torch.tensor([5, 2, 6, 0, 3, 1, 4]))
        for call in self.every_call().values():
            with autocast(dtype):
                found = model.generate(**moved, **call, return_dict_in_generate=True)
            assert_valid_slates(found.slates, moved["candidate_mask"])
            assert not torch.isnan(found.scores).any()

    def test_choices_do_not_depend_on_the_order_of_candidates(
        self, extractor: RerankingFeatureExtractor, batch: Batch, sure_call: Call
    ) -> None:
        model, order = self.make_model(extractor), torch.tensor([5, 2, 6, 0, 3, 1, 4])
        expected = model.generate(**batch, **sure_call)
        found = model.generate(**pick_candidates(batch, order), **sure_call)
        assert torch.equal(torch.where(found < 0, -100, order[found.clamp_min(0)]), expected)

    def test_choices_do_not_depend_on_padding_or_neighbours(
        self, extractor: RerankingFeatureExtractor, batch: Batch, sure_call: Call
    ) -> None:
        model = self.make_model(extractor)
        expected = model.generate(**batch, **sure_call)
        padded = with_padding(batch, N=2, L=1)
        assert torch.equal(model.generate(**padded, **sure_call), expected)
        singles = [model.generate(**single_row(batch, row), **sure_call) for row in range(len(expected))]
        assert torch.equal(torch.cat(singles), expected)

    def test_is_deterministic_and_ignores_labels(
        self, extractor: RerankingFeatureExtractor, batch: Batch, sure_call: Call
    ) -> None:
        model = self.make_model(extractor)
        torch.manual_seed(1)
        expected = model.generate(**batch, **sure_call)
        torch.manual_seed(2)
        assert torch.equal(model.generate(**inputs(batch), **sure_call), expected)

    def test_log_likelihood_has_gradients(self, extractor: RerankingFeatureExtractor, mined_batch: Batch) -> None:
        model = self.make_model(extractor).train()
        likelihood = model.log_likelihood(mined_batch["slates"], **mined_batch)
        assert likelihood.shape == mined_batch["slates"].shape
        assert (likelihood[mined_batch["slates"] < 0] == 0).all()
        likelihood.sum().backward()
        assert_finite(likelihood.sum(), model)
        first, *_ = (parameter for _, parameter in trained(model))  # the farthest from what is computed last
        assert first.grad.abs().sum() > 0

    def test_decodes_with_quantised_linear_layers(self, extractor: RerankingFeatureExtractor, batch: Batch) -> None:
        model = self.make_model(extractor)
        quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, torch.qint8)
        for call in self.every_call().values():
            assert_valid_slates(quantised.generate(**batch, **call), batch["candidate_mask"])

    def test_what_it_generates_can_take_part_in_training(
        self, extractor: RerankingFeatureExtractor, batch: Batch
    ) -> None:
        """Decoding runs in inference mode, whose tensors autograd refuses."""
        model = self.make_model(extractor)
        found = model.generate(**batch, return_dict_in_generate=True)
        weight = torch.ones(batch["candidate_mask"].shape[1], requires_grad=True)
        (weight[found.slates.clamp_min(0)] * found.step_scores).sum().backward()
        assert weight.grad.abs().sum() > 0

    def test_returns_several_sequences(
        self, extractor: RerankingFeatureExtractor, batch: Batch, several_call: Call
    ) -> None:
        found = self.make_model(extractor).generate(
            **batch, **several_call, num_return_sequences=5, slate_size=2, return_dict_in_generate=True
        )
        assert found.slates.shape == found.step_scores.shape == (8, 5, 2)
        assert found.scores.shape == (8, 5)
        assert found.utilities is None
        exists = found.scores > -torch.inf  # a request with two candidates has two slates
        assert exists.sum(-1).tolist() == ([5] * 4 + [2] + [5] * 3 if "num_beams" in several_call else [5] * 8)
        assert (found.slates[~exists] == -100).all()
        for slates, mask, real in zip(found.slates, batch["candidate_mask"], exists, strict=True):
            assert_valid_slates(slates[real].unsqueeze(0), mask.unsqueeze(0))

    def test_evaluator_chooses_its_favourite(
        self, extractor: RerankingFeatureExtractor, batch: Batch, several_call: Call
    ) -> None:
        model, judge = self.make_model(extractor), WeighedItems()
        parameters = {**several_call, "num_return_sequences": 6, "return_dict_in_generate": True}
        torch.manual_seed(1)
        every = model.generate(**batch, **parameters)
        torch.manual_seed(1)
        chosen = model.generate(**batch, **parameters, evaluator=judge)
        utilities = judge.score_slates(every.slates, **batch).masked_fill(every.scores == -torch.inf, -torch.inf)
        best, row = utilities.argmax(-1), torch.arange(8)
        assert (best > 0).any()
        assert torch.equal(chosen.slates, every.slates[row, best])
        assert torch.equal(chosen.scores, every.scores[row, best])
        assert torch.equal(chosen.utilities, utilities[row, best])
        alone = model.generate(**batch, evaluator=judge, return_dict_in_generate=True)
        assert torch.equal(alone.utilities, judge.score_slates(alone.slates.unsqueeze(1), **batch)[:, 0])

    def test_generation_config_is_saved_with_the_model(
        self, extractor: RerankingFeatureExtractor, batch: Batch, sure_call: Call, tmp_path: Path
    ) -> None:
        model = self.make_model(extractor)
        model.save_pretrained(tmp_path / "default")
        assert self.model_class.from_pretrained(tmp_path / "default").generation_config.parameters() == {}
        model.generation_config = self.config_of(sure_call, slate_size=3)
        model.save_pretrained(tmp_path / "own")
        expected = model.generate(**batch, **sure_call, slate_size=3)
        for loader in (self.model_class, AutoModelForReranking):
            loaded = loader.from_pretrained(tmp_path / "own")
            assert type(loaded.generation_config) is type(model.generation_config)
            assert loaded.generation_config.to_dict() == model.generation_config.to_dict()
            assert torch.equal(loaded.generate(**batch), expected)
        given = self.config_of({}, slate_size=2)
        loaded = self.model_class.from_pretrained(tmp_path / "own", generation_config=given)
        assert loaded.generation_config.parameters() == {"slate_size": 2}

    @pytest.mark.slow
    def test_exports_to_onnx_with_dynamic_axes(self, extractor: RerankingFeatureExtractor, tmp_path: Path) -> None:
        # `export_model` refuses fixed axes, and compares slates and scores at other sizes than the traced one.
        model, config = self.make_shallow_model(extractor), self.config_of({}, slate_size=2)
        export_model(model, extractor, tmp_path / "graph", "onnx", config)
        exported = ExportedModel.from_pretrained(tmp_path / "graph", "onnx")
        fresh = random_batch(extractor, num_requests=5, num_candidates=23, history_length=7, seed=99)
        assert torch.equal(exported.generate(**fresh), model.generate(**fresh, slate_size=2))
        kinds = {node.op_type for node in onnx.load(tmp_path / "graph" / "model.onnx").graph.node}
        attends = any(isinstance(module, MultiHeadAttention) for module in model.modules())
        # One node each; evaluators search by `branch`, whose alternatives do not see one another.
        assert ("Attention" in kinds) == (attends and not isinstance(model, SlateEvaluator))

    def test_predict_writes_what_generate_returns(self, data_folder: Path, sure_call: Call, tmp_path: Path) -> None:
        module = RerankingModule(self.model_class.__name__, self.config_values, generation=sure_call)
        data, path = RerankingDataModule(str(data_folder), eval_batch_size=3), tmp_path / "slates.parquet"
        trainer(tmp_path, callbacks=[SlateWriter(str(path))]).predict(module, datamodule=data, return_predictions=False)
        raw = pq.read_table(data_folder / "test.parquet").to_pylist()
        expected = module.model.generate(**data.extractor(raw), **sure_call, return_dict_in_generate=True)
        written = pq.read_table(path).to_pydict()
        assert written["request_index"] == list(range(8))
        slates = [[index for index in slate if index >= 0] for slate in expected.slates.tolist()]
        assert written["slate"] == slates
        items = [[row["item_id"][index] for index in slate] for row, slate in zip(raw, slates, strict=True)]
        assert written["item_ids"] == items
        assert written["score"] == pytest.approx(expected.scores.tolist(), rel=1e-4)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_decodes_in_half_precision(
        self, extractor: RerankingFeatureExtractor, batch: Batch, dtype: torch.dtype
    ) -> None:
        half = self.make_model(extractor).to(dtype)
        for call in self.every_call().values():
            found = half.generate(**batch, **call, return_dict_in_generate=True)
            assert_valid_slates(found.slates, batch["candidate_mask"])
            assert found.scores.dtype == torch.float32

    def test_refuses_unknown_parameters(self, extractor: RerankingFeatureExtractor, batch: Batch) -> None:
        with pytest.raises(ValueError, match="num_beam'"):
            self.make_model(extractor).generate(**batch, num_beam=3)


class ScorerTestSuite(GeneratorTestSuite):
    """Checks of generators that decode with a scorer."""

    def test_scores_are_the_scorers(self, extractor: RerankingFeatureExtractor, batch: Batch, call: Call) -> None:
        model = self.make_model(extractor)
        found = model.generate(**batch, **call, return_dict_in_generate=True)
        with torch.no_grad():
            scores, steps = play(model.scorer(), batch, found.slates.unsqueeze(1))
        torch.testing.assert_close(found.scores, scores[:, 0])
        torch.testing.assert_close(found.step_scores, steps[:, 0])

    def test_a_page_gets_what_it_gets_alone(
        self, extractor: RerankingFeatureExtractor, batch: Batch, sure_call: Call
    ) -> None:
        model, length = self.make_model(extractor), torch.tensor([2, 4, 1, 3, 2, 3, 4, 1])
        found = model.generate(**batch, **sure_call, slate_length=length, return_dict_in_generate=True)
        for row in (0, 3, 7):
            size = int(length[row])
            alone = model.generate(**take(batch, [row]), **sure_call, slate_size=size, return_dict_in_generate=True)
            assert torch.equal(alone.slates[0], found.slates[row, :size])
            torch.testing.assert_close(alone.scores[0], found.scores[row])

    def test_log_likelihood_is_what_it_decodes_by(
        self, extractor: RerankingFeatureExtractor, batch: Batch, call: Call
    ) -> None:
        model = self.make_model(extractor)
        found = model.generate(**batch, **call, return_dict_in_generate=True)
        likelihood = model.log_likelihood(found.slates.unsqueeze(1), **batch)
        if model.scorer().kind == "log_prob":
            torch.testing.assert_close(likelihood[:, 0], found.step_scores)
        every = torch.arange(7).view(1, 7, 1).expand(8, -1, -1)
        torch.testing.assert_close(model.log_likelihood(every, **batch).exp().sum((1, 2)), torch.ones(8))
        shown = found.slates >= 0
        with torch.no_grad():
            sampled, _ = play(PolicyOf(model.scorer()), batch, found.slates.unsqueeze(1))
        torch.testing.assert_close(likelihood[:, 0].sum(-1), sampled[:, 0])
        assert torch.isfinite(likelihood[:, 0][shown]).all()

    def test_refuses_a_strategy_that_it_does_not_declare(
        self, extractor: RerankingFeatureExtractor, batch: Batch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = self.make_model(extractor)
        monkeypatch.setattr(type(model), "strategies", ("greedy",))
        assert torch.equal(model.generate(**batch, num_beams=1), model.generate(**batch))
        with pytest.raises(ValueError, match=r"decodes by \['greedy'\], got 'beam'"):
            model.generate(**batch, num_beams=2)

    def test_one_beam_is_greedy(self, extractor: RerankingFeatureExtractor, batch: Batch) -> None:
        model = self.make_model(extractor)
        with torch.no_grad():
            beam = beam_search(model.scorer(), batch, slate_size=4, num_beams=1, num_return_sequences=1)
        assert torch.equal(beam.slates[:, 0], model.generate(**batch))

    def test_full_width_beam_is_brute_force(self, extractor: RerankingFeatureExtractor, make_rows: Any) -> None:
        model, batch = self.make_model(extractor), extractor(make_rows(seed=5, sizes=(5, 5, 5)))
        every = torch.tensor(list(permutations(range(5), 3))).expand(3, -1, -1)  # (B, 60, 3)
        with torch.no_grad():
            scores, _ = play(model.scorer(), batch, every)
        found = model.generate(
            **batch, slate_size=3, num_beams=60, num_return_sequences=60, return_dict_in_generate=True
        )
        best, order = scores.sort(-1, descending=True)
        torch.testing.assert_close(found.scores, best)
        assert torch.equal(found.slates[:, 0], every[torch.arange(3), order[:, 0]])
        assert all(len(set(map(tuple, slates))) == 60 for slates in found.slates.tolist())

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_decodes_in_half_precision_what_it_decodes_in_single(
        self, extractor: RerankingFeatureExtractor, batch: Batch, dtype: torch.dtype
    ) -> None:
        model = self.make_model(extractor)
        half = copy.deepcopy(model).to(dtype)
        greedy, expected = half.generate(**batch), model.generate(**batch)
        with torch.no_grad():
            (_, steps), (_, best) = (play(model.scorer(), batch, s.unsqueeze(1)) for s in (greedy, expected))
        first = (greedy != expected).int().argmax(-1, keepdim=True)
        # Where the choices part, single precision sees hardly a difference.
        torch.testing.assert_close(steps[:, 0].gather(1, first), best[:, 0].gather(1, first), rtol=0.02, atol=0.05)

    def test_refuses_contradictory_parameters(self, extractor: RerankingFeatureExtractor, batch: Batch) -> None:
        model = self.make_model(extractor)
        with pytest.raises(ValueError, match="one decoding strategy"):
            model.generate(**batch, num_beams=3, penalty_alpha=0.5)
        with pytest.raises(ValueError, match="num_return_sequences 3 exceeds num_beams 1"):
            model.generate(**batch, num_return_sequences=3)


# --- what evaluators do -----------------------------------------------------------------------------------------------


class EvaluatorTestSuite(ModelTestSuite):
    """Checks of models with `score_slates()`."""

    def test_scores_slates_as_forward_does(self, extractor: RerankingFeatureExtractor, mined_batch: Batch) -> None:
        model = self.make_model(extractor)
        with torch.no_grad():
            expected = model(**mined_batch).utilities
        found = model.score_slates(mined_batch["slates"], **mined_batch)
        assert torch.equal(found, expected)
        assert not found.requires_grad
        assert torch.equal(found == 0, (mined_batch["slates"] < 0).all(-1))  # an empty slate earns nothing

    def test_soft_slates_of_one_candidate_per_position_are_worth_what_slates_are(
        self, extractor: RerankingFeatureExtractor, mined_batch: Batch
    ) -> None:
        model, slates = self.make_model(extractor), mined_batch["slates"]
        candidate = torch.arange(mined_batch["candidate_mask"].shape[1])
        choices = (slates.unsqueeze(-1) == candidate).float().requires_grad_()
        output = model.score_choices(choices, **mined_batch)
        torch.testing.assert_close(output.utilities, model.score_slates(slates, **mined_batch), rtol=1e-5, atol=1e-5)
        output.utilities.sum().backward()
        assert torch.isfinite(choices.grad).all()
        assert (choices.grad[slates >= 0].abs().amax(-1) > 0).all()  # of every position that is shown
        mixed = choices.detach().mean(1, keepdim=True).requires_grad_()
        model.score_choices(mixed, **mined_batch).utilities.sum().backward()
        assert torch.isfinite(mixed.grad).all()
        with pytest.raises(ValueError, match="4 positions, the model has slate_size 3"):
            self.make_model(extractor, slate_size=3).score_choices(choices, **mined_batch)

    def test_padded_slate_is_worth_what_the_shorter_one_is(
        self, extractor: RerankingFeatureExtractor, batch: Batch
    ) -> None:
        model = self.make_model(extractor)
        for length in (1, 2, 3):
            short = batch["slates"][..., :length]
            padded = F.pad(short, (0, 4 - length), value=-100)
            torch.testing.assert_close(model.score_slates(padded, **batch), model.score_slates(short, **batch))

    def test_value_of_a_slate_depends_on_its_items_and_their_order(
        self, extractor: RerankingFeatureExtractor, batch: Batch
    ) -> None:
        model, every = self.make_model(extractor), torch.tensor([[0, 1], [1, 0], [0, -100]]).expand(8, -1, -1)
        forward, backward, part = model.score_slates(every, **batch).unbind(-1)
        assert not torch.isclose(forward, backward).any()
        assert not torch.isclose(forward, part).any()

    def test_probabilities_are_those_of_its_likelihood(
        self, extractor: RerankingFeatureExtractor, batch: Batch
    ) -> None:
        """Over all feedback that a slate can get it is a distribution, whose mean are the probabilities."""
        model, targets = self.make_model(extractor), len(extractor.schema.targets)
        slates = torch.tensor([[[0, 1, -100]]]).expand(8, -1, -1)
        patterns = torch.tensor(list(product((0.0, 1.0), repeat=2 * targets))).view(-1, 2, targets)
        feedback = F.pad(patterns, (0, 0, 0, 1)).expand(8, -1, -1, -1)
        with torch.no_grad():
            output = model(slates=slates.expand(-1, len(patterns), -1), feedback=feedback, **inputs(batch))
        if output.log_likelihoods is None:
            assert output.probabilities is None  # it predicts values only
            return
        chances = output.log_likelihoods.exp()
        torch.testing.assert_close(chances.sum(-1), torch.ones(8))
        expected = (chances[..., None, None] * feedback).sum(1)[:, :2]
        torch.testing.assert_close(output.probabilities[:, 0, :2], expected)
        value, schema = batch["candidate_value"], extractor.schema
        worth = slate_utility(output.probabilities[:, :1], slates, value, schema)
        torch.testing.assert_close(worth, output.utilities[:, :1])
