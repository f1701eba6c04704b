from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rerankzoo.data.folder import read_metadata
from rerankzoo.data.simulator import (
    BLOCK_SIZE,
    SETTINGS,
    USER_MODELS,
    ChoiceUser,
    ContrastUser,
    DecoyUser,
    NeedsUser,
    Requests,
    SatiationUser,
    Simulator,
    SimulatorSettings,
    UserModel,
    register_user_model,
    write_simulator_folder,
)
from rerankzoo.errors import RerankingDataError
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.slates import all_slates, plackett_luce_propensities, plackett_luce_slates

SMALL = SimulatorSettings(num_users=20, num_items=60, num_candidates=6, slate_size=3)


def columns(table: pa.Table) -> tuple[np.ndarray, ...]:
    names = ("user_id", "item_id", "slate", "upstream_score")
    return tuple(np.array(table[name].to_pylist()) for name in names)


def shares(setting: str, *, seeds: int, requests: int) -> dict[str, float]:
    """Percent of the best expected utility, averaged over requests and worlds."""
    totals: dict[str, list[float]] = {}
    for seed in range(seeds):
        simulator = Simulator(SimulatorSettings.named(setting, seed=seed))
        users, items, logged, upstream = columns(simulator.requests("test", requests))
        utilities = simulator.all_utilities(users, items, 4)
        slates = {
            "logged": logged,
            "upstream": np.argsort(-upstream, axis=1)[:, :4],
            "oracle": simulator.pointwise_oracle(users, items, 4),
            "greedy": simulator.greedy(users, items, 4),
            "beam 8": simulator.beam(users, items, 4, num_beams=8),
        }
        best = utilities.max(axis=1)
        totals.setdefault("random", []).append((utilities.mean(axis=1) / best).mean())
        for name, slate in slates.items():
            utility = simulator.expected_utility(users, items, slate[:, None])[:, 0]
            totals.setdefault(name, []).append((utility / best).mean())
    return {name: 100.0 * float(np.mean(values)) for name, values in totals.items()}


# Percent of the optimum. Of the first three settings a prototype measured it with the same formulas (one to three
# worlds); of the others it is the table of docs/simulator.md.
LADDER = ("random", "logged", "upstream", "oracle", "greedy", "beam 8")
REFERENCE = {
    "strong": (45.2, 52.0, 57.7, 61.7, 91.9, 99.4),
    "medium": (56.3, 66.5, 73.2, 81.1, 94.8, 99.7),
    "control": (67.8, 81.2, 90.2, 100.0, 100.0, 100.0),
    "choice": (60.8, 69.0, 73.9, 80.9, 99.1, 100.0),
    "satiation": (58.4, 67.7, 74.1, 81.8, 92.1, 98.7),
    "contrast": (52.8, 61.7, 66.7, 72.2, 94.0, 99.8),
    "needs": (60.3, 70.3, 75.7, 82.4, 99.4, 99.9),
    "decoys": (58.4, 68.1, 73.7, 78.9, 100.0, 100.0),
    "weak": (62.3, 75.0, 83.3, 93.7, 97.5, 99.9),
    "drift": (67.2, 77.3, 81.4, 100.0, 100.0, 100.0),
    "steady": (65.0, 77.4, 81.0, 100.0, 100.0, 100.0),
}
WITHOUT_EFFECTS = ("control", "drift", "steady")  # of items on one another


@pytest.mark.parametrize("setting", sorted(REFERENCE))
def test_policies_reach_the_reference_shares_of_the_optimum(setting: str) -> None:
    measured = shares(setting, seeds=3, requests=150)
    for policy, reference in zip(LADDER, REFERENCE[setting], strict=True):
        assert measured[policy] == pytest.approx(reference, abs=3.0), policy
    ladder = [measured[policy] for policy in ("random", "upstream", "oracle", "greedy")]
    top = [] if setting == "decoys" else [100.0]  # there what is worth most does not depend on the slate
    assert setting in WITHOUT_EFFECTS or [*ladder, *top] == sorted({*ladder, *top})
    if setting not in (*WITHOUT_EFFECTS, "weak"):
        assert measured["oracle"] < 85.0  # pointwise is clearly below the optimum


def test_every_world_has_a_reference() -> None:
    assert {*SETTINGS} - {*REFERENCE} == {"large"}  # its slates cannot be listed
    large = SETTINGS["large"]
    assert (large.num_candidates, large.slate_size) == (50, 6)


# Of "strong", measured before there were other user models.
FIRST_BLOCK = {
    "clicks": 1063.0,
    "users": [1044, 1779, 1985, 1114, 605],
    "slates": [[3, 7, 5, 2], [4, 0, 8, 3]],
    "sums": [-7888.261998384216, 1441.3047237357468],
}


