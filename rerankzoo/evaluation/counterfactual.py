"""What a log says of slates that it did not choose: estimates of their expected utility, with intervals or a refusal.

Whoever logs by chance, and knows with which probability, can be asked about others. The target is the expected utility
per request, over the requests of the log's population. Slates to be judged are decoded without chance: for a request
the policy is one slate e, so that every importance weight is an indicator divided by a probability. Notation: a logged
slate a of M positions, its reward r_k at position k, and p_k the probability of a_k given the request and a_1..a_k-1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rerankzoo.batch import PADDING
from rerankzoo.metrics import mean_interval
from rerankzoo.slates import all_slates

#: An estimate from fewer effective requests is refused.
MIN_EFFECTIVE = 100
#: An estimate from fewer requests that have a weight and a reward is refused.
MIN_REWARDED = 30

_Z = 1.959964  # of a two-sided 95 % interval
_Z_POWER = 0.841621  # of power 80 %
_MAX_SLATES = 20_000  # of a request that are listed to know the moments of a logging policy


@dataclass(frozen=True)
class LoggedSlates:
    """What was shown, with which probability, and what it earned.

    Args:
        slates: (R, M) int, indexes of candidates, -100 pads.
        propensities: (R, M), of each position given those before it, in (0, 1]; 1 at padding.
        rewards: (R, M), utility of each position, 0 at padding.
        estimated: Whether the probabilities are those of a fitted logging policy.

    Raises:
        ValueError: If shapes differ, a probability is not in (0, 1] or a reward is not finite, naming the row.
    """

    slates: np.ndarray
    propensities: np.ndarray
    rewards: np.ndarray
    estimated: bool = False

    def __post_init__(self) -> None:
        shape = self.slates.shape
        if len(shape) != 2 or not all(shape):
            raise ValueError(f"slates: expected shape (R, M) with R and M at least 1, got {shape}")
        _check("propensities", self.propensities, shape, lambda values: (values > 0) & (values <= 1), "in (0, 1]")
        _check("rewards", self.rewards, shape, np.isfinite, "finite")

    @property
    def utility(self) -> np.ndarray:
        """(R,), of whole slates."""
        return self.rewards.sum(1)


@dataclass(frozen=True)
class Estimate:
    """An estimated expected utility per request; without value and interval where the log cannot tell."""

    name: str
    value: float | None
    low: float | None  # of the 95 % interval over requests
    high: float | None
    effective_sample_size: float  # (sum of weights)^2 / sum of squares; the smallest over positions
    largest_weight: float
    share_clipped: float  # of the sum of weights
    num_requests: int
    num_rewarded: int  # requests with a weight and a reward
    estimated: bool  # the propensities are
    refusal: str | None = None  # why there is no value

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: what there is not is no key of it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def ips(log: LoggedSlates, slates: np.ndarray, clip: float | None = None) -> Estimate:
    """Inverse propensity score of whole slates: mean of w r, w = 1[a = e] / prod_k p_k. Assumes nothing of users."""
    weights = _prefix_weights(log, slates)[:, -1:]
    return _estimate("ips", log, weights, log.utility[:, None], clip)


def snips(log: LoggedSlates, slates: np.ndarray, clip: float | None = None) -> Estimate:
    """Self-normalised IPS (Swaminathan and Joachims 2015): sum of w r / sum of w; the interval by the delta method."""
    weights = _prefix_weights(log, slates)[:, -1]
    kept = np.minimum(weights, clip or np.inf)
    total = kept.sum()
    value = float(kept @ log.utility / total) if total else 0.0
    influence = value + kept * (log.utility - value) * (len(kept) / total if total else 0.0)
    return _estimate("snips", log, weights[:, None], log.utility[:, None], clip, influence)


def reward_interaction_ips(log: LoggedSlates, slates: np.ndarray, clip: float | None = None) -> Estimate:
    """Reward-interaction IPS (McInerney et al. 2020): sum over k of w_1:k r_k, w_1:k = 1[a_1:k = e_1:k] / prod p.

    Assumes that a reward depends on its own item and those before it, not on what comes later.
    """
    return _estimate("reward interaction", log, _prefix_weights(log, slates), log.rewards, clip)


def cascade_doubly_robust(
    log: LoggedSlates, slates: np.ndarray, predictions: np.ndarray | None = None, clip: float | None = None
) -> Estimate:
    """Cascade doubly robust (Kiyohara et al. 2022): sum over k of w_1:k (r_k - Q_k) + w_1:k-1 Q_k.

    Q_k predicts what the slate to be judged earns from position k on. Assumes what reward-interaction IPS does; good
    predictions narrow the interval, bad ones do no harm without clipping.

    Args:
        log: What was shown.
        slates: (R, M), those to be judged.
        predictions: (R, M), rewards by position of `slates`, of a model that did not learn from this log. Default: the
            mean reward of the position.
        clip: Largest weight.
    """
    if predictions is None:
        predictions = np.broadcast_to(log.rewards.mean(0), log.rewards.shape)
    _check("predictions", predictions, log.rewards.shape, np.isfinite, "finite")
    future = predictions[:, ::-1].cumsum(1)[:, ::-1]
    weights = _prefix_weights(log, slates)
    kept = np.minimum(weights, clip or np.inf)
    before = np.concatenate([np.ones((len(kept), 1)), kept[:, :-1]], axis=1)
    contributions = (kept * (log.rewards - future) + before * future).sum(1)
    return _estimate("cascade doubly robust", log, weights, log.rewards, clip, contributions)


def independent_ips(
    log: LoggedSlates, slates: np.ndarray, marginals: np.ndarray, clip: float | None = None
) -> Estimate:
    """Independent, or item-position, IPS (Li et al. 2018): sum over k of 1[a_k = e_k] / P(a_k at k) r_k.

    Assumes that a reward depends on its item and position only.

    Args:
        log: What was shown.
        slates: (R, M), those to be judged.
        marginals: (R, M), the probability that the logging policy puts the item of `slates` at its position, whatever
            stands before (see `PlackettLuceLogger.moments`): not what a log of propensities given those before holds.
        clip: Largest weight.
    """
    _check("marginals", marginals, log.slates.shape, lambda values: (values >= 0) & (values <= 1), "in [0, 1]")
    same = _same(log, slates)
    if (same & (marginals == 0)).any():
        row = int((same & (marginals == 0)).any(1).argmax())
        raise ValueError(f"marginals: row {row} says 0 of an item that was shown there")
    weights = np.divide(same, marginals, out=np.zeros(same.shape), where=same)
    return _estimate("independent", log, weights, log.rewards, clip)


def pseudo_inverse(log: LoggedSlates, slate_weights: np.ndarray, clip: float | None = None) -> Estimate:
    """Pseudo-inverse (Swaminathan et al. 2017): mean of w r, w = 1_e' G^+ 1_a, G = E[1_a 1_a'] where logged.

    1_a marks the pairs of item and position of a slate. Assumes that a slate's utility is a sum over such pairs, and
    needs no match of whole slates. Weights may be negative.

    Args:
        log: What was shown.
        slate_weights: (R,), of `PlackettLuceLogger.pseudo_inverse_weights`.
        clip: Largest absolute weight.
    """
    weights = slate_weights[:, None]
    _check("slate_weights", weights, (len(log.slates), 1), np.isfinite, "finite")
    return _estimate("pseudo-inverse", log, weights, log.utility[:, None], clip)


def requests_in_each_arm(spread: float, difference: float) -> int:
    """Requests that show a difference with power 80 % at level 5 % (two-sided, normal), both in units of `spread`.

    2 (1.96 + 0.84)^2 variance / difference^2; `spread` is the standard deviation of one request.
    """
    return math.ceil(2 * ((_Z + _Z_POWER) * spread / difference) ** 2)


def requests_to_randomise(
    utilities: np.ndarray, slate_size: int, share: float, relative_difference: float = 0.1
) -> int:
    """How many requests to log so that exchanging neighbours shows a difference of the utility per request.

    In `share` of the requests one of the M - 1 pairs of neighbouring positions, drawn uniformly, is exchanged with
    probability one half. Then each pair is a comparison of two arms (see `requests_in_each_arm`).

    Args:
        utilities: (R,), of logged slates.
        slate_size: M, at least 2.
        share: Of requests that are randomised, in (0, 1].
        relative_difference: Of the mean utility.
    """
    mean, spread = float(utilities.mean()), float(utilities.std(ddof=1))
    if slate_size < 2 or not 0 < share <= 1 or relative_difference <= 0 or mean <= 0:
        raise ValueError(
            f"expected slate_size >= 2, share in (0, 1], a positive difference and mean utility, got {slate_size}, "
            f"{share}, {relative_difference} and {mean}"
        )
    return math.ceil(2 * requests_in_each_arm(spread, relative_difference * mean) * (slate_size - 1) / share)


@dataclass(frozen=True)
class PlackettLuceLogger:
    """A logging policy that draws slates item by item with probability proportional to exp(score / temperature).

    A share of the requests are shown uniform slates instead.
    """

    temperature: float
    uniform_share: float = 0.0

    @classmethod
    def fit(cls, scores: np.ndarray, slates: np.ndarray) -> PlackettLuceLogger:
        """Maximum likelihood of shown slates (R, M) given upstream scores (R, N), -inf at padding.

        An estimate: it is wrong where the logging policy was of another form, and nothing in a log tells by how much.
        """
        spread = float(scores[np.isfinite(scores)].std()) or 1.0
        logits, shown = torch.tensor(scores / spread, dtype=torch.float64), torch.from_numpy(slates).long()
        padding = logits.isneginf()
        known = logits.masked_fill(padding, 0.0)  # -inf times what is fitted has no gradient
        uniform = torch.zeros_like(logits).masked_fill(padding, -math.inf)
        log_uniform = _log_likelihoods(uniform, shown).sum(1)
        parameters = torch.tensor([0.0, -3.0], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            policy = (known * torch.exp(parameters[0])).masked_fill(padding, -math.inf)
            log_policy = _log_likelihoods(policy, shown).sum(1)
            drawn = F.logsigmoid(parameters[1]) + log_uniform
            total = -torch.logaddexp(drawn, F.logsigmoid(-parameters[1]) + log_policy).mean()
            total.backward()
            return total

        optimizer.step(loss)
        log_inverse, share = parameters.detach().tolist()
        return cls(spread / math.exp(log_inverse), 1 / (1 + math.exp(-share)))

    def propensities(self, scores: np.ndarray, slates: np.ndarray) -> np.ndarray:
        """(R, M), of each position of the slates given those before; scores (R, N), -inf at padding."""
        prefixes = self._prefixes(scores, slates)
        return prefixes / np.concatenate([np.ones((len(slates), 1)), prefixes[:, :-1]], axis=1)

    def marginals(self, scores: np.ndarray, slates: np.ndarray) -> np.ndarray:
        """The probability of each item of slates (R, ..., M) at its position, whatever stands before; same shape.

        Exact, for all slates of a request are listed: a ValueError where `can_list` says no.
        """
        space = _space(scores, slates)
        pairs = _pairs(space, scores.shape[1])
        tables = [self._probabilities(scores[rows], space) @ pairs for rows in _chunks(len(scores), space.size)]
        return _look_up(np.concatenate(tables), slates)

    def pseudo_inverse_weights(self, scores: np.ndarray, shown: np.ndarray, slates: np.ndarray) -> np.ndarray:
        """1_e' G^+ 1_a, (R, ...), of slates e (R, ..., M) to be judged and shown slates a (R, M); as `marginals`."""
        space = _space(scores, slates)
        pairs, of_shown = _pairs(space, scores.shape[1]), _pairs(shown, scores.shape[1])
        tables = []
        for rows in _chunks(len(scores), pairs.size):
            moments = (pairs.T * self._probabilities(scores[rows], space)[:, None]) @ pairs
            inverse = np.linalg.pinv(moments, hermitian=True, rcond=1e-10)
            tables.append(np.einsum("bij,bj->bi", inverse, of_shown[rows]))
        return np.asarray(_look_up(np.concatenate(tables), slates).sum(-1))

    def _probabilities(self, scores: np.ndarray, space: np.ndarray) -> np.ndarray:
        """(B, A), of all slates (A, M) of requests with scores (B, N)."""
        rows = np.repeat(scores, len(space), axis=0), np.tile(space, (len(scores), 1))
        return self._prefixes(*rows)[:, -1].reshape(len(scores), len(space))

    def _prefixes(self, scores: np.ndarray, slates: np.ndarray) -> np.ndarray:
        """(R, M), the probability of each prefix of the slates."""
        logits, shown = torch.tensor(scores, dtype=torch.float64), torch.tensor(slates)
        uniform = torch.zeros_like(logits).masked_fill(logits.isneginf(), -math.inf)
        of_policy, of_uniform = (
            _log_likelihoods(one, shown).cumsum(1).exp().numpy() for one in (logits / self.temperature, uniform)
        )
        return np.asarray(self.uniform_share * of_uniform + (1 - self.uniform_share) * of_policy)


