"""The documentation is true: its code runs, and what it names exists.

Conventions, in HTML comments on the line before a fenced block:

- `<!-- run -->`: the block is run, in the order of the page, in a folder that holds what `make quickstart` leaves
  behind (tiny). Python blocks of a page share their variables; of a bash block the `rerankzoo` lines are run.
- `<!-- file: PATH -->`: the block is written to that file, relative to the same folder.

The pages about the Hub are run one after the other, each in a process of its own, against the loopback Hub of
`tests/hub`: what the first one pushes, the second one loads.
"""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from rerankzoo import metrics
from rerankzoo.batch import ENTRIES
from rerankzoo.cli.main import COMMANDS, main
from rerankzoo.data.datamodule import SimulatorDataModule
from rerankzoo.data.simulator import SimulatorSettings, write_simulator_folder
from rerankzoo.features import FeatureSchema, FieldSpec, RerankingFeatureExtractor, TargetSpec
from rerankzoo.generation import RerankingGenerationConfig
from rerankzoo.models.degre import DeGReEvaluator, DeGReGenerator
from rerankzoo.models.nar4rec import NAR4RecForReranking
from tests.families import CONFIGS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
#: Families that share a page.
CLASSICS = ("dlcm", "gsf", "midnn", "mir", "setrank")
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

#: Added to what the docs say (unless they say it), so that a run is over in seconds.
QUICKLY = {
    "fit": {"--trainer.accelerator": "cpu", "--trainer.devices": "1", "--trainer.max_epochs": "1"},
    "predict": {"--trainer.accelerator": "cpu", "--trainer.devices": "1"},
    "evaluate": {"--num-requests": "12", "--hr-requests": "2"},
}
#: Data sets that pages make themselves are made smaller.
SMALLER = {"2_000": "96", '"validation": 300': '"validation": 24', '"test": 300': '"test": 24'}


@dataclass(frozen=True)
class Block:
    """A fenced block with the comment before it."""

    language: str
    text: str
    mark: str
    line: int


def blocks(page: Path) -> list[Block]:
    pattern = re.compile(r"(?:<!-- (run|file: \S+) -->\n)?^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    source = page.read_text(encoding="utf-8")
    return [
        Block(match[2], match[3], match[1] or "", source.count("\n", 0, match.start(3)) + 1)
        for match in pattern.finditer(source)
    ]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def first_cells(page: Path) -> dict[str, list[str]]:
    """The rows of all tables by their first cell, where that is code."""
    rows = re.findall(r"^\| `([^`|]+)` \|(.*)\|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: [cell.strip() for cell in rest.split(" | ")] for name, rest in rows}


# --- what is named exists -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_relative_links_resolve(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    for target in targets:
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = page if not path else page.parent / path
        assert file.exists(), f"{page.name} links to {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name} links to {target}"


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", head.lower()).strip()) for head in heads}


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = re.findall(r"[\w/-]+\.md", text[text.index("\nnav:") :])
    assert sorted(nav) == sorted(str(page.relative_to(DOCS)) for page in PAGES[1:])


def test_named_commands_exist() -> None:
    named = set()
    for page in PAGES:
        for code in [*(block.text for block in blocks(page)), *re.findall(r"`([^`\n]+)`", prose(page))]:
            named |= set(re.findall(r"(?<!from )(?<!import )\brerankzoo ([a-z]+)", code))
    assert named == set(COMMANDS)  # every command is told of somewhere


def test_named_files_exist() -> None:
    own = {block.mark.removeprefix("file: ") for page in PAGES for block in blocks(page)}
    folders = "|".join(["toy", *sorted(path.name for path in (ROOT / "recipes").iterdir())])
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for recipe in re.findall(rf"(?:recipes/)?\b((?:{folders})/[\w-]+\.yaml)", text):
            assert (ROOT / "recipes" / recipe).is_file() or f"recipes/{recipe}" in own, f"{page.name} names {recipe}"
        for path in re.findall(r"`((?:rerankzoo|tests)/[\w./-]+\.py)`", text):
            assert (ROOT / path).is_file() or path in own, f"{page.name} names {path}"


def test_named_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        named = re.findall(r"`make ([a-z-]+)`", page.read_text(encoding="utf-8"))
        assert set(named) <= targets, page.name


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("data-format.md", {entry.name for kind in (FeatureSchema, FieldSpec, TargetSpec) for entry in fields(kind)}),
        ("notation.md", set(ENTRIES)),
        ("decoding.md", set(RerankingGenerationConfig.names())),
        ("evaluation.md", {name for name in metrics.__all__ if name[0].isupper() and hasattr(metrics, name)}
         - {"Estimate", "Resampled", "Spread", "RankEstimate"}),
    ],
)  # fmt: skip
def test_reference_tables_are_complete(page: str, names: set[str]) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert not [name for name in names if f"`{name}" not in text]


