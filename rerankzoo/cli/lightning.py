"""`rerankzoo fit|validate|test|predict`: Lightning's own command line over our module, data and callbacks."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import datasets
import lightning as L
import transformers
from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, instantiate_class
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from rerankzoo.cli.recipes import find_recipe
from rerankzoo.data.datamodule import RerankingDataModule
from rerankzoo.errors import RecipeError, did_you_mean, error_chain, shown
from rerankzoo.text_files import read_yaml
from rerankzoo.training import EpochsByLog, HubCheckpoint, PretrainedExport, RerankingModule, SlateWriter
from rerankzoo.training.callbacks import EXTRACTOR_FOLDER
from rerankzoo.training.resuming import (
    LAST_FILE,
    TERMINATED,
    ExactResume,
    WholeCheckpointIO,
    best_checkpoint,
    check_checkpoint,
    newest_checkpoint,
)

#: Callbacks of every run, by their section of the recipe.
_CALLBACKS = {
    "checkpoint": ModelCheckpoint,
    "resume": ExactResume,
    "early_stopping": EarlyStopping,
    "export": PretrainedExport,
    "hub": HubCheckpoint,
    "predictions": SlateWriter,
}
_DEFAULTS = {
    "checkpoint.monitor": "val/loss",
    "checkpoint.filename": "best",
    "checkpoint.auto_insert_metric_name": False,
    "checkpoint.enable_version_counter": False,
    "early_stopping.monitor": "val/loss",
    "early_stopping.patience": 3,
    "early_stopping.check_on_train_epoch_end": False,  # there may have been no validation yet
}
_MOST_SAID = 1_000  # characters
_UNION = "Does not validate against any of the Union subtypes"


class RecipeParser(LightningArgumentParser):
    """Lightning's parser, whose errors are `RecipeError`s of one line."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **settings})

    def parse_args(self, *args: Any, **settings: Any) -> Any:
        """See `ArgumentParser.parse_args`."""
        try:
            return super().parse_args(*args, **settings)
        except (TypeError, AttributeError, LookupError, RecursionError, OverflowError) as error:
            raise RecipeError(explain(error)) from error

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """See `ArgumentParser.error`; of a parser within another one, it is for that one to read."""
        name = ""
        if message.startswith("unrecognized arguments: --"):
            name = message.split()[2].partition("=")[0].lstrip("-")
        elif isinstance(ex, KeyError):  # "Group 'trainer' does not accept option 'max_epoch'"
            name = message.split("'")[-2]
        known = [option.lstrip("-") for option in _options(getattr(ex, "subcommand_parser", self))] if name else []
        message += did_you_mean(name, [*known, *(option.rpartition(".")[2] for option in known)])
        if not self.exit_on_error:
            super().error(message, ex)
        raise RecipeError(explain(ex, message)) from ex


