"""What is attacked, and what must hold of every answer.

A target takes one case and returns whether it got past validation. It raises whatever the code under attack raises
beyond `is_refused`, and `AssertionError` where an answer is wrong.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from qa.fuzz.strategies import Source, mutated_bytes, mutated_text, mutated_tree, odd_value, row, table
from qa.fuzz.world import SCHEMA, SLATE_SIZE, valid_row, world
from rerankzoo import AtLeast, AtMost, Boost, Exclude, MinDistance, Pin, RerankingPipeline
from rerankzoo.cli.benchmark import Benchmark
from rerankzoo.cli.lightning import command_line, with_shipped_recipes
from rerankzoo.cli.recipes import recipes_folder
from rerankzoo.errors import HubError, InfeasibleConstraintError, RerankingDataError
from rerankzoo.features import FeatureSchema, RerankingFeatureExtractor
from rerankzoo.hub_errors import is_refusal
from rerankzoo.text_files import read_json, read_yaml

MAX_MESSAGE = 3_000


def is_refused(error: BaseException) -> bool:
    """Whether an error is one that the documentation promises: ours, in one line that is not long."""
    ours = isinstance(error, HubError) or (isinstance(error, ValueError) and is_refusal(error))
    return ours and is_short(error)


def refused(call: Callable[[], Any]) -> bool:
    """Whether a call is refused; anything but a refusal is raised."""
    try:
        call()
    except Exception as error:
        if not is_refused(error):
            raise
        return True
    return False


# --- requests -------------------------------------------------------------------------------------------------------


def check_batch(batch: Mapping[str, torch.Tensor], schema: FeatureSchema, count: int | None) -> None:
    """A batch has the documented shapes, and every number in it can be computed with."""
    requests, candidates = batch["candidate_mask"].shape
    assert count in (None, requests)
    widths = {group: len(schema.select(group, "categorical")) for group in ("request", "candidate", "history")}
    expected = {
        "request_categorical": (requests, widths["request"]),
        "request_numeric": (requests, schema.numeric_size("request")),
        "candidate_categorical": (requests, candidates, widths["candidate"]),
        "candidate_numeric": (requests, candidates, schema.numeric_size("candidate")),
        "candidate_value": (requests, candidates, len(schema.targets)),
        "request_index": (requests,),
    }
    for key, shape in expected.items():
        assert tuple(batch[key].shape) == shape, key
    assert batch["candidate_mask"].any(-1).all()
    for key, tensor in batch.items():
        if tensor.is_floating_point():
            assert tensor.dtype == torch.float32
            assert tensor.isfinite().all(), key
    for group in ("request", "candidate", "history"):
        for place, field in enumerate(schema.select(group, "categorical")):  # type: ignore[arg-type]
            ids = batch[f"{group}_categorical"][..., place]
            assert ((ids >= 0) & (ids < (field.num_embeddings or 0))).all(), field.name
    if "slates" in batch:
        slates = batch["slates"]
        sizes = batch["candidate_mask"].sum(-1).view(-1, 1, 1)
        assert (((slates >= 0) & (slates < sizes)) | (slates == -100)).all()


def extract(data: Any) -> bool:
    """The feature extractor on a table, with or without labels."""
    extractor = world().extractor
    return not refused(lambda: check_batch(extractor(data), extractor.schema, None))


def fit(data: Any) -> bool:
    """Fitting, and reading with what was learned."""

    def run() -> None:
        extractor = RerankingFeatureExtractor(SCHEMA).fit(data)
        check_batch(extractor(data), extractor.schema, None)
        extractor.extend([valid_row(0)])

    return not refused(run)


def sort_rows(data: Any) -> bool:
    """Usable rows and others: every row is one or the other, and the usable ones can be read."""
    extractor = world().extractor
    usable = 0

    def run() -> None:
        nonlocal usable
        parts, errors = extractor.usable(data)
        found = [*errors, *(row for part in parts for row in range(part.rows.start, part.rows.stop))]
        assert sorted(found) == list(range(len(found)))
        for place, error in errors.items():
            assert error.row == place
            assert is_short(error)
        for part in parts:
            check_batch(part.batch, extractor.schema, part.rows.stop - part.rows.start)
            usable += part.rows.stop - part.rows.start

    return not refused(run) and usable > 0


def is_short(error: Exception) -> bool:
    """Whether a message is one line and not long, whatever the values in it."""
    return "\n" not in str(error) and len(str(error)) <= MAX_MESSAGE


def rerank(case: tuple[list[Any], dict[str, Any]]) -> bool:
    """The pipeline: each request gets its items or its error, and nobody pays for another's mistake."""
    requests, parameters = case
    answered = 0

    def run() -> None:
        nonlocal answered
        answer = world().pipeline(requests, on_error="report", **parameters)
        assert len(answer) == len(requests)
        for place, (request, outcome) in enumerate(zip(requests, answer, strict=True)):
            if isinstance(outcome, RerankingDataError | InfeasibleConstraintError):
                assert outcome.row == place
                assert is_short(outcome)
            else:
                check_items(request, outcome, parameters.get("slate_size") or SLATE_SIZE)
                answered += 1

    return not refused(run) and answered > 0


