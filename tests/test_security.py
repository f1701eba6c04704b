"""The claims of docs/security.md: what the code never does, and what hostile files cannot make it do."""

from __future__ import annotations

import ast
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from rerankzoo import NAR4RecConfig, NAR4RecForReranking, RerankingPipeline
from rerankzoo.atomic_writing import CHECKSUMS_FILE
from rerankzoo.cli import main as command_line
from rerankzoo.cli.main import main
from rerankzoo.data.sources import movielens
from rerankzoo.data.sources.movielens import FILES
from rerankzoo.errors import HubError, RecipeError
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.hub.push import Push
from rerankzoo.training import RerankingModule

ROOT = Path(__file__).parents[1] / "rerankzoo"

#: Modules that make objects of bytes, or run programs.
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle", "subprocess", "pty"}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.spawnv"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "np.load", "numpy.load", "torch.save"),
    *("pd.read_pickle", "pandas.read_pickle", "shutil.unpack_archive", "tarfile.open", "runpy.run_path"),
}
#: Methods that unpack archives by the paths in them.
FORBIDDEN_METHODS = {"extractall", "extract_all"}
#: What stands in the code all the same, and why that is safe.
HARMLESS = {
    "training/resuming.py passes weights_only=False": "to save more than the weights, optimiser states say",
}
#: Where a module's name is not written in the code, and why that is safe.
DYNAMIC_IMPORTS = {
    "__init__.py": "the names of the package's own parts",
    "cli/main.py": "the commands' own modules",
    "models/registry.py": "the folders of the families beside it",
}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file, with the dotted name of what is called."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> Any:
    """The value of a keyword that is written as a constant."""
    return next((ast.literal_eval(word.value) for word in call.keywords if word.arg == name), None)


def violations(root: Path) -> list[str]:
    """One line for each thing that the package never does."""
    found = []
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"{place} imports {name}" for name in names if name.split(".")[0] in FORBIDDEN_MODULES]
            if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "weights_only", "shell"):
                wanted = node.arg == "weights_only"
                if isinstance(node.value, ast.Constant) and node.value.value is not wanted:
                    found.append(f"{place} passes {node.arg}={node.value.value}")
        for name, call in calls(path):
            if name in FORBIDDEN_CALLS or name.split(".")[-1] in FORBIDDEN_METHODS:
                found.append(f"{place} calls {name}")
            if name == "torch.load" and keyword(call, "weights_only") is not True:
                found.append(f"{place} calls torch.load without weights_only=True")
            literal = bool(call.args) and isinstance(call.args[0], ast.Constant)
            if name.split(".")[-1] == "import_module" and not literal and place not in DYNAMIC_IMPORTS:
                found.append(f"{place} imports what is not written in the code")
    return found


