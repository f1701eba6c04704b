"""GoalRank, EG-Rerank, GFN4Rec and GReF: one network, several ways to teach it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from rerankzoo.batch import inputs
from rerankzoo.errors import RerankingDataError
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.features.utility import slate_utility
from rerankzoo.generation.rollouts import distinct
from rerankzoo.losses import detailed_balance, group_loss, trajectory_balance
from rerankzoo.models.egrerank import EGRerankForReranking
from rerankzoo.models.gfn4rec import GFN4RecForReranking
from rerankzoo.models.goalrank import GoalRankForReranking
from rerankzoo.models.gref import GReFForReranking
from rerankzoo.models.seq2slate import Seq2SlateConfig, Seq2SlateForReranking
from tests.models.common import GeneratorVariantTestSuite, ScorerTestSuite

Batch = dict[str, Tensor]

TINY: dict[str, Any] = {
    "slate_size": 4,
    "hidden_size": 32,
    "embedding_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_decoder_layers": 1,
    "utility_threshold": 1.5,
}


def mined(batch: Batch) -> Batch:
    """The batch with what mining adds: values that rise from slate to slate."""
    real = (batch["slates"] >= 0).any(-1)
    values = torch.arange(1.0, real.shape[1] + 1) * real
    return {**batch, "slate_weights": real / real.sum(-1, keepdim=True), "slate_values": values}


class TestGoalRankForReranking(ScorerTestSuite):
    model_class = GoalRankForReranking
    config_values: ClassVar[dict[str, Any]] = TINY


class TestEGRerankForReranking(ScorerTestSuite):
    model_class = EGRerankForReranking
    config_values: ClassVar[dict[str, Any]] = {**TINY, "decoder": "lstm"}


class TestTransformerEGRerank(GeneratorVariantTestSuite):
    model_class = EGRerankForReranking
    config_values: ClassVar[dict[str, Any]] = TINY


class TestGFN4RecForReranking(ScorerTestSuite):
    model_class = GFN4RecForReranking
    config_values: ClassVar[dict[str, Any]] = TINY


class TestTrajectoryGFN4Rec(GeneratorVariantTestSuite):
    model_class = GFN4RecForReranking
    config_values: ClassVar[dict[str, Any]] = {**TINY, "balance": "trajectory", "flow_weight": 0.5}


def make(kind: Any, extractor: RerankingFeatureExtractor, **values: Any) -> Any:
    torch.manual_seed(0)
    return kind(kind.config_class(feature_schema=extractor.schema.to_dict(), **TINY, **values)).eval()


def test_goalrank_learns_mined_values_as_a_group(extractor: RerankingFeatureExtractor, mined_batch: Batch) -> None:
    model, batch = make(GoalRankForReranking, extractor), mined(mined_batch)
    slates, likelihood = batch["slates"], model.log_likelihood(batch["slates"], **batch).sum(-1)
    output = model(**batch)
    exists = (slates >= 0).any(-1)
    once = distinct(slates)
    assert (once != exists).any()  # requests of two candidates have no three slates
    assert output.loss.item() == pytest.approx(group_loss(likelihood, batch["slate_values"], once).mean().item())
    assert output.loss_terms.keys() == {"group"}
    row = int((once.sum(-1) == 2).nonzero()[0])  # values 1 and 2: a deviation below and above their mean
    weights = [math.exp(-1) / (math.exp(-1) + math.e), math.e / (math.exp(-1) + math.e)]
    expected = -sum(weight * float(part) for weight, part in zip(weights, likelihood[row, :2], strict=True))
    single = {name: tensor[row : row + 1] for name, tensor in batch.items()}
    assert model(**single).loss.item() == pytest.approx(expected, rel=1e-5)
    without = {name: tensor for name, tensor in batch.items() if name != "slate_values"}
    assert model(**without).loss_terms.keys() == {"hard_label"}


@pytest.mark.parametrize("balance", ["trajectory", "detailed"])
def test_gfn4rec_balances_what_slates_earned(
    extractor: RerankingFeatureExtractor, mined_batch: Batch, balance: str
) -> None:
    model = make(GFN4RecForReranking, extractor, balance=balance, flow_weight=3.0, reward_offset=2.0)
    slates = mined_batch["slates"]
    log_probs, log_flows = model.flows(slates, **inputs(mined_batch))
    torch.testing.assert_close(log_probs, model.log_likelihood(slates, **mined_batch))
    earned = slate_utility(mined_batch["feedback"], slates, mined_batch["candidate_value"], extractor.schema)
    loss = {"trajectory": trajectory_balance, "detailed": detailed_balance}[balance]
    errors = loss(log_probs, log_flows, (earned + 2).log(), slates)
    exists = (slates >= 0).any(-1)
    expected = (errors.sum(-1) / exists.sum(-1)).mean()
    terms = model(**mined_batch).loss_terms
    torch.testing.assert_close(terms["flow"], expected)
    assert model(**mined_batch).loss.item() == pytest.approx((terms["likelihood"] + 3 * expected).item())
    valued = model(**mined(mined_batch)).loss_terms
    values = (mined(mined_batch)["slate_values"] + 2).log()
    errors = loss(log_probs, log_flows, values, slates)
    torch.testing.assert_close(valued["flow"], (errors.sum(-1) / exists.sum(-1)).mean())


def test_balance_within_groups_needs_no_flow(extractor: RerankingFeatureExtractor, batch: Batch) -> None:
    model = make(GFN4RecForReranking, extractor, balance="group")
    assert not [name for name, _ in model.named_parameters() if "flow" in name]
    assert model(**batch).loss_terms.keys() == {"likelihood"}
    with pytest.raises(ValueError, match="there is no flow to balance with"):
        model.flows(batch["slates"], **batch)


def test_a_flow_knows_the_prefix_only(extractor: RerankingFeatureExtractor, batch: Batch) -> None:
    model = make(GFN4RecForReranking, extractor)
    one, other = torch.tensor([[[0, 1, 2, 3]]]), torch.tensor([[[0, 1, 3, 2]]])
    request = {name: tensor[:1] for name, tensor in inputs(batch).items()}
    (_, first), (_, second) = model.flows(one, **request), model.flows(other, **request)
    torch.testing.assert_close(first[..., :3], second[..., :3])
    assert not torch.isclose(first[..., 3], second[..., 3])


# --- several items per pass -----------------------------------------------------------------------------------------


class TestGReFForReranking(ScorerTestSuite):
    model_class = GReFForReranking
    config_values: ClassVar[dict[str, Any]] = {**TINY, "num_heads": 3}


def test_a_pass_of_the_decoder_points_at_several_items(
    extractor: RerankingFeatureExtractor, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(GReFForReranking, extractor, num_heads=2)
    read, passes = model.read, []
    monkeypatch.setattr(model, "read", lambda *arguments: (passes.append(1), read(*arguments))[1])
    slates = model.generate(**batch)
    assert len(passes) == 2
    # What stands second does not see what stands first, but for its place being taken.
    logits = model(**{**inputs(batch), "slates": slates.unsqueeze(1)}).logits[:, 0]
    other = slates[:, [1, 0, 2, 3]].unsqueeze(1)
    moved = model(**{**inputs(batch), "slates": other}).logits[:, 0]
    row = int((batch["candidate_mask"].sum(-1) > 4).nonzero()[0])
    free = [item for item in range(int(batch["candidate_mask"][row].sum())) if item not in slates[row, :2].tolist()]
    torch.testing.assert_close(logits[row, 1, free], moved[row, 1, free])
    assert not torch.isclose(logits[row, 2, free], moved[row, 2, free]).all()


def test_ordered_loss_by_hand(extractor: RerankingFeatureExtractor, batch: Batch) -> None:
    model = make(GReFForReranking, extractor, num_heads=2, ordered_weight=2.0)
    row = int((batch["slates"][:, 0] >= 0).all(-1).nonzero()[0])
    single = {name: tensor[row : row + 1] for name, tensor in batch.items()}
    single["candidate_value"] = torch.ones_like(single["candidate_value"])
    single["feedback"] = torch.zeros_like(single["feedback"])
    single["feedback"][0, 0, [0, 3], 0] = 1.0  # the first pass is in order, the second is not
    shown = single["slates"]
    ordered = shown[..., [0, 1, 3, 2]]
    gained = (
        model.log_likelihood(ordered, **single)[..., 2:].sum() - model.log_likelihood(shown, **single)[..., 2:].sum()
    )
    output = model(**single)
    expected = math.log(1 + math.exp(-gained.item() / 2))
    assert output.loss_terms["ordered"].item() == pytest.approx(expected, rel=1e-5)
    total = output.loss_terms["likelihood"].item() + 2 * expected
    assert output.loss.item() == pytest.approx(total, rel=1e-5)


# --- labels of items, step by step ----------------------------------------------------------------------------------


class TestSeq2SlateForReranking(ScorerTestSuite):
    model_class = Seq2SlateForReranking
    config_values: ClassVar[dict[str, Any]] = {
        **TINY,
        "prefix": "shown",
        "negatives": "all",
        "max_position_embeddings": 3,
    }


class TestTransformerSeq2Slate(GeneratorVariantTestSuite):
    model_class = Seq2SlateForReranking
    config_values: ClassVar[dict[str, Any]] = {**TINY, "decoder": "transformer", "loss": "hinge", "negatives": "all"}


@pytest.mark.parametrize("negatives", ["labelled", "all"])
@pytest.mark.parametrize(("prefix", "labels"), [("own", "slates"), ("own", "candidates"), ("shown", "slates")])
def test_step_losses_of_a_request_by_hand(
    extractor: RerankingFeatureExtractor, batch: Batch, prefix: str, negatives: str, labels: str
) -> None:
    schema = replace(extractor.schema, targets=extractor.schema.targets[:1]) if labels == "candidates" else None
    batch = batch if schema is None else {**batch, "candidate_value": batch["candidate_value"][..., :1],
        "feedback": batch["feedback"][..., :1], "candidate_feedback": batch["candidate_feedback"][..., :1]}  # fmt: skip
    config = Seq2SlateConfig(
        feature_schema=(schema or extractor.schema).to_dict(), **TINY, prefix=prefix, negatives=negatives, labels=labels
    )
    torch.manual_seed(0)
    model = Seq2SlateForReranking(config).eval()
    row = 2  # of seven candidates
    single = {name: tensor[row : row + 1] for name, tensor in batch.items()}
    slate = single["slates"][0, 0].tolist()
    if labels == "candidates":
        known = dict(enumerate(single["candidate_feedback"][0, :, 0].tolist()))
    else:
        paid = single["candidate_value"][0, slate] * single["feedback"][0, 0]
        known = dict(zip(slate, (paid[:, 0] + 0.5 * paid[:, 1]).tolist(), strict=True))
    above = slate if prefix == "shown" else model.generate(**single)[0].tolist()
    with torch.no_grad():
        steps = model(**{**inputs(single), "slates": torch.tensor([[above]])}).logits[0, 0]
    expected = 0.0
    for step, logits in enumerate(steps):
        items = [item for item in range(7) if item not in above[:step] and (item in known or negatives == "all")]
        total = sum(known.get(item, 0.0) for item in items)
        log_probs = dict(zip(items, logits[items].log_softmax(0).tolist(), strict=True)) if items else {}
        shares = {item: known[item] / total for item in items if known.get(item)}
        loss = sum(share * (math.log(share) - log_probs[item]) for item, share in shares.items())
        expected += loss / math.log2(step + 2)
    assert expected > 0
    output = model(**single)
    assert output.loss.item() == pytest.approx(expected, rel=1e-4)
    assert output.loss_terms.keys() == {"cross_entropy"}


def test_what_seq2slate_needs(extractor: RerankingFeatureExtractor, batch: Batch) -> None:
    without = {name: tensor for name, tensor in batch.items() if name not in ("slates", "feedback")}
    targets = (extractor.schema.targets[0], replace(extractor.schema.targets[1], weight=0.0))
    schema = replace(extractor.schema, targets=targets).to_dict()
    model = Seq2SlateForReranking(Seq2SlateConfig(feature_schema=schema, prefix="shown"))
    with pytest.raises(RerankingDataError, match="expected slates to stand above the steps"):
        model(**without)
    with pytest.raises(StrictDataclassError, match="prefix 'shown' needs slates that were shown"):
        Seq2SlateConfig(prefix="shown", labels="candidates")
    assert make(Seq2SlateForReranking, extractor)(**inputs(batch)).loss is None
    assert make(Seq2SlateForReranking, extractor, loss="likelihood")(**batch).loss_terms.keys() == {"likelihood"}
    targets = (replace(extractor.schema.targets[0], weight=-1.0), extractor.schema.targets[1])
    schema = replace(extractor.schema, targets=targets).to_dict()
    with pytest.raises(ValueError, match=r"loss 'hinge' ranks by utility, which targets \['click'\] can make negative"):
        Seq2SlateForReranking(Seq2SlateConfig(feature_schema=schema, loss="hinge"))


def test_lstm_decoder_is_torch_s(extractor: RerankingFeatureExtractor, batch: Batch) -> None:
    model = make(Seq2SlateForReranking, extractor)
    cell = torch.nn.LSTMCell(32, 32)
    with torch.no_grad():
        order = torch.arange(128).view(4, 32)[[0, 1, 3, 2]].flatten()  # of the gates
        cell.weight_ih.copy_(model.lstm.input.weight[order])
        cell.bias_ih.copy_(model.lstm.input.bias[order])
        cell.weight_hh.copy_(model.lstm.recurrent.weight[order])
        cell.bias_hh.zero_()
        encoded = model.encode(inputs(batch))
        slates = model.generate(**batch)
        found = model.read(encoded, slates.unsqueeze(1))[:, 0]
        for row, (size, slate) in enumerate(zip(batch["candidate_mask"].sum(1).tolist(), slates.tolist(), strict=True)):
            items, state = [encoded.states[row, :size].mean(0), *encoded.states[row, slate[: min(size, 4) - 1]]], None
            for position, item in enumerate(items):
                state = cell(item.unsqueeze(0), state)
                expected = model.decoder_norm(state[0][0])
                torch.testing.assert_close(found[row, position], expected, rtol=1e-5, atol=1e-5)