def page_of(model_type: str) -> str:
    return f"models/{'classics' if model_type in CLASSICS else model_type}.md"


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        *((page_of(config.model_type), config) for config in CONFIGS),
        ("simulator.md", SimulatorSettings),
    ],
)
def test_tables_tell_the_defaults(page: str, kind: Any) -> None:
    rows = first_cells(DOCS / page)
    inherited = {
        entry.name for base in kind.__mro__[1:] if base.__name__ == "PreTrainedConfig" for entry in fields(base)
    }
    own = {entry.name: entry.default for entry in fields(kind) if entry.name not in inherited}
    assert MISSING not in own.values()
    assert set(own) <= set(rows)
    for name, default in own.items():
        shown = rows[name][0].strip("`")
        assert yaml.safe_load(shown.replace("None", "null")) == (
            list(default) if isinstance(default, tuple) else default
        )


# --- what is shown runs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recipes and what `rerankzoo quickstart` leaves behind: data and (untrained) checkpoints."""
    folder = tmp_path_factory.mktemp("docs")
    data = folder / SimulatorDataModule(num_train=20_000, root="outputs/quickstart/data").path
    write_simulator_folder(data, SimulatorSettings(), num_train=96, num_validation=24, num_test=24)
    rows = pq.read_table(data / "train.parquet")
    extractor = RerankingFeatureExtractor(FeatureSchema.from_yaml(data / "schema.yaml")).fit(rows)
    sizes = {"feature_schema": extractor.schema.to_dict(), "hidden_size": 16, "num_hidden_layers": 1}
    heads = {"nar4rec": NAR4RecForReranking, "degre": DeGReGenerator, "degre-evaluator": DeGReEvaluator}
    for name, head in heads.items():
        head(head.config_class(**sizes)).save_pretrained(folder / "outputs/quickstart" / name)
        extractor.save_pretrained(folder / "outputs/quickstart" / name)
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    return folder


HUB_PAGES = [DOCS / "share.md", DOCS / "use.md", DOCS / "fine-tune.md"]
RUNNING = [page for page in PAGES if any(block.mark == "run" for block in blocks(page)) and page not in HUB_PAGES]


def smaller(text: str) -> str:
    for original, replacement in SMALLER.items():
        text = text.replace(original, replacement)
    return text


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNING, ids=[page.stem for page in RUNNING])
def test_page_runs(page: Path, quickstart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(quickstart, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert run_page(page, tmp_path) == sum(bool(block.mark) for block in blocks(page)) > 0


@pytest.mark.slow
def test_hub_pages_run(
    quickstart: Path, tmp_path: Path, client: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    shutil.copytree(quickstart, tmp_path, dirs_exist_ok=True)
    for page in HUB_PAGES:
        call = f"print('blocks:', run_page(pathlib.Path({str(page)!r}), pathlib.Path({str(tmp_path)!r})))"
        done = client(f"import pathlib\nfrom tests.test_docs import run_page\n{call}", cache=page.stem)
        marked = sum(bool(block.mark) for block in blocks(page))
        assert marked > 0
        assert done.stdout.splitlines()[-1] == f"blocks: {marked}"


def run_page(page: Path, folder: Path) -> int:
    """Runs a page's marked blocks in a folder, which is the working directory; returns how many there were."""
    variables: dict[str, Any] = {}
    done = 0
    for block in blocks(page):
        if block.mark.startswith("file: "):
            path = folder / block.mark.removeprefix("file: ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.mark == "run" and block.language == "python":
            script = folder / f"{page.stem}.py"
            # Empty lines before it, so that a traceback tells the page's own line.
            script.write_text("\n" * (block.line - 1) + smaller(block.text), encoding="utf-8")
            variables = runpy.run_path(str(script), init_globals=variables)
        elif block.mark == "run":
            for line in block.text.replace("\\\n", " ").splitlines():
                run_command(shlex.split(line, comments=True))
        done += bool(block.mark)
    return done


def run_command(words: list[str]) -> None:
    if words[:1] == ["rerankzoo"]:
        added = [
            word
            for option, value in QUICKLY.get(words[1], {}).items()
            if option not in words
            for word in (option, value)
        ]
        assert main([*words[1:], *added]) == 0, words


def test_some_pages_run() -> None:
    assert {"README.md", "docs/data-format.md", "docs/training.md"} <= {str(page.relative_to(ROOT)) for page in RUNNING}
