"""The page to play with: what it shows, and that a browser shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerankzoo import AtMost, Exclude, RerankingPipeline, example
from rerankzoo.errors import RerankingDataError
from rerankzoo.serving.demo import Playground, make_page, parameters_of, read_request

gradio = pytest.importorskip("gradio")


@pytest.fixture(scope="module")
def playground() -> Playground:
    return Playground.load(str(example("degre-simulator")))


def test_slates_side_by_side(playground: Playground) -> None:
    request = playground.requests[0]
    found = playground.rerank(request, {"slate_size": 3, "num_beams": 4}, [])
    items = RerankingPipeline.from_pretrained(example())(request, slate_size=3, num_beams=4)
    assert found.slates["reranked"] == [item["index"] for item in items]
    assert found.slates["upstream"] == np.argsort(-np.array(request["upstream_score"]))[:3].tolist()
    table = found.tables["upstream"]
    assert table["item_id"].tolist() == [request["item_id"][index] for index in found.slates["upstream"]]
    assert table["category"].tolist() == [request["category"][index] for index in found.slates["upstream"]]
    assert "affinity" not in table
    # Two slates of three positions, by the evaluator and by the truth; a longer prefix is worth more.
    assert len(found.values) == 2 * 2 * 3
    for _, curve in found.values.groupby("slate"):
        assert curve["value"].is_monotonic_increasing
    whole = found.values[found.values["position"] == 3].set_index("slate")["value"]
    assert whole["reranked, by the truth"] > whole["upstream, by the truth"]


def test_constraints_and_what_if(playground: Playground) -> None:
    request = playground.requests[1]
    free = playground.rerank(request, {}, []).slates["reranked"]
    constraints = [Exclude([request["item_id"][free[0]]]), AtMost(1, "category")]
    kept = playground.rerank(request, {}, constraints).slates["reranked"]
    assert free[0] not in kept
    assert len({request["category"][index] for index in kept}) == len(kept)
    assert playground.move([4, 2, 7], 7, 0) == [7, 4, 2]
    assert playground.move([4, 2, 7], 9, 1) == [4, 9, 2]
    values = playground.values(request, [free, playground.move(free, free[-1], 0)])
    assert values.keys() == {"evaluator", "truth"}
    assert len(values["truth"]) == 2


@pytest.mark.parametrize(
    ("controls", "expected"),
    [
        ((4, 1, False, 0, 0), {"slate_size": 4, "num_beams": 1}),
        ((4, 8, True, 0, 0), {"slate_size": 4, "num_beams": 8, "num_return_sequences": 8}),
        ((3, 8, False, 0.2, 0), {"slate_size": 3, "penalty_alpha": 0.2}),
        ((3, 2, True, 0.2, 1.5), {"slate_size": 3, "do_sample": True, "temperature": 1.5, "num_return_sequences": 2}),
    ],
)
def test_controls(controls: Any, expected: dict[str, Any], playground: Playground) -> None:
    assert parameters_of(*controls) == expected
    playground.rerank(playground.requests[0], expected, [])


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000])
def test_what_is_no_request_is_told(text: str) -> None:
    with pytest.raises(RerankingDataError, match="field 'request'"):
        read_request(text)


def test_page_in_a_browser(playground: Playground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its callbacks answer; where chromium is installed, the page draws what they say."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    page = make_page(playground)
    _, address, _ = page.launch(server_name="127.0.0.1", server_port=None, prevent_thread_lock=True, quiet=True)
    try:
        [shows] = {call.fn for call in page.fns.values() if call.fn is not None and call.fn.__name__ == "show"}
        upstream, reranked, values, _ = shows(json.dumps(playground.requests[0]), [], None, 2, 4, 4, True, 0, 0)
        assert len(upstream) == len(reranked) == 4
        assert len(values) == 16
        browser = shutil.which("chromium")
        if browser is not None:
            shot = tmp_path / "page.png"
            flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"]
            command = [browser, *flags, f"--user-data-dir={tmp_path / 'user'}", "--window-size=1280,1500"]
            done = subprocess.run(
                [*command, f"--screenshot={shot}", "--dump-dom", address], capture_output=True, text=True, timeout=300
            )
            drawn = re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)
            assert "DeGReGenerator on simulator" in drawn, done.stderr
            begin = playground.rerank(playground.requests[0], {}, [])
            assert all(f">{item}<" in drawn for item in begin.tables["reranked"]["item_id"])
    finally:
        page.close()