def test_the_package_never_does() -> None:
    assert sum(1 for _ in calls(ROOT / "hub" / "push.py")) > 50
    assert sorted(violations(ROOT)) == sorted(HARMLESS)


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)",
        "import pickle",
        "from subprocess import run",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text)",
        "archive.extractall(folder)",
        "np.load(path)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "import_module(name)",
    ],
)
def test_the_search_finds(line: str, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(f"def f():\n    {line}\n", encoding="utf-8")
    assert violations(tmp_path)


class Bomb:
    """What a pickle runs when it is read: it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


@pytest.fixture
def checkpoint(extractor: RerankingFeatureExtractor, tmp_path: Path) -> Path:
    config = NAR4RecConfig(
        feature_schema=extractor.schema.to_dict(), slate_size=4, hidden_size=8, num_attention_heads=2, embedding_size=2
    )
    folder = tmp_path / "checkpoint"
    NAR4RecForReranking(config).save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


def test_a_lightning_checkpoint_runs_no_code(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": Bomb(mark)}, path)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        RerankingModule.load_from_checkpoint(path)
    assert not mark.exists()


def test_weights_are_never_a_pickle(checkpoint: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (checkpoint / "model.safetensors").unlink()
    torch.save(Bomb(mark), checkpoint / "pytorch_model.bin")
    with pytest.raises(HubError, match=r"model\.safetensors"):
        RerankingPipeline.from_pretrained(str(checkpoint))
    with pytest.raises(OSError, match=r"model\.safetensors"):
        NAR4RecForReranking.from_pretrained(checkpoint, use_safetensors=False)
    assert not mark.exists()


def test_weights_that_are_missing_are_not_made_up(checkpoint: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / "model.safetensors")
    name = sorted(weights)[0]
    save_file({key: value for key, value in weights.items() if key != name}, checkpoint / "model.safetensors")
    (checkpoint / CHECKSUMS_FILE).unlink()
    with pytest.raises(HubError, match=f"weights has missing keys {name}"):
        RerankingPipeline.from_pretrained(str(checkpoint))


def test_a_checkpoints_code_needs_the_users_flag(checkpoint: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (checkpoint / "evil.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n", encoding="utf-8")
    config = json.loads((checkpoint / "config.json").read_text())
    for model_type in (config["model_type"], "unheard-of"):
        changed = {
            **config,
            "model_type": model_type,
            "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"},
        }
        (checkpoint / "config.json").write_text(json.dumps(changed), encoding="utf-8")
        if model_type == "unheard-of":
            with pytest.raises(HubError, match="cannot load") as caught:
                RerankingPipeline.from_pretrained(str(checkpoint))
            assert len(str(caught.value).splitlines()) == 1
        else:
            RerankingPipeline.from_pretrained(str(checkpoint))  # with our own classes
    assert not mark.exists()


def test_an_archive_decides_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in (*(f"ml-100k/{name}" for name in FILES["ml-100k"]), "../evil", "ml-100k/../../evil", "/evil"):
            archive.writestr(name, "1")
    path = tmp_path / "a.zip"
    path.write_bytes(content.getvalue())
    monkeypatch.setattr(movielens, "URLS", {"ml-100k": path.as_uri()})
    movielens._download("ml-100k", tmp_path / "deep")
    made = {entry.relative_to(tmp_path).as_posix() for entry in tmp_path.rglob("*") if entry.is_file()}
    assert made == {"a.zip", *(f"deep/ml-100k/{name}" for name in FILES["ml-100k"])}


def test_names_and_ids_decide_no_path(checkpoint: Path, tmp_path: Path) -> None:
    """Field names, item ids and words with dots and slashes stay data: every file keeps its own name."""
    from rerankzoo.features import FeatureSchema, FieldSpec

    name = "../../evil"
    schema = FeatureSchema(
        name=name, item_id="item", fields=(FieldSpec(name=name, group="candidate", kind="categorical"),)
    )
    rows = [{"item": ["../../a", "/b", "c\x00"], name: ["../x", "y/z", "\n"]}]
    folder = tmp_path / "a" / "b"
    fitted = RerankingFeatureExtractor(schema).fit(rows)
    fitted.save_pretrained(folder)
    again = RerankingFeatureExtractor.from_pretrained(folder)
    assert again.schema == fitted.schema
    assert again(rows)["candidate_categorical"].tolist() == fitted(rows)["candidate_categorical"].tolist()
    made = {path.name for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert made == {"preprocessor_config.json", "vocabularies.safetensors", "modeling_rerankzoo.py"}
    assert {path.name for path in tmp_path.iterdir()} == {"a", "checkpoint"}


def test_a_link_out_of_the_folder_is_not_pushed(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret", encoding="utf-8")
    (checkpoint / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(FileExistsError, match="outside the folder"):
        Push(checkpoint, "org/name").files()


def test_the_command_line_shows_no_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = "hf_" + "a1B2" * 8
    monkeypatch.setenv("HF_TOKEN", token)
    assert constants.HF_TOKEN_PATH
    assert main(["benchmark", f"{token}.yaml", "--out", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert token not in shown
    assert "(token).yaml" in shown

    def refuse(*arguments: Any) -> None:
        raise RecipeError(f"two\nlines with {token}")

    monkeypatch.setattr(command_line, "call", refuse)
    assert main(["mine"]) == 2
    assert capsys.readouterr().err == "rerankzoo mine: two lines with (token)\n"
