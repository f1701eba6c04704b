"""One LightningModule for every model: an objective computes the loss, this only steps, logs and optimises."""

from __future__ import annotations

from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves
from transformers.trainer_utils import SchedulerType

from rerankzoo.batch import Batch, pad
from rerankzoo.data.loader import RequestLoader
from rerankzoo.errors import RerankingDataError, SchemaMismatchError
from rerankzoo.layers import FeedbackHead
from rerankzoo.losses import slate_mean
from rerankzoo.metrics import hit_at_k, ndcg_at_k
from rerankzoo.models.auto import model_class
from rerankzoo.models.base import RerankingConfig, RerankingPreTrainedModel
from rerankzoo.training.initial_weights import (
    continued_weights,
    copy_modules,
    first_difference,
    freeze_modules,
    guide_values,
    inherited_values,
    load_guide,
    load_pretrained,
    warn_of_frozen_ids,
)
from rerankzoo.training.nonfinite_losses import LossGuard
from rerankzoo.training.objectives import Companions, Objective, make_objective, read_start, save_start
from rerankzoo.training.optimizer import make_optimizer, make_scheduler
from rerankzoo.training.request_means import mean_over_processes, real_requests
from rerankzoo.training.run_data import data_of_run


class ModelMaker(Callback):
    """Stands before all other callbacks, whose `setup` may want the model's parameters."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Makes the model, which Lightning would do after the callbacks."""
        pl_module.setup(stage)


