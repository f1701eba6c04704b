from __future__ import annotations

import csv
import errno
import os
import platform
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pytest
from jsonargparse.typing import PositiveInt

import rerankzoo
from rerankzoo.cli.main import COMMANDS, main
from rerankzoo.cli.options import call
from rerankzoo.errors import OutputError, RecipeError
from tests.test_atomic_writing import full_disk


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {command} " in shown for command in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == rerankzoo.__version__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fitt"], "rerankzoo fitt: unknown command 'fitt'; did you mean 'fit'?"),
        (["recipes", "lst"], "rerankzoo recipes: expected one of list, copy, got 'lst'; did you mean 'list'?"),
        (["recipes"], "rerankzoo recipes: expected one of list, copy, got ''"),
        (["push", "a", "b", "--privat"], "unknown option --privat; did you mean '--private'?"),
        (["push", "a", "b", "c"], "unexpected arguments: c"),
        (["push", "a"], "required: repo_id"),
        (["prepare", "simulator", "--out", "x", "--setting", "stron"], "got 'stron'; did you mean 'strong'?"),
        (["prepare", "simulator", "--out", "x", "--constant", "y"], "expected NAME=VALUE with a number"),
        (["prepare", "simulator", "--out", "x", "--seed", "-1"], "argument --seed: expected NonNegativeInt, got '-1'"),
        (["recipes", "copy", "nar4rek"], "no recipe 'nar4rek'; did you mean 'nar4rec'?"),
        (["fit", "--config", "nar4rec/simulater.yaml"], "did you mean 'nar4rec/simulator.yaml'?"),
        (["benchmark", "nar4rec/benchmark.yaml", "--out", "x"], "did you mean 'nar4rec/benchmark-"),
        (["bench", "x", "--device", "abacus"], "expected one such as cpu, cuda or cuda:1, got 'abacus'"),
    ],
)
def test_what_was_meant_is_suggested(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert message in line


def example(
    place: Path,
    count: PositiveInt = 2,
    *further: str,
    sizes: tuple[PositiveInt, ...] = (1, 2),
    names: list[str] | None = None,
    kind: Literal["a", "b"] = "a",
    quick: bool = False,
    needed: str,
) -> None:
    """Shows.

    Args:
        place: Where, 100 % of it.
        count: How many.
        *further: Passed on.
        sizes: Numbers.
        names: Several.
        kind: Which.
        quick: Or not.
        needed: Required.
    """
    SEEN.append(dict(locals()))


SEEN: list[dict[str, Any]] = []


def test_options_are_read_from_a_signature(capsys: pytest.CaptureFixture[str]) -> None:
    call("example", example, ["here", "--needed=x"])
    assert SEEN.pop() == {
        **{"place": Path("here"), "count": 2, "further": (), "sizes": (1, 2), "names": None, "kind": "a"},
        **{"quick": False, "needed": "x"},
    }
    options = ["--sizes", "3,4", "--names", "a", "b", "--names=c", "--kind=b", "--quick", "--other", "--needed", "x"]
    call("example", example, ["here", "3", *options])
    assert SEEN.pop() == {
        **{"place": Path("here"), "count": 3, "further": ("--other",), "sizes": (3, 4), "names": ["a", "b", "c"]},
        **{"kind": "b", "quick": True, "needed": "x"},
    }
    for wrong in ("--sizes=3,x", "--kind=c", "--needed"):
        with pytest.raises(RecipeError, match=wrong.partition("=")[0]):
            call("example", example, ["here", wrong])
    with pytest.raises(SystemExit, match="0"):
        call("example", example, ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--sizes SIZES Numbers. (default: 1,2)" in shown
    assert "--kind {a,b} Which. (default: a)" in shown
    assert "Where, 100 % of it." in shown


@pytest.mark.slow
def test_starting_costs_less_than_a_second() -> None:
    """Nothing heavy is imported before a command needs it."""
    for arguments in (["--help"], ["recipes", "list"]):
        before = os.times()
        subprocess.run([sys.executable, "-m", "rerankzoo.cli.main", *arguments], capture_output=True, check=True)
        after = os.times()
        seconds = after.children_user + after.children_system - before.children_user - before.children_system
        assert seconds < 1, arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "nowhere", "--data", "nowhere"], "nowhere"),
        (["benchmark", "nowhere.yaml", "--out", "out"], "no file 'nowhere.yaml'"),
        (["recipes", "copy", "nowhere.yaml"], "no recipe 'nowhere.yaml'"),
        (["prepare", "ml-100k", "--raw", "nowhere", "--out", "out"], "nowhere"),
    ],
)
def test_unusable_input_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"rerankzoo {arguments[0]}: ")
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device", "out.json"), OutputError("cannot write out.json: full")],
    ids=["of the system", "ours"],
)
def test_a_full_disk_is_one_line_and_status_2(
    error: OSError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(folder: str) -> None:
        raise error

    monkeypatch.setattr("rerankzoo.cli.card.card", fail)
    assert main(["card", "folder"]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("rerankzoo card: ")
    assert "out.json" in line


def test_a_full_disk_below_a_library_names_the_open_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def log(folder: str) -> None:  # as Lightning's loggers do
        try:
            with (tmp_path / "metrics.csv").open("w") as file, full_disk():
                csv.writer(file).writerows([["a" * 100]] * 2_000)
        except OSError as error:
            raise RuntimeError("of a library, without a word") from error

    monkeypatch.setattr("rerankzoo.cli.card.card", log)
    assert main(["card", "folder"]) == 2
    assert capsys.readouterr().err == f"rerankzoo card: cannot write {tmp_path}/metrics.csv: File too large\n"


def in_python() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def in_a_query() -> None:
    """DuckDB makes an error of its own of what interrupts it; its further threads would go on to the end."""
    import duckdb

    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    connection = duckdb.connect(config={"threads": 1})
    connection.sql("SELECT sum(hash(range)) FROM range(1000000000)").fetchall()


def in_what_swallows_it() -> None:
    with suppress(BaseException):
        in_python()


@pytest.mark.parametrize("ended_in", [in_python, in_a_query, in_what_swallows_it])
def test_sigterm_ends_a_command_with_status_143(ended_in: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned = []

    def run(folder: str) -> None:
        try:
            ended_in()
        finally:
            cleaned.append(True)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("rerankzoo.cli.card.card", run)
    with pytest.raises(SystemExit) as ended:
        main(["card", "folder"])
    assert ended.value.code == 143
    assert cleaned
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
def test_import_is_lean() -> None:
    """Serving needs neither Lightning nor datasets, and naming them must not load them."""
    code = (
        "import sys, rerankzoo\n"
        "rerankzoo.RerankingPipeline, rerankzoo.NAR4RecForReranking, rerankzoo.FeatureSchema\n"
        "heavy = {'lightning', 'datasets', 'torchmetrics', 'pandas', 'matplotlib', 'wandb', 'jsonargparse', 'rich'}\n"
        "heavy |= {'onnx', 'onnxruntime', 'onnxscript'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


FAULTS = """
import os
import resource
from rerankzoo.cli.main import main
main(["--version"])
def use():
    for _ in range(20):
        parts = [b"x" * (1 << 20) for _ in range(4)]
        del parts
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, os.environ["MALLOC_TRIM_THRESHOLD_"])
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_freed_memory_is_kept_unless_the_environment_says_otherwise() -> None:
    def run(**environment: str) -> tuple[int, int]:
        """Page faults of a command's process, and what those that it starts are told."""
        plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        command = [sys.executable, "-c", FAULTS]
        done = subprocess.run(command, env=plain | environment, check=True, capture_output=True, text=True)
        faults, threshold = done.stdout.split()[-2:]
        return int(faults), int(threshold)

    pages = 20 * 4 * (1 << 20) // resource.getpagesize()
    faults, threshold = run()
    assert faults < pages // 20
    assert threshold == 256 << 20
    given_back = {"MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "131072"}
    faults, threshold = run(**given_back)
    assert faults > pages // 2
    assert threshold == 65536


def test_every_public_name_exists() -> None:
    for name in rerankzoo.__all__:
        assert getattr(rerankzoo, name) is not None
    assert set(rerankzoo.__all__) <= set(dir(rerankzoo))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rerankzoo.nothing
