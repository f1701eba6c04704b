from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from datasets import Dataset

from rerankzoo.errors import SchemaMismatchError
from rerankzoo.evaluation import (
    Decoding,
    Evaluation,
    Evaluators,
    compare,
    default_decodings,
    evaluate,
    tune_penalty_alpha,
)
from rerankzoo.generation import EvaluatorEnsemble, RerankingGenerationConfig
from rerankzoo.models.nar4rec import NAR4RecConfig, NAR4RecForReranking
from rerankzoo.models.pointwise import PointwiseConfig, PointwiseForReranking
from rerankzoo.slates import all_slates

GREEDY = [Decoding("greedy", {"num_beams": 1})]
MODEL = ("model", "greedy")
BASELINES = [("upstream", "sort"), ("random", "sample"), ("logged", "log"), ("oracle", "pointwise")]


def run(simulated: Any, model: Any, **options: Any) -> Evaluation:
    options = {"name": "model", "decodings": GREEDY, "batch_size": 25, **options}
    return evaluate(model, simulated.data, simulated.extractor, simulated.metadata, **options)


def only(labelled: Any, model: Any, **options: Any) -> Evaluation:
    return evaluate(model, labelled.data, labelled.extractor, name="model", decodings=GREEDY, **options)


# Decodings


def test_default_decodings() -> None:
    assert [one.name for one in default_decodings()] == ["greedy", "beam 4", "contrastive", "sampling"]
    names = [one.name for one in default_decodings(has_evaluator=True, penalty_alpha=None)]
    chosen = ["4 beams + evaluator", "16 samples + evaluator", "16 beams + evaluator"]
    assert names == ["greedy", "beam 4", "sampling", *chosen]
    assert default_decodings(penalty_alpha=0.25)[2].parameters == {"penalty_alpha": 0.25}


class BlockConfig(RerankingGenerationConfig):
    """Of a family with a decoding of its own."""

    extra_parameters = ("num_blocks",)
    strategies: ClassVar = {**RerankingGenerationConfig.strategies, "num_blocks": "blockwise"}


class Blockwise(NAR4RecForReranking):
    generation_config_class = BlockConfig
    strategies = ("blockwise",)

    def decode(self, batch: Any, config: Any, rules: Any = None) -> Any:
        assert config.num_blocks == 2
        return super().decode(batch, RerankingGenerationConfig(slate_size=config.slate_size), rules)


def test_a_decoding_refuses_what_generate_would(simulated: Any) -> None:
    for parameters, message in (
        ({"beams": 2}, "unknown decoding parameters"),
        ({"num_beams": 2, "do_sample": True}, "choose one decoding strategy"),
        ({"slate_size": 2}, "slate_size is the model's"),
    ):
        with pytest.raises(ValueError, match=message):
            run(simulated, simulated.model(), decodings=[Decoding("wrong", parameters)])
    with pytest.raises(ValueError, match="'many' returns 3 slates per request"):
        Decoding("many", {"num_beams": 3, "num_return_sequences": 3})


def test_a_model_is_asked_in_its_own_words(simulated: Any) -> None:
    plain = simulated.model()
    model = Blockwise(plain.config).eval()
    model.load_state_dict(plain.state_dict())
    row = run(simulated, model, decodings=[Decoding("blocks", {"num_blocks": 2})]).row("model", "blocks")
    assert row.metrics == run(simulated, plain).row("model", "greedy").metrics
    with pytest.raises(ValueError, match=r"decoding 'greedy' is 'greedy', expected one of \['blockwise'\]"):
        run(simulated, model)
    with pytest.raises(ValueError, match="unknown decoding parameters"):
        run(simulated, plain, decodings=[Decoding("blocks", {"num_blocks": 2})])
    assert default_decodings(strategies=model.strategies) == [Decoding("default")]
    assert [one.name for one in default_decodings(strategies=("greedy", "sample"))] == ["greedy", "sampling"]


# The truth


