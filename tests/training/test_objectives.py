"""Objectives: what they compute, and what becomes of their frozen companions."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from rerankzoo.cli.main import main
from rerankzoo.data.datamodule import RerankingDataModule
from rerankzoo.errors import HubError, RerankingDataError, SchemaMismatchError
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.generation.rollouts import draw_slates
from rerankzoo.models.auto import AutoModelForReranking
from rerankzoo.models.degre import DeGReConfig, DeGReEvaluator
from rerankzoo.training import (
    Companion,
    EvaluatorReward,
    ExactResume,
    FlowBalance,
    GroupRelative,
    Objective,
    ObjectiveOutput,
    Preference,
    PretrainedExport,
    PropensityWeighted,
    RerankingModule,
    Supervised,
    WholeCheckpointIO,
)
from rerankzoo.training.objectives import Companions, make_objective
from rerankzoo.training.resuming import newest_checkpoint
from tests.training.common import POINTWISE, TINY, Crash, Stop, assert_same_checkpoint, make_trainer

# --- what is computed -----------------------------------------------------------------------------------------------


def logged(propensity: list[list[float]]) -> dict[str, Tensor]:
    """Slates of two positions; of a propensity of 0 at the end, of one."""
    given = torch.tensor(propensity).unsqueeze(1)
    return {"propensity": given, "slates": torch.where(given > 0, torch.tensor([0, 1]), -100)}


def test_requests_are_drawn_by_the_inverse_of_their_propensities() -> None:
    batch = logged([[0.5, 0.5], [0.25, 1.0], [0.5, 0.0]])  # 4, 4 and 2 times rarer than certain
    assert PropensityWeighted().chances(batch).tolist() == pytest.approx([0.4, 0.4, 0.2])
    rare = logged([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.001, 0.001]])
    clipped = PropensityWeighted(clip=2.0).chances(rare)
    assert (clipped.max() * 4).item() == pytest.approx(2.0, abs=1e-3)
    assert clipped.sum().item() == pytest.approx(1.0)


def test_the_mean_loss_is_that_of_weighted_requests() -> None:
    class Mean(nn.Module):
        def forward(self, slates: Tensor, propensity: Tensor, number: Tensor) -> ObjectiveOutput:
            return ObjectiveOutput(loss=number.mean(), loss_terms={"all": number.mean()})

    torch.manual_seed(0)
    numbers = torch.tensor([1.0, 2.0, 3.0]).repeat(200)
    batch = {**logged([[0.5, 0.5], [0.25, 1.0], [0.5, 0.0]] * 200), "number": numbers}
    objective = PropensityWeighted()
    found = [objective.loss(Mean(), batch).loss.item() for _ in range(20)]
    assert sum(found) / 20 == pytest.approx(0.4 * 1 + 0.4 * 2 + 0.2 * 3, abs=0.03)
    assert objective.loss(Mean().eval(), batch).loss.item() == pytest.approx(2.0)  # a validation is as logged


def test_propensities_that_are_none_are_refused() -> None:
    with pytest.raises(RerankingDataError, match="no propensities"):
        PropensityWeighted().chances({"slates": torch.tensor([[[0, 1]]])})
    batch = logged([[0.5, 0.5], [0.5, 0.5]])
    batch["propensity"][1, 0, 1] = 1.5
    with pytest.raises(RerankingDataError, match=r"row 1 of a batch: expected a propensity in \(0, 1\], got 1.5"):
        PropensityWeighted().chances(batch)
    with pytest.raises(ValueError, match=r"clip: expected a number of 1 or more, got 0.5"):
        PropensityWeighted(clip=0.5)


class Plackett(nn.Module):
    """A generator that draws candidates by fixed scores: (1, S, 2) of three candidates."""

    class generation_config_class:
        def __init__(self, do_sample: bool, num_return_sequences: int, temperature: float) -> None:
            assert do_sample
            assert temperature == 1
            self.num_slates = num_return_sequences

    def __init__(self, scores: list[float], slates: Tensor | None = None) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(scores))
        self.slates = slates

    def generate(self, generation_config: Any, candidate_mask: Tensor) -> Tensor:
        assert not self.training
        if self.slates is not None:
            return self.slates
        noise = -(-torch.rand(generation_config.num_slates, 3).log()).log()
        return (self.scores.detach() + noise).argsort(descending=True)[None, :, :2]

    def log_likelihood(self, slates: Tensor, candidate_mask: Tensor) -> Tensor:
        first, second = slates.clamp_min(0).unbind(-1)
        left = F.one_hot(first, 3) == 0
        likelihood = torch.stack(
            [
                self.scores.log_softmax(-1)[first],
                self.scores.expand_as(left)
                .masked_fill(~left, -torch.inf)
                .log_softmax(-1)
                .gather(-1, second[..., None])[..., 0],
            ],
            dim=-1,
        )
        return likelihood.masked_fill(slates < 0, 0.0)

    def forward(self, **batch: Tensor) -> ObjectiveOutput:
        return ObjectiveOutput(loss=self.scores.square().sum(), loss_terms={})


class Table:
    """An evaluator that values a slate (i, j) as value[i] + 2 value[j]."""

    value = torch.tensor([1.0, 5.0, 2.0])

    def score_slates(self, slates: Tensor, /, candidate_mask: Tensor) -> Tensor:
        return (self.value[slates.clamp_min(0)] * torch.tensor([1.0, 2.0])).masked_fill(slates < 0, 0).sum(-1)


def reward(**options: Any) -> EvaluatorReward:
    objective = EvaluatorReward("somewhere", **options)
    objective.companions = Companions(evaluator=Table())
    return objective


BATCH = {"candidate_mask": torch.ones(1, 3, dtype=torch.bool), "feedback": torch.ones(1, 1, 2, 1)}


def test_loss_by_hand() -> None:
    model = Plackett([0.0, 0.0, 0.0], torch.tensor([[[0, 1], [1, 2], [2, 0]]])).train()
    # Values 11, 9, 4, their mean 8; every slate has the probability 1/3 x 1/2.
    output = reward(num_slates=3).loss(model, BATCH)
    assert output.loss.item() == pytest.approx(0.0, abs=1e-6)  # advantages sum to 0
    assert output.metrics["value"].item() == pytest.approx(8.0)
    output.loss.backward()
    # d log pi / d score: the first position takes 1/3 off all and gives 1 to the first; the second 1/2 off those left.
    by_slate = torch.tensor([[2 / 3, 1 / 6, -5 / 6], [-5 / 6, 2 / 3, 1 / 6], [1 / 6, -5 / 6, 2 / 3]])
    expected = -(torch.tensor([[3.0], [1.0], [-4.0]]) * by_slate).mean(0)
    assert model.scores.grad.tolist() == pytest.approx(expected.tolist(), abs=1e-6)  # type: ignore[union-attr]
    assert model.training  # as it was
    model = Plackett([1.0, 0.0, 0.0], torch.tensor([[[0, 1], [1, 2]]]))
    first = torch.tensor([1.0, 0.0, 0.0]).log_softmax(-1)
    second = torch.tensor([1.0, 0.0]).log_softmax(-1)
    slate = [float(first[0]) - 0.6931472, float(first[1]) + float(second[1])]
    output = reward(num_slates=2, supervised_weight=0.5).loss(model, BATCH)
    policy = -(1.0 * slate[0] - 1.0 * slate[1]) / 2
    assert output.loss_terms["policy"].item() == pytest.approx(policy, abs=1e-6)
    assert output.loss_terms["supervised"].item() == pytest.approx(1.0)
    assert output.loss.item() == pytest.approx(policy + 0.5, abs=1e-6)


def test_gradient_is_that_of_the_expected_value() -> None:
    torch.manual_seed(0)
    model = Plackett([0.3, -0.2, 0.5])
    num_slates = 40_000
    reward(num_slates=num_slates).loss(model, BATCH).loss.backward()
    slates = torch.tensor(list(permutations(range(3), 2)))[None]
    exact = Plackett([0.3, -0.2, 0.5])
    probability = exact.log_likelihood(slates, BATCH["candidate_mask"]).sum(-1).exp()
    (-(probability * Table().score_slates(slates, BATCH["candidate_mask"])).sum()).backward()
    torch.testing.assert_close(model.scores.grad, exact.scores.grad, rtol=0.05, atol=0.05)


def test_requests_without_candidates_count_nothing() -> None:
    model = Plackett([0.0, 0.0, 0.0], torch.full((1, 2, 2), -100))
    output = reward(num_slates=2).loss(model, {"candidate_mask": torch.zeros(1, 3, dtype=torch.bool)})
    assert (output.loss.item(), output.metrics["value"].item()) == (0.0, 0.0)
    output.loss.backward()
    assert (model.scores.grad == 0).all()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (EvaluatorReward, {"num_slates": 1}, "num_slates of 2 or more"),
        (EvaluatorReward, {"supervised_weight": -0.1}, "finite supervised_weight"),
        (EvaluatorReward, {"supervised_weight": torch.inf}, "finite supervised_weight"),
        (EvaluatorReward, {"discount": 1.1}, r"a discount in \[0, 1\]"),
        (EvaluatorReward, {"advantage": "pairs"}, "advantage 'pairs': expected one of"),
        (EvaluatorReward, {"clip": 0.0}, r"clip must lie in \(0, 1\), got 0.0"),
        (GroupRelative, {"proposals": "own"}, "expected SOURCE=NUMBER,SOURCE=NUMBER..., got 'own'"),
        (GroupRelative, {"proposals": "own=0"}, "expected SOURCE=NUMBER"),
        (GroupRelative, {"proposals": "perturbed=2,own=3"}, "no changed slates of none"),
        (FlowBalance, {"balance": "flow"}, "expected a balance of"),
        (FlowBalance, {"sharpness": 0.0}, "sharpness and offset above 0"),
        (Preference, {"pairs": "resorted"}, "an evaluator with 'evaluator' only"),
    ],
)
def test_wrong_arguments_are_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind("somewhere", **options)


# --- with a model ---------------------------------------------------------------------------------------------------


class Anchored(Objective):
    """The model's own loss, and how far its weights have come from the start and from another model."""

    def __init__(self, other: str, weight: float = 0.1) -> None:
        self.other, self.weight = other, weight

    def declare(self) -> dict[str, Companion]:
        return {"start": Companion("start"), "other": Companion(self.other)}

    def loss(self, model: Any, batch: Any) -> ObjectiveOutput:
        output, start = model(**batch), self.companions["start"]
        assert not start.training
        assert not any(parameter.requires_grad for parameter in start.parameters())
        distance = sum(
            (one - other).square().sum() for one, other in zip(model.parameters(), start.parameters(), strict=True)
        )
        noise = torch.rand(())  # what it draws goes on exactly, too
        return ObjectiveOutput(
            loss=output.loss + self.weight * (distance + noise),
            loss_terms={**output.loss_terms, "distance": distance},
            metrics={"other": sum(parameter.sum() for parameter in self.companions["other"].parameters())},
        )


