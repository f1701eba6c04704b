"""Loading over HTTP in processes of their own: the same slates as the trainer's, everywhere, or one clear line."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rerankzoo import (
    DeGReConfig,
    DeGReEvaluator,
    NAR4RecConfig,
    NAR4RecEvaluator,
    NAR4RecForReranking,
    RerankingPipeline,
)
from rerankzoo.data.folder import read_metadata
from rerankzoo.errors import HubError
from rerankzoo.features import RerankingFeatureExtractor
from tests.hub.processes import Run
from tests.hub.server import READER, WRITER, Fault, LoopbackHub
from tests.hub.test_push import WRONG

Client = Callable[..., subprocess.CompletedProcess[str]]

TINY: dict[str, Any] = {
    "slate_size": 4,
    "hidden_size": 16,
    "embedding_size": 4,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "utility_threshold": 1.0,
}
DECODING = {"num_beams": 6, "num_return_sequences": 6}
LOADING = "import json, os\nrequests = json.load(open('requests.json'))\ndecoding = " + repr(DECODING) + "\n"


@pytest.fixture
def pipeline(extractor: RerankingFeatureExtractor) -> RerankingPipeline:
    torch.manual_seed(0)
    config = {"feature_schema": extractor.schema.to_dict(), **TINY}
    evaluator = NAR4RecEvaluator(NAR4RecConfig(**config))
    return RerankingPipeline(NAR4RecForReranking(NAR4RecConfig(**config)), extractor, evaluator)


@pytest.fixture
def requests(rows: list[dict[str, Any]], tmp_path: Path) -> list[dict[str, Any]]:
    """Raw requests, which clients find in requests.json."""
    (tmp_path / "requests.json").write_text(json.dumps(rows), encoding="utf-8")
    return rows


@pytest.fixture
def folder(pipeline: RerankingPipeline, requests: Any, tmp_path: Path) -> Path:
    pipeline.save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


def answers(found: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The last line of a client's output."""
    return json.loads(found.stdout.splitlines()[-1])


PUSH = """
import torch
from huggingface_hub import HfApi
from rerankzoo import RerankingPipeline

pipeline = RerankingPipeline.from_pretrained("whole", evaluator=True)
first = pipeline.push_to_hub("org/whole", commit_message="All of it", private=True)
HfApi().create_tag("org/whole", tag="v1")
pipeline.model.push_to_hub("org/parts")
pipeline.extractor.push_to_hub("org/parts")
with torch.no_grad():
    for parameter in pipeline.model.parameters():
        parameter.mul_(-1.5)
pipeline.push_to_hub("org/whole", revision="other")
print(json.dumps({"url": first, "other": pipeline(requests, **decoding)}))
"""

LOAD = """
import rerankzoo
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel
from rerankzoo import AutoModelForReranking, NAR4RecForReranking, RerankingPipeline, RerankingFeatureExtractor

found = {
    name: RerankingPipeline.from_pretrained("org/whole", evaluator=True, **options)(requests, **decoding)
    for name, options in {"main": {}, "tag": {"revision": "v1"}, "commit": {"revision": COMMIT},
                          "branch": {"revision": "other"}}.items()
}
extractor = AutoFeatureExtractor.from_pretrained("org/parts")
evaluator = AutoModel.from_pretrained("org/whole", subfolder="evaluator")
beside = RerankingFeatureExtractor.from_pretrained("org/whole", subfolder="evaluator")
for kind in (NAR4RecForReranking, AutoModel, AutoModelForReranking):
    found[kind.__name__] = RerankingPipeline(kind.from_pretrained("org/parts", verify=True), extractor, evaluator)(
        requests, **decoding
    )
found["elsewhere"] = RerankingPipeline.from_pretrained("org/whole", evaluator="org/parts-evaluator", revision="v1")(
    requests, **decoding
)
kinds = [type(AutoConfig.from_pretrained("org/parts")).__name__, type(extractor).__name__, type(evaluator).__name__]
print(json.dumps({**found, "kinds": kinds, "same": extractor.to_dict() == beside.to_dict()}))
"""

