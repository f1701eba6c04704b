"""A service of your own around a pipeline. `rerankzoo serve` is one that batches, counts and reloads: docs/serve.md.

Needs the extra "serve". Run:

    python examples/fastapi_service.py
    jq '.[0]' model_cards/degre-simulator/requests.json |
        curl -H 'content-type: application/json' -d @- 'localhost:8000/rerank?slate_size=3'
"""

from __future__ import annotations

from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, HTTPException

from rerankzoo import Exclude, RerankingPipeline, example


def make_app(model: str) -> FastAPI:
    """One endpoint that reranks one request; what is wrong with it is answered by 422 with field and row."""
    torch.set_num_threads(1)  # one request is small: more threads gain nothing, more processes do
    pipeline = RerankingPipeline.from_pretrained(model)  # may be called from any number of threads
    app = FastAPI()

    # Not async: FastAPI runs it in a thread of its own, and the loop goes on answering.
    @app.post("/rerank")
    def rerank(request: dict[str, Any], slate_size: int = 4, bought: int | None = None) -> list[dict[str, Any]]:
        constraints = [] if bought is None else [Exclude([bought])]
        try:
            items: list[dict[str, Any]] = pipeline(request, slate_size=slate_size, constraints=constraints)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        return items

    return app


if __name__ == "__main__":
    uvicorn.run(make_app(str(example("degre-simulator"))))