@pytest.fixture(scope="module")
def evaluator(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    data = RerankingDataModule(str(data_folder))
    data.setup()
    return save_evaluator(data.extractor, tmp_path_factory.mktemp("evaluator"))


def save_evaluator(extractor: RerankingFeatureExtractor, folder: Path, seed: int = 1) -> str:
    torch.manual_seed(seed)
    for part in (DeGReEvaluator(DeGReConfig(feature_schema=extractor.schema.to_dict(), **TINY)), extractor):
        part.save_pretrained(folder)
    return str(folder)


def test_training_raises_the_evaluators_value(data_folder: Path, evaluator: str, tmp_path: Path) -> None:
    """A pointwise ranker that has seen no label, in two precisions."""
    for precision in ("32-true", "bf16-mixed"):
        L.seed_everything(0, verbose=False)
        module = RerankingModule(
            "PointwiseForReranking",
            POINTWISE,
            learning_rate=0.03,
            warmup_steps=0,
            generation={"do_sample": True, "temperature": 5.0},  # the model's own parameters are not those of training
            objective=EvaluatorReward(evaluator, num_slates=16),
        )
        trainer = make_trainer(tmp_path, max_epochs=12, precision=precision, num_sanity_val_steps=-1)
        values: list[float] = []
        trainer.callbacks.append(Record("val/value", values))
        trainer.fit(module, datamodule=RerankingDataModule(str(data_folder), batch_size=8))
        spread = slate_values(module, data_folder).std(-1).mean().item()
        assert values[-1] > values[0] + 0.5 * spread, (precision, values, spread)
        assert {"val/loss", "val/policy_loss", "val/ndcg@4"} <= set(trainer.callback_metrics)


class Record(L.Callback):
    """What every validation says of one metric."""

    def __init__(self, name: str, values: list[float]) -> None:
        self.name, self.values = name, values

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.values.append(float(trainer.callback_metrics[self.name]))


def slate_values(module: RerankingModule, data_folder: Path) -> Tensor:
    """Values of random slates, to tell how much there is to gain."""
    data = RerankingDataModule(str(data_folder))
    data.setup()
    batch = next(iter(data.val_dataloader()))
    config = module.model.generation_config_class(do_sample=True, temperature=100.0, num_return_sequences=16)  # type: ignore[union-attr]
    slates = module.model.generate(generation_config=config, **batch)  # type: ignore[union-attr]
    return module.objective.companions["evaluator"].score_slates(slates, **batch)


def test_drawing_leaves_model_and_parameters_alone(data_folder: Path, tmp_path: Path) -> None:
    module = RerankingModule("PointwiseForReranking", {**POINTWISE, "hidden_dropout_prob": 0.5})
    data = RerankingDataModule(str(data_folder))
    make_trainer(tmp_path).fit(module, datamodule=data)
    model, batch = module.model, next(iter(data.val_dataloader()))
    assert model is not None
    slates = draw_slates(model.train(), batch, 3)
    assert model.training
    assert slates.shape == (24, 3, 4)
    assert torch.equal(slates >= 0, (batch["slates"] >= 0).expand_as(slates))
    assert model.generation_config.do_sample is None


def fit(
    data: Path, root: Path, evaluator: str, *callbacks: Any, epochs: int = 3, start: Path | None = None, **options: Any
) -> RerankingModule:
    """Begins a run that needs the start, or goes on with it, as the command line does."""
    L.seed_everything(0, verbose=False)
    module = RerankingModule("NAR4RecForReranking", TINY, objective=Anchored(evaluator), **options)
    checkpoint = ModelCheckpoint(root / "checkpoints", "best", monitor="val/loss", enable_version_counter=False)
    trainer = make_trainer(
        root,
        max_epochs=epochs,
        plugins=[WholeCheckpointIO()],
        enable_checkpointing=True,
        callbacks=[*callbacks, EMAWeightAveraging(decay=0.5), PretrainedExport(), checkpoint, ExactResume(None, 1)],
    )
    path = start or newest_checkpoint(root / "checkpoints")
    trainer.fit(module, datamodule=RerankingDataModule(str(data), batch_size=8), ckpt_path=path)
    return module


@pytest.fixture(scope="module")
def undisturbed(data_folder: Path, evaluator: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed")
    module = fit(data_folder, root, evaluator)
    # The companions are models of their own, and nothing of them is anywhere in this one.
    assert set(module.objective.companions) == {"start", "other"}
    assert {name.split(".")[0] for name in module.state_dict()} == {"model"}
    saved = torch.load(root / "checkpoints/last.ckpt", weights_only=True)
    for key in ("state_dict", "current_model_state"):
        assert saved[key].keys() == module.state_dict().keys()
    count = sum(len(group["params"]) for group in saved["optimizer_states"][0]["param_groups"])
    assert count == len(list(module.model.parameters()))  # type: ignore[union-attr]
    exported = AutoModelForReranking.from_pretrained(root / "best").state_dict()
    assert {f"model.{name}" for name in exported} == set(module.state_dict())
    assert sorted(path.name for path in (root / "checkpoints").glob("*.safetensors")) == ["start.safetensors"]
    return root


@pytest.mark.parametrize("step", [1, 4, 6], ids=["first epoch", "within an epoch", "between epochs"])
def test_a_run_goes_on_with_the_start_that_it_had(
    undisturbed: Path, data_folder: Path, evaluator: str, tmp_path: Path, step: int
) -> None:
    with pytest.raises(Crash):
        fit(data_folder, tmp_path, evaluator, Stop(step))
    fit(data_folder, tmp_path, evaluator)
    for name in ("best.ckpt", "last.ckpt"):
        assert_same_checkpoint(undisturbed / "checkpoints" / name, tmp_path / "checkpoints" / name)
    start = [load_file(root / "checkpoints/start.safetensors") for root in (undisturbed, tmp_path)]
    assert all(torch.equal(value, start[1][name]) for name, value in start[0].items())


def test_starts_from_pretrained_weights(undisturbed: Path, data_folder: Path, evaluator: str, tmp_path: Path) -> None:
    module = fit(data_folder, tmp_path, evaluator, epochs=1, pretrained=str(undisturbed / "best"))
    start = module.objective.companions["start"].state_dict()
    exported = AutoModelForReranking.from_pretrained(undisturbed / "best").state_dict()
    assert all(torch.equal(value, start[name]) for name, value in exported.items())


def test_companions_that_are_not_the_runs_are_refused(
    undisturbed: Path, data_folder: Path, evaluator: str, make_rows: Any, tmp_path: Path
) -> None:
    extractor = RerankingFeatureExtractor.from_pretrained(evaluator)
    other = save_evaluator(extractor, tmp_path / "other", seed=2)
    last = undisturbed / "checkpoints/last.ckpt"
    with pytest.raises(RerankingDataError, match="companion 'other' is not the model that the run began with"):
        fit(data_folder, tmp_path / "run", other, start=last, epochs=4)
    alone = tmp_path / "alone/last.ckpt"
    alone.parent.mkdir()
    alone.write_bytes(last.read_bytes())
    with pytest.raises(FileNotFoundError, match=r"alone/start\.safetensors not found"):
        fit(data_folder, tmp_path / "run", evaluator, start=alone, epochs=4)
    stranger = RerankingFeatureExtractor(extractor.schema).fit(make_rows(5))
    with pytest.raises(SchemaMismatchError, match=r"companion 'other' .* does not fit the data"):
        fit(data_folder, tmp_path / "run", save_evaluator(stranger, tmp_path / "stranger"))
    with pytest.raises(HubError):
        fit(data_folder, tmp_path / "run", str(tmp_path / "nowhere"))
    assert not (tmp_path / "run").exists()  # before anything was written
    with pytest.raises(ValueError, match="EvaluatorReward trains models that generate, got NAR4RecEvaluator"):
        RerankingModule("NAR4RecEvaluator", TINY, objective=EvaluatorReward(evaluator))


def test_is_tested_with_what_it_was_trained_with(undisturbed: Path, data_folder: Path, tmp_path: Path) -> None:
    last = undisturbed / "checkpoints/last.ckpt"
    module = RerankingModule.load_from_checkpoint(last)
    assert isinstance(module.objective, Anchored)
    data = RerankingDataModule(str(data_folder))
    trainer = make_trainer(tmp_path)
    trainer.test(module, datamodule=data, ckpt_path=last, verbose=False)
    assert trainer.callback_metrics["test/distance_loss"] > 0
    trainer.predict(RerankingModule.load_from_checkpoint(last), datamodule=data)  # needs no companions
    with pytest.raises(ValueError, match=r"\['start'\] of the objective are known with a checkpoint only"):
        trainer.test(RerankingModule.load_from_checkpoint(last), datamodule=data, verbose=False)


# --- by name --------------------------------------------------------------------------------------------------------


def test_is_made_again_from_class_and_arguments() -> None:
    assert isinstance(make_objective(None), Supervised)
    made = make_objective(EvaluatorReward("somewhere", 4, 0.5).to_dict())
    assert (type(made), vars(made)) == (EvaluatorReward, vars(EvaluatorReward("somewhere", 4, 0.5)))
    for path in ("json.JSONDecoder", "os.system", "nowhere.Objective", None):
        with pytest.raises(ValueError, match=r"objective .* not found"):
            make_objective({"class_path": path, "init_args": {}})

    class Forgetful(Supervised):
        def __init__(self, weight: float) -> None:
            pass

    with pytest.raises(ValueError, match=r"must keep its arguments \['weight'\]"):
        RerankingModule("NAR4RecForReranking", objective=Forgetful(1.0))


def test_arguments_are_plain_values() -> None:
    """Or the checkpoints of the run could not be loaded without running code."""
    with pytest.raises(ValueError, match=r"EvaluatorReward: a checkpoint cannot hold .*PosixPath"):
        RerankingModule("NAR4RecForReranking", objective=EvaluatorReward(Path("somewhere")))  # type: ignore[arg-type]


def test_recipe_names_objective_and_companion(
    data_folder: Path, evaluator: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = {"evaluator": evaluator, "num_slates": 2}
    objective = {"class_path": "rerankzoo.training.EvaluatorReward", "init_args": chosen}
    model = {"architecture": "PointwiseForReranking", "config": POINTWISE, "objective": objective}
    data = {"path": str(data_folder), "batch_size": 8}
    recipe: dict[str, Any] = {
        "model": {"class_path": "rerankzoo.RerankingModule", "init_args": model},
        "data": {"class_path": "rerankzoo.RerankingDataModule", "init_args": data},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }
    recipe["trainer"]["default_root_dir"] = str(tmp_path / "run")
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    assert main(["fit", f"--config={file}"]) == 0
    last = tmp_path / "run/checkpoints/last.ckpt"
    saved = torch.load(last, weights_only=True)["hyper_parameters"]["objective"]
    assert saved["init_args"].items() >= {**chosen, "supervised_weight": 0.0, "advantage": "slate"}.items()
    assert RerankingModule.load_from_checkpoint(last).objective.num_slates == 2  # type: ignore[attr-defined]
    assert main(["fit", f"--config={file}", f"--ckpt_path={last}", "--trainer.max_epochs=2"]) == 0
    capsys.readouterr()
    assert main(["fit", f"--config={file}", "--model.objective.init_args.num_slate=3"]) == 2
    assert "num_slate" in capsys.readouterr().err.strip().splitlines()[-1]
    assert main(["fit", f"--config={file}", f"--model.objective.init_args.evaluator={tmp_path / 'nowhere'}"]) == 2
    assert "nowhere" in capsys.readouterr().err.strip().splitlines()[-1]
