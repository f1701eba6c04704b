from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from rerankzoo.backends import ExportedModel
from rerankzoo.batch import inputs
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.generation import Exclude
from rerankzoo.models.nlgr import NLGRConfig, NLGRForReranking, NLGRGenerationConfig
from rerankzoo.serving import export_model, random_batch
from rerankzoo.slates import edited_slates
from tests.models.common import GeneratorTestSuite

Batch = dict[str, Tensor]

TINY: dict[str, Any] = {
    "slate_size": 4,
    "hidden_size": 32,
    "embedding_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_slot_layers": 1,
}


class TestNLGRForReranking(GeneratorTestSuite):
    model_class = NLGRForReranking
    config_values: ClassVar[dict[str, Any]] = TINY
    own_calls: ClassVar[dict[str, dict[str, Any]]] = {
        "edits once": {"num_refinements": 1},
        "edits": {"num_refinements": 4},
    }


def nlgr(extractor: RerankingFeatureExtractor) -> NLGRForReranking:
    torch.manual_seed(0)
    return NLGRForReranking(NLGRConfig(feature_schema=extractor.schema.to_dict(), **TINY)).eval()


def test_choices_are_distributions_over_what_is_there(extractor: RerankingFeatureExtractor, batch: Batch) -> None:
    where, what = nlgr(extractor).edit_choices(batch["slates"], **batch)
    real = batch["slates"] >= 0
    torch.testing.assert_close(where.exp().sum(-1), torch.ones(8, 1))
    torch.testing.assert_close(what.exp().sum(-1), real.float())
    assert torch.equal(where > -torch.inf, real)
    assert torch.equal(what > -torch.inf, real.unsqueeze(-1) & batch["candidate_mask"][:, None, None])


def test_what_to_put_somewhere_does_not_depend_on_what_is_there(
    extractor: RerankingFeatureExtractor, batch: Batch
) -> None:
    model, slates = nlgr(extractor), batch["slates"]
    row = int((batch["candidate_mask"].sum(-1) > 4).nonzero()[0])
    request = {name: tensor[row : row + 1] for name, tensor in inputs(batch).items()}
    shown = slates[row, 0].tolist()
    free = next(item for item in range(int(request["candidate_mask"].sum())) if item not in shown)
    other = torch.tensor([[[shown[0], free, *shown[2:]]]])
    (where, what), (moved, found) = (model.edit_choices(some, **request) for some in (slates[row : row + 1], other))
    torch.testing.assert_close(found[0, 0, 1], what[0, 0, 1])
    assert not torch.isclose(found[0, 0, 2], what[0, 0, 2]).all()
    assert not torch.isclose(moved[0, 0, 1], where[0, 0, 1])


def test_editing_follows_the_most_probable_new_slates_and_takes_the_surest(
    extractor: RerankingFeatureExtractor, batch: Batch
) -> None:
    model = nlgr(extractor)
    found = model.generate(**batch, num_refinements=3, return_dict_in_generate=True)
    taken = set()
    for row in range(8):
        request = {name: tensor[row : row + 1] for name, tensor in inputs(batch).items()}
        upstream = request["candidate_numeric"][0, :, model.upstream_column].tolist()
        real = request["candidate_mask"][0].nonzero()[:, 0].tolist()
        slate = sorted(real, key=lambda item: -upstream[item])[:4]
        steps, path, ways, sure = [0.0] * len(slate), [slate], [[0.0] * len(slate)], []
        for number in range(4):
            with torch.no_grad():
                where, what = model.edit_choices(torch.tensor([[slate]]), **request)
            sure.append(sum(float(what[0, 0, place, item]) for place, item in enumerate(slate)))
            edits = (where[0, 0].unsqueeze(-1) + what[0, 0]).flatten()
            for edit in edits.argsort(descending=True).tolist():
                place, item = divmod(edit, what.shape[-1])
                edited = list(slate)
                if item in real:
                    edited = [slate[place] if shown == item else shown for shown in slate]
                    edited[place] = item
                if edited not in path:
                    break
            if number < 3 and edited not in path:
                slate, steps = edited, list(steps)
                steps[place] += float(edits[edit])
            path.append(slate)
            ways.append(steps)
        best = max(range(4), key=lambda number: sure[number])
        taken.add(best)
        assert found.slates[row].tolist() == path[best] + [-100] * (4 - len(slate))
        assert found.step_scores[row, : len(slate)].tolist() == pytest.approx(ways[best], abs=1e-5)
        assert found.scores[row].item() == pytest.approx(sum(ways[best]), abs=1e-5)
    assert len(taken) > 1


