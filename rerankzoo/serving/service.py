"""A model behind an HTTP port: FastAPI's application, which uvicorn serves.

`POST /rerank` answers calls in dynamic batches, `GET /health` tells which model answers, `GET /metrics` is for
Prometheus, `GET /openapi.json` describes it all. A new checkpoint in the served folder takes the old one's place
between two batches.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, cast

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError
from pydantic_core import to_json

import rerankzoo
from rerankzoo.errors import in_one_line
from rerankzoo.serving.batching import Batcher
from rerankzoo.serving.calls import Answer, Failure, RerankCall, rerank
from rerankzoo.serving.monitoring import Metrics, MonitoredPipeline
from rerankzoo.serving.random_inputs import random_requests
from rerankzoo.serving.settings import ServiceSettings

logger = logging.getLogger(__name__)

_REFERENCE_ROWS = 2_000


class Loaded(NamedTuple):
    """A model that answers, and what tells it from others: a digest of its files, or its commit on the Hub."""

    pipeline: MonitoredPipeline
    version: str


class Service:
    """A served model. See `rerankzoo.pipeline.RerankingPipeline.from_pretrained` for what loading it may raise."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.batcher = Batcher(self._answer, settings.max_batch)
        self._stamp = folder_stamp(settings.model)
        self.loaded = self._load()

    def _load(self) -> Loaded:
        """The model that is there now, warm.

        It is loaded from a copy of its folder: weights are mapped into memory, so that a file that is written over, and
        not replaced, would change them, or end the process.
        """
        settings = self.settings
        with tempfile.TemporaryDirectory(prefix="rerankzoo-") as copies:
            model = _copied(settings.model, Path(copies, "model"))
            evaluator = None if settings.evaluator is None else _copied(settings.evaluator, Path(copies, "evaluator"))
            loaded = MonitoredPipeline.from_pretrained(model, evaluator, settings.backend)
            version = folder_digest(Path(model)) if os.path.isdir(model) else str(loaded.model.config._commit_hash)
        pipeline = cast(MonitoredPipeline, loaded)
        pipeline(random_requests(pipeline.extractor, 1, 2))
        pipeline.monitor(self.metrics, _reference_requests(settings.reference))
        return Loaded(pipeline, version)

    def _answer(self, calls: Sequence[RerankCall]) -> list[tuple[Answer, str]]:
        pipeline, version = self.loaded
        answers = rerank(pipeline, calls)
        self.metrics.batch.observe(sum(len(call.requests) for call in calls))
        good = [
            request
            for call, answer in zip(calls, answers, strict=True)
            if not isinstance(answer, Exception)
            for request, items in zip(call.requests, answer, strict=True)
            if not isinstance(items, Failure)
        ]
        names = [name for field in pipeline.extractor.schema.fields for name in field.sources]
        self.metrics.count_values(good, names)
        return [(answer, version) for answer in answers]

    async def watch(self) -> None:
        """Takes a new checkpoint of the folder once its files no longer change; one that does not load is left."""
        seen = self._stamp
        while self.settings.reload_seconds and self._stamp:
            await asyncio.sleep(self.settings.reload_seconds)
            stamp = folder_stamp(self.settings.model)
            if stamp and stamp == seen and stamp != self._stamp:
                self._stamp = stamp
                await self._reload()
            seen = stamp

    async def _reload(self) -> None:
        try:
            self.loaded = await asyncio.to_thread(self._load)
        except Exception as error:  # whatever is wrong with it, the old one answers
            logger.warning("the new checkpoint in %s is not taken: %s", self.settings.model, in_one_line(error))
            self.metrics.reloads.labels("failed").inc()
        else:
            logger.warning("the new checkpoint in %s answers from now on", self.settings.model)
            self.metrics.reloads.labels("loaded").inc()

    async def rerank(self, body: bytes) -> Response:
        """The answer to a call."""
        count, outcome, start = 1, "failed", time.perf_counter()
        try:
            call = RerankCall.model_validate_json(body)
            count = len(call.requests)
            call.check(self.loaded.pipeline, self.settings.max_candidates)
            answer, version = await self.batcher(call, self.settings.timeout)
            if isinstance(answer, Exception):
                raise answer
            failures = [items for items in answer if isinstance(items, Failure)]
            if failures and call.on_error == "raise":
                outcome = "refused"
                return _refusal(failures)
            self.metrics.requests.labels("refused").inc(len(failures))
            count, outcome = count - len(failures), "answered"
            slates = [{"error": items} if isinstance(items, Failure) else items for items in answer]
            return _json_response({"model": version, "slates": slates})
        except ValidationError as error:
            outcome = "refused"
            return _refusal([_failure_of(entry) for entry in error.errors(include_input=False, include_url=False)])
        except ValueError as error:
            outcome = "refused"
            return _refusal([Failure.of(error)])
        except asyncio.TimeoutError:
            outcome = "late"
            message = f"no answer within {self.settings.timeout:g} seconds"
            return JSONResponse({"detail": message}, HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": "1"})
        finally:
            self.metrics.requests.labels(outcome).inc(count)
            self.metrics.seconds.observe(time.perf_counter() - start)


def create_app(service: Service) -> FastAPI:
    """The application of a service."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(work) for work in (service.batcher.run(), service.watch())]
        yield
        for task in tasks:
            task.cancel()

    app = FastAPI(title="rerankzoo", version=rerankzoo.__version__, lifespan=lifespan)

    @app.post("/rerank", responses=_responses(), openapi_extra=_body(service))
    async def rerank(request: Request) -> Response:
        """Chooses and orders the items of requests."""
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > service.settings.max_body:
                message = f"a call has at most {service.settings.max_body} bytes"
                return JSONResponse({"detail": message}, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        return await service.rerank(bytes(body))

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Tells which model answers."""
        pipeline, version = service.loaded
        return {
            "status": "ok",
            "model": version,
            "architecture": pipeline.model.config.architectures[0],
            "backend": service.settings.backend,
            "schema": pipeline.extractor.schema.name,
            "fingerprint": pipeline.extractor.schema.fingerprint,
        }

    @app.get("/metrics")
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    components = app.openapi().setdefault("components", {})  # kept: what is told at /openapi.json
    components.setdefault("schemas", {}).update(RerankCall.model_json_schema(ref_template=_PLACE)["$defs"])
    return app


#: The settings, as JSON, for the processes that uvicorn starts.
SETTINGS_VARIABLE = "RERANKZOO_SERVICE"


def app_of_environment() -> FastAPI:
    """The application of the settings in the environment variable RERANKZOO_SERVICE."""
    return create_app(Service(ServiceSettings(**json.loads(os.environ[SETTINGS_VARIABLE]))))


def _reference_requests(folder: str | None) -> Any:
    if folder is None:
        return None
    from rerankzoo.data.folder import first_rows  # needs Arrow, which a service without a reference does without

    return first_rows(Path(folder), "train", _REFERENCE_ROWS)


def _copied(path: str, target: Path) -> str:
    return path if not os.path.isdir(path) else str(shutil.copytree(path, target))


def folder_stamp(folder: str) -> tuple[tuple[Any, ...], ...]:
    """What tells a folder's files from others without reading them; nothing where there is no folder."""
    stamps = []
    for path in sorted(Path(folder).rglob("*")):
        with suppress(FileNotFoundError):  # it is being replaced
            status = path.stat()
            stamps.append((str(path), status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(stamps)


def folder_digest(folder: Path) -> str:
    """12 hexadecimal digits that tell a folder's files from others, wherever it lies."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _json_response(content: Any, status: HTTPStatus = HTTPStatus.OK) -> Response:
    return Response(to_json(content, inf_nan_mode="null"), status, media_type="application/json")


def _refusal(failures: Sequence[Failure]) -> Response:
    return _json_response({"detail": failures}, HTTPStatus.UNPROCESSABLE_ENTITY)


def _failure_of(error: Any) -> Failure:
    """What pydantic says of a call, as what the extractor says of a request."""
    place = error["loc"]
    row = place[1] if len(place) > 1 and place[0] == "requests" and isinstance(place[1], int) else None
    return Failure(error["msg"], ".".join(map(str, place)) or None, row)


def _responses() -> dict[int | str, dict[str, Any]]:
    """The answers, for OpenAPI."""
    return {
        200: {
            "description": "`slates`: for each request its items in display order, or `error`; `model`: which answered",
            "content": {"application/json": {"example": {"model": "0123456789ab", "slates": [[_ITEM]]}}},
        },
        413: {"description": "The call is too long"},
        422: {
            "description": "The call, or one of its requests, cannot be used: field and row",
            "model": dict[str, list[Failure]],
        },
        503: {"description": "No answer in time"},
    }


def _body(service: Service) -> dict[str, Any]:
    """The call, for OpenAPI: with an example that the model takes."""
    extractor = service.loaded.pipeline.extractor
    example = random_requests(extractor, 1, 3)
    schema = RerankCall.model_json_schema(ref_template=_PLACE)
    del schema["$defs"]
    schema["properties"]["requests"]["items"] = _schema_of(example[0])
    schema["properties"]["parameters"]["description"] = (
        f"Decoding parameters: {', '.join(service.loaded.pipeline.model.generation_config_class.names()[:-1])}."
    )
    content = {"schema": schema, "example": {"requests": example}}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


#: Where OpenAPI keeps schemas that others name.
_PLACE = "#/components/schemas/{model}"
_ITEM = {"item_id": 17, "index": 2, "score": -0.4}


def _schema_of(value: Any) -> dict[str, Any]:
    """The JSON schema of an example; any number and id may be missing."""
    if isinstance(value, dict):
        return {"type": "object", "properties": {name: _schema_of(entry) for name, entry in value.items()}}
    if isinstance(value, list):
        return {"type": "array", "items": _schema_of(value[0])}
    return {"type": [{int: "integer", float: "number", str: "string"}[type(value)], "null"]}