OFFLINE = """
from rerankzoo import RerankingPipeline

print(json.dumps({"main": RerankingPipeline.from_pretrained("org/whole", evaluator=True)(requests, **decoding)}))
"""

NEVER_SEEN = """
from rerankzoo import HubError, RerankingPipeline

try:
    RerankingPipeline.from_pretrained("org/never")
except HubError as error:
    print(error)
"""


@pytest.mark.slow
def test_travels_unchanged(
    hub: LoopbackHub, client: Client, pipeline: RerankingPipeline, folder: Path, requests: Any
) -> None:
    expected = json.loads(json.dumps(pipeline(requests, **DECODING)))
    pushed = answers(client(LOADING + PUSH))
    assert hub.titles("org/whole") == ["All of it"]
    assert len(hub.titles("org/whole", "other")) == 2
    assert hub.repository("org/whole").private
    files = hub.files("org/whole")
    assert {"README.md", "modeling_rerankzoo.py", "evaluator/config.json", "evaluator/vocabularies.safetensors"} <= set(
        files
    )
    assert b'from_pretrained("org/whole", evaluator=True)' in files["README.md"]
    evaluator = {path.removeprefix("evaluator/"): content for path, content in files.items() if "/" in path}
    repository = hub.repositories["models", "org/parts-evaluator"] = type(hub.repository("org/whole"))()
    main = repository.branches["main"]
    stored = hub.repository("org/whole").branches["main"].files
    added = {path: stored[f"evaluator/{path}"] for path in evaluator}
    repository.branches["main"] = repository.make_commit("evaluator", "", {**main.files, **added}, main)
    commit = pushed["url"].rsplit("/", 1)[-1]
    found = answers(client((LOADING + LOAD).replace("COMMIT", repr(commit)), cache="fresh", token=READER))
    assert pushed["other"] != expected
    assert found.pop("kinds") == ["NAR4RecConfig", "RerankingFeatureExtractor", "NAR4RecEvaluator"]
    assert found.pop("same")
    assert found.pop("branch") == pushed["other"]
    for way, slates in found.items():
        assert slates == expected, way
    offline = answers(client(LOADING + OFFLINE, cache="fresh", HF_HUB_OFFLINE="1"))
    assert offline["main"] == expected
    hub.stop()
    down = client(LOADING + NEVER_SEEN + OFFLINE, cache="fresh")
    assert answers(down)["main"] == expected
    assert "org/never is not in the cache and the Hub cannot be reached" in down.stdout.splitlines()[0]


CUT = """
from rerankzoo import RerankingPipeline
from rerankzoo.errors import HubError

try:
    RerankingPipeline.from_pretrained("org/gone")
except HubError as error:
    print(error)
pipelines = [RerankingPipeline.from_pretrained(name, evaluator=True) for name in ("org/cut", "org/gone")]
print(json.dumps({"found": [pipeline(requests, **decoding) for pipeline in pipelines]}))
"""


@pytest.mark.slow
def test_interrupted_download_leaves_nothing_broken(
    hub: LoopbackHub,
    client: Client,
    command_line: Callable[..., list[Run]],
    pipeline: RerankingPipeline,
    folder: Path,
    requests: Any,
) -> None:
    command_line(["push", str(folder), "org/cut"], ["push", str(folder), "org/gone"])
    hub.faults = [
        Fault("resolve", "cut", 2, "org/cut", "model.safetensors"),
        Fault("resolve", "empty", 6, "org/gone", "model.safetensors"),
    ]
    found = client(LOADING + CUT)
    assert "the Hub cannot be reached" in found.stdout.splitlines()[0]
    expected = json.loads(json.dumps(pipeline(requests, **DECODING)))
    assert answers(found)["found"] == [expected, expected]