def check_items(request: Mapping[str, Any], items: list[dict[str, Any]], slate_size: int) -> None:
    """The items of one request: as many as asked for, all different, each where it says."""
    assert len(items) == min(slate_size, len(request["item"]))
    assert len({item["index"] for item in items}) == len(items)
    for item in items:
        assert item["item_id"] == request["item"][item["index"]]
        assert math.isfinite(item["score"])


PARAMETERS: list[dict[str, Any]] = [
    *[{}, {}, {}, {"num_beams": 3}, {"penalty_alpha": 0.5}, {"penalty_alpha": 0.3, "top_k": 2}, {"do_sample": True}],
    *[{"slate_size": 1}, {"slate_size": 2, "num_beams": 2}, {"do_sample": True, "temperature": 0.5, "top_k": 1}],
]
_BAD_PARAMETERS: list[dict[str, Any]] = [
    *[{"slate_size": 0}, {"slate_size": 10**9}, {"slate_size": -1}, {"slate_size": "3"}, {"num_beams": 1.5}],
    *[{"top_k": 3}, {"temperature": 0.0, "do_sample": True}, {"temperature": math.nan, "do_sample": True}],
    *[{"penalty_alpha": 2}, {"num_return_sequences": 3}, {"nonsense": 1}, {"candidate_mask": 3}, {"num_beams": True}],
    *[{"do_sample": "yes"}, {"slate_size": None}, {"num_beams": 2, "do_sample": True}, {"max_length": 3}],
]


def requests_with_parameters(source: Source) -> tuple[list[Any], dict[str, Any]]:
    """Requests as dictionaries, few of them something else, and decoding parameters."""
    requests: list[Any] = [row(source) for _ in range(source.number(1, 3))]
    if source.number(0, 9) == 0:
        requests.insert(source.number(0, len(requests)), odd_value(source))
    return requests, source.pick(_BAD_PARAMETERS if source.number(0, 9) == 0 else PARAMETERS)


def constrain(case: tuple[list[Any], list[Any]]) -> bool:
    """Constraints by item ids: what comes out keeps them, what cannot be kept is said."""
    requests, constraints = case
    answered = 0

    def run() -> None:
        nonlocal answered
        made = [make(*arguments) for make, arguments in constraints]
        answer = world().pipeline(requests, constraints=made, on_error="report")
        assert len(answer) == len(requests)
        for place, outcome in enumerate(answer):
            if isinstance(outcome, Exception):
                assert isinstance(outcome, RerankingDataError | InfeasibleConstraintError)
                assert outcome.row == place
                assert is_short(outcome)
                continue
            answered += 1
            shown = [item["item_id"] for item in outcome]
            assert len({item["index"] for item in outcome}) == len(outcome)
            for make, arguments in constraints:
                if make is Exclude and all(
                    isinstance(entry, Hashable) for entry in arguments[0]
                ):  # no list per request
                    assert not set(shown) & set(arguments[0])
                if make is AtMost and arguments[1] == "item":
                    known = [item for item in shown if item < 30]
                    assert all(known.count(item) <= arguments[0] for item in known)
                if make is Pin and arguments[0] and all(isinstance(entry, Hashable) for entry in arguments[0]):
                    assert shown[arguments[1]] in arguments[0]

    return not refused(run) and answered > 0


