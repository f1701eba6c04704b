"""The service: what it answers, alone and together with others, and how it lives."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import uvicorn

from rerankzoo import RerankingPipeline
from rerankzoo.cli.main import main
from rerankzoo.data.folder import write_data_folder
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.serving import random_requests
from rerankzoo.serving.batching import Batcher
from rerankzoo.serving.calls import Failure, RerankCall, rerank
from rerankzoo.serving.monitoring import stability_index
from rerankzoo.serving.service import Service, app_of_environment, create_app
from rerankzoo.serving.settings import ServiceSettings
from tests.serving.conftest import make_model


class Server:
    """A service that listens on loopback, in a thread."""

    def __init__(self, service: Service) -> None:
        self.service = service
        config = uvicorn.Config(create_app(service), port=0, log_level="error")
        self.uvicorn = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.uvicorn.run)
        self.thread.start()
        while not self.uvicorn.started:
            time.sleep(0.005)
        self.port = self.uvicorn.servers[0].sockets[0].getsockname()[1]

    def __call__(self, body: Any, path: str = "/rerank") -> tuple[int, Any]:
        """Status and answer of a call; a body that is no text is sent as JSON, none is a GET."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request("GET" if sent is None else "POST", path, sent)
        answer = connection.getresponse()
        read = answer.read()
        connection.close()
        is_json = answer.headers["Content-Type"] == "application/json"
        return answer.status, json.loads(read) if is_json else read.decode()

    def metrics(self) -> dict[str, float]:
        lines = self(None, "/metrics")[1].splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    def stop(self) -> None:
        self.uvicorn.should_exit = True
        self.thread.join()


@contextmanager
def running(folder: Path, **settings: Any) -> Iterator[Server]:
    server = Server(Service(ServiceSettings(str(folder), **{"reload_seconds": 0.02, **settings})))
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def server(model_folder: Path) -> Iterator[Server]:
    with running(model_folder) as started:
        yield started


@pytest.fixture(scope="module")
def pipeline(model_folder: Path) -> RerankingPipeline:
    return RerankingPipeline.from_pretrained(model_folder)


@pytest.fixture(scope="module")
def requests(extractor: RerankingFeatureExtractor) -> list[dict[str, Any]]:
    return random_requests(extractor, 12, 7, 3, ragged=True)


def ids(slates: Sequence[Any]) -> list[Any]:
    return [[item["item_id"] for item in items] for items in slates]


# --- answers --------------------------------------------------------------------------------------------------------


def test_answers_are_the_pipelines(server: Server, pipeline: RerankingPipeline, requests: list[Any]) -> None:
    status, answer = server({"requests": requests, "parameters": {"slate_size": 3, "num_beams": 2}})
    assert status == 200
    assert answer["slates"] == pipeline(requests, slate_size=3, num_beams=2)
    assert answer["model"] == server(None, "/health")[1]["model"]


