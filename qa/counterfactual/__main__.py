"""Coverage and bias of counterfactual estimates over many small simulated logs; prints a table in Markdown.

`python -m qa.counterfactual --logs 200 --requests 6000`
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from rerankzoo.data.simulator import Simulator, SimulatorSettings
from rerankzoo.data.simulator.user_models import CascadeUser
from rerankzoo.evaluation import counterfactual as cf

_SIZES: dict[str, Any] = {
    "num_candidates": 4,
    "slate_size": 3,
    "num_users": 200,
    "num_items": 60,
    "retrieval_pool": 12,
    "exploration": 0.3,  # bounds the weights of whole slates at 80
}


def worlds() -> dict[str, SimulatorSettings]:
    """Small worlds by name, each with the assumption that holds in it."""
    free = {"substitution": 0.0, "complement": 0.0, "lookahead": 0.0}
    ahead = CascadeUser(lookahead=0.0)
    independent = CascadeUser(**free, continue_without_click=0.8, continue_after_click=0.8)
    return {
        "independent": SimulatorSettings(**_SIZES, user=independent),
        "cascade, no look-ahead": SimulatorSettings(**_SIZES, user=ahead),
        "cascade (strong)": SimulatorSettings(**_SIZES),
        "choice": SimulatorSettings.named("choice", **_SIZES),
    }


def estimates(table: pa.Table, logging: cf.PlackettLuceLogger, judged: np.ndarray) -> Iterator[cf.Estimate]:
    """Every estimate, with logged propensities, then with those of a fitted logging policy."""
    slates, propensities, clicks, values, scores = (
        np.array(table[name].to_pylist(), dtype=float).squeeze()
        for name in ("slate", "propensity", "click", "value", "upstream_score")
    )
    slates = slates.astype(int)
    rewards = clicks * np.take_along_axis(values, slates, axis=1)
    fitted = cf.PlackettLuceLogger.fit(scores, slates)
    for logger, known in ((logging, propensities), (fitted, None)):
        shown = fitted.propensities(scores, slates) if known is None else known
        log = cf.LoggedSlates(slates, shown, rewards, known is None)
        yield cf.ips(log, judged)
        yield cf.snips(log, judged)
        yield cf.reward_interaction_ips(log, judged)
        yield cf.cascade_doubly_robust(log, judged)
        yield cf.independent_ips(log, judged, logger.marginals(scores, judged))
        yield cf.pseudo_inverse(log, logger.pseudo_inverse_weights(scores, slates, judged))


def main() -> None:
    """Judges the order by value alone in disjoint stretches of the logs of each world."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logs", type=int, default=200)
    parser.add_argument("--requests", type=int, default=6000)
    arguments = parser.parse_args()
    print("| world | propensities | estimate | coverage % | bias / truth % | sd / truth % | refused | mean ESS |")
    print("|---|---|---|---|---|---|---|---|")
    for name, settings in worlds().items():
        start = time.process_time()
        simulator, found = Simulator(settings), defaultdict(list)
        logging = cf.PlackettLuceLogger(settings.logging_temperature, settings.exploration)
        rows = simulator.requests("train", arguments.logs * arguments.requests)
        ids = (np.array(rows["user_id"]), np.array(rows["item_id"].to_pylist()))
        judged = np.argsort(-np.array(rows["value"].to_pylist()).squeeze(), axis=1)[:, : settings.slate_size]
        truth = float(simulator.expected_utility(*ids, judged[:, None]).mean())
        for log in range(arguments.logs):
            part = slice(log * arguments.requests, (log + 1) * arguments.requests)
            table = rows.slice(part.start, arguments.requests)
            for one in estimates(table, logging, judged[part]):
                found[one.name, one.estimated].append(one)
        for (estimate, estimated), many in found.items():
            told = [one for one in many if one.value is not None]
            if not told:
                continue
            numbers = np.array([(one.value, one.low, one.high) for one in told])
            coverage = ((numbers[:, 1] <= truth) & (truth <= numbers[:, 2])).mean()
            bias, spread = numbers[:, 0].mean() / truth - 1, numbers[:, 0].std(ddof=1) / truth
            ess = np.mean([one.effective_sample_size for one in many])
            print(
                f"| {name} | {'estimated' if estimated else 'logged'} | {estimate} | {100 * coverage:.1f} | "
                f"{100 * bias:+.1f} | {100 * spread:.1f} | {len(many) - len(told)} | {ess:.0f} |"
            )
        print(f"<!-- {name}: {time.process_time() - start:.0f} CPU s -->", flush=True)


if __name__ == "__main__":
    main()