def test_the_first_worlds_are_what_they_were() -> None:
    simulator = Simulator(SimulatorSettings.named("strong"))
    table = simulator.requests("train", BLOCK_SIZE)
    users, items, slates, upstream = columns(table)
    assert np.array(table["click"].to_pylist()).sum() == FIRST_BLOCK["clicks"]
    np.testing.assert_array_equal(users[:5], FIRST_BLOCK["users"])
    np.testing.assert_array_equal(slates[:2], FIRST_BLOCK["slates"])
    utility = simulator.expected_utility(users, items, slates[:, None]).sum()
    np.testing.assert_allclose([upstream.sum(), utility], FIRST_BLOCK["sums"], rtol=1e-5)


@pytest.mark.parametrize("setting", ["strong", "choice", "satiation", "contrast", "needs", "decoys"])
def test_likelihood_is_a_distribution_whose_marginals_are_the_expected_clicks(setting: str) -> None:
    simulator = Simulator(SimulatorSettings.named(setting))
    users, items, *_ = columns(simulator.requests("test", 9))
    audience = simulator.audience(users, items)
    slates = np.array([[0, 1, 2, 3], [9, 3, 1, 6], [4, 5, 8, 7]])
    ways = list(product((0.0, 1.0), repeat=4))
    chances = np.stack([audience.user.likelihood(audience.requests, slates, clicks) for clicks in ways])
    assert chances.min() >= 0.0
    np.testing.assert_allclose(chances.sum(0), 1.0, rtol=1e-12)
    listed = UserModel.expected_clicks(audience.user, audience.requests, slates)
    np.testing.assert_allclose(audience.user.expected_clicks(audience.requests, slates), listed, rtol=1e-9)
    # The same formula reads tensors, of a slate for each request, and of the items of one slate where they are enough.
    order, clicks = torch.tensor([9, 3, 1, 6]), [torch.full((9, 1), click) for click in (0.0, 1.0, 0.0, 0.0)]
    expected = chances[ways.index((0.0, 1.0, 0.0, 0.0)), :, 1]
    tensors = Requests(*(torch.from_numpy(part) for part in audience.requests))
    fitted = audience.user.likelihood(tensors, order.expand(9, 1, 4), clicks)
    np.testing.assert_allclose(fitted[:, 0], expected, rtol=1e-6)
    shown = simulator.audience(users, items[:, order.numpy()]).requests
    tensors = Requests(*(torch.from_numpy(part) for part in shown))
    fitted = audience.user.likelihood(tensors, torch.arange(4)[None], clicks)
    same = np.allclose(fitted[:, 0], expected, rtol=1e-6)
    assert same != audience.user.reads_candidates


def test_pointwise_is_optimal_without_listwise_effects() -> None:
    simulator = Simulator(SimulatorSettings.named("control", seed=5))
    users, items, *_ = columns(simulator.requests("test", 50))
    oracle = simulator.pointwise_oracle(users, items, 4)
    utility = simulator.expected_utility(users, items, oracle[:, None])[:, 0]
    np.testing.assert_allclose(utility, simulator.all_utilities(users, items, 4).max(axis=1), rtol=1e-12)


def hand_made(user: UserModel | None = None) -> Simulator:
    """One user and three items with hand-picked vectors; item 2's category follows item 0's, not the other way."""
    simulator = Simulator(SimulatorSettings(user=user))
    simulator.user_vectors = np.array([[1.0, 0.0]])
    simulator.item_vectors = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    simulator.item_biases = np.array([0.1, -0.2, 0.0])
    simulator.item_values = np.array([1.0, 2.0, 0.5])
    simulator.item_categories = np.array([0, 1, 2])
    simulator.complements = np.zeros((8, 8))
    simulator.complements[0, 2] = 1.0
    return simulator


def sigmoid(logit: float) -> float:
    return 1.0 / (1.0 + float(np.exp(-logit)))


def test_expected_utility_of_two_items_by_hand() -> None:
    # r = 2 <u,v> + b: 2.1, -0.2, 1.2; S(0, 2) = 0.6
    first = sigmoid(-1.0 + 2.1 - 0.7 * 0.6)  # item 2 comes next and is similar
    second = sigmoid(-1.0 + 1.2 - 2.0 * 0.6 + 1.5)  # after item 0: substitution, and its category is asked for
    forward = first * 1.0 + (0.75 + 0.2 * first) * second * 0.5
    first = sigmoid(-1.0 + 1.2 - 0.7 * 0.6)
    second = sigmoid(-1.0 + 2.1 - 2.0 * 0.6)  # not complementary in this direction
    backward = first * 0.5 + (0.75 + 0.2 * first) * second * 1.0
    utility = hand_made().expected_utility(np.array([0]), np.array([[0, 1, 2]]), np.array([[[0, 2], [2, 0]]]))
    np.testing.assert_allclose(utility, [[forward, backward]], rtol=1e-12)


