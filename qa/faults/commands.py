"""The commands that are killed, on small data, and what of their results must not depend on it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors.numpy import load_file
from torch import Tensor

from rerankzoo.cli.recipes import recipes_folder
from rerankzoo.training.resuming import check_checkpoint
from tests.data import test_long_format as long_format
from tests.data import test_movielens as movielens
from tests.data import test_taobao as taobao
from tests.hub.server import LoopbackHub

#: Keys of a Lightning checkpoint that tell of the process and not of the training: paths, the run's name, and a score
#: that Lightning does not restore and overwrites at the next validation.
_OF_THE_PROCESS = {"run", "dirpath", "best_model_path", "kth_best_model_path", "last_model_path", "current_score"}

Outcome = dict[str, str]


@dataclass(frozen=True)
class Command:
    """A command that can be given again and again.

    Attributes:
        name: What it does.
        arguments: Command and options, for a folder of its own.
        outcome: What it has made of that folder, or of the Hub, by name: digests of contents.
    """

    name: str
    arguments: Callable[[Path], list[str]]
    outcome: Callable[[Path], Outcome]


class Workplace:
    """Shared inputs of the commands, made once.

    Args:
        folder: For everything.
        hub: To push to.
    """

    def __init__(self, folder: Path, hub: LoopbackHub) -> None:
        self.folder, self.hub = folder, hub
        self.data, self.evaluator, self.generator = (folder / name for name in ("data", "evaluator", "generator"))
        movielens.write_100k(folder / "ml", movielens.generate())
        taobao.write_all(folder / "taobao", taobao.generate())
        self.log = long_format.save(long_format.make_log(), folder / "log")
        (folder / "log.yaml").write_text(long_format.SCHEMA, encoding="utf-8")

    def preparations(self) -> list[list[str]]:
        """Commands that make the inputs."""
        sizes = ["--num-train", "240", "--num-validation", "48", "--num-test", "200"]
        return [
            ["prepare", "simulator", "--out", str(self.data), *sizes],
            self._fit("degre/evaluator-simulator.yaml", self.evaluator, epochs=1),
            self._fit("nar4rec/simulator.yaml", self.generator, epochs=1),
        ]

    def commands(self) -> list[Command]:
        """All of them."""
        convert = {
            "simulator": ["--num-train", "4000", "--num-validation", "1000", "--num-test", "1000"],
            "ml-100k": ["--raw", str(self.folder / "ml")],
            "taobao-ad": ["--raw", str(self.folder / "taobao")],
            "log": [
                *(word for name, table in vars(self.log).items() if table for word in (f"--{name}", table)),
                *("--schema", str(self.folder / "log.yaml")),
            ],
        }
        train = partial(self._fit, "nar4rec/simulator.yaml", epochs=3)
        return [
            Command("train", lambda root: train(root / "run"), training_outcome),
            Command("mine", self._mine, files_outcome),
            Command("predict", self._predict, files_outcome),
            Command("push", self._push, self._pushed),
            *(
                Command(f"convert {source}", partial(_prepare, source, more), files_outcome)
                for source, more in convert.items()
            ),
        ]

    def _fit(self, recipe: str, root: Path, epochs: int) -> list[str]:
        return ["fit", *self._run(recipe, root), f"--trainer.max_epochs={epochs}", "--ckpt_path=last"]

    def _run(self, recipe: str, root: Path) -> list[str]:
        return [
            f"--config={recipes_folder() / recipe}",
            f"--config={recipes_folder() / 'trainer/cpu.yaml'}",
            "--data=rerankzoo.RerankingDataModule",
            f"--data.init_args.path={self.data}",
            "--data.init_args.batch_size=16",
            "--data.init_args.eval_batch_size=2",
            "--model.init_args.config.hidden_size=16",
            "--model.init_args.config.hidden_dropout_prob=0.2",
            *(["--model.init_args.generation.do_sample=true"] if recipe.startswith("nar4rec/simulator") else []),
            "--trainer.enable_progress_bar=false",
            "--trainer.enable_model_summary=false",
            f"--trainer.default_root_dir={root}",
        ]

    def _predict(self, root: Path) -> list[str]:
        checkpoint = self.generator / "checkpoints" / "best.ckpt"
        return ["predict", *self._run("nar4rec/simulator.yaml", root), f"--ckpt_path={checkpoint}"]

    def _mine(self, root: Path) -> list[str]:
        return [
            "mine",
            *("--evaluator", str(self.evaluator / "best"), "--data", str(self.data), "--out", str(root / "mined")),
            *("--num-requests", "120", "--num-validation", "24", "--shard-size", "12", "--num-beams", "4"),
            *("--keep", "2", "--accelerator", "cpu", "--devices", "1"),
        ]

    def _push(self, root: Path) -> list[str]:
        return ["push", str(self.generator / "best"), f"org/{root.name}"]

    def _pushed(self, root: Path) -> Outcome:
        name, found = f"org/{root.name}", {}
        repository = self.hub.repository(name)
        for revision in (*repository.branches, *repository.pulls):
            found[f"{revision}: commits"] = json.dumps(self.hub.titles(name, revision))
            for path, content in self.hub.files(name, revision).items():
                found[f"{revision}: {path}"] = hashlib.sha256(content).hexdigest()
        return found


def _prepare(source: str, more: list[str], root: Path) -> list[str]:
    return ["prepare", source, "--out", str(root / "out"), *more]


# --- outcomes -------------------------------------------------------------------------------------------------------


def files_outcome(folder: Path) -> Outcome:
    """Every file below a folder, hidden ones included: what is left of a killed process shows here.

    Without the logs: each start has its own.
    """
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name: hashlib.sha256(_content(path)).hexdigest() for name, path in files.items() if "logs/version_" not in name
    }


def training_outcome(folder: Path) -> Outcome:
    """Like `files_outcome`, but of checkpoints what they hold."""
    found = {}
    for name, digest in files_outcome(folder).items():
        if name.endswith(".ckpt"):
            held = torch.load(folder / name, weights_only=True)
            found |= {f"{name}: {key}": text for key, text in _flat(held).items()}
        else:
            found[name] = digest
    return found


def repeated_rows(folder: Path) -> int:
    """Rows of the Parquet files below a folder that are there more than once within their split."""
    seen: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        split = path.name.split("-")[0].removesuffix(".parquet")
        table = pq.read_table(path)
        seen.setdefault(f"{path.parent}/{split}", []).extend(repr(row) for row in table.to_pylist())
    return sum(len(rows) - len(set(rows)) for rows in seen.values())


def half_files(folder: Path) -> list[str]:
    """Visible files below a folder that cannot be read whole."""
    visible = [path for path in sorted(folder.rglob("*")) if not any(part[0] == "." for part in path.parts[1:])]
    return [path.relative_to(folder).as_posix() for path in visible if path.is_file() and not _is_whole(path)]


def _is_whole(path: Path) -> bool:
    readers: dict[str, Callable[[Path], Any]] = {
        ".parquet": lambda file: pq.read_table(file, page_checksum_verification=True),
        ".ckpt": check_checkpoint,
        ".safetensors": load_file,
        ".json": lambda file: json.loads(file.read_bytes()),
    }
    try:
        readers.get(path.suffix, Path.read_bytes)(path)
    except Exception:  # of whatever kind: it is not whole
        return False
    return True


def _content(path: Path) -> bytes:
    """What a file holds, without the folder that it was written in."""
    content = path.read_bytes()
    if path.suffix not in (".json", ".yaml", ".md"):
        return content
    parents = [str(parent).encode() for parent in path.parents if len(parent.parts) > 2]
    for parent in parents:
        content = content.replace(parent, b"(folder)")
    return content


def _flat(value: Any, name: str = "") -> dict[str, str]:
    if isinstance(value, dict):
        parts = {f"{name}/{key}": part for key, part in value.items() if key not in _OF_THE_PROCESS}
        if name.endswith("/best_k_models"):
            parts = {f"{name}/{number}": part for number, part in enumerate(value.values())}
    elif isinstance(value, list | tuple):
        parts = {f"{name}/{number}": part for number, part in enumerate(value)}
    elif isinstance(value, Tensor):
        content = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return {name: f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(content).hexdigest()}"}
    else:
        return {name: repr(value)}
    found: dict[str, str] = {}
    for key, part in parts.items():
        found |= _flat(part, key)
    return found