def test_baselines_agree_with_the_simulator(simulated: Any) -> None:
    found = run(simulated, simulated.model())
    rows = simulated.data[:]
    upstream = simulated.utility(np.argsort(-np.array(rows["upstream_score"]), axis=1)[:, :3])
    oracle = simulated.simulator.pointwise_oracle(simulated.users, simulated.items, 3)
    expected = {
        ("upstream", "sort"): upstream,
        ("logged", "log"): simulated.utility(np.array(rows["slate"])),
        ("oracle", "pointwise"): simulated.utility(oracle),
    }
    assert [row.key for row in found.rows] == [*BASELINES, ("model", "greedy")]
    assert found.primary == "utility"
    for key, values in expected.items():
        np.testing.assert_allclose(found.per_request[key].numpy(), values, rtol=1e-12)
        assert found.row(*key).metrics["utility"] == pytest.approx(values.mean())
        assert found.row(*key).metrics["regret"] == pytest.approx(1 - values.mean())


def test_random_slates_have_the_mean_utility_of_all(simulated: Any) -> None:
    utilities = simulated.simulator.all_utilities(simulated.users, simulated.items, 3)
    expected = (utilities / utilities.max(1, keepdims=True)).mean()
    seeds = [
        run(simulated, simulated.model(), seed=seed).row("random", "sample").metrics["utility"] for seed in range(8)
    ]
    assert np.mean(seeds) == pytest.approx(expected, abs=0.04)
    assert len(set(seeds)) == 8


def test_true_hit_rates_are_counted_over_all_slates(simulated: Any) -> None:
    found = run(simulated, simulated.model())
    utilities = simulated.simulator.all_utilities(simulated.users, simulated.items, 3)
    logged = simulated.simulator.expected_utility(
        simulated.users, simulated.items, np.array(simulated.data[:]["slate"])[:, None]
    )
    better = (utilities > logged * (1 + 1e-9)).sum(1)
    metrics = found.row("logged", "log").metrics
    assert metrics["true_hr@1%"] == pytest.approx((better < 2).mean())  # 1 % of 120 is 1.2: two slates
    assert metrics["true_hr@10%"] == pytest.approx((better < 12).mean())


def test_the_best_slates_have_all_the_utility(simulated: Any, scripted: Any, best_slates: torch.Tensor) -> None:
    metrics = run(simulated, scripted(best_slates)).row("model", "greedy").metrics
    assert metrics["utility"] == 1.0
    assert metrics["regret"] == 0.0
    assert metrics["true_hr@1%"] == metrics["true_hr@10%"] == 1.0


