"""A page to play with a model: a request's upstream and reranked slates side by side, and what they are worth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from rerankzoo.batch import PADDING, inputs
from rerankzoo.errors import RerankingDataError, shown
from rerankzoo.generation import AtMost, Constraint, Exclude
from rerankzoo.models.auto import EVALUATOR_FOLDER
from rerankzoo.pipeline import RerankingPipeline
from rerankzoo.serving.random_inputs import random_requests
from rerankzoo.text_files import read_json

_NUM_REQUESTS = 100
Request = Mapping[str, Any]
Slate = Sequence[int]  # indexes into the candidates


class Reranked(NamedTuple):
    """What the page shows of a request: slates, their items, and the value of every prefix by every judge."""

    slates: dict[str, list[int]]
    tables: dict[str, pd.DataFrame]
    values: pd.DataFrame


@dataclass(frozen=True)
class Playground:
    """A model, requests to try it on, and who judges slates.

    Attributes:
        pipeline: Model, extractor and, if there is one, evaluator.
        requests: Raw requests.
        judges: What values slates, by name: the evaluator, and of simulated requests the truth.
    """

    pipeline: RerankingPipeline
    requests: list[dict[str, Any]]
    judges: dict[str, Any]

    @classmethod
    def load(cls, model: str, data: str | None = None, evaluator: str | None = None) -> Playground:
        """Loads a model with what belongs to it.

        Args:
            model: Folder or Hub id of a generator.
            data: Data folder, whose test requests are shown; default: `requests.json` in the model's folder, or random
                requests of its schema.
            evaluator: Folder or Hub id of an evaluator; default: the one beside the model, if it is in a folder.

        Raises:
            HubError: If anything cannot be loaded.
        """
        folder = Path(model)
        beside = model if (folder / EVALUATOR_FOLDER).is_dir() else None
        pipeline = RerankingPipeline.from_pretrained(model, evaluator or beside)
        if data is not None:
            # Data folders and the simulator need packages that a page without them does without.
            from rerankzoo.data.folder import first_rows, read_metadata

            requests, about = first_rows(Path(data), "test", _NUM_REQUESTS).to_pylist(), read_metadata(data)
        else:
            kept, metrics = folder / "requests.json", folder / "metrics.json"
            requests = read_json(kept) if kept.is_file() else random_requests(pipeline.extractor, 8, 10)
            about = read_json(metrics).get("data") or {} if kept.is_file() and metrics.is_file() else {}
        judges = {} if pipeline.evaluator is None else {"evaluator": pipeline.evaluator}
        if about.get("source") == "simulator":
            from rerankzoo.data.simulator.evaluator import SimulatorEvaluator

            judges["truth"] = SimulatorEvaluator.from_metadata(about, pipeline.extractor.schema)
        return cls(pipeline, requests, judges)

    def rerank(self, request: Request, parameters: Mapping[str, Any], constraints: Sequence[Constraint]) -> Reranked:
        """Reranks a request; raises as the pipeline does."""
        items = self.pipeline(dict(request), constraints, **parameters)
        slates = {"reranked": [item["index"] for item in items]}
        scores = {"reranked": [item["score"] for item in items]}
        upstream = self.pipeline.extractor.schema.upstream_score
        if upstream is not None:
            order = sorted(range(len(request[upstream])), key=lambda index: -request[upstream][index])
            slates = {"upstream": order[: len(items)], **slates}
            scores["upstream"] = [request[upstream][index] for index in slates["upstream"]]
        tables = {name: self._table(request, slate, scores[name]) for name, slate in slates.items()}
        prefixes = [slate[:length] for slate in slates.values() for length in range(1, len(slate) + 1)]
        names = [(name, length) for name, slate in slates.items() for length in range(1, len(slate) + 1)]
        values = [
            {"slate": f"{name}, by the {judge}", "position": length, "value": value}
            for judge, found in self.values(request, prefixes).items()
            for (name, length), value in zip(names, found, strict=True)
        ]
        return Reranked(slates, tables, pd.DataFrame(values, columns=["slate", "position", "value"]))

    def values(self, request: Request, slates: Sequence[Slate]) -> dict[str, list[float]]:
        """What each judge says of slates of a request, which may be prefixes of others."""
        batch = inputs(self.pipeline.extractor.read([dict(request)]).batch)
        longest = max(map(len, slates))
        padded = torch.tensor([[[*slate, *[PADDING] * (longest - len(slate))] for slate in slates]])
        with torch.inference_mode():
            return {name: judge.score_slates(padded, **batch)[0].tolist() for name, judge in self.judges.items()}

    def move(self, slate: Slate, index: int, position: int) -> list[int]:
        """A slate with a candidate at a position, counted from 0: the others move down, the last one leaves."""
        others = [other for other in slate if other != index]
        return [*others[:position], index, *others[position:]][: len(slate)]

    def _table(self, request: Request, slate: Slate, scores: Sequence[float]) -> pd.DataFrame:
        """The items of a slate with their fields, but for vectors."""
        schema = self.pipeline.extractor.schema
        fields = [field.name for field in schema.fields if field.group == "candidate" and field.kind != "dense"]
        rows = [
            {
                "position": position,
                schema.item_id: request[schema.item_id][index],
                "score": round(score, 3),
                **{name: request[name][index] for name in fields if name != schema.item_id},
            }
            for position, (index, score) in enumerate(zip(slate, scores, strict=True), start=1)
        ]
        return pd.DataFrame(rows)


def parameters_of(slate_size: int, beams: int, choose: bool, alpha: float, temperature: float) -> dict[str, Any]:
    """The decoding parameters of the page's controls: temperature above 0 samples, alpha above 0 is contrastive.

    `choose`: the evaluator chooses among as many slates as there are beams.
    """
    sequences = {"num_return_sequences": beams} if choose and beams > 1 else {}
    if temperature > 0:
        return {"slate_size": slate_size, "do_sample": True, "temperature": temperature, **sequences}
    if alpha > 0:
        return {"slate_size": slate_size, "penalty_alpha": alpha}
    return {"slate_size": slate_size, "num_beams": beams, **sequences}


def read_request(text: str) -> dict[str, Any]:
    """A request from JSON that somebody pasted."""
    try:
        request = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RerankingDataError(f"this is no JSON: {error}", field="request") from error
    if not isinstance(request, dict):
        raise RerankingDataError(f"a request is an object, got {shown(request)}", field="request")
    return request


def make_page(playground: Playground) -> Any:
    """The page, a `gradio.Blocks`: `make_page(...).launch()` shows it."""
    import gradio as gr

    pipeline, schema = playground.pipeline, playground.pipeline.extractor.schema
    size, has_judges = pipeline.model.config.slate_size, bool(playground.judges)
    begin = playground.rerank(playground.requests[0], parameters_of(size, 1, False, 0, 0), [])
    categories = [field.name for field in schema.select("candidate", "categorical") if field.name != schema.item_id]

    def show(text: str, excluded: Sequence[Any], category: str | None, limit: int, *decoding: Any) -> list[Any]:
        try:
            request = read_request(text)
            chosen = {str(item): item for item in request.get(schema.item_id, ())}
            constraints: list[Constraint] = [Exclude([chosen[item] for item in excluded if item in chosen])]
            if category:
                constraints.append(AtMost(int(limit), category))
            found = playground.rerank(request, parameters_of(*decoding), constraints)
        except ValueError as error:
            raise gr.Error(str(error)) from error
        return [found.tables.get("upstream"), found.tables["reranked"], found.values, found.slates["reranked"]]

    def candidates(text: str) -> Any:
        return gr.update(choices=list(map(str, read_request(text).get(schema.item_id, ()))), value=None)

    def try_move(text: str, slate: list[int], item: str | None, position: int) -> str:
        if item is None or not slate:
            return "Choose an item."
        request = read_request(text)
        moved = playground.move(slate, list(map(str, request[schema.item_id])).index(item), int(position) - 1)
        told = playground.values(request, [slate, moved])
        return "\n".join(
            f"- the {name}: {before:.3f} as it is, **{after:.3f}** with {item} at position {int(position)} "
            f"({after - before:+.3f})"
            for name, (before, after) in told.items()
        )

    with gr.Blocks(title="rerankzoo", analytics_enabled=False) as page:
        gr.Markdown(f"# {type(pipeline.model).__name__} on {schema.name}")
        number = gr.Dropdown(
            [(f"request {at}", at) for at in range(len(playground.requests))], value=0, label="request"
        )
        with gr.Accordion("the request, to be changed or replaced", open=False):
            text = gr.Code(json.dumps(playground.requests[0]), language="json", label="JSON")
        with gr.Row():
            decoding: list[Any] = [
                gr.Slider(1, max(size, 2), value=size, step=1, label="positions"),
                gr.Slider(1, 16, value=1, step=1, label="beams"),
                gr.Checkbox(False, label="the evaluator chooses", visible=pipeline.evaluator is not None),
                gr.Slider(0, 1, value=0, label="alpha (contrastive)"),
                gr.Slider(0, 3, value=0, label="temperature (sampling)"),
            ]
        with gr.Row():
            first = list(map(str, playground.requests[0][schema.item_id]))
            excluded = gr.Dropdown(first, value=[], multiselect=True, label="excluded items")
            category = gr.Dropdown(categories, value=None, label="at most so many of one")
            limit = gr.Slider(1, 10, value=2, step=1, label="limit")
        button = gr.Button("rerank", variant="primary")
        slate = gr.State(begin.slates["reranked"])
        with gr.Row():
            upstream = gr.Dataframe(begin.tables.get("upstream"), label="upstream", interactive=False)
            reranked = gr.Dataframe(begin.tables["reranked"], label="reranked", interactive=False)
        about = "value of the slate up to a position"
        curve = gr.LinePlot(begin.values, x="position", y="value", color="slate", title=about, visible=has_judges)
        with gr.Row(visible=has_judges):
            item = gr.Dropdown(first, value=None, label="what if this item")
            position = gr.Slider(1, max(size, 2), value=1, step=1, label="stood at this position?")
            answer = gr.Markdown("Choose an item.")
        shown_again = {
            "fn": show,
            "inputs": [text, excluded, category, limit, *decoding],
            "outputs": [upstream, reranked, curve, slate],
        }
        number.change(lambda at: json.dumps(playground.requests[at]), number, text)
        for listed in (excluded, item):
            text.change(candidates, text, listed)
        gr.on([button.click, text.change, *(control.change for control in decoding)], **shown_again)
        gr.on([item.change, position.change], try_move, [text, slate, item, position], answer)
    return page
