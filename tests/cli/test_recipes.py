"""Every shipped recipe is found, composed and run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from rerankzoo.cli.benchmark import Benchmark
from rerankzoo.cli.lightning import command_line
from rerankzoo.cli.main import main
from rerankzoo.cli.recipes import copy_recipe, describe, find_recipe, list_recipes, recipes_folder
from rerankzoo.data.simulator import Simulator, SimulatorSettings
from rerankzoo.data.sources.kuairand import kuairand
from rerankzoo.data.sources.letor import letor_schema
from rerankzoo.data.sources.movielens import movielens_schema
from rerankzoo.data.sources.taobao import taobao_schema
from rerankzoo.features import FeatureSchema
from tests.generated import write_random_folder

FOLDER = recipes_folder()

#: The schema of every recipe's data, by the end of the recipe's name.
SCHEMAS = {
    "ml-100k": lambda: movielens_schema("ml-100k", 19),
    "simulator": lambda: Simulator(SimulatorSettings()).schema,
    "taobao-ad": taobao_schema,
    "public-log": lambda: kuairand().spec.schema,
    "letor/pointwise": lambda: letor_schema(5),
}


def kind(recipe: str) -> str:
    """What a recipe is for, from its keys; a recipe of no known kind fails here."""
    keys = set(yaml.safe_load((FOLDER / recipe).read_text(encoding="utf-8")))
    if keys == {"trainer"}:
        return "trainer"
    if "models" in keys:
        return "benchmark"
    assert {"model", "data", "trainer"} <= keys, f"{recipe} has keys {sorted(keys)}"
    return "model"


def sections(recipe: str) -> tuple[str, ...]:
    """The keys that a model recipe sets in what a trainer recipe may touch; model and data are none of its business."""
    values = yaml.safe_load((FOLDER / recipe).read_text(encoding="utf-8"))
    callbacks = [callback["class_path"] for callback in values["trainer"].get("callbacks", ())]
    return (*sorted(values["trainer"]), *sorted(values.keys() - {"model", "data", "trainer"}), *callbacks)


MODELS = [recipe for recipe in list_recipes() if kind(recipe) == "model"]
#: One of all that set the same keys beside model and data.
COMPOSED = list({sections(recipe): recipe for recipe in MODELS}.values())
TRAINERS = [recipe for recipe in list_recipes() if kind(recipe) == "trainer"]
BENCHMARKS = [recipe for recipe in list_recipes() if kind(recipe) == "benchmark"]


def data_arguments(recipe: str, folder: Path) -> list[str]:
    """Options that put small generated data of the recipe's schema in the place of its own."""
    data = yaml.safe_load((FOLDER / recipe).read_text(encoding="utf-8"))["data"]
    if data["class_path"].endswith("SimulatorDataModule"):
        return [
            "--data.init_args.num_train=64",
            "--data.init_args.num_validation=32",
            "--data.init_args.num_test=32",
            f"--data.init_args.root={folder}",
        ]
    schema = next(make() for name, make in SCHEMAS.items() if recipe.removesuffix(".yaml").endswith(name))
    return [f"--data.init_args.path={write_random_folder(folder / 'data', schema)}"]


def arguments(recipe: str, trainer: str, folder: Path) -> list[str]:
    return [
        f"--config={FOLDER / recipe}",
        f"--config={FOLDER / trainer}",
        *data_arguments(recipe, folder),
        "--data.init_args.batch_size=8",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        f"--trainer.default_root_dir={folder / 'run'}",
    ]


