"""One LightningModule for every model: `forward` computes the loss, this only steps, logs and optimises."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MetricCollection
from transformers.trainer_utils import SchedulerType

from rerankzoo.errors import RerankingDataError, SchemaMismatchError
from rerankzoo.metrics import RequestMean, hit_at_k, ndcg_at_k
from rerankzoo.models.auto import model_class
from rerankzoo.models.base import RerankingConfig, RerankingPreTrainedModel
from rerankzoo.training.freezing import freeze_modules
from rerankzoo.training.nonfinite import nonfinite_loss
from rerankzoo.training.optimizer import make_optimizer, make_scheduler
from rerankzoo.training.pretrained import (
    continued_weights,
    copy_modules,
    inherited_values,
    load_pretrained,
    warn_of_frozen_ids,
)
from rerankzoo.training.processes import mean_over_processes, real_requests


class RerankingModule(L.LightningModule):
    """Trains, validates, tests and applies any model of rerankzoo.

    The model is made when training starts, because its config needs what only the data can tell: the fitted schema and,
    for NAR4Rec, the utility threshold.

    Args:
        architecture: Class name of the model, such as `"NAR4RecForReranking"`.
        config: Fields of the model's config class; unknown ones are refused. `slate_size` defaults to the length of the
            logged slates.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Of matrices; biases, norms and embeddings are not decayed.
        warmup_steps: Steps in which the learning rate grows linearly to its peak.
        lr_scheduler_type: What follows: a name of `transformers.get_scheduler`, such as `"constant_with_warmup"`,
            `"cosine"` or `"linear"`.
        generation: Decoding parameters saved with the model and used by `predict`, such as `{"penalty_alpha": 0.1}`.
        pretrained: Folder or Hub id of a checkpoint to start from, trained with the data's extractor or with one that
            the data's extends: known ids keep their embeddings, new ones have initialised ones. Without
            `pretrained_modules` it is the whole model: same architecture, its config and decoding parameters unless
            `config` and `generation` say otherwise; what makes the network what it is cannot be changed. A run that is
            resumed from a Lightning checkpoint does not need it any more.
        pretrained_modules: Take only the weights of these modules, such as `["item_encoder"]`; the checkpoint may be
            another class of the same family.
        freeze: Modules that are not trained, such as `["item_encoder"]`.

    Raises:
        ValueError: If the architecture, the scheduler or a field of the config is unknown, or modules are named
            without a checkpoint.
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
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
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
        self.model: RerankingPreTrainedModel | None = None
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
        if self.pretrained is not None and self.pretrained_modules is None:
            self.model_class.config_class.check_names(self.config_values)  # the other values are the checkpoint's
        else:
            self.model_class.config_class(**self.config_values)

    # --- the model --------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Makes the model from the config and the data; called by Lightning after the data module's `setup`.

        `load_from_checkpoint` calls it too, without a trainer; there `on_load_checkpoint` makes the model.
        """
        if self.model is None and self._trainer is not None:
            if self.pretrained is None:
                self._build(self._complete_config())
            else:
                data = self.trainer.datamodule
                source = load_pretrained(self.pretrained, data.extractor, data.update_statistics)
                self._start_from(source)
                warn_of_frozen_ids(source, self._made())

    def _start_from(self, source: RerankingPreTrainedModel) -> None:
        """Makes the model with the weights of another one; called in every process, each reads the checkpoint."""
        message = f"{self.pretrained} holds a {type(source).__name__}, this is a {self.model_class.__name__}"
        if type(source.config) is not self.model_class.config_class:
            raise RerankingDataError(f"{message}: not of the same family", field="pretrained")
        if self.pretrained_modules:
            self._build(self._complete_config())
            copy_modules(source, self._made(), self.pretrained_modules)
            return
        if type(source) is not self.model_class:
            raise RerankingDataError(f"{message}: name what to take in pretrained_modules", field="pretrained")
        self.config_values = inherited_values(source.config, self.config_values)
        if source.can_generate():
            self.generation_values = source.generation_config.merged(**self.generation_values).parameters()
        self._build(self._complete_config())
        self._made().load_state_dict(continued_weights(source, self._made()))

    def _complete_config(self) -> RerankingConfig:
        data = self.trainer.datamodule
        values = {"feature_schema": data.extractor.schema.to_dict(), **self.config_values}
        if "slate_size" not in values:
            values["slate_size"] = data.slate_size()
        config = self.model_class.config_class(**values)
        config.adapt_to_log(data.utility_quantile)
        return config

    def _build(self, config: RerankingConfig) -> None:
        self.model = self.model_class(config)
        freeze_modules(self.model, self.freeze_names)
        if self.generation_values:
            self.model.generation_config = self.model.generation_config_class(**self.generation_values)
        weights = config.schema.targets
        self.ranking = MetricCollection(
            {
                f"ndcg@{config.slate_size}": RequestMean(ndcg_at_k, k=config.slate_size),
                f"hit@{config.slate_size}": RequestMean(hit_at_k, k=config.slate_size),
            }
        )
        self.has_ranking = self.model.can_generate() and any(t.candidate_feedback for t in weights)

    def _made(self) -> RerankingPreTrainedModel:
        if self.model is None:
            raise RuntimeError("the model is made when training starts; call trainer.fit, or load a checkpoint")
        return self.model

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the completed config, so that the checkpoint loads without its training data.

        What the run started from is in it by now: `--ckpt_path` takes the arguments from here.
        """
        checkpoint["model_config"] = self._made().config.to_dict()
        if self.pretrained is not None:
            started = {"pretrained": None, "pretrained_modules": None}
            values = {"config": self.config_values, "generation": self.generation_values}
            checkpoint["hyper_parameters"] = {**checkpoint["hyper_parameters"], **values, **started}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Makes the model that the weights belong to, unless the data made it already.

        Raises:
            SchemaMismatchError: If the data's extractor is not the one of the run that is resumed or applied.
            RerankingDataError: If the recipe makes another network.
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
        shapes = {name: list(value.shape) for name, value in self.state_dict().items()}
        saved = {name: list(value.shape) for name, value in checkpoint["state_dict"].items()}
        other = sorted(name for name in shapes.keys() | saved.keys() if shapes.get(name) != saved.get(name))
        if other:
            message = (
                f"the recipe gives {other[0]} the shape {shapes.get(other[0])}, the checkpoint {saved.get(other[0])}"
            )
            raise RerankingDataError(message, field="config")

    # --- steps ------------------------------------------------------------------------------------------------------

    def forward(self, **batch: Tensor) -> Any:
        """The model's output for a batch."""
        return self._made()(**batch)

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
        if not bool(torch.isfinite(means[0])):
            raise nonfinite_loss(self.trainer, self._made(), batch, losses)
        for name, mean in zip(losses, means, strict=True):
            self.log(f"train/{name}", mean, prog_bar=name == "loss", batch_size=len(batch["candidate_mask"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Logs the loss and, where all candidates are labelled, the ranking metrics of greedy slates."""
        self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Like `validation_step`, on the test split."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Slates of a batch with the model's own decoding parameters: exactly what `generate` returns."""
        found = self._made().generate(**batch, return_dict_in_generate=True)
        return {"request_index": batch["request_index"], "slates": found.slates, "scores": found.scores}

    def _losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of a batch and its terms, by the names they are logged by."""
        output = self(**batch)
        if output.loss is None:
            raise self._no_loss(batch)
        return {"loss": output.loss, **{f"{name}_loss": term for name, term in output.loss_terms.items()}}

    def _evaluate(self, batch: dict[str, Tensor], stage: str) -> None:
        # Over several processes Lightning divides the weights by their number, and rounds the result down.
        weight = int(real_requests(batch).sum()) * self.trainer.world_size
        for name, value in self._losses(batch).items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "loss", batch_size=weight, sync_dist=True)
        self._rank(batch, stage)

    def _no_loss(self, batch: dict[str, Tensor]) -> RerankingDataError:
        labels = sorted({"slates", "feedback", "slate_weights", "soft_labels"} & batch.keys())
        name, mined = self.model_class.__name__, "slate_weights" in batch
        reason = "mined slates have none, train on the log they were mined from" if mined else "this is no log"
        return RerankingDataError(f"{name} learns from it, the data has only {labels}: {reason}", field="feedback")

    def _rank(self, batch: dict[str, Tensor], stage: str) -> None:
        if not self.has_ranking or "candidate_feedback" not in batch:
            return
        slates, real = self._made().generate(**batch), real_requests(batch)
        # The first target with labels: what the model is asked to find.
        labels, known = batch["candidate_feedback"][..., 0], batch["candidate_feedback_mask"]
        self.ranking.update(slates[real], labels[real], known[real])
        for name, metric in self.ranking.items():
            self.log(f"{stage}/{name}", metric, on_step=False, on_epoch=True)

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