def test_substitution_fades_with_distance_and_skips_nothing() -> None:
    audience = hand_made().audience(np.array([0]), np.array([[0, 1, 2]]))
    # Last position: S(2, 1) = 0.8 just before, S(2, 0) = 0.6 one further away; no complement of category 1.
    last = audience.user.attractions(audience.requests, np.array([[0, 1, 2]]))[2]
    assert last.item() == pytest.approx(sigmoid(-1.0 + 1.2 - 2.0 * (0.8 + 0.7 * 0.6)), rel=1e-12)


def expected_clicks(user: UserModel, slate: list[int]) -> list[float]:
    return hand_made(user).expected_clicks(np.array([0]), np.array([[0, 1, 2]]), np.array([[slate]]))[0, 0].tolist()


# Appeals 1.1, -1.2, 0.2; similarities S(0, 1) = 0, S(0, 2) = 0.6, S(1, 2) = 0.8.
def test_satiation_by_hand() -> None:
    user = SatiationUser(satiation=3.0, arousal=1.0, continue_without_click=0.9, continue_after_click=0.5)
    first = sigmoid(1.1)
    after_click = sigmoid(0.2 - 3.0 * 0.6 + 1.0)
    second = first * 0.5 * after_click + (1 - first) * 0.9 * sigmoid(0.2)
    assert expected_clicks(user, [0, 2]) == pytest.approx([first, second], rel=1e-12)


def test_contrast_by_hand() -> None:
    user = ContrastUser(contrast=2.0, attention_decay=0.8)
    first = sigmoid(1.1 + 2.0 * 0.6 * np.tanh(0.9))  # shines beside the similar item 2
    middle = sigmoid(0.2 - 2.0 * 0.6 * np.tanh(0.9) + 2.0 * 0.8 * np.tanh(1.4))
    last = sigmoid(-1.2 - 2.0 * 0.8 * np.tanh(1.4))
    assert expected_clicks(user, [0, 2, 1]) == pytest.approx([first, 0.8 * middle, 0.64 * last], rel=1e-12)


def test_decoys_by_hand() -> None:
    user = DecoyUser(comparison=2.0, focus=5.0, attention_decay=0.8)
    mean = 3.5 / 3  # of the values 1, 2, 0.5
    weights = [1.0, np.exp(5.0 * 0.6)]  # items 1 and 2, beside item 0
    reference = (weights[0] * 2.0 + weights[1] * 0.5) / sum(weights)
    first = sigmoid(1.1 + 2.0 * (reference - mean))
    weights = [np.exp(5.0 * 0.6), np.exp(5.0 * 0.8)]  # items 0 and 1, beside item 2
    reference = (weights[0] * 1.0 + weights[1] * 2.0) / sum(weights)
    second = 0.8 * sigmoid(0.2 + 2.0 * (reference - mean))
    assert expected_clicks(user, [0, 2]) == pytest.approx([first, second], rel=1e-12)  # item 1 is a decoy, not shown
    alone = hand_made(user).expected_clicks(np.array([0]), np.array([[2]]), np.array([[[0]]]))
    assert alone.item() == pytest.approx(sigmoid(0.2), rel=1e-12)
    stand_alone = hand_made(user).audience(np.array([0]), np.array([[0, 1, 2]])).stand_alone()
    assert stand_alone[0].tolist() == pytest.approx([sigmoid(1.1), 2 * sigmoid(-1.2), 0.5 * sigmoid(0.2)], rel=1e-12)


def test_choice_and_needs_by_hand() -> None:
    weights = [np.exp(1.1 - 0.5 * 0.6), 0.8 * np.exp(0.2 - 0.5 * 0.6)]
    chosen = [weight / (1 + sum(weights)) for weight in weights]
    assert expected_clicks(ChoiceUser(rivalry=0.5, attention_decay=0.8), [0, 2]) == pytest.approx(chosen, rel=1e-12)
    apart = [weight / (1 + weight) for weight in weights]  # categories 0 and 2 are two needs
    assert expected_clicks(NeedsUser(rivalry=0.5, attention_decay=0.8), [0, 2]) == pytest.approx(apart, rel=1e-12)