def _options(parser: ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for further in action.choices.values():
                yield from _options(further)


def explain(error: BaseException | None, message: str = "") -> str:
    """What jsonargparse says of a value, in one line: how the message, and those of the errors behind it, begin."""
    texts, alternatives = [message], ""
    told: list[str] = []
    for link in error_chain(error) if error is not None else ():
        texts.append(f"{link}{did_you_mean(link.name, dir(link.obj)) if isinstance(link, AttributeError) else ''}")
    for first, *further in ([line.strip() for line in text.strip().splitlines()] for text in texts if text.strip()):
        if first == _UNION and further:
            alternatives = further[0].removeprefix("Subtypes: ")
        if not first.startswith((_UNION, "- Expected a path")) and not any(first in part for part in told):
            wanted, got, value = first.partition(". Got value: ")
            several = alternatives and got and wanted.startswith("Expected a ")
            told.append(f"Expected one of {alternatives}{got}{value}" if several else first)
            alternatives = ""
    text = " ".join(told)
    return text if len(text) <= _MOST_SAID else f"{text[:_MOST_SAID]}..."


class RerankingCLI(LightningCLI):
    """LightningCLI with what every run wants: checkpoints, early stopping, an exported folder, logs.

    Everything is written below `trainer.default_root_dir`: `checkpoints/`, `best/` (for `from_pretrained`), `logs/`.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the callbacks, each with its own section of the recipe, the optimizer and `--wandb`."""
        parser.add_optimizer_args()
        parser.add_lr_scheduler_args()
        for section, callback in _CALLBACKS.items():
            parser.add_lightning_class_args(callback, section)
        parser.set_defaults(_DEFAULTS)
        about = "also log to Weights & Biases (WANDB_MODE=offline needs no account)"
        parser.add_argument("--wandb", type=bool, default=False, help=about)
        about = "of fit: train with each value, KEY=A,B, and keep what held-out feedback prefers (command line only)"
        parser.add_argument("--try", type=str | None, default=None, help=about)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Checks the checkpoint that is asked for, before Lightning reads what it says of the model."""
        super().parse_arguments(parser, args)
        command = self.config.get("subcommand")
        config = self.config[command] if command else self.config
        config.trainer.default_root_dir = config.trainer.default_root_dir or "outputs"
        folder = config.checkpoint.dirpath or os.path.join(config.trainer.default_root_dir, "checkpoints")
        config.checkpoint.dirpath = folder
        if config.checkpoint.save_top_k not in (0, 1) and config.checkpoint.filename == "best":
            config.checkpoint.filename = "best-{epoch}-{step}"  # several cannot have one name
        asked = config.get("ckpt_path")
        if asked == "best" or (asked == "last" and command != "fit"):
            path = (best_checkpoint if asked == "best" else newest_checkpoint)(Path(folder))
            if path is None:
                raise FileNotFoundError(f"{folder} has no {asked} checkpoint to {command} with")
            config.ckpt_path = str(path)
        elif asked not in (None, "last", "hpc") and "://" not in asked:
            check_checkpoint(Path(asked))

    def before_instantiate_classes(self) -> None:
        """Puts all output below the run's root directory, and chooses the extractor and the checkpoint of a run."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        if config["try"] is not None:
            raise RecipeError(f"try: expected an option of `rerankzoo fit`, got {shown(config['try'])} elsewhere")
        root = config.trainer.default_root_dir
        if config.trainer.logger is None:
            config.trainer.logger = [_logger("CSVLogger", root, name="logs")]
            if config.wandb:
                os.makedirs(root, exist_ok=True)
                config.trainer.logger.append(_logger("WandbLogger", root, project="rerankzoo"))
        if self.subcommand == "predict":
            config.return_predictions = False  # SlateWriter writes them; nobody reads a list of all
        _choose_extractor(config, learns=self.subcommand in (None, "fit"))
        folder = Path(config.checkpoint.dirpath)
        if self.subcommand == "fit" and config.ckpt_path == "last":  # where there is none, the run begins
            newest = newest_checkpoint(folder)
            config.ckpt_path = None if newest is None else str(newest)
        elif self.subcommand == "fit" and config.ckpt_path is None and (folder / LAST_FILE).exists():
            rank_zero_warn(f"{folder} holds an earlier run, which is replaced; to go on with it: --ckpt_path last")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Makes the trainer, whose runs can be killed and go on."""
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpointIO()
        limits = self._get(self.config_init, "trainer")
        if limits.max_epochs is None and limits.max_steps == -1 and limits.max_time is None:
            trainer.callbacks.insert(0, EpochsByLog())
        return trainer

    def instantiate_classes(self) -> None:
        """Makes trainer, module and data; if one of them refuses what the recipe says, it is a `RecipeError`.

        The optimizer and the scheduler that are asked for take the place of the module's own. They are made when
        training starts: only then the model has parameters.
        """
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, AttributeError, MisconfigurationException) as error:
            raise RecipeError(explain(error)) from error
        asked, schedule = (self._get(self.config_init, key) for key in ("optimizer", "lr_scheduler"))
        if asked is None and schedule is not None:
            raise RecipeError("lr_scheduler needs an optimizer; for the module's own: lr_scheduler_type")
        model = self.model

        def configure_optimizers() -> Any:
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            optimizer = instantiate_class(trained, asked)
            scheduler = instantiate_class(optimizer, schedule) if schedule else None
            return LightningCLI.configure_optimizers(model, optimizer, scheduler)

        if asked is not None:
            model.configure_optimizers = configure_optimizers


def _logger(kind: str, folder: str, **settings: str) -> dict[str, Any]:
    return {"class_path": f"lightning.pytorch.loggers.{kind}", "init_args": {"save_dir": folder, **settings}}


def _choose_extractor(config: Namespace, learns: bool) -> None:
    """Takes the extractor from where the weights come from, unless the recipe names one.

    A run of a Lightning checkpoint has the extractor beside it. One that starts from `pretrained` extends that
    extractor by the new ids of its training split; one that only applies `pretrained` learns nothing. A run that
    goes on (`--ckpt_path last`) does what it did when it began: on other data it is refused.
    """
    model, data, asked = config.model.init_args, config.data.init_args, config.get("ckpt_path")
    if "extend_extractor" not in data:  # a data module of the user's own
        return
    folder = Path(asked).parent if asked and Path(asked).is_file() else Path(config.checkpoint.dirpath)
    kept = folder / EXTRACTOR_FOLDER
    if asked not in (None, "last") and kept.is_dir() and (data.extractor is None or data.extend_extractor):
        data.extractor, data.extend_extractor, data.update_statistics = str(kept), False, False
    elif data.extractor is None and model.get("pretrained") is not None:
        data.extractor, data.extend_extractor = model.pretrained, learns


def quiet() -> None:
    """Silences messages that tell a user nothing: advertising, hardware that is not there, loader workers we avoid."""
    for text in (
        r"isinstance\(treespec, LeafSpec\)",
        "does not have many workers",
        "WeightAveraging state cannot be restored",
        "`max_epochs` was not set",
        "is smaller than the logging interval",
        "Checkpoint directory .* exists and is not empty",
    ):
        warnings.filterwarnings("ignore", message=f".*{text}.*")
    transformers.utils.logging.disable_progress_bar()  # of reading and writing weights, over before they are seen
    datasets.disable_progress_bars()
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)


def with_shipped_recipes(arguments: Sequence[str]) -> list[str]:
    """The arguments with files in the place of the recipes' names, once each is known to hold keys."""
    words: list[str] = []
    for argument in arguments:
        words += argument.split("=", 1) if argument.startswith(("--config=", "-c=")) else [argument]
    pairs = zip(["", *words], words, strict=False)
    return [str(_recipe(word)) if before in ("--config", "-c") else word for before, word in pairs]


def _recipe(name: str) -> Path:
    path = find_recipe(name)
    if not isinstance(recipe := read_yaml(path), Mapping):
        raise RecipeError(f"{path} must hold keys such as model, data and trainer, got {shown(recipe)}")
    for section in ("trainer", *_CALLBACKS):
        if not isinstance(recipe.get(section) or {}, Mapping):
            raise RecipeError(f"{path}: {section} must hold keys, got {shown(recipe[section])}")
    return path


def command_line(arguments: Sequence[str], run: bool = True) -> RerankingCLI:
    """Parses a command line and makes trainer, module and data.

    Args:
        arguments: Subcommand and options, such as `["fit", "--config", "nar4rec/simulator.yaml"]`.
        run: Whether to run the subcommand; `False`: there is none.

    Raises:
        FileNotFoundError: If a recipe or a checkpoint is missing.
        RecipeError: If a key or a value is not what it must be; one line that names the key.
        UnreadableFileError: If a recipe is no YAML, or a checkpoint damaged.
    """
    quiet()
    program = sys.argv
    sys.argv = [sys.argv[0], *with_shipped_recipes(arguments)]  # Lightning warns of arguments other than the process's
    try:
        return RerankingCLI(
            RerankingModule,
            RerankingDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_class=RecipeParser,
            auto_configure_optimizers=False,  # it wants the model's parameters before there is a model
            run=run,
        )
    finally:
        sys.argv = program


def run(arguments: Sequence[str]) -> None:
    """Runs a subcommand of Lightning's; ends with status 143, if SIGTERM has ended it."""
    try:
        command_line(arguments)
    except SIGTERMException as error:
        raise SystemExit(TERMINATED) from error