def test_calls_that_arrive_meanwhile_are_one_batch(
    server: Server, pipeline: RerankingPipeline, requests: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    busy, go_on = threading.Event(), threading.Event()
    answer = server.service.batcher.answer

    def slowly(calls: Sequence[RerankCall]) -> Any:
        batches.append(len(calls))
        busy.set()
        go_on.wait(30)
        return answer(calls)

    monkeypatch.setattr(server.service.batcher, "answer", slowly)
    with ThreadPoolExecutor(len(requests)) as pool:
        found = [pool.submit(server, {"requests": [requests[0]]})]
        busy.wait(30)
        found += [pool.submit(server, {"requests": [request]}) for request in requests[1:]]
        while len(server.service.batcher._waiting) < len(requests) - 1:
            time.sleep(0.005)
        go_on.set()
        answers = [future.result() for future in found]
    assert batches == [1, len(requests) - 1]
    assert [ids(answer["slates"]) for _, answer in answers] == [[slate] for slate in ids(pipeline(requests))]


def calls_of(requests: Sequence[dict[str, Any]]) -> list[RerankCall]:
    """Calls of one key, with constraints that differ in their items, of which some are bad in some way."""
    items = [request["item_id"] for request in requests]
    made: list[tuple[Any, list[Any]]] = [
        ([requests[0]], items[0][:1]),
        (requests[1:3], []),
        (requests[3:5], [items[3][:2], items[4][-1:]]),
        ([{**requests[5], "price": [-5.0]}, requests[6]], items[6][:1]),  # a request that is none
        ([requests[7]], ["no integer"]),
        (requests[8:10], [items[8][:1]]),  # one list for two requests
        ([requests[10]], items[10]),  # nothing is left
        ([requests[11]], [10**30]),
    ]
    return [
        RerankCall(
            requests=list(rows),
            constraints=[{"type": "Exclude", "items": excluded}, {"type": "AtMost", "limit": 3, "categories": "brand"}],
        )
        for rows, excluded in made
    ]


def test_every_call_gets_the_answer_that_it_gets_alone(pipeline: RerankingPipeline, requests: list[Any]) -> None:
    def told(answer: Any) -> Any:
        if isinstance(answer, Exception):
            return str(answer)
        return [str(slate) if isinstance(slate, Failure) else ids([slate]) for slate in answer]

    calls = calls_of(requests)
    assert len({call.key for call in calls}) == 1
    alone = [told(rerank(pipeline, [call])[0]) for call in calls]
    assert sum(isinstance(answer, str) for answer in alone) == 3
    assert "field='price', row=0" in alone[3][0]
    together = [*calls[:4], calls[6]]  # no call as a whole is bad: one pass
    assert [told(answer) for answer in rerank(pipeline, together)] == [*alone[:4], alone[6]]
    assert [told(answer) for answer in rerank(pipeline, calls)] == alone


def test_calls_of_other_parameters_are_other_batches() -> None:
    batches: list[list[int]] = []

    def answer(calls: Sequence[RerankCall]) -> list[int]:
        batches.append([len(call.requests) for call in calls])
        return [len(call.requests) for call in calls]

    def call(size: int, **parameters: Any) -> RerankCall:
        return RerankCall(requests=[{}] * size, parameters=parameters)

    async def run() -> list[int]:
        batcher: Batcher[int] = Batcher(answer, max_batch=4)
        calls = [
            call(1),
            call(2),
            call(9),
            call(1, num_beams=2),
            call(1),
            call(3, num_beams=2),
            call(1, num_beams=True),
        ]
        waiting = [asyncio.create_task(batcher(one, 30)) for one in calls]
        given_up = asyncio.create_task(batcher(call(1), 0))
        await asyncio.sleep(0)
        with pytest.raises(asyncio.TimeoutError):
            await given_up
        work = asyncio.create_task(batcher.run())
        found = await asyncio.gather(*waiting)
        work.cancel()
        return found

    assert asyncio.run(run()) == [1, 2, 9, 1, 1, 3, 1]
    assert batches == [[1, 2, 1], [9], [1, 3], [1]]


def test_an_error_of_a_batch_is_that_batchs_alone(server: Server, requests: list[Any], monkeypatch: Any) -> None:
    def fail(calls: Any) -> Any:
        raise RuntimeError("a fault of ours")

    with monkeypatch.context() as patch:
        patch.setattr(server.service.batcher, "answer", fail)
        assert server({"requests": requests[:1]})[0] == 500
    assert server({"requests": requests[:1]})[0] == 200


def test_onnx(onnx_folder: Path, requests: list[Any]) -> None:
    expected = RerankingPipeline.from_pretrained(onnx_folder, backend="onnx")(requests)
    with running(onnx_folder, backend="onnx") as graph:
        assert graph({"requests": requests})[1]["slates"] == expected
        status, answer = graph({"requests": requests[:1], "constraints": [{"type": "Exclude", "items": [1]}]})
        assert (status, answer["detail"][0]["message"][:37]) == (422, "an exported graph keeps no constraint")


# --- what is refused ------------------------------------------------------------------------------------------------

GOOD = object()  # stands for a good request


@pytest.mark.parametrize(
    ("call", "place", "message"),
    [
        ({"requests": [GOOD, {}]}, ("item_id", 1), "missing"),
        ({"requests": [GOOD, 7]}, ("requests.1", 1), "Input should be"),
        ({"requests": []}, ("requests", None), "at least 1 item"),
        ({"requests": [GOOD], "limit": 3}, ("limit", None), "Extra inputs"),
        ({"requests": [GOOD], "parameters": {"num_beam": 2}}, (None, None), "unknown parameters ['num_beam']"),
        ({"requests": [GOOD], "parameters": {"on_error": 2}}, (None, None), "unknown parameters ['on_error']"),
        ({"requests": [GOOD], "parameters": {"return_dict_in_generate": True}}, (None, None), "unknown parameters"),
        ({"requests": [GOOD], "parameters": {"num_beams": 10**9}}, (None, None), "num_beams must be at most 64"),
        ({"requests": [GOOD], "parameters": {"num_beams": 2.5}}, (None, None), "num_beams must be a positive integer"),
        ({"requests": [{"item_id": [1] * 9}]}, ("item_id", 0), "9 candidates, at most 8"),
        (
            {"requests": [GOOD], "constraints": [{"type": "Pin", "items": [1]}]},
            ("constraints.0.Pin.position", None),
            "Field required",
        ),
        (
            {"requests": [GOOD, GOOD], "constraints": [{"type": "Pin", "items": [10**9], "position": 0}]},
            (None, 0),
            "names no candidate of the request",
        ),
        (
            b'{"requests": [{}], %s}' % b",".join(b'"%d": 0' % at for at in range(2000)),
            (None, None),
            "at most 32 names",
        ),
        ({"requests": [GOOD], "parameters": {str(at): None for at in range(2000)}}, (None, None), "at most 32 names"),
        (
            {"requests": [GOOD], "constraints": [{"type": "AtMost", "limit": 10**30, "categories": "brand"}]},
            ("constraints.0.AtMost.limit", None),
            "less than or equal",
        ),
        (b'{"requests": [', (None, None), "Invalid JSON"),
        (b"[" * 5000, (None, None), "Invalid JSON"),
        (b"\xff\x00", (None, None), "Invalid JSON"),
    ],
)
def test_what_cannot_be_used_is_told_with_its_place(
    requests: list[Any], call: Any, place: Any, message: str, small: Server
) -> None:
    if isinstance(call, dict):
        call = {**call, "requests": [requests[0] if it is GOOD else it for it in call["requests"]]}
    status, answer = small(call)
    assert status == 422, answer
    assert (answer["detail"][0]["field"], answer["detail"][0]["row"]) == place
    assert message in answer["detail"][0]["message"]


@pytest.fixture(scope="module")
def small(model_folder: Path) -> Iterator[Server]:
    with running(model_folder, max_candidates=8, max_body=50_000) as started:
        yield started


def test_a_long_list_of_wrong_entries_is_told_in_short(small: Server) -> None:
    for items in ([0.5] * 8000, [[0.5]] * 5000):
        call = {"requests": [{}], "constraints": [{"type": "Exclude", "items": items}]}
        status, answer = small(call)
        assert status == 422
        assert len(answer["detail"]) < 10
    assert len(small({"requests": [1] * 9000})[1]["detail"]) == 1


def test_others_are_answered_where_that_is_asked_for(server: Server, requests: list[Any]) -> None:
    bad = {**requests[1], "price": [1.0]}
    status, answer = server({"requests": [requests[0], bad, requests[2]], "on_error": "report"})
    assert status == 200
    assert [isinstance(slate, list) for slate in answer["slates"]] == [True, False, True]
    assert answer["slates"][1]["error"] == {
        "message": f"1 entries, but 'item_id' has {len(bad['item_id'])}", "field": "price", "row": 1
    }  # fmt: skip
    status, answer = server({"requests": [requests[0], bad, bad]})
    assert (status, [failure["row"] for failure in answer["detail"]]) == (422, [1, 2])


def test_a_call_that_is_too_long_or_too_late(small: Server, requests: list[Any], monkeypatch: Any) -> None:
    assert small(b" " * 50_001)[0] == 413
    answer = small.service.batcher.answer

    def slowly(calls: Sequence[RerankCall]) -> Any:
        time.sleep(0.3)
        return answer(calls)

    with monkeypatch.context() as patch:
        patch.setattr(small.service.batcher, "answer", slowly)
        patch.setattr(small.service, "settings", ServiceSettings("", timeout=0.05))
        status, told = small({"requests": requests[:1]})
    assert (status, told["detail"]) == (503, "no answer within 0.05 seconds")
    assert small({"requests": requests[:1]})[0] == 200


# --- what it tells --------------------------------------------------------------------------------------------------


def test_openapi_has_an_example_that_is_answered(server: Server) -> None:
    status, described = server(None, "/openapi.json")
    body = described["paths"]["/rerank"]["post"]["requestBody"]["content"]["application/json"]
    assert server(body["example"])[0] == status == 200
    fields = body["schema"]["properties"]["requests"]["items"]["properties"]
    assert fields["price"] == {"type": "array", "items": {"type": ["number", "null"]}}
    assert fields["picture"]["items"]["items"] == {"type": ["number", "null"]}
    text = json.dumps(described)
    named = {part.split('"')[0] for part in text.split('"$ref": "#/components/schemas/')[1:]}
    assert named
    assert named <= set(described["components"]["schemas"])
    assert "$defs" not in text


def test_metrics(model_folder: Path, requests: list[Any]) -> None:
    request = {**requests[0], "item_id": [*requests[0]["item_id"][:-1], 10**12], "past_items": []}
    request["upstream_score"] = [None, None, *request["upstream_score"][2:]]
    count = len(request["item_id"])
    with running(model_folder) as fresh:
        status, answer = fresh({"requests": [request, request]})
        assert status == 200, answer
        fresh({"requests": [request, {}]})
        fresh({"requests": [request, {}], "on_error": "report"})
        fresh(b"{")
        found = fresh.metrics()
    assert found['rerankzoo_requests_total{outcome="answered"}'] == 3
    assert found['rerankzoo_requests_total{outcome="refused"}'] == 4
    assert found["rerankzoo_call_seconds_count"] == 4
    assert found["rerankzoo_batch_requests_sum"] == 6
    # Of a call that is refused, its good request was read and answered, too.
    assert found['rerankzoo_values_total{field="upstream_score"}'] == 4 * count
    assert found['rerankzoo_missing_values_total{field="upstream_score"}'] == 4 * 2
    assert found['rerankzoo_unknown_ids_total{field="item_id"}'] >= 4
    assert found['rerankzoo_missing_values_total{field="past_items"}'] == 0


def test_drift(model_folder: Path, extractor: RerankingFeatureExtractor, tmp_path: Path) -> None:
    reference = random_requests(extractor, 400, 7, 3)
    about = {"source": "test", "protocol": "random"}
    write_data_folder(tmp_path / "log", {"train": pa.Table.from_pylist(reference)}, extractor.schema, about)
    with running(model_folder, reference=str(tmp_path / "log"), max_batch=512) as watched:
        watched({"requests": reference[:99]})
        assert watched.metrics()["rerankzoo_score_drift"] == 0  # too few to tell
        watched({"requests": reference[99:]})
        assert watched.metrics()["rerankzoo_score_drift"] < 0.02
        watched({"requests": reference, "parameters": {"slate_size": 1}})  # another decoding: other scores
        assert watched.metrics()["rerankzoo_score_drift"] < 0.02
        others = [{**request, "price": [100 * price for price in request["price"]]} for request in reference]
        for _ in range(3):
            watched({"requests": others})
        assert watched.metrics()["rerankzoo_score_drift"] > 0.25


def test_stability_index_by_hand() -> None:
    assert stability_index(np.arange(10).repeat(9)) == 0
    # 10 in the first tenth and one in each other, after one more in each: 11 / 20 and 1 / 20.
    expected = 0.45 * np.log(5.5) + 9 * -0.05 * np.log(0.5)
    assert stability_index([0] * 10) == pytest.approx(expected)


# --- how it lives ---------------------------------------------------------------------------------------------------


def test_a_new_checkpoint_answers_once_it_is_whole(
    model_folder: Path, extractor: RerankingFeatureExtractor, requests: list[Any], tmp_path: Path
) -> None:
    served, other = (shutil.copytree(model_folder, tmp_path / name) for name in ("served", "other"))
    make_model(extractor, seed=5).save_pretrained(other)
    first, second = (RerankingPipeline.from_pretrained(folder)(requests) for folder in (served, other))
    assert ids(first) != ids(second)
    with running(served) as reloading:
        version = reloading({"requests": requests})[1]["model"]
        (served / "model.safetensors").write_bytes(b"no weights")  # written over, in place
        wait_for(reloading, 'rerankzoo_reloads_total{outcome="failed"}')
        answer = reloading({"requests": requests})[1]
        assert (answer["model"], ids(answer["slates"])) == (version, ids(first))
        shutil.copy(other / "model.safetensors", served / "model.safetensors")
        wait_for(reloading, 'rerankzoo_reloads_total{outcome="loaded"}')
        answer = reloading({"requests": requests})[1]
        assert answer["model"] != version
        assert ids(answer["slates"]) == ids(second)


def wait_for(server: Server, counter: str) -> None:
    end = time.monotonic() + 30
    while not server.metrics().get(counter):
        assert time.monotonic() < end, counter
        time.sleep(0.02)


def test_it_stops_once_all_calls_are_answered(model_folder: Path, requests: list[Any]) -> None:
    with running(model_folder) as stopping:
        busy = threading.Event()
        answer = stopping.service.batcher.answer

        def slowly(calls: Sequence[RerankCall]) -> Any:
            busy.set()
            time.sleep(0.3)
            return answer(calls)

        stopping.service.batcher.answer = slowly  # type: ignore[method-assign]
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(stopping, {"requests": requests[:1]})
            busy.wait(30)
            stopping.stop()
            assert found.result()[0] == 200
        with pytest.raises(ConnectionRefusedError):
            stopping({"requests": requests[:1]})


@pytest.mark.parametrize("workers", [1, 2])
def test_command(model_folder: Path, workers: int, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[Any] = []

    def run(app: Any, **options: Any) -> None:
        ran.append((app_of_environment() if app == "rerankzoo.serving.service:app_of_environment" else app, options))

    monkeypatch.setattr(uvicorn, "run", run)
    options = ["--workers", str(workers), "--port", "8123", "--max-batch", "7"]
    assert main(["serve", str(model_folder), *options]) == 0
    [(app, given)] = ran
    assert given["port"] == 8123
    assert given.get("workers", 1) == workers
    assert {route.path for route in app.routes} >= {"/rerank", "/health", "/metrics"}
    assert "http://127.0.0.1:8123" in capsys.readouterr().out


def test_what_is_no_model_is_told_before_it_is_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