@pytest.mark.parametrize("user", [None, SatiationUser(), ChoiceUser()])
def test_sampled_feedback_agrees_with_expected_utility(user: UserModel | None) -> None:
    simulator = Simulator(replace(SMALL, user=user))
    users, items, slates, _ = columns(simulator.requests("test", 5))
    repeats = 40_000
    many = np.repeat(slates[:, None], repeats, axis=1)
    clicks = simulator.sample_feedback(users, items, many, np.random.default_rng(0))
    values = simulator.item_values[np.take_along_axis(items, slates, axis=1)]
    rewards = (clicks * values[:, None]).sum(axis=2)
    error = rewards.std(axis=1) / np.sqrt(repeats)
    expected = simulator.expected_utility(users, items, slates[:, None])[:, 0]
    assert (np.abs(rewards.mean(axis=1) - expected) < 4.0 * error).all()
    assert (error < 0.02 * expected).all()  # the bound above means something


def test_logged_clicks_agree_with_expected_utility() -> None:
    simulator = Simulator(SimulatorSettings())
    table = simulator.requests("train", 20_000)
    users, items, slates, _ = columns(table)
    expected = simulator.expected_utility(users, items, slates[:, None])[:, 0]
    values = np.take_along_axis(np.array(table["value"].to_pylist()), slates, axis=1)
    residual = (np.array(table["click"].to_pylist()) * values).sum(axis=1) - expected
    assert abs(residual.mean()) < 4.0 * residual.std() / np.sqrt(len(residual))


def test_all_utilities_enumerates_all_slates() -> None:
    simulator = Simulator(SMALL)
    users, items, *_ = columns(simulator.requests("test", 7))
    slates = np.broadcast_to(all_slates(6, 3), (7, 120, 3))
    np.testing.assert_allclose(
        simulator.all_utilities(users, items, 3), simulator.expected_utility(users, items, slates), rtol=1e-12
    )


def test_local_search_ends_where_no_swap_and_no_replacement_helps() -> None:
    simulator = Simulator(SMALL)
    users, items, *_ = columns(simulator.requests("test", 9))
    utilities = simulator.all_utilities(users, items, 3)
    slates = all_slates(6, 3)
    for start in (slates[np.zeros(len(users), int)], slates[utilities.argmin(1)]):
        found = simulator.local_search(users, items, start)
        for request in range(len(users)):
            shared = [len({*one} & {*found[request]}) for one in slates]
            moved = [(one != found[request]).sum() for one in slates]
            # Neighbours: one item replaced (two shared, one place differs) or two swapped (all shared, two differ).
            near = [k for k in range(len(slates)) if (shared[k], moved[k]) in ((3, 0), (2, 1), (3, 2))]
            own = utilities[request, next(k for k in near if moved[k] == 0)]
            assert own == pytest.approx(utilities[request, near].max(), rel=1e-8)
        before = simulator.expected_utility(users, items, start[:, None])
        assert (simulator.expected_utility(users, items, found[:, None]) >= before).all()
    best = slates[utilities.argmax(1)]
    np.testing.assert_array_equal(simulator.local_search(users, items, best), best)
    whole = simulator.local_search(users, items[:, :1], np.zeros((len(users), 1), int))
    np.testing.assert_array_equal(whole, np.zeros((len(users), 1)))


def test_full_width_beam_finds_the_best_slate_and_one_beam_is_greedy() -> None:
    simulator = Simulator(SMALL)
    users, items, *_ = columns(simulator.requests("test", 9))
    best = simulator.all_utilities(users, items, 3).argmax(axis=1)
    np.testing.assert_array_equal(simulator.beam(users, items, 3, num_beams=120), all_slates(6, 3)[best])
    greedy = simulator.greedy(users, items, 3)
    for size in range(3):  # by definition: no other next item has a better prefix
        nexts = [[j for j in range(6) if j not in row[:size]] for row in greedy]
        options = np.array([[[*row[:size], j] for j in js] for row, js in zip(greedy, nexts, strict=True)])
        chosen = simulator.expected_utility(users, items, options).argmax(axis=1)
        np.testing.assert_array_equal(options[np.arange(9), chosen, size], greedy[:, size])


def test_truth_does_not_depend_on_the_order_of_candidates() -> None:
    simulator = Simulator(SMALL)
    users, items, slates, _ = columns(simulator.requests("test", 30))
    order = np.random.default_rng(1).permuted(np.tile(np.arange(6), (30, 1)), axis=1)
    shuffled = np.take_along_axis(items, order, axis=1)
    relabelled = np.take_along_axis(np.argsort(order, axis=1), slates, axis=1)
    np.testing.assert_allclose(
        simulator.expected_utility(users, shuffled, relabelled[:, None]),
        simulator.expected_utility(users, items, slates[:, None]),
        rtol=1e-12,
    )
    for policy in (simulator.pointwise_oracle, simulator.greedy):
        np.testing.assert_array_equal(
            np.take_along_axis(shuffled, policy(users, shuffled, 3), axis=1),
            np.take_along_axis(items, policy(users, items, 3), axis=1),
        )