def test_no_slate_comes_twice_as_long_as_there_are_others(extractor: RerankingFeatureExtractor, batch: Batch) -> None:
    model = nlgr(extractor)
    with torch.no_grad():
        path = model.edit_path(model.start_slates(batch, 4), 9, **batch).slates
    for row, size in enumerate(batch["candidate_mask"].sum(-1).tolist()):
        others = len({tuple(slate) for slate in path[row].tolist()})
        assert others == 10 if size > 4 else others <= 10
        assert size > 1 or others == 1


def test_drawn_edits_come_as_often_as_they_are_probable(extractor: RerankingFeatureExtractor, batch: Batch) -> None:
    model, request = nlgr(extractor), {name: tensor[:1] for name, tensor in inputs(batch).items()}
    start = model.start_slates(request, 4)
    torch.manual_seed(0)
    with torch.no_grad():
        path = model.edit_path(start.expand(-1, 4000, -1), 1, True, **request).slates.unflatten(1, (4000, 2))
        where, what = model.edit_choices(start, **request)
    edited, chances = edited_slates(start, what.shape[-1])[0, 0], (where.unsqueeze(-1) + what).exp()[0, 0]
    changed = edited[2, int(start[0, 0, 0])].tolist()  # the first and the third change places: by either of two edits
    expected = sum(chances[place][(edited[place] == torch.tensor(changed)).all(-1)].sum().item() for place in range(4))
    share = (path[0, :, 1] == torch.tensor(changed)).all(-1).float().mean().item()
    assert share == pytest.approx(expected, abs=5 * (expected / 4000) ** 0.5)
    assert torch.equal(path[:, :, 0], start.expand(-1, 4000, -1))


def test_edits_are_learned_from_a_log(extractor: RerankingFeatureExtractor, mined_batch: Batch) -> None:
    model, slates = nlgr(extractor), mined_batch["slates"]
    clicked = (mined_batch["feedback"].nan_to_num() > 0).any(-1)
    with torch.no_grad():
        terms, (where, what) = model(**mined_batch).loss_terms, model.edit_choices(slates, **mined_batch)
    item, position = [], []
    for row, count in enumerate((slates >= 0).any(-1).sum(-1).tolist()):
        costs = {"item": 0.0, "position": 0.0}
        for number in range(count):
            shown = [place for place in range(4) if slates[row, number, place] >= 0]
            good = [place for place in shown if clicked[row, number, place]]
            poor = [place for place in shown if place not in good] if good else []
            costs["item"] -= sum(float(what[row, number, place, slates[row, number, place]]) for place in good)
            costs["position"] -= sum(float(where[row, number, place]) for place in poor) / max(len(poor), 1)
        item.append(costs["item"] / count)
        position.append(costs["position"] / count)
    assert terms["item"].item() == pytest.approx(sum(item) / 8, rel=1e-4)
    assert terms["position"].item() == pytest.approx(sum(position) / 8, rel=1e-4)
    mined = {**inputs(mined_batch), "slates": slates}
    weights = torch.full(slates.shape[:2], 0.5)
    of_mined = model(**mined, slate_weights=weights).loss_terms
    chosen = what.gather(-1, slates.clamp_min(0).unsqueeze(-1)).squeeze(-1).masked_fill(slates < 0, 0.0)
    assert of_mined["item"].item() == pytest.approx(-0.5 * float(chosen.sum()) / 8, rel=1e-4)
    assert of_mined["position"].item() == 0


def test_refuses_what_it_cannot_edit(extractor: RerankingFeatureExtractor, batch: Batch) -> None:
    model = nlgr(extractor)
    with pytest.raises(ValueError, match="num_refinements must be a positive integer, got 0"):
        model.generate(**batch, num_refinements=0)
    with pytest.raises(ValueError, match="edits keep no constraints"):
        model.generate(**batch, num_refinements=1, constraints=Exclude(torch.zeros_like(batch["candidate_mask"])))
    with pytest.raises(ValueError, match="slate_size must be at most 4"):
        model.generate(**batch, num_refinements=1, slate_size=5)


@pytest.mark.slow
def test_edits_travel_in_a_graph(extractor: RerankingFeatureExtractor, tmp_path: Path) -> None:
    export_model(nlgr(extractor), extractor, tmp_path, "onnx", NLGRGenerationConfig(num_refinements=2))
    exported = ExportedModel.from_pretrained(tmp_path, "onnx")
    fresh = random_batch(extractor, num_requests=5, num_candidates=13, history_length=7, seed=99)
    assert torch.equal(exported.generate(**fresh), nlgr(extractor).generate(**fresh, num_refinements=2))