def requests_with_constraints(source: Source) -> tuple[list[Any], list[Any]]:
    """Mostly right requests, and constraints that are often right."""
    requests: list[Any] = [
        row(source) if source.number(0, 2) == 0 else valid_row(source.number(0, 999))
        for _ in range(source.number(1, 3))
    ]
    counts: list[Any] = [1, 1, 2, 2, 3, 0, -1, 10**9, 1.5, None, True]
    fields = ["item", "item", "brand", "brand", "brand", "price", "user", "nothing"]
    makers: list[Callable[[], tuple[Any, ...]]] = [
        lambda: (Exclude, (_ids(source, len(requests)),)),
        lambda: (Pin, (_ids(source, len(requests)), source.pick([0, 0, 1, 2, 3, -1, None]))),
        lambda: (AtMost, (source.pick(counts), source.pick(fields))),
        lambda: (MinDistance, (source.pick(counts), source.pick(fields))),
        lambda: (AtLeast, (source.pick(counts), _ids(source, len(requests)))),
        lambda: (Boost, (source.pick([0.5, 0.5, -1e30, math.inf, math.nan]), _ids(source, len(requests)))),
    ]
    return requests, [source.pick(makers)() for _ in range(source.number(0, 2))]


def _ids(source: Source, count: int) -> list[Any]:
    """Item ids for all requests or one list for each, most of them right."""
    kind = source.number(0, 9)
    if kind == 0:
        return [odd_value(source)]
    if kind <= 3:
        return [[source.number(0, 31) for _ in range(source.number(0, 2))] for _ in range(count)]
    return [source.number(0, 31) for _ in range(source.number(0, 4))]


# --- schemas and recipes --------------------------------------------------------------------------------------------


def schema_from_dict(tree: Any) -> bool:
    """A schema as a dictionary: what is accepted survives its own format, and can be fitted or says why not."""

    def run() -> None:
        schema = FeatureSchema.from_dict(tree)
        assert FeatureSchema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema
        if sum(field.size for field in schema.fields) < 1_000:
            refused(lambda: RerankingFeatureExtractor(schema).fit([valid_row(1), valid_row(2)]))

    return not refused(run)


@cache
def scratch() -> Path:
    """A folder of this process."""
    return Path(tempfile.mkdtemp(prefix="rerankzoo-fuzz-"))


def _file(name: str, content: bytes) -> Path:
    path = scratch() / name
    path.write_bytes(content)
    return path


def schema_from_yaml(content: bytes) -> bool:
    """A schema's file."""
    path = _file("schema.yaml", content)
    return not refused(lambda: FeatureSchema.from_yaml(path))


def text_files(content: bytes) -> bool:
    """Any YAML or JSON file."""
    path = _file("any", content)
    return not refused(lambda: read_json(path) if content[:1] == b"{" else read_yaml(path))


def benchmark(tree: Any) -> bool:
    """A benchmark file: nothing but what it may name becomes part of a path."""
    path = scratch() / "benchmark.yaml"

    def run() -> None:
        try:
            found = Benchmark.from_yaml(path)
        except FileNotFoundError as error:  # of a recipe
            raise HubError(str(error)) from error
        for model, entry in found.models.items():
            for name in (model, entry.mined_folder(), *found.evaluators):
                assert Path(name).name == name

    try:
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    except (UnicodeError, ValueError, yaml.YAMLError):  # what YAML does not hold, no file has
        return False
    return not refused(run)


@cache
def _recipe_parser() -> Any:
    """The parser of `rerankzoo fit`, which takes seconds to make."""
    recipe = recipes_folder() / "nar4rec/simulator.yaml"
    options = ["--config", str(recipe), "--trainer.accelerator=cpu", f"--trainer.default_root_dir={scratch()}"]
    return command_line(options, run=False).parser


def recipe(tree: Any) -> bool:
    """A recipe, as far as reading it: what the parser says of it is one line."""
    try:
        path = _file("recipe.yaml", yaml.safe_dump(tree).encode())
    except (UnicodeError, ValueError, yaml.YAMLError):
        return False

    def run() -> None:
        _recipe_parser().parse_args(with_shipped_recipes(["--config", str(path)]))

    return not refused(run)


# --- saved folders --------------------------------------------------------------------------------------------------


@cache
def _saved() -> dict[str, bytes]:
    """The files of the pipeline's folder."""
    folder = world().save(scratch() / "saved")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _folder(changes: Mapping[str, bytes | None], names: tuple[str, ...]) -> Path:
    """The saved folder with other content of some files; `None`: the file is missing."""
    folder = scratch() / "folder"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in names:
        content = changes.get(name, _saved()[name])
        if content is not None:
            (folder / name).write_bytes(content)
    return folder