def test_requests_are_deterministic_and_extend_shorter_tables() -> None:
    simulator = Simulator(SMALL)
    test = simulator.requests("test", 5)
    train = simulator.requests("train", BLOCK_SIZE + 7)
    assert train.num_rows == BLOCK_SIZE + 7
    assert Simulator(SMALL).requests("train", BLOCK_SIZE + 1).equals(train.slice(0, BLOCK_SIZE + 1))
    assert simulator.requests("test", 5).equals(test)  # whatever was drawn in between
    assert simulator.requests("train", 0).schema == train.schema
    rows = {name: str(simulator.requests(name, 3)["item_id"].to_pylist()) for name in ("train", "validation", "test")}
    assert len(set(rows.values())) == 3
    assert train.slice(0, 5)["item_id"].to_pylist() != train.slice(BLOCK_SIZE, 5)["item_id"].to_pylist()
    other = Simulator(SimulatorSettings(**{**asdict(SMALL), "seed": 1}))
    assert not other.requests("test", 5).equals(test)


def test_tables_follow_the_schema() -> None:
    simulator = Simulator(SimulatorSettings())
    schema, table = simulator.schema, simulator.requests("validation", 200)
    assert schema.numeric_size("candidate") == 8 + 8 + 2
    items, slates = np.array(table["item_id"].to_pylist()), np.array(table["slate"].to_pylist())
    assert items.shape == (200, 10)
    assert slates.shape == (200, 4)
    assert all(len(set(row)) == 10 for row in items.tolist())
    assert all(len(set(row)) == 4 for row in slates.tolist())
    for field in schema.fields:
        width = (200,) if field.group == "request" else (200, 10)
        shape = np.array(table[field.name].to_pylist()).shape
        assert shape == (width if field.kind != "dense" else (*width, field.size))
    np.testing.assert_array_equal(np.array(table["category"].to_pylist()), simulator.item_categories[items])
    user, item = (np.array(table[name].to_pylist()) for name in ("user_embedding", "item_embedding"))
    np.testing.assert_allclose(np.array(table["affinity"].to_pylist()), 4.0 * user[:, None] * item, rtol=1e-5)


def test_row_order_says_nothing_about_relevance() -> None:
    simulator = Simulator(SimulatorSettings())
    upstream = np.array(simulator.requests("train", 5_000)["upstream_score"].to_pylist())
    means = upstream.mean(axis=0)
    assert np.abs(means - means.mean()).max() < 4.0 * upstream.std() / np.sqrt(5_000)


def test_propensity_is_the_plackett_luce_probability() -> None:
    simulator = Simulator(SMALL)
    table = simulator.requests("test", 3)
    _, _, slates, upstream = columns(table)
    weights = np.exp(upstream / SMALL.logging_temperature)
    chosen = np.take_along_axis(weights, slates, axis=1)
    left = weights.sum(axis=1, keepdims=True) - np.cumsum(chosen, axis=1) + chosen
    np.testing.assert_allclose(np.array(table["propensity"].to_pylist()), chosen / left, rtol=1e-5)


def test_explored_slates_have_the_propensities_of_a_mixture() -> None:
    settings = replace(SMALL, exploration=0.3)
    table = Simulator(settings).requests("test", 200)
    _, _, slates, upstream = columns(table)
    uniform = 1 / 6 / 5 / 4
    expected = 0.3 * uniform + 0.7 * plackett_luce_propensities(upstream / 0.7, slates).prod(1)
    np.testing.assert_allclose(np.array(table["propensity"].to_pylist()).prod(1), expected, rtol=1e-4)


def test_a_deterministic_logger_shows_the_upstream_order() -> None:
    table = Simulator(replace(SMALL, logging_temperature=0.0)).requests("test", 50)
    _, _, slates, upstream = columns(table)
    np.testing.assert_array_equal(slates, np.argsort(-upstream, axis=1)[:, :3])
    assert set(np.array(table["propensity"].to_pylist()).ravel()) == {1.0}
    explored = Simulator(replace(SMALL, logging_temperature=0.0, exploration=0.2)).requests("test", 1_000)
    _, _, slates, upstream = columns(explored)
    usual = (slates == np.argsort(-upstream, axis=1)[:, :3]).all(1)
    assert usual.mean() == pytest.approx(0.8 + 0.2 / 120, abs=4 * np.sqrt(0.16 / 1_000))
    products = np.array(explored["propensity"].to_pylist()).prod(1)
    np.testing.assert_allclose(products, np.where(usual, 0.8 + 0.2 / 120, 0.2 / 120), rtol=1e-5)


