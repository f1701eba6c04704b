from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest

import rerankzoo
from rerankzoo.cli.main import COMMANDS, main
from rerankzoo.errors import OutputError


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {command} " in shown for command in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == rerankzoo.__version__


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fitt"]) == 2
    assert "unknown command 'fitt'" in capsys.readouterr().err


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
    def fail(arguments: list[str]) -> None:
        raise error

    monkeypatch.setattr("rerankzoo.cli.card.main", fail)
    assert main(["card", "folder"]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("rerankzoo card: ")
    assert "out.json" in line


def in_python() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def in_a_query() -> None:
    """DuckDB makes an error of its own of what interrupts it."""
    import duckdb

    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    duckdb.sql("SELECT sum(hash(range)) FROM range(1000000000)").fetchall()


def in_what_swallows_it() -> None:
    with suppress(BaseException):
        in_python()


@pytest.mark.parametrize("ended_in", [in_python, in_a_query, in_what_swallows_it])
def test_sigterm_ends_a_command_with_status_143(ended_in: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned = []

    def run(arguments: list[str]) -> None:
        try:
            ended_in()
        finally:
            cleaned.append(True)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("rerankzoo.cli.card.main", run)
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


def test_every_public_name_exists() -> None:
    for name in rerankzoo.__all__:
        assert getattr(rerankzoo, name) is not None
    assert set(rerankzoo.__all__) <= set(dir(rerankzoo))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rerankzoo.nothing