_EXTRACTOR_FILES = ("preprocessor_config.json", "vocabularies.safetensors")
_MODEL_FILES = ("config.json", "model.safetensors", "generation_config.json")


def saved_extractor(changes: Mapping[str, bytes | None]) -> bool:
    """An extractor's folder: it loads as it was saved, or says which file is wrong."""
    folder = _folder(changes, _EXTRACTOR_FILES)

    def run() -> None:
        try:
            loaded = RerankingFeatureExtractor.from_pretrained(folder)
        except OSError as error:  # transformers' own, of a file that is missing
            raise HubError("missing") from error
        row = valid_row(3)
        expected = world().extractor(row) if loaded.schema == world().extractor.schema else None
        found = loaded(row)
        if expected is not None:
            assert all(torch.equal(value, expected[key]) for key, value in found.items())

    return not refused(run)


def saved_pipeline(changes: Mapping[str, bytes | None]) -> bool:
    """A checkpoint's folder: what loads, answers."""
    folder = _folder(changes, (*_EXTRACTOR_FILES, *_MODEL_FILES))
    request = valid_row(5)

    def run() -> None:
        pipeline = RerankingPipeline.from_pretrained(str(folder), local_files_only=True)
        items = pipeline(request)
        assert len({item["index"] for item in items}) == len(items)

    return not refused(run)


def changed_file(source: Source, names: tuple[str, ...]) -> dict[str, bytes | None]:
    """A change of one file, by bytes or, of a JSON file, by its entries."""
    name = source.pick(names)
    content = _saved()[name]
    if source.number(0, 19) == 0:
        return {name: None}
    if name.endswith(".json") and source.number(0, 3):
        return {name: json.dumps(mutated_tree(source, json.loads(content))).encode("utf-8", "surrogatepass")}
    return {name: mutated_bytes(source, content)}


# --- the list -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """Something that is attacked.

    Attributes:
        run: Takes a case; returns whether it got past validation.
        make: Makes a case.
        share: Of all cases of a run.
    """

    run: Callable[[Any], bool]
    make: Callable[[Source], Any]
    share: float


@cache
def _recipe_tree() -> Any:
    return yaml.safe_load((recipes_folder() / "nar4rec/simulator.yaml").read_text(encoding="utf-8"))


@cache
def _benchmark_tree() -> Any:
    return yaml.safe_load((recipes_folder() / "degre/ablation-mined.yaml").read_text(encoding="utf-8"))


@cache
def _schema_yaml() -> str:
    return str(yaml.safe_dump(SCHEMA.to_dict(), sort_keys=False))


def _any_text(source: Source) -> bytes:
    if source.number(0, 1):
        return mutated_text(source, "name: shop\nfields:\n  - {name: a, size: 1.5}\n  - [1, 2, null]\n")
    return mutated_text(source, json.dumps({"a": [1, 2.5, None], "b": {"c": "d"}}))


TARGETS: dict[str, Target] = {
    "extract": Target(extract, lambda source: table(source, labels=bool(source.number(0, 1))), 0.25),
    "fit": Target(fit, table, 0.05),
    "sort rows": Target(sort_rows, table, 0.10),
    "rerank": Target(rerank, requests_with_parameters, 0.10),
    "constrain": Target(constrain, requests_with_constraints, 0.05),
    "schema": Target(schema_from_dict, lambda source: mutated_tree(source, SCHEMA.to_dict()), 0.25),
    "schema.yaml": Target(schema_from_yaml, lambda source: mutated_text(source, _schema_yaml()), 0.05),
    "text files": Target(text_files, _any_text, 0.06),
    "benchmark": Target(benchmark, lambda source: mutated_tree(source, _benchmark_tree()), 0.018),
    "recipe": Target(recipe, lambda source: mutated_tree(source, _recipe_tree()), 0.002),
    "saved extractor": Target(saved_extractor, lambda source: changed_file(source, _EXTRACTOR_FILES), 0.06),
    "saved pipeline": Target(
        saved_pipeline, lambda source: changed_file(source, (*_MODEL_FILES, *_EXTRACTOR_FILES)), 0.01
    ),
}
assert np.isclose(sum(target.share for target in TARGETS.values()), 1.0)