def test_requests_may_share_a_few_sets_of_candidates() -> None:
    simulator = Simulator(replace(SMALL, candidate_sets=3))
    _, items, *_ = columns(simulator.requests("train", 300))
    sets = {tuple(row) for row in np.sort(items, axis=1).tolist()}
    assert sets == {tuple(row) for row in np.sort(simulator.candidate_sets, axis=1).tolist()}
    assert len(sets) == 3
    assert (items != items[:, :1].repeat(6, axis=1)).sum(axis=1).min() == 5
    assert len({tuple(row) for row in items.tolist()}) > 100  # in random order


@pytest.mark.parametrize("setting", ["strong", "choice"])
def test_click_rate_is_that_of_the_logged_positions(setting: str) -> None:
    simulator = Simulator(SimulatorSettings.named(setting, click_rate=0.005))
    users, items, slates, _ = columns(simulator.requests("train", 4_000))
    assert simulator.expected_clicks(users, items, slates[:, None]).mean() == pytest.approx(0.005, rel=0.05)
    assert simulator.base_logit < -4.0


def test_an_unreachable_click_rate_is_refused() -> None:
    with pytest.raises(ValueError, match=r"click_rate 0\.5 cannot be reached in this world, the nearest is 0\.25"):
        Simulator(SimulatorSettings.named("choice", click_rate=0.5))


def test_sampled_slates_have_plackett_luce_frequencies() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2]))
    slates, propensities = plackett_luce_slates(np.tile(logits, (60_000, 1)), 2, np.random.default_rng(0))
    for slate, probability in (((0, 1), 0.5 * 0.6), ((2, 0), 0.2 * 0.5 / 0.8), ((1, 2), 0.3 * 0.2 / 0.7)):
        rows = (slates == slate).all(axis=1)
        assert rows.mean() == pytest.approx(probability, abs=4.0 * np.sqrt(probability / 60_000))
        np.testing.assert_allclose(propensities[rows].prod(axis=1), probability, rtol=1e-12)


def test_world_is_as_described() -> None:
    simulator = Simulator(SimulatorSettings())
    np.testing.assert_allclose(np.linalg.norm(simulator.item_vectors, axis=1), 1.0)
    np.testing.assert_allclose(np.linalg.norm(simulator.user_vectors, axis=1), 1.0)
    assert (simulator.complements.sum(axis=1) == 2).all()
    assert not simulator.complements.diagonal().any()
    assert simulator.item_values.min() >= 0.5
    assert simulator.item_values.max() <= 2.0
    assert simulator.item_biases.std() == pytest.approx(0.4, rel=0.1)


def test_interest_is_the_taste_and_what_is_left_of_each_click() -> None:
    drift = Simulator(SimulatorSettings.named("drift", num_users=40, interest_half_life=10.0))
    steady = Simulator(SimulatorSettings.named("steady", num_users=40))
    assert np.array_equal(drift.observed_users, steady.observed_users)  # of the taste
    tastes, (clicked, hours) = steady.user_vectors, drift.visits
    assert clicked.shape == hours.shape == (40, 20)
    assert (np.diff(hours, axis=1) < 0).all()  # the newest last
    assert (hours > 0).all()
    assert hours[:, 0].mean() == pytest.approx(20 * 24.0, rel=0.1)
    for user in range(40):
        interest = tastes[user].copy()
        for item, ago in zip(clicked[user], hours[user], strict=True):
            interest += 2.0 * 0.5 ** (ago / 10.0) * drift.item_vectors[item]
        np.testing.assert_allclose(drift.user_vectors[user], interest / np.linalg.norm(interest), rtol=1e-9)
    # The truth follows interest, the log carries what moved it.
    table = drift.requests("test", 5)
    users, items, *_ = columns(table)
    affinity = np.einsum("bd,bnd->bn", drift.user_vectors[users], drift.item_vectors[items])
    appeal = drift.audience(users, items).requests.appeal
    np.testing.assert_allclose(appeal, -1.5 + 3.0 * affinity + drift.item_biases[items])
    np.testing.assert_array_equal(np.array(table["history_item_id"].to_pylist()), clicked[users])
    np.testing.assert_allclose(np.array(table["history_time"].to_pylist()), hours[users], rtol=1e-6)
    fitted = RerankingFeatureExtractor(drift.schema).fit(table)
    assert fitted(table)["history_numeric"].shape == (5, 20, 8)
    assert "history_time" not in Simulator(SimulatorSettings()).requests("test", 1).column_names