ERRORS = """
from rerankzoo import AutoModelForReranking, RerankingPipeline

def message(token, *arguments, **options):
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    try:
        RerankingPipeline.from_pretrained(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

print(json.dumps({
    "missing": message(READER, "org/none"),
    "private": message(None, "org/private"),
    "wrong token": message(WRONG, "org/public"),
    "revision": message(READER, "org/public", revision="v9"),
    "file": message(READER, "org/weightless"),
    "empty": message(READER, "org/empty"),
    "evaluator": message(READER, "org/weightless", evaluator=True),
    "no name": message(READER, "outputs/no/such/folder"),
    "no evaluator": message(READER, "org/alone", evaluator=True),
}))
"""


@pytest.mark.slow
def test_errors_are_one_clear_line(
    hub: LoopbackHub, client: Client, command_line: Callable[..., list[Run]], folder: Path, data_folder: Path
) -> None:
    weightless, alone = folder.with_name("weightless"), folder.with_name("alone")
    shutil.copytree(folder, weightless)
    shutil.copytree(folder, alone)
    (weightless / "model.safetensors").unlink()
    shutil.rmtree(alone / "evaluator")
    *_, missing, empty = command_line(
        ["push", str(folder), "org/public"],
        ["push", str(folder), "org/private", "--private"],
        ["push", str(weightless), "org/weightless"],
        ["push", str(alone), "org/alone"],
        ["evaluate", "org/none", "--data", str(data_folder)],
        ["evaluate", "org/weightless", "--data", str(data_folder)],
    )
    hub.repositories["models", "org/empty"] = type(hub.repository("org/public"))()
    names = f"READER, WRONG = {READER!r}, {WRONG!r}\n"
    found = answers(client(LOADING + names + ERRORS, cache="fresh"))
    for what, text in found.items():
        assert text.startswith("HubError: "), (what, text)
        assert "\n" not in text, what
        assert not [token for token in (READER, WRITER, WRONG) if token in text]
    assert "no repository org/none" in found["missing"]
    assert "hf auth login" in found["missing"]
    assert found["private"] == found["missing"].replace("org/none", "org/private")
    assert "does not accept the token" in found["wrong token"]
    assert "no revision 'v9'" in found["revision"]
    assert "model.safetensors" in found["file"]
    assert "org/empty: it has no config.json" in found["empty"]
    assert "model.safetensors" in found["evaluator"]
    assert "'outputs/no/such/folder' is neither a folder here" in found["no name"]
    assert "org/alone: it has no evaluator/config.json" in found["no evaluator"]
    for run in (missing, empty):
        assert run.status == 2
        assert "Traceback" not in run.err
        assert len(run.err.strip().splitlines()[-1]) < 400
    assert "no repository org/none" in missing.err


REMOTE = """
import sys
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

assert "rerankzoo" not in sys.modules
kinds = []
for place, options in PLACES:
    for auto in ORDER:
        part = auto.from_pretrained(place, trust_remote_code=True, **options)
        kinds.append(type(part).__name__)
        part.save_pretrained("copy")
print(json.dumps({"kinds": kinds}))
"""

NOT_INSTALLED = """
import sys
from importlib.abc import MetaPathFinder

class Without(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "rerankzoo":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Without())
from transformers import AutoModel

for options in ({"trust_remote_code": True}, {"trust_remote_code": False}):
    try:
        AutoModel.from_pretrained("whole", **options)
    except (ImportError, ValueError) as error:
        print(json.dumps(str(error)))
"""