def test_there_are_recipes_of_every_kind() -> None:
    assert len(MODELS) >= 4
    assert len(TRAINERS) >= 2
    assert len(BENCHMARKS) >= 2
    assert set(list_recipes()) == {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.yaml")}


@pytest.mark.parametrize("recipe", MODELS)
def test_model_recipe_runs(recipe: str, tmp_path: Path) -> None:
    command = arguments(recipe, "trainer/cpu.yaml", tmp_path)
    assert main(["fit", *command, "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]) == 0
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
    assert list((tmp_path / "run" / "logs").rglob("metrics.csv"))


@pytest.mark.parametrize("trainer", [name for name in TRAINERS if name != "trainer/fsdp.yaml"])
@pytest.mark.parametrize("recipe", COMPOSED)
def test_trainer_recipe_composes_with_model_recipe(recipe: str, trainer: str, tmp_path: Path) -> None:
    on_cpu = ["--trainer.accelerator=cpu", "--trainer.devices=1"]
    run = command_line([*arguments(recipe, trainer, tmp_path), *on_cpu], run=False)
    values = yaml.safe_load((FOLDER / trainer).read_text(encoding="utf-8"))["trainer"]
    assert set(values) <= set(run.config["trainer"].keys())
    assert run.trainer.max_epochs == yaml.safe_load((FOLDER / recipe).read_text())["trainer"].get("max_epochs")
    if values.get("strategy") == "ddp":
        assert isinstance(run.trainer.strategy, DDPStrategy)


@pytest.mark.parametrize("recipe", COMPOSED)
def test_fsdp_recipe_composes_up_to_the_gpus_that_it_needs(recipe: str, tmp_path: Path) -> None:
    """Lightning makes the strategy, and then refuses to run it on a CPU."""
    with pytest.raises(ValueError, match="`fsdp` requires a GPU accelerator"):
        command_line([*arguments(recipe, "trainer/fsdp.yaml", tmp_path), "--trainer.accelerator=cpu"], run=False)
    strategy = yaml.safe_load((FOLDER / "trainer/fsdp.yaml").read_text(encoding="utf-8"))["trainer"]["strategy"]
    assert strategy["class_path"] == f"lightning.pytorch.strategies.{FSDPStrategy.__name__}"
    made = FSDPStrategy(**strategy["init_args"])
    assert made.sharding_strategy.name == "FULL_SHARD"
    assert made._state_dict_type == "full"


def test_slurm_recipe_takes_its_place_among_the_jobs_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As srun describes it to the last of two machines with two processes each."""
    job = {"JOB_NAME": "train", "JOB_ID": "7", "NNODES": "2", "NODELIST": "node[4-5]", "NODEID": "1"}
    task = {"NTASKS": "4", "NTASKS_PER_NODE": "2", "PROCID": "3", "LOCALID": "1"}
    for name, value in {**job, **task}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # puts back what the trainer makes of it, for all tests after this
    on_cpu = ["--trainer.accelerator=cpu", "--trainer.devices=2"]
    trainer = command_line(
        [*arguments("nar4rec/simulator.yaml", "trainer/slurm.yaml", tmp_path), *on_cpu], run=False
    ).trainer
    strategy: Any = trainer.strategy
    assert isinstance(strategy.cluster_environment, SLURMEnvironment)
    assert strategy.cluster_environment.main_address == "node4"
    assert (trainer.world_size, trainer.global_rank, trainer.local_rank, trainer.node_rank) == (4, 3, 1, 1)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_benchmark_recipe_names_recipes(benchmark: str) -> None:
    found = Benchmark.from_yaml(FOLDER / benchmark)
    specs = [found.evaluator, found.judge, *found.evaluators.values()]
    recipes = [*(spec.recipe for spec in specs if spec), *(entry.recipe for entry in found.models.values())]
    assert all(find_recipe(recipe).is_file() for recipe in recipes if recipe is not None)


@pytest.mark.parametrize("recipe", list_recipes())
def test_recipe_says_what_it_is_and_how_to_run_it(recipe: str) -> None:
    lines = (FOLDER / recipe).read_text(encoding="utf-8").splitlines()
    assert describe(recipe)
    commands = [line for line in lines[1:6] if line.startswith(("#   rerankzoo ", "#   srun rerankzoo "))]
    assert commands
    assert any(recipe in command for command in commands)


def test_one_s_own_log_trains_with_the_same_recipe(tmp_path: Path, schema: FeatureSchema) -> None:
    folder = write_random_folder(tmp_path / "data", schema)
    (folder / "dataset.json").unlink()  # a log of one's own has none
    root = tmp_path / "run"
    common = [
        "--config=nar4rec/ml-100k.yaml",  # as `recipes list` shows it
        *("--config", "recipes/trainer/cpu.yaml"),
        f"--data.init_args.path={folder}",
        f"--trainer.default_root_dir={root}",
        "--trainer.enable_progress_bar=false",
        "--trainer.max_epochs=1",
    ]
    assert main(["fit", *common]) == 0
    for command in ("validate", "test", "predict"):
        assert main([command, *common, f"--ckpt_path={root / 'checkpoints' / 'best.ckpt'}"]) == 0
    assert (root / "predictions.parquet").is_file()
    assert main(["evaluate", str(root / "best"), "--data", str(folder), "--out", str(tmp_path / "report")]) == 0
    assert (tmp_path / "report" / "results.json").is_file()


#: A command, and then another one, of the same processes: importing PyTorch anew is most of what each of them costs.
TWO_COMMANDS = """
import sys
from rerankzoo.cli.main import main

assert main() == 0
assert main(["predict", *sys.argv[2:], CHECKPOINT]) == 0
"""


@pytest.mark.slow
def test_two_processes_train_and_predict(tmp_path: Path) -> None:
    """Two processes on the CPU: the exported folder, and the table of predictions that one process makes."""
    root = tmp_path / "run"
    command = [
        *arguments("nar4rec/simulator.yaml", "trainer/ddp.yaml", tmp_path),
        "--trainer.accelerator=cpu",
        "--trainer.devices=2",
        "--trainer.max_epochs=1",
        "--data.init_args.num_test=33",
    ]
    checkpoint = f"--ckpt_path={root / 'checkpoints' / 'best.ckpt'}"
    script = tmp_path / "commands.py"  # which Lightning starts again as the second process
    script.write_text(TWO_COMMANDS.replace("CHECKPOINT", repr(checkpoint)), encoding="utf-8")
    done = subprocess.run([sys.executable, script, "fit", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (root / "best" / "model.safetensors").is_file()
    table: dict[str, Any] = pq.read_table(root / "predictions.parquet").to_pydict()
    assert table["request_index"] == list(range(33))
    assert not list(root.glob("*part*"))
    alone = [f"--config={FOLDER / 'trainer/cpu.yaml'}", "--trainer.strategy=auto", checkpoint]
    assert main(["predict", *command, *alone, f"--predictions.path={root / 'alone.parquet'}"]) == 0
    expected: dict[str, Any] = pq.read_table(root / "alone.parquet").to_pydict()
    assert table["slate"] == expected["slate"]
    assert table["item_ids"] == expected["item_ids"]
    assert table["score"] == pytest.approx(expected["score"], abs=1e-5)


@pytest.mark.slow
def test_logs_to_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    command = arguments("nar4rec/evaluator-simulator.yaml", "trainer/cpu.yaml", tmp_path)
    assert main(["fit", *command, "--trainer.max_epochs=1", "--wandb=true"]) == 0
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


def test_another_optimizer_takes_the_place_of_the_module_s(tmp_path: Path) -> None:
    command = arguments("nar4rec/evaluator-simulator.yaml", "trainer/cpu.yaml", tmp_path)
    optimizer = ["--optimizer=torch.optim.SGD", "--optimizer.lr=0.25", "--optimizer.momentum=0.5"]
    schedule = ["--lr_scheduler=torch.optim.lr_scheduler.StepLR", "--lr_scheduler.step_size=1"]
    assert main(["fit", *command, *optimizer, *schedule, "--trainer.max_epochs=1"]) == 0
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    [group] = state["optimizer_states"][0]["param_groups"]
    assert group["momentum"] == 0.5
    assert group["initial_lr"] == 0.25
    assert group["lr"] == pytest.approx(0.025)
    assert main(["fit", *command, *schedule]) == 2  # a scheduler of nothing


def test_resumes_from_the_last_checkpoint(tmp_path: Path) -> None:
    command = arguments("nar4rec/evaluator-simulator.yaml", "trainer/cpu.yaml", tmp_path)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert main(["fit", *command, "--trainer.max_epochs=1"]) == 0
    assert torch.load(last, weights_only=True)["epoch"] == 0
    assert main(["fit", *command, "--trainer.max_epochs=3", f"--ckpt_path={last}"]) == 0
    state = torch.load(last, weights_only=True)
    assert state["epoch"] == 2
    assert state["global_step"] == 3 * 8  # 64 rows in batches of 8: the first epoch was not repeated


def test_list_and_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(recipe in shown for recipe in list_recipes())
    assert main(["recipes", "copy", "nar4rec/simulator.yaml", str(tmp_path)]) == 0
    copied = tmp_path / "simulator.yaml"
    assert copied.read_bytes() == (FOLDER / "nar4rec/simulator.yaml").read_bytes()
    with pytest.raises(FileExistsError):
        copy_recipe("nar4rec/simulator.yaml", tmp_path)
    assert main(["recipes", "copy", "prm", str(tmp_path)]) == 0
    assert (tmp_path / "prm/simulator.yaml").read_bytes() == (FOLDER / "prm/simulator.yaml").read_bytes()
    assert {path.name for path in (tmp_path / "prm").iterdir()} == {path.name for path in (FOLDER / "prm").iterdir()}