def test_visits_with_several_clicks_are_pages_of_the_history() -> None:
    one = Simulator(SimulatorSettings.named("drift", num_users=40, history_length=5))
    world = Simulator(SimulatorSettings.named("drift", num_users=40, history_length=5, visit_clicks=3))
    clicked, hours = world.visits
    assert clicked.shape == hours.shape == (40, 15)
    assert np.array_equal(hours[:, ::3], one.visits[1])
    assert np.array_equal(hours, hours[:, ::3].repeat(3, axis=1))
    assert np.array_equal(clicked[:, 0], one.visits[0][:, 0])  # the best comes first
    left = 0.5 ** (hours / 24.0)
    interest = world.settings.interest_pull * np.einsum("ul,uld->ud", left, world.item_vectors[clicked])
    interest += Simulator(SimulatorSettings.named("steady", num_users=40)).user_vectors
    np.testing.assert_allclose(world.user_vectors, interest / np.linalg.norm(interest, axis=1, keepdims=True))
    table = world.requests("test", 3)
    assert table["history_page"].to_pylist() == [[5, 5, 5, 4, 4, 4, 3, 3, 3, 2, 2, 2, 1, 1, 1]] * 3
    batch = RerankingFeatureExtractor(world.schema).fit(table)(table)
    assert batch["history_page"][0].tolist() == table["history_page"][0].as_py()
    assert "history_page" not in one.requests("test", 1).column_names
    with pytest.raises(ValueError, match=r"visit_clicks must be in 1\.\.10, got 11"):
        SimulatorSettings(visit_clicks=11)


def test_folder_rebuilds_its_world(tmp_path: Path) -> None:
    settings = SimulatorSettings.named("medium", seed=4, num_items=50)
    write_simulator_folder(tmp_path, settings, num_train=30, num_validation=20, num_test=10)
    metadata = read_metadata(tmp_path)
    assert metadata["rows"] == {"train": 30, "validation": 20, "test": 10}
    simulator = Simulator.from_metadata(metadata)
    assert simulator.settings == settings
    assert simulator.requests("test", 10).equals(pq.read_table(tmp_path / "test.parquet"))
    assert FeatureSchema.from_yaml(tmp_path / "schema.yaml") == simulator.schema


def test_metadata_tell_a_user_model_and_leave_out_what_is_new_elsewhere() -> None:
    first = json.loads(json.dumps(SimulatorSettings.named("medium").to_dict()))
    assert {"user", "exploration", "click_rate", "candidate_sets", "visit_gap", "logs_seen"}.isdisjoint(first)
    settings = SimulatorSettings.named("choice", rivalry=0.7, seed=3, exploration=0.1)
    values = json.loads(json.dumps(settings.to_dict()))
    assert values["user"] == {"name": "choice", "rivalry": 0.7, "attention_decay": 0.75}
    assert SimulatorSettings.from_dict(values) == settings
    for user, message in (
        ({"name": "chance"}, "unknown user model 'chance', expected one of .*'cascade'.*'satiation'"),
        ({"name": "choice", "rival": 1.0}, r"unknown constants \['rival'\] of the user model 'choice'"),
        ("choice", "user: expected a name and constants, got 'choice'"),
        ({"name": "choice", "rivalry": "x"}, "rivalry must be a number, got 'x'"),
        ({"name": "choice", "rivalry": -1.0}, "rivalry must not be negative, got -1.0"),
        ({"name": "needs", "attention_decay": 2.0}, "attention_decay must be a probability, got 2.0"),
    ):
        with pytest.raises(ValueError, match=message):
            SimulatorSettings.from_dict({**values, "user": user})
    with pytest.raises(ValueError, match="user model 'choice' is ChoiceUser, it cannot be NeedsUser too"):
        register_user_model(type("NeedsUser", (NeedsUser,), {"name": "choice"}))
    assert USER_MODELS["choice"] is ChoiceUser


def test_a_log_may_tell_what_was_seen() -> None:
    plain, telling = Simulator(SMALL), Simulator(replace(SMALL, logs_seen=True))
    table = telling.requests("train", BLOCK_SIZE)
    assert table.drop_columns("seen").equals(plain.requests("train", BLOCK_SIZE))
    assert [target.name for target in telling.schema.targets] == ["click", "seen"]
    seen, clicks = (np.array(table[name].to_pylist()) for name in ("seen", "click"))
    assert (np.diff(seen) <= 0).all()  # from the top, until she leaves
    assert (seen[:, 0] == 1).all()
    assert (clicks <= seen).all()
    further = [seen[:, 1:][(seen[:, :-1] > 0) & (clicks[:, :-1] == clicked)].mean() for clicked in (0, 1)]
    assert further == pytest.approx([0.75, 0.95], abs=0.05)


def test_blocks_are_the_rows_of_the_table_one_after_another() -> None:
    simulator, size = Simulator(SMALL), 2 * BLOCK_SIZE + 7
    blocks = list(simulator.blocks("train", size))
    assert [len(block) for block in blocks] == [BLOCK_SIZE, BLOCK_SIZE, 7]
    assert pa.concat_tables(blocks).equals(simulator.requests("train", size))
    assert [len(block) for block in simulator.blocks("train", 0)] == [0]