def can_list(scores: np.ndarray, slates: np.ndarray) -> bool:
    """Whether requests (R, N) and slates (R, ..., M) have no padding, and a request no more than 20,000 slates."""
    few = math.perm(scores.shape[1], slates.shape[-1]) <= _MAX_SLATES
    return few and bool(np.isfinite(scores).all()) and not (slates == PADDING).any()


def _space(scores: np.ndarray, slates: np.ndarray) -> np.ndarray:
    """(A, M), all slates of a request."""
    if not can_list(scores, slates):
        raise ValueError(
            f"expected no padding and at most {_MAX_SLATES} slates of a request, got slates of {slates.shape[-1]} of "
            f"{scores.shape[1]} candidates"
        )
    return all_slates(scores.shape[1], slates.shape[-1])


def _look_up(table: np.ndarray, slates: np.ndarray) -> np.ndarray:
    """Entries of a table (R, M N) for each position of slates (R, ..., M); same shape as the slates."""
    flat = slates.reshape(len(slates), -1, slates.shape[-1])
    by_position = table.reshape(len(table), flat.shape[2], -1)
    found = np.take_along_axis(by_position, flat.swapaxes(1, 2), axis=2)
    return found.swapaxes(1, 2).reshape(slates.shape)


def _chunks(count: int, size: int) -> list[slice]:
    """Slices of so many requests that those with `size` numbers each fill no more than a few hundred MB."""
    step = max(1, 5_000_000 // size)
    return [slice(start, start + step) for start in range(0, count, step)]


def _pairs(slates: np.ndarray, num_candidates: int) -> np.ndarray:
    """(A, M N), 1 where a slate (A, M) has a candidate at a position."""
    return np.eye(num_candidates)[slates].reshape(len(slates), -1)


def _log_likelihoods(logits: Tensor, slates: Tensor) -> Tensor:
    """Log-probabilities (R, M) of slates (R, M) by a Plackett-Luce policy with logits (R, N); 0 at padding.

    Differentiable, and for padded slates, unlike `plackett_luce_propensities`.
    """
    columns, left = [], logits
    for chosen in slates.T:
        real, index = chosen != PADDING, chosen.clamp(min=0)[:, None]
        choices = left.masked_fill(~real[:, None], 0.0)  # where all candidates are taken there is no gradient
        gained = (choices.gather(1, index) - choices.logsumexp(1, keepdim=True))[:, 0]
        columns.append(torch.where(real, gained, 0.0))
        taken = torch.zeros_like(left, dtype=torch.bool).scatter(1, index, real[:, None])
        left = left.masked_fill(taken, -math.inf)
    return torch.stack(columns, dim=1)


def _same(log: LoggedSlates, slates: np.ndarray) -> np.ndarray:
    """(R, M), where the slates to be judged have the logged item."""
    if slates.shape != log.slates.shape:
        raise ValueError(f"slates to be judged: expected shape {log.slates.shape}, got {slates.shape}")
    return np.asarray(slates == log.slates)


def _prefix_weights(log: LoggedSlates, slates: np.ndarray) -> np.ndarray:
    """(R, M), the importance weight of each prefix."""
    return np.asarray(np.logical_and.accumulate(_same(log, slates), axis=1) / log.propensities.cumprod(1))


def _estimate(
    name: str,
    log: LoggedSlates,
    weights: np.ndarray,
    rewards: np.ndarray,
    clip: float | None,
    contributions: np.ndarray | None = None,
) -> Estimate:
    """The mean of contributions (R,) with its interval, or words where too few requests carry it.

    Default: the sum over columns of weights x rewards, both (R, K).
    """
    if clip is not None and clip <= 0:
        raise ValueError(f"clip must be positive, got {clip}")
    limit = clip or np.inf
    kept = weights.clip(-limit, limit)
    squares, total = (kept**2).sum(0), np.abs(weights).sum()
    effective = float(np.divide(kept.sum(0) ** 2, squares, out=np.zeros(len(squares)), where=squares > 0).min())
    rewarded = int((kept * rewards != 0).any(1).sum())
    clipped = 1 - float(np.abs(kept).sum() / total) if total else 0.0
    largest = float(np.abs(weights).max())
    contributions = (kept * rewards).sum(1) if contributions is None else contributions
    refusal = _refusal(effective, rewarded)
    told = (effective, largest, clipped, len(contributions), rewarded, log.estimated, refusal)
    if refusal:
        return Estimate(name, None, None, None, *told)
    mean, low, high, _ = astuple(mean_interval(torch.from_numpy(contributions)))
    return Estimate(name, mean, low, high, *told)


def _refusal(effective: float, rewarded: int) -> str | None:
    if rewarded < MIN_REWARDED:
        return f"cannot be told from this log: {rewarded} requests with a reward match, {MIN_REWARDED} are needed"
    if effective < MIN_EFFECTIVE:
        return f"cannot be told from this log: effective sample size {effective:.1f}, {MIN_EFFECTIVE} is needed"
    return None


def _check(
    name: str, values: np.ndarray, shape: tuple[int, ...], good: Callable[[np.ndarray], np.ndarray], expected: str
) -> None:
    if values.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {values.shape}")
    bad = ~good(values)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(f"{name}: row {row}, position {column}: expected {expected}, got {values[row, column]}")
