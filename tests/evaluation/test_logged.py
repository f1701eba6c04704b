"""What a table of logged requests says of slates: the same as the functions say of its arrays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rerankzoo.data.loader import RequestLoader
from rerankzoo.evaluation import counterfactual as cf
from rerankzoo.evaluation.logged import LoggedTable


def asked(simulated: Any, slates: torch.Tensor) -> tuple[list[cf.Estimate], str]:
    log = LoggedTable(simulated.extractor.schema)
    for batch in RequestLoader(simulated.data, simulated.extractor, 7):
        log.add(batch)
    found, word = log.rows(simulated.data, {("model", "greedy"): slates})
    return found.get(("model", "greedy"), []), word


def test_a_table_is_read_as_its_arrays(simulated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cf, "MIN_EFFECTIVE", 0)
    monkeypatch.setattr(cf, "MIN_REWARDED", 0)
    data = simulated.data.with_format(None)
    shown, clicks, values, chances, scores = (
        np.array(data[name]).squeeze() for name in ("slate", "click", "value", "propensity", "upstream_score")
    )
    estimates, _ = asked(simulated, torch.from_numpy(shown))
    log = cf.LoggedSlates(shown, chances, clicks * np.take_along_axis(values, shown, 1))
    names = [(one.name, one.estimated) for one in estimates]
    assert names[:2] == [("ips", False), ("snips", False)]
    assert names[-2:] == [("independent", True), ("pseudo-inverse", True)]
    assert estimates[0].value == pytest.approx(cf.ips(log, shown).value, rel=1e-4)
    marginals = cf.PlackettLuceLogger.fit(scores, shown).marginals(scores, shown)
    assert estimates[-2].value == pytest.approx(cf.independent_ips(log, shown, marginals).value, rel=1e-4)


def test_slates_of_another_size_get_a_word(simulated: Any) -> None:
    estimates, word = asked(simulated, torch.zeros(len(simulated.data), 2, dtype=torch.int64))
    assert not estimates
    assert "positions, these 2" in word


def test_missing_scores_tell_no_policy(simulated: Any) -> None:
    schema = replace(simulated.extractor.schema, propensity=None)
    log = LoggedTable(schema)
    for batch in RequestLoader(simulated.data, simulated.extractor, 7):
        log.add({name: part for name, part in batch.items() if name != "propensity"})
    scores = simulated.data.with_format(None)["upstream_score"]
    gap = [[None, *scores[0][1:]], *list(scores)[1:]]
    data = simulated.data.with_format(None).remove_columns("upstream_score").add_column("upstream_score", gap)
    shown = torch.tensor(simulated.data.with_format(None)["slate"]).squeeze(1)
    rows, word = log.rows(data, {("model", "greedy"): shown})
    assert not rows
    assert word == "neither propensities nor upstream scores tell how the slates were chosen"
