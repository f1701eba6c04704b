"""The GitHub workflow runs what this repository has, and the core dependencies are enough for what they must do."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.core_imports import EXTRAS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
#: Packages whose import name is another, or that work without being imported.
OTHER_NAMES = {"jsonargparse[signatures]": "jsonargparse", "prometheus-client": "prometheus_client"}
#: Of the extras, but the core's dependencies need them as well, so they are not missing without an extra.
SHARED = {"markdown-it-py", "rich"}


@pytest.fixture(scope="module")
def jobs() -> dict[str, Any]:
    return yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def test_workflow_tests_every_supported_python(jobs: dict[str, Any], project: dict[str, Any]) -> None:
    versions = jobs["test"]["strategy"]["matrix"]["python-version"]
    assert versions == ["3.10", "3.11", "3.12", "3.13"]  # strings: 3.10 is no number
    assert project["requires-python"] == f">={versions[0]}"
    core = jobs["core"]["strategy"]["matrix"]["python-version"]
    assert core == [versions[0], versions[-1]]
    assert commands(jobs["test"]) == ["make test"]
    assert commands(jobs["lint"]) == ["make quality"]


def test_workflow_tests_the_oldest_and_the_newest_dependencies(jobs: dict[str, Any], project: dict[str, Any]) -> None:
    kinds = [kind["resolution"] for kind in jobs["versions"]["strategy"]["matrix"]["include"]]
    assert kinds == ["lowest-direct", "highest"]
    extras = [entry for name in ("train", "data", "serve", "dev") for entry in project["optional-dependencies"][name]]
    direct = [entry for entry in (*project["dependencies"], *extras) if not entry.startswith("rerankzoo[")]
    unbounded = [entry for entry in direct if not re.search(r"[>=]=\d", entry)]
    assert not unbounded  # the oldest version of them would be the first that was ever published
    hooked = ("torch", "transformers", "huggingface-hub", "lightning", "jsonargparse", "datasets", "torchmetrics")
    assert all("<" in entry for entry in direct if re.split(r"[\[><=]", entry)[0] in hooked)


def test_workflow_runs_what_there_is(jobs: dict[str, Any]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(VENV)", ".venv")
    for job in jobs.values():
        for command in commands(job):
            if command.startswith("make "):
                assert re.search(rf"^{re.escape(command.split()[1])}:", makefile, re.MULTILINE), command
            for script in re.findall(r"\S+\.py\b", command):
                assert (ROOT / script).is_file(), script


def test_extras_that_are_hidden_are_those_of_the_project(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    packages = {
        re.split(r"[><=]", entry)[0] for name in ("train", "data", "serve", "yardsticks") for entry in extras[name]
    }
    assert {OTHER_NAMES.get(package, package) for package in packages} - SHARED == set(EXTRAS)


@pytest.mark.slow
def test_core_dependencies_are_enough(tmp_path: Path) -> None:
    """As far as hiding the extras shows it; the workflow installs none."""
    script = str(ROOT / "tests" / "core_imports.py")
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script, "--hide"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "public names" in done.stdout