def test_a_long_table_is_written_by_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rerankzoo.data.folder.ROW_GROUP", BLOCK_SIZE)
    write_simulator_folder(tmp_path / "log", SMALL, num_train=2 * BLOCK_SIZE + 7, num_validation=2, num_test=1)
    written = pq.ParquetFile(tmp_path / "log" / "train.parquet")
    groups = [written.metadata.row_group(group).num_rows for group in range(written.num_row_groups)]
    assert groups == [BLOCK_SIZE, BLOCK_SIZE, 7]
    assert written.read().equals(Simulator(SMALL).requests("train", 2 * BLOCK_SIZE + 7))
    assert pq.read_metadata(tmp_path / "log" / "validation.parquet").num_rows == 2
    assert [path.name for path in tmp_path.iterdir()] == ["log"]  # no work files


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"source": "ml-100k"}, "'ml-100k' holds no simulator settings"),
        ({"source": "simulator", "settings": {"num_item": 3}}, r"unknown simulator constants \['num_item'\]"),
    ],
)
def test_from_metadata_refuses_other_folders(metadata: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Simulator.from_metadata(json.loads(json.dumps(metadata)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"slate_size": 11}, "1 <= slate_size <= num_candidates"),
        ({"num_complements": 8}, "num_complements 8 must be below num_categories 8"),
        ({"continue_after_click": 1.2}, "continue_after_click must be a probability, got 1.2"),
        ({"logging_temperature": 0.01}, r"logging_temperature must be 0 or at least 0\.05, got 0\.01"),
        ({"seed": -1}, "seed must not be negative"),
        ({"candidate_sets": -1}, "candidate_sets must not be negative, got -1"),
        ({"logs_seen": True, "user": ChoiceUser()}, "'choice' does not tell which positions are seen"),
        ({"exploration": 1.5}, "exploration must be a probability, got 1.5"),
        ({"history_length": -1}, "history_length must not be negative, got -1"),
        ({"interest_half_life": 0.0}, r"interest_half_life must be positive, got 0\.0"),
        ({"click_rate": 0.0}, "click_rate must be between 0 and 1, got 0.0"),
        (
            {"user": ChoiceUser(), "lookahead": 0.1},
            r"\['lookahead'\] are constants of the cascade user, not of 'choice'",
        ),
        ({"sed": 1}, r"unknown simulator constants \['sed'\]"),
    ],
)
def test_settings_refuse_nonsense(overrides: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimulatorSettings.named("strong", **overrides)


def test_unknown_names_are_refused() -> None:
    message = r"simulator setting: expected one of .*control.*medium.*strong.*, got 'week'; did you mean 'weak'"
    with pytest.raises(ValueError, match=message):
        SimulatorSettings.named("week")
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        Simulator(SMALL).requests("dev", 3)
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        Simulator(SMALL).requests("test", -1)


@pytest.mark.parametrize(
    ("users", "items", "slates", "field", "message"),
    [
        ([0, 99], [[0, 1], [2, 3]], [[[0]], [[0]]], "user_id", r"row 1: id 99 is outside 0\.\.19"),
        ([0, 1], [[0, 1], [2, 60]], [[[0]], [[0]]], "item_id", r"row 1: id 60 is outside 0\.\.59"),
        ([0], [[0, 1], [2, 3]], [[[0]], [[0]]], "item_id", r"expected integers \(1, N\), got shape \(2, 2\)"),
        ([0.5], [[0, 1]], [[[0]]], "user_id", "float64"),
        ([0, 1], [[0, 1], [2, 3]], [[[0, 1]], [[1, -100]]], "slate", r"row 1: position -100 is outside 0\.\.1"),
        ([0, 1], [[0, 1], [2, 3]], [[[0, 1]], [[1, 1]]], "slate", r"row 1: slate \[1, 1\] repeats"),
        ([0], [[0, 1]], [[0, 1]], "slate", r"\(1, S, M\)"),
    ],
)
def test_truth_refuses_bad_input(users: list, items: list, slates: list, field: str, message: str) -> None:
    with pytest.raises(RerankingDataError, match=message) as error:
        Simulator(SMALL).expected_utility(np.array(users), np.array(items), np.array(slates))
    assert error.value.field == field


def test_decoders_refuse_bad_sizes() -> None:
    simulator, users, items = Simulator(SMALL), np.array([0]), np.array([[0, 1]])
    with pytest.raises(ValueError, match=r"slate_size 3 is outside 1\.\.2"):
        simulator.greedy(users, items, 3)
    with pytest.raises(ValueError, match=r"slate_size 0 is outside 1\.\.2"):
        simulator.pointwise_oracle(users, items, 0)
    with pytest.raises(ValueError, match="num_beams must be at least 1, got 0"):
        simulator.beam(users, items, 2, num_beams=0)