def test_sampled_truth_is_near_the_exact_one(
    simulated: Any, scripted: Any, best_slates: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = run(simulated, scripted(best_slates))
    monkeypatch.setattr("rerankzoo.evaluation.slate_ranks.SimulatorTruth.max_exact", 100)
    monkeypatch.setattr("rerankzoo.evaluation.slate_ranks.SimulatorTruth.num_samples", 2_000)
    sampled = run(simulated, scripted(best_slates))
    assert "2000 uniformly sampled slates" in sampled.protocol["truth"]
    assert sampled.row("model", "greedy").metrics["utility"] == 1.0
    for key in BASELINES:
        one, other = exact.row(*key).metrics, sampled.row(*key).metrics
        assert other["utility"] == pytest.approx(one["utility"], rel=1e-9)  # the best slate is among the known ones
        assert other["true_hr@10%"] == pytest.approx(one["true_hr@10%"], abs=0.1)
        assert other["true_hr@10%_low"] <= other["true_hr@10%"] <= other["true_hr@10%_high"]
        assert "true_hr@10%_low" not in one


def test_a_known_optimum_is_improved_by_local_search(
    simulated: Any, scripted: Any, best_slates: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rerankzoo.evaluation.slate_ranks.SimulatorTruth.max_exact", 1)
    monkeypatch.setattr("rerankzoo.evaluation.slate_ranks.SimulatorTruth.num_samples", 1)
    monkeypatch.setattr("rerankzoo.evaluation.slate_ranks._TRUTH_BEAMS", 1)
    shares = simulated.utility(best_slates.flip(1).numpy())
    found = run(simulated, scripted(best_slates.flip(1)))
    measured = found.per_request["model", "greedy"].numpy()
    assert (measured >= shares - 1e-12).all()  # a known optimum is at most the true one
    assert measured.mean() < shares.mean() + 0.03  # and local searches hardly miss it


# Evaluators that are shared


def test_shared_evaluators_find_the_same(simulated: Any, scripted: Any, best_slates: torch.Tensor) -> None:
    evaluator, judge = simulated.evaluator(), simulated.evaluator(1)
    evaluators = Evaluators.of(simulated.data, "item_id", simulated.metadata, evaluator, judge)
    for slates in (best_slates, best_slates.flip(1)):
        alone = run(simulated, scripted(slates), evaluator=evaluator, judge=judge, hr_requests=30)
        shared = run(simulated, scripted(slates), evaluators=evaluators, hr_requests=30)
        assert shared.rows == alone.rows


def test_shared_evaluators_value_all_slates_once(simulated: Any, scripted: Any, best_slates: torch.Tensor) -> None:
    class Counting:
        slates = 0

        def score_slates(self, slates: torch.Tensor, /, **batch: torch.Tensor) -> torch.Tensor:
            Counting.slates += slates[..., 0].numel()
            return slates.sum(-1).float()

    evaluators = Evaluators.of(simulated.data, "item_id", simulated.metadata, Counting())
    counts = []
    for _ in range(2):
        before = Counting.slates
        run(simulated, scripted(best_slates), evaluators=evaluators, hr_requests=60)
        counts.append(Counting.slates - before)
    assert counts == [60 * (120 + 5), 60 * 5]  # the five rows of the table, and at first all 120 slates


def test_evaluators_are_given_once(simulated: Any) -> None:
    evaluators = Evaluators.of(simulated.data, "item_id", simulated.metadata, simulated.evaluator())
    for name in ("evaluator", "judge"):
        with pytest.raises(ValueError, match="expected evaluators, or evaluator and judge, got both"):
            run(simulated, simulated.model(), evaluators=evaluators, **{name: simulated.evaluator()})


# The evaluator


def test_the_evaluators_own_best_slates_are_hits(simulated: Any, scripted: Any, last_first: Any) -> None:
    best = torch.tensor([5, 4, 3]).expand(60, 3)
    found = run(simulated, scripted(best), evaluator=last_first, hr_requests=30)
    metrics = found.row("model", "greedy").metrics
    assert metrics["hr@1%"] == metrics["hr@10%"] == 1.0
    assert metrics["value"] == pytest.approx(6.54)
    assert found.protocol["hr_requests"] == 30


def test_the_evaluators_ranks_are_exact_and_end_at_hr_requests(simulated: Any, scripted: Any, last_first: Any) -> None:
    listed = torch.tensor(all_slates(6, 3))
    order = last_first.score_slates(listed[None])[0].argsort(descending=True)
    slates = listed[order[torch.arange(60)]]  # request r gets the slate of rank r
    metrics = run(simulated, scripted(slates), evaluator=last_first, hr_requests=40).row("model", "greedy").metrics
    assert metrics["hr@1%"] == pytest.approx(2 / 40)
    assert metrics["hr@10%"] == pytest.approx(12 / 40)


def test_no_hit_rates_by_the_evaluator_without_requests_for_them(simulated: Any, last_first: Any) -> None:
    found = run(simulated, simulated.model(), evaluator=last_first, hr_requests=0)
    assert "hr@1%" not in found.rows[0].metrics
    assert "hr_requests" not in found.protocol
    assert "value" in found.rows[0].metrics


def test_gap_is_prediction_minus_truth(
    simulated: Any, scripted: Any, last_first: Any, best_slates: torch.Tensor
) -> None:
    metrics = run(simulated, scripted(best_slates), evaluator=last_first).row("model", "greedy").metrics
    optimum = simulated.simulator.all_utilities(simulated.users, simulated.items, 3).max(1).mean()
    assert metrics["gap"] == pytest.approx((metrics["value"] - optimum) / optimum)


def test_a_models_evaluator_values_a_slate_alike_alone_and_among_all(simulated: Any, scripted: Any) -> None:
    evaluator = simulated.evaluator()
    batch = simulated.extractor(simulated.data[:])
    listed = torch.tensor(all_slates(6, 3))
    with torch.no_grad():
        best = listed[evaluator.score_slates(listed.expand(60, -1, -1), **batch).argmax(1)]
    metrics = run(simulated, scripted(best), evaluator=evaluator).row("model", "greedy").metrics
    assert metrics["hr@1%"] == 1.0


def test_the_evaluator_chooses_among_slates(simulated: Any) -> None:
    evaluator, decodings = simulated.evaluator(), default_decodings(has_evaluator=True)
    found = run(simulated, simulated.model(), evaluator=evaluator, decodings=decodings)
    values = {row.decoding: row.metrics["value"] for row in found.rows}
    assert values["16 beams + evaluator"] > values["beam 4"]
    assert values["16 samples + evaluator"] > values["sampling"]
    for row in found.rows:
        for name, value in row.metrics.items():
            assert math.isfinite(value)
            if name not in ("gap", "value", "ild@3"):
                assert 0 <= value <= 1, (row.key, name)


def test_what_an_evaluator_says_of_its_own_slates_has_no_interval(
    simulated: Any, scripted: Any, best_slates: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rerankzoo.evaluation.slate_ranks.EvaluatorRanks.max_exact", 100)
    options = {"evaluator": simulated.evaluator(), "judge": simulated.evaluator(1), "hr_requests": 30}
    metrics = run(simulated, scripted(best_slates), **options).row("model", "greedy").metrics
    assert [name for name in metrics if name.endswith("_low")] == ["judge_hr@1%_low", "judge_hr@10%_low"]


def test_without_truth_and_labels_rows_are_compared_by_the_judge_else_by_the_evaluator(simulated: Any) -> None:
    options = {"name": "model", "decodings": GREEDY, "num_requests": 20, "hr_requests": 0}
    data = simulated.model(), simulated.data, simulated.extractor
    by_evaluator = compare(evaluate(*data, evaluator=simulated.evaluator(), **options), MODEL, BASELINES[0])
    assert (by_evaluator.metric, by_evaluator.low, by_evaluator.high) == ("value", None, None)
    assert by_evaluator.significant is None
    judged = evaluate(*data, evaluator=simulated.evaluator(), judge=simulated.evaluator(1), **options)
    by_judge = compare(judged, MODEL, BASELINES[0])
    assert by_judge.metric == "judge_value"
    assert by_judge.low < by_judge.mean < by_judge.high


def test_an_ensemble_is_an_evaluator(simulated: Any) -> None:
    members = [simulated.evaluator(seed) for seed in range(2)]
    options = {"decodings": default_decodings(has_evaluator=True)[-1:], "num_requests": 20, "hr_requests": 5}
    metrics = run(simulated, simulated.model(), evaluator=EvaluatorEnsemble(members), **options).rows[0].metrics
    alone = [run(simulated, simulated.model(), evaluator=one, **options).rows[0].metrics for one in members]
    assert metrics["value"] == pytest.approx(np.mean([one["value"] for one in alone]), rel=1e-5)


def test_parts_on_different_devices_are_refused(simulated: Any) -> None:
    with pytest.raises(ValueError, match="the judge is on meta, the model on cpu; move one to the other"):
        run(simulated, simulated.model(), judge=simulated.evaluator().to("meta"))


# Labels


def test_labels_count_on_requests_with_both_kinds(labelled: Any, scripted: Any) -> None:
    slates = torch.tensor([[0, 1, 2], [0, 1, -100], [0, 1, 2], [0, 1, 2]])
    found = only(labelled, scripted(slates))
    log2 = math.log2
    first = (1 / log2(3)) / (1 + 1 / log2(3))  # b c d: c is relevant, and a is cut off
    upstream = found.row("upstream", "sort").metrics
    assert upstream["ndcg@3"] == pytest.approx((first + 1 / log2(3)) / 2)
    assert upstream["map@3"] == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert upstream["recall@3"] == pytest.approx((1 / 2 + 1) / 2)
    assert upstream["hit@3"] == 1.0
    assert upstream["mrr@3"] == pytest.approx(1 / 2)
    model = found.row("model", "greedy").metrics
    assert model["ndcg@3"] == pytest.approx(((1 + 1 / 2) / (1 + 1 / log2(3)) + 1) / 2)
    assert found.primary == "ndcg@3"
    assert len(found.per_request["model", "greedy"]) == 2
    assert found.protocol["labels"]["num_requests"] == 2
    assert found.protocol["num_requests"] == 4


def test_ranking_metrics_are_cut_where_asked(labelled: Any, scripted: Any) -> None:
    slates = torch.tensor([[0, 1, 2], [0, 1, -100], [0, 1, 2], [0, 1, 2]])
    found = only(labelled, scripted(slates), cuts=(2, 1))
    metrics = found.row("model", "greedy").metrics
    assert metrics["ndcg@1"] == 1.0
    assert metrics["recall@1"] == pytest.approx((1 / 2 + 1) / 2)
    assert "ndcg@3" not in metrics
    assert found.primary == "ndcg@2"
    assert found.protocol["labels"]["cut_at"] == [1, 2]
    with pytest.raises(ValueError, match=r"k must be at least 1, got \[0, 2\]"):
        only(labelled, scripted(slates), cuts=(0, 2))


def test_beyond_the_slate_size_all_rows_are_longer(labelled: Any) -> None:
    torch.manual_seed(0)
    values = {"feature_schema": labelled.extractor.schema.to_dict(), "hidden_size": 8, "slate_size": 2}
    model = PointwiseForReranking(PointwiseConfig(**values)).eval()
    found = only(labelled, model, cuts=(1, 3, 20))
    assert found.protocol["slate_size"] == 20
    for row in found.rows:
        assert {"ndcg@1", "ndcg@3", "ndcg@20", "coverage@20"} <= row.metrics.keys()
        assert row.metrics["recall@20"] == 1.0  # of two, three and four candidates
    fixed = NAR4RecForReranking(NAR4RecConfig(**values, intermediate_size=16)).eval()
    with pytest.raises(ValueError, match=r"slates of 3 are compared \(k: \[3\]\), the model has 2 positions"):
        only(labelled, fixed, cuts=(3,))


def test_every_row_has_as_many_items_as_the_page(labelled: Any, scripted: Any, last_first: Any) -> None:
    """Pages of one and of two positions in one log, which shows the upstream order."""
    pages = [[1], [1], [0, 1], [0, 1]]
    rows = [
        {**row, "slate": slate, "relevant": [0.0] * len(slate)}
        for row, slate in zip(labelled.data.to_list(), pages, strict=True)
    ]
    model = scripted(torch.tensor([[3, 0], [1, 0], [2, 1], [2, 1]]))
    found = only(replace(labelled, data=Dataset.from_list(rows)), model, evaluator=last_first)
    upstream, logged = found.row("upstream", "sort"), found.row("logged", "log")
    assert upstream.slates == logged.slates
    assert upstream.metrics["value"] == pytest.approx((2 + 2 + 1.2 + 1.2) / 4)
    best = found.row("model", "greedy").metrics
    assert best["value"] == pytest.approx((4 + 2 + 3.2 + 3.2) / 4)
    assert best["hr@1%"] == 1.0


def test_coverage_is_of_the_items_among_the_candidates(labelled: Any, scripted: Any) -> None:
    slates = torch.tensor([[0, -100, -100], [0, -100, -100], [1, -100, -100], [0, 1, -100]])
    metrics = only(labelled, scripted(slates)).row("model", "greedy").metrics
    assert metrics["coverage@3"] == pytest.approx(2 / 5)  # a and b of a, b, c, d, e


def test_requests_of_different_sizes_are_ranked_in_their_own_space(
    labelled: Any, scripted: Any, last_first: Any
) -> None:
    best = torch.tensor([[3, 2, 1], [1, 0, -100], [2, 1, 0], [2, 1, 0]])
    metrics = only(labelled, scripted(best), evaluator=last_first).row("model", "greedy").metrics
    assert metrics["hr@1%"] == 1.0
    worst = torch.tensor([[0, 1, 2], [0, 1, -100], [0, 1, 2], [0, 1, 2]])
    metrics = only(labelled, scripted(worst), evaluator=last_first).row("model", "greedy").metrics
    assert metrics["hr@1%"] == metrics["hr@10%"] == 0.0


def test_there_is_no_logged_row_without_a_log(labelled: Any, scripted: Any) -> None:
    found = only(labelled, scripted(torch.tensor([[0, 1]] * 4)))
    assert [row.model for row in found.rows] == ["upstream", "random", "model"]


# The run


def test_equal_arguments_give_equal_results(simulated: Any) -> None:
    options = {"evaluator": simulated.evaluator(), "decodings": default_decodings(has_evaluator=True), "seed": 5}
    torch.manual_seed(1)
    first = run(simulated, simulated.model(), **options)
    torch.manual_seed(2)
    second = run(simulated, simulated.model(), **options)
    assert first.rows == second.rows
    assert first.protocol == second.protocol


def test_sampling_leaves_the_global_random_state_alone(simulated: Any) -> None:
    model = simulated.model()
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    run(simulated, model, decodings=default_decodings())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_sampling_does_not_depend_on_the_other_decodings(simulated: Any) -> None:
    sampling = Decoding("sampling", {"do_sample": True})
    alone = run(simulated, simulated.model(), decodings=[sampling]).row("model", "sampling")
    among = run(simulated, simulated.model(), decodings=default_decodings()).row("model", "sampling")
    assert alone == among


def test_a_model_in_training_is_evaluated_without_dropout_and_given_back(simulated: Any) -> None:
    model = simulated.model()
    expected = run(simulated, model).rows
    model.config.hidden_dropout_prob = 0.5
    dropping = type(model)(model.config)
    dropping.load_state_dict(model.state_dict())
    assert run(simulated, dropping.train()).rows == expected
    assert dropping.training


def test_num_requests_and_progress(simulated: Any) -> None:
    done: list[int] = []
    found = run(simulated, simulated.model(), num_requests=30, on_progress=done.append)
    assert done == [25, 5]
    assert found.protocol["num_requests"] == len(found.per_request["model", "greedy"]) == 30
    assert found.requests != run(simulated, simulated.model()).requests


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decodings": []}, "at least one"),
        ({"decodings": GREEDY * 2}, "distinct names"),
        ({"decodings": default_decodings(has_evaluator=True)}, "needs an evaluator"),
        ({"num_requests": 0}, "num_requests must be at least 1, got 0"),
        ({"hr_requests": -1}, "hr_requests must not be negative, got -1"),
    ],
)
def test_unusable_arguments_are_refused(simulated: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(simulated, simulated.model(), **options)


def test_an_extractor_of_another_schema_is_refused(simulated: Any, labelled: Any) -> None:
    with pytest.raises(SchemaMismatchError):
        evaluate(simulated.model(), labelled.data, labelled.extractor, name="model", decodings=GREEDY)


# Tuning


def test_alpha_is_tuned_by_the_primary_metric(simulated: Any) -> None:
    model = simulated.model()
    alphas = (0.3, 0.0, 0.9)
    chosen, record = tune_penalty_alpha(
        model, simulated.data, simulated.extractor, simulated.metadata, alphas=alphas, num_requests=40
    )
    scores = {
        alpha: run(
            simulated, model, decodings=[Decoding("one", {"penalty_alpha": alpha})], num_requests=40, batch_size=256
        )
        .row("model", "one")
        .metrics["utility"]
        for alpha in alphas
    }
    assert record["scores"] == {f"{alpha:g}": pytest.approx(score) for alpha, score in scores.items()}
    assert chosen == record["chosen"] == max(sorted(alphas), key=lambda alpha: scores[alpha])
    assert record["metric"] == "utility"
    assert record["num_requests"] == 40


def test_the_smallest_of_equally_good_alphas_is_chosen(simulated: Any) -> None:
    options = {"alphas": (1e-9, 0.0), "num_requests": 20}
    data = simulated.data, simulated.extractor, simulated.metadata
    assert tune_penalty_alpha(simulated.model(), *data, **options)[0] == 0.0


def test_alpha_cannot_be_tuned_in_the_dark(simulated: Any) -> None:
    with pytest.raises(ValueError, match="no truth, no candidate labels and no evaluator"):
        tune_penalty_alpha(simulated.model(), simulated.data, simulated.extractor)
    with pytest.raises(ValueError, match="at least one alpha"):
        tune_penalty_alpha(simulated.model(), simulated.data, simulated.extractor, alphas=())


def test_a_judge_ranks_every_row_and_chooses_nothing(simulated: Any, scripted: Any, last_first: Any) -> None:
    """The judge finds its own best slates among the best 1 %, whoever else is asked; the evaluator is not the judge."""
    best = torch.tensor([[5, 4, 3]]).expand(len(simulated.data), -1)
    options = {"decodings": [Decoding("scripted", {"num_beams": 1})], "hr_requests": 10, "name": "scripted"}
    found = evaluate(
        scripted(best),
        simulated.data,
        simulated.extractor,
        simulated.metadata,
        evaluator=simulated.evaluator(),
        judge=last_first,
        **options,
    )
    row = found.row("scripted", "scripted").metrics
    assert row["judge_hr@1%"] == row["judge_hr@10%"] == 1.0
    assert row["judge_value"] == pytest.approx(6 + 0.5 + 0.04)
    alone = evaluate(
        scripted(best),
        simulated.data,
        simulated.extractor,
        simulated.metadata,
        evaluator=simulated.evaluator(),
        **options,
    )
    assert {name: value for name, value in row.items() if not name.startswith("judge")} == alone.row(
        "scripted", "scripted"
    ).metrics