@pytest.mark.slow
def test_works_for_who_did_not_import_rerankzoo(
    hub: LoopbackHub, client: Client, command_line: Callable[..., list[Run]], folder: Path, tmp_path: Path
) -> None:
    command_line(["push", str(folder), "org/whole"])
    order = "(AutoConfig, AutoModel, AutoFeatureExtractor)"
    script = (LOADING + REMOTE).replace("PLACES", '[("org/whole", {}), ("org/whole", {"subfolder": "evaluator"})]')
    parts = ["NAR4RecConfig", "NAR4RecForReranking", "RerankingFeatureExtractor"]
    beside = ["NAR4RecConfig", "NAR4RecEvaluator", "RerankingFeatureExtractor"]
    assert answers(client(script.replace("ORDER", order)))["kinds"] == [*parts, *beside]
    # The copy is what was loaded last, complete, and names nothing of the repository it came from.
    config = json.loads((tmp_path / "copy/config.json").read_text(encoding="utf-8"))
    assert config["auto_map"] == {
        "AutoConfig": "modeling_rerankzoo.NAR4RecConfig",
        "AutoModel": "modeling_rerankzoo.NAR4RecEvaluator",
    }
    assert [path.name for path in (tmp_path / "copy").glob("*.py")] == ["modeling_rerankzoo.py"]
    order = "(AutoFeatureExtractor, AutoModel)"
    script = (LOADING + REMOTE).replace("PLACES", '[("copy", {})]').replace("ORDER", order)
    assert answers(client(script))["kinds"] == ["RerankingFeatureExtractor", "NAR4RecEvaluator"]
    missing, untrusted = map(json.loads, client(LOADING + NOT_INSTALLED).stdout.splitlines())
    assert "pip install rerankzoo" in missing
    assert "trust_remote_code=True" in untrusted


DATA = """
from rerankzoo import RerankingDataModule
from rerankzoo.cli.main import main
from rerankzoo.errors import HubError

assert main(["push", LOG, "org/log", "--dataset"]) == 0
plain = RerankingDataModule("org/log", batch_size=8)
plain.prepare_data()
plain.setup()
assert main(["mine", "--evaluator", "judge", "--data", "org/log", "--out", "mined", "--num-validation", "4"]) == 0
assert main(["push", "mined", "org/mined", "--dataset", "--message", "Mined"]) == 0
mined = RerankingDataModule("org/mined", batch_size=8, extractor="org/mined", revision="main")
mined.setup()
batch = next(iter(mined.train_dataloader()))
try:
    RerankingDataModule("org/none").setup()
except HubError as error:
    said = str(error)
print(json.dumps({"rows": {name: len(rows) for name, rows in plain.splits.items()}, "metadata": plain.metadata,
                  "weights": list(batch["slate_weights"].shape), "fingerprint": mined.extractor.schema.fingerprint,
                  "error": said}))
"""


@pytest.mark.slow
def test_data_travels(
    hub: LoopbackHub,
    client: Client,
    extractor: RerankingFeatureExtractor,
    requests: Any,
    data_folder: Path,
    tmp_path: Path,
) -> None:
    config = DeGReConfig(feature_schema=extractor.schema.to_dict(), slate_size=4, hidden_size=16, num_attention_heads=2)
    DeGReEvaluator(config).save_pretrained(tmp_path / "judge")
    extractor.save_pretrained(tmp_path / "judge")
    found = answers(client((LOADING + DATA).replace("LOG", repr(str(data_folder)))))
    assert found["rows"] == {"train": 24, "validation": 24, "test": 8}
    assert found["metadata"] == read_metadata(data_folder)
    assert found["weights"][0] == 8
    assert found["fingerprint"] == extractor.schema.fingerprint
    assert "no folder org/none is here" in found["error"]
    assert hub.titles("org/mined", kind="datasets") == ["Mined"]


def test_errors_of_local_folders_are_one_line(folder: Path) -> None:
    (folder / "vocabularies.safetensors").unlink()
    with pytest.raises(HubError, match=r"vocabularies\.safetensors") as refused:
        RerankingPipeline.from_pretrained(str(folder))
    assert "\n" not in str(refused.value)


def test_models_keep_transformers_errors(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors") as refused:
        NAR4RecForReranking.from_pretrained(folder)
    assert not isinstance(refused.value, HubError)