class RerankingModule(L.LightningModule):
    """Trains, validates, tests and applies any model of rerankzoo.

    The model is made when training starts, because its config needs what only the data can tell: the fitted schema and,
    for NAR4Rec, the utility threshold.

    Args:
        architecture: Class name of the model, such as `"NAR4RecForReranking"`.
        config: Fields of the model's config class; unknown ones are refused. `slate_size` defaults to the length of the
            longest slate of all splits; to a smaller one longer slates are cut.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Of matrices; biases, norms and embeddings are not decayed.
        warmup_steps: Steps in which the learning rate grows linearly to its peak.
        lr_scheduler_type: What follows: a name of `transformers.get_scheduler`, such as `"constant_with_warmup"`,
            `"cosine"` or `"linear"`; `"warmup_stable_decay"` warms up over at most a fifth of the steps and falls
            linearly over the second half.
        generation: Decoding parameters saved with the model and used by `predict`, such as `{"penalty_alpha": 0.1}`.
        pretrained: Folder or Hub id of a checkpoint to start from, trained with the data's extractor or with one that
            the data's extends: known ids keep their embeddings, new ones have initialised ones. Without
            `pretrained_modules` it is the whole model: same architecture, its config and decoding parameters unless
            `config` and `generation` say otherwise; what makes the network what it is cannot be changed. A run that is
            resumed from a Lightning checkpoint does not need it any more.
        pretrained_modules: Take only the weights of these modules, such as `["item_encoder"]`; the checkpoint may be
            another class of the same family.
        freeze: Modules that are not trained, such as `["item_encoder"]`.
        guide: Folder or Hub id of the evaluator that the generator carries with it (`DeGReConfig.guide`), or of a
            generator with one beside it. A run that is resumed does not need it any more.
        objective: What training minimises; default: `Supervised()`, the model's own loss. Its frozen companions are
            loaded when training starts, and again when it goes on: they must be what they were.

    Raises:
        ValueError: If the architecture, the scheduler or a field of the config is unknown, modules are named without a
            checkpoint, or the objective is for models of another kind.
    """

    def __init__(
        self,
        architecture: str,
        config: dict[str, Any] | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        warmup_steps: int = 50,
        lr_scheduler_type: str = "constant_with_warmup",
        generation: dict[str, Any] | None = None,
        pretrained: str | None = None,
        pretrained_modules: list[str] | None = None,
        freeze: list[str] | None = None,
        guide: str | None = None,
        objective: Objective | None = None,
    ) -> None:
        super().__init__()
        self.objective = copy(make_objective(objective))  # with companions of its own
        self.objective.companions = Companions()
        self.save_hyperparameters(ignore="objective")
        self.save_hyperparameters({"objective": self.objective.to_dict()})  # plain values: checkpoints load safely
        self.model_class = model_class(architecture)
        self.config_values = dict(config or {})
        self.generation_values = dict(generation or {})
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.lr_scheduler_type = lr_scheduler_type
        self.pretrained = pretrained
        self.pretrained_modules = pretrained_modules
        self.freeze_names = list(freeze or ())
        self.guide = guide
        self.model: RerankingPreTrainedModel | None = None
        self._guard = LossGuard()
        self._check_arguments()

    def _check_arguments(self) -> None:
        """Refuses typing errors before any data, or the checkpoint to start from, is read."""
        if self.pretrained_modules is not None and (self.pretrained is None or not self.pretrained_modules):
            raise ValueError(
                f"pretrained_modules {self.pretrained_modules} names modules of a checkpoint, pretrained is "
                f"{self.pretrained!r}: give both, or neither"
            )
        if self.lr_scheduler_type not in list(SchedulerType):
            raise ValueError(
                f"lr_scheduler_type {self.lr_scheduler_type!r} is not one of {[kind.value for kind in SchedulerType]}"
            )
        if self.guide is not None and "guide" not in self.model_class.config_class.own_fields():
            raise ValueError(f"guide {self.guide!r}: {self.model_class.__name__} carries no evaluator with it")
        if self.objective.generators_only and not self.model_class.can_generate():
            name = type(self.objective).__name__
            raise ValueError(f"objective {name} trains models that generate, got {self.model_class.__name__}")
        if self.pretrained is not None and self.pretrained_modules is None:
            self.model_class.config_class.check_names(self.config_values)  # the other values are the checkpoint's
        else:
            self.model_class.config_class(**self.config_values)

    # --- the model --------------------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """Lets the model be made before any callback's `setup`."""
        if not any(isinstance(callback, ModelMaker) for callback in self.trainer.callbacks):
            self.trainer.callbacks.insert(0, ModelMaker())
        return []

    def setup(self, stage: str) -> None:
        """Makes the model from config and data, or checks that the data are encoded as the model was trained.

        Raises:
            SchemaMismatchError: If the data's extractor is another one than that of the model or of a companion.
            ValueError: If there are neither a data module nor loaders of ours to tell the schema.
        """
        data = data_of_run(self.trainer)
        if self.model is None and data is not None:
            self._make_model(data)
        elif data is not None and stage == "fit":  # other stages: when their loaders are there
            self._check_vocabulary(data.extractor.schema)
        elif self.model is None and stage == "fit":
            raise ValueError(
                "the model is made from the data's schema: expected a data module, or loaders that one has made"
            )
        if self.model is not None and stage != "predict":
            self.objective.load_companions(self.model.schema, getattr(data, "metadata", None))

    def _check_labels(self, data: Any) -> None:
        """Refuses a log that the model cannot learn from, before anything is computed of it."""
        told, wanted = data.labels(), self.model_class.learns_from
        if not self.objective.learns_from_labels() or told & wanted:
            return
        if "parts" in told:
            reason = "in some of the log's it is not known what stood at every position"
            if data.slate_lengths().max(initial=0) == 1:
                reason = "all of the log's have one position, which tells nothing of neighbours"
        else:
            reason = f"the log has {'only labels of candidates' if told else 'neither feedback nor labels'}"
        able = "" if not told else "; PointwiseForReranking, say, needs none"
        name, what = self.model_class.__name__, "whole slates" if wanted == {"slates"} else "feedback or labels"
        raise RerankingDataError(f"{name} learns from {what}: {reason}{able}", field=data.extractor.schema.slate)

    def _make_model(self, data: Any) -> None:
        self._check_labels(data)
        if self.pretrained is None:
            self._start_anew(data)
        else:
            source = load_pretrained(self.pretrained, data.extractor, getattr(data, "update_statistics", False))
            self._start_from(source, data)
            warn_of_frozen_ids(source, self._made())
        most, lengths = self._made().num_positions, data.slate_lengths()
        if most is not None and (longer := int((lengths > most).sum())):
            rank_zero_warn(
                f"{longer:,} of {len(lengths):,} slates have more positions (up to {lengths.max()}) than slate_size "
                f"{most} and are cut to the first {most}; without slate_size the model gets as many as the longest"
            )

    def _start_from(self, source: RerankingPreTrainedModel, data: Any) -> None:
        """Makes the model with the weights of another one; called in every process, each reads the checkpoint."""
        message = f"{self.pretrained} holds a {type(source).__name__}, this is a {self.model_class.__name__}"
        if type(source.config) is not self.model_class.config_class:
            raise RerankingDataError(f"{message}: not of the same family", field="pretrained")
        if self.pretrained_modules:
            self._start_anew(data)
            copy_modules(source, self._made(), self.pretrained_modules)
            return
        if type(source) is not self.model_class:
            raise RerankingDataError(f"{message}: name what to take in pretrained_modules", field="pretrained")
        self.config_values = inherited_values(source.config, self.config_values)
        if source.can_generate():
            self.generation_values = source.generation_config.merged(**self.generation_values).parameters()
        self._build(self._complete_config(data))
        self._made().load_state_dict(continued_weights(source, self._made()))

    def _start_anew(self, data: Any) -> None:
        """Makes the model with initial weights, whose feedback heads know the base rates of the log."""
        guide = None if self.guide is None else load_guide(self.guide, data.extractor.schema)
        if guide is not None:
            self.config_values["guide"] = guide_values(guide)
        self._build(self._complete_config(data))
        model = self._made()
        heads = [module for module in model.modules() if isinstance(module, FeedbackHead)]
        rates = data.feedback_rates() if any(head.bias.requires_grad for head in heads) else None
        if rates is not None:
            model.start_at(rates)
        if guide is not None:
            model.guide.evaluator.load_state_dict(guide.state_dict())

    def _complete_config(self, data: Any) -> RerankingConfig:
        values = {"feature_schema": data.extractor.schema.to_dict(), **self.config_values}
        lengths = data.slate_lengths()
        if "slate_size" not in values and len(lengths):
            values["slate_size"] = int(lengths.max())
        config = self.model_class.config_class(**values)
        config.adapt_to_log(data)
        return config

    def _build(self, config: RerankingConfig) -> None:
        self.model = self.model_class(config)
        freeze_modules(self.model, self.freeze_names)
        if self.generation_values:
            self.model.generation_config = self.model.generation_config_class(**self.generation_values)

    def _made(self) -> RerankingPreTrainedModel:
        if self.model is None:
            raise RuntimeError("the model is made when training starts; call trainer.fit, or load a checkpoint")
        return self.model

    def _check_vocabulary(self, schema: Any) -> None:
        """Refuses data of another extractor, whose ids mean other items."""
        try:
            self._made().check_schema(schema)
        except SchemaMismatchError as error:
            raise SchemaMismatchError(f"{error}; give the run's own as the data's extractor") from error

    def _check_loaders(self, loaders: Any) -> list[Any]:
        """The loaders of a stage as a list; refuses those whose extractor is not the model's."""
        loaders = tree_leaves(loaders)
        for loader in loaders:
            source = loader if isinstance(loader, RequestLoader) else self.trainer.datamodule
            if hasattr(source, "extractor"):
                self._check_vocabulary(source.extractor.schema)
        return loaders

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the completed config, so that the checkpoint loads without its training data.

        What the run started from is in it by now: `--ckpt_path` takes the arguments from here.
        """
        checkpoint["model_config"] = self._made().config.to_dict()
        checkpoint["companions"] = dict(self.objective.companions.digests)
        if self.pretrained is not None or self.guide is not None:
            started = {"pretrained": None, "pretrained_modules": None, "guide": None}
            values = {"config": self.config_values, "generation": self.generation_values}
            checkpoint["hyper_parameters"] = {**checkpoint["hyper_parameters"], **values, **started}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Makes the model that the weights belong to, unless the data made it already.

        Raises:
            SchemaMismatchError: If the data's extractor is not the one of the run that is resumed or applied.
            RerankingDataError: If the recipe makes another network, or a companion is not the run's.
        """
        config = self.model_class.config_class.from_dict(checkpoint["model_config"])
        if self.model is None:
            self._build(config)
        elif self.model.schema.fingerprint != config.schema.fingerprint:
            raise SchemaMismatchError(
                f"the checkpoint was made for schema {config.schema.name!r} (fingerprint {config.schema.fingerprint}), "
                f"the data's extractor has fingerprint {self.model.schema.fingerprint}; give the run's own as "
                "--data.init_args.extractor"
            )
        difference = first_difference(checkpoint["state_dict"], self.state_dict())
        if difference is not None:
            name, saved, made = difference
            raise RerankingDataError(
                f"the recipe gives {name} the shape {made}, the checkpoint {saved}", field="config"
            )
        self.objective.companions.identify(checkpoint.get("companions", {}))
        start = self.objective.start_name()
        if start is not None and self._trainer is not None and self.trainer.state.fn != "predict":
            folder = Path(str(self.trainer.ckpt_path)).parent
            self.objective.companions.keep(start, read_start(deepcopy(self._made()), folder))

    # --- companions -------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Keeps the model as training starts, where the objective needs it, also in a file beside the checkpoints."""
        trainer, companions, start = self.trainer, self.objective.companions, self.objective.start_name()
        if start is not None:
            if trainer.ckpt_path is None:
                companions.digests.pop(start, None)  # of an earlier call of `fit`
                companions.keep(start, deepcopy(self._made()))
            if trainer.is_global_zero and not trainer.fast_dev_run:
                folder = getattr(trainer.checkpoint_callback, "dirpath", None) or trainer.default_root_dir
                save_start(companions[start], Path(folder))
        self._place_companions()

    def _place_companions(self) -> None:
        for companion in self.objective.companions.values():
            companion.to(device=self.device, dtype=self.dtype)

    # --- steps ------------------------------------------------------------------------------------------------------

    def forward(self, **batch: Tensor) -> Any:
        """The model's output for a batch."""
        return self._made()(**batch)

    def on_train_start(self) -> None:
        """Checks the loader, and does not shuffle what `overfit_batches` wants to see again and again.

        Raises:
            ValueError: If there are several training loaders.
        """
        loaders = self._check_loaders(self.trainer.train_dataloader)
        if len(loaders) != 1:
            raise ValueError(f"expected one training loader, got {len(loaders)}")
        if self.trainer.overfit_batches and isinstance(loaders[0], RequestLoader):
            loaders[0].shuffle = False

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch; logs the mean over the batches of all processes.

        Raises:
            NonFiniteLossError: In every process, if the loss of any is NaN or infinite; the batch is saved before.
        """
        losses = self._losses(batch)
        loss, means = losses["loss"], torch.stack([value.detach() for value in losses.values()])
        if self.trainer.world_size > 1:
            means, factor = mean_over_processes(means, batch, self.trainer.world_size)
            loss = loss * factor
        self._guard.check(self, batch, losses, means[0])
        for name, mean in zip(losses, means, strict=True):
            self.log(f"train/{name}", mean, prog_bar=name == "loss", batch_size=len(batch["candidate_mask"]))
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Leaves the weights alone where a loss is not finite."""
        self._guard.skip_step(optimizer)

    def on_train_end(self) -> None:
        """Looks at the last loss."""
        self._guard.finish(self)

    def on_validation_start(self) -> None:
        """Checks loaders and companions."""
        self._start_evaluation(self.trainer.val_dataloaders)

    def on_test_start(self) -> None:
        """Checks loaders and companions."""
        self._start_evaluation(self.trainer.test_dataloaders)

    def on_predict_start(self) -> None:
        """Checks the loaders."""
        self._check_loaders(self.trainer.predict_dataloaders)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logs the loss and, where candidates are labelled, the ranking metrics of greedy slates.

        Of several loaders the first has the plain names, such as `val/loss`, the others what Lightning appends.
        """
        self._evaluate(batch, batch_idx, "val", dataloader_idx)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Like `validation_step`, on the test split."""
        self._evaluate(batch, batch_idx, "test", dataloader_idx)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Slates of a batch with the model's own decoding parameters: exactly what `generate` returns."""
        output = self._made().generate(**batch, return_dict_in_generate=True)
        return {"request_index": batch["request_index"], "slates": output.slates, "scores": output.scores}

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of a batch, its terms and what else the objective measures, by the names they are logged by."""
        most = self._made().num_positions
        if most is not None and "slates" in batch and batch["slates"].shape[-1] > most:
            batch = pad(batch, M=most)
        output = self.objective.loss(self._made(), batch)
        if output.loss is None:
            raise self._no_loss(batch)
        terms = {f"{name}_loss": term for name, term in output.loss_terms.items()}
        metrics = dict(getattr(output, "metrics", None) or {})
        logged = getattr(output, "log_likelihoods", None)
        if logged is not None:
            metrics["log_likelihood"] = slate_mean(logged, batch["slates"]).mean()
        return {"loss": output.loss, **terms, **metrics}

    def _start_evaluation(self, loaders: Any) -> None:
        self._check_loaders(loaders)
        missing = self.objective.declare().keys() - self.objective.companions.keys()
        if missing:  # the others are there since `setup`
            raise ValueError(
                f"{sorted(missing)} of the objective are known with a checkpoint only: give it as ckpt_path"
            )
        self._place_companions()

    def _evaluate(self, batch: Batch, batch_idx: int, stage: str, dataloader_idx: int) -> None:
        with isolate_rng():  # what an objective draws is the same in every epoch, and training goes on as without it
            torch.manual_seed(batch_idx)
            losses = self._losses(batch)
        real = real_requests(batch)
        means = {**losses, **self._ranking(batch, real)}
        for name, value in means.items():
            self.log(
                f"{stage}/{name}",
                value,
                prog_bar=name == "loss",
                # Over several processes Lightning divides the weights by their number, and rounds the result down.
                batch_size=int(real.sum()) * self.trainer.world_size,
                sync_dist=True,
                add_dataloader_idx=dataloader_idx > 0,
            )

    def _no_loss(self, batch: Batch) -> RerankingDataError:
        known = {"slates", "feedback", "slate_weights", "soft_labels", "candidate_feedback"}
        labels = sorted(known & batch.keys())
        name, mined = self.model_class.__name__, "slate_weights" in batch
        reason = "mined slates have none, train on the log they were mined from" if mined else "this is no log"
        return RerankingDataError(f"{name} learns from it, the data has only {labels}: {reason}", field="feedback")

    def _ranking(self, batch: Batch, real: Tensor) -> dict[str, Tensor]:
        """Mean ranking metrics of greedy slates; none where the data do not label candidates."""
        model = self._made()
        target = model.schema.label_target
        if not model.can_generate() or target is None or "candidate_feedback" not in batch:
            return {}
        slates, labels, k = model.generate(**batch), batch["candidate_feedback"][..., target], model.config.slate_size
        metrics = {f"ndcg@{k}": ndcg_at_k, f"hit@{k}": hit_at_k}
        known = batch["candidate_feedback_mask"]
        return {
            name: metric(slates, labels, known, k=k)[real].sum() / real.sum().clamp_min(1)
            for name, metric in metrics.items()
        }

    # --- optimisation -----------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with warm-up."""
        optimizer: Optimizer = make_optimizer(self._made(), self.learning_rate, self.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = make_scheduler(optimizer, self.lr_scheduler_type, self.warmup_steps, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips all gradients but sparse ones, which torch cannot: Adam's step does not depend on their scale."""
        sparse = {p: p.grad for p in self.parameters() if p.grad is not None and p.grad.is_sparse}
        for parameter in sparse:
            parameter.grad = None
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        for parameter, gradient in sparse.items():
            parameter.grad = gradient
