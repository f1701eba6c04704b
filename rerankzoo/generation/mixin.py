"""`generate()`: one interface to all decoding routines, for every model that has a scorer."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import GENERATION_CONFIG_NAME, ModelOutput

from rerankzoo.batch import ENTRIES, Batch, inputs
from rerankzoo.errors import UnreadableFileError
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.generation.beam import beam_search
from rerankzoo.generation.configuration import PARAMETERS, RerankingGenerationConfig
from rerankzoo.generation.constraints import Constraint, bind
from rerankzoo.generation.contrastive import contrastive_search
from rerankzoo.generation.feasibility import SlateRules
from rerankzoo.generation.greedy import greedy_search
from rerankzoo.generation.sampling import sample_slates
from rerankzoo.generation.scorer import Scorer, SlateEvaluator
from rerankzoo.generation.search import Decoded


@dataclass
class SlateGenerationOutput(ModelOutput):
    """What `generate(return_dict_in_generate=True)` returns. S axes are absent where one slate per request is returned.

    Attributes:
        slates: (B, M) or (B, S, M), indexes into the candidates, -100 where there are fewer candidates than positions.
        scores: (B,) or (B, S), the slate's score by the model: sum of log-probabilities, or value.
        step_scores: (B, M) or (B, S, M), the score of each choice when it was made.
        utilities: (B,), the slate's predicted utility, where an evaluator was given.
    """

    slates: Tensor | None = None
    scores: Tensor | None = None
    step_scores: Tensor | None = None
    utilities: Tensor | None = None


class SlateGenerationMixin:
    """Adds `generate()` to a model that can make a `Scorer`."""

    schema: FeatureSchema
    generation_config: RerankingGenerationConfig
    generation_config_class = RerankingGenerationConfig

    @abstractmethod
    def scorer(self) -> Scorer:
        """A scorer over this model, for decoding and mining."""

    @classmethod
    def can_generate(cls) -> bool:
        """Tells transformers to save and load a generation config with the model."""
        return True

    def generate(
        self,
        generation_config: RerankingGenerationConfig | None = None,
        evaluator: SlateEvaluator | None = None,
        constraints: Sequence[Constraint] = (),
        **kwargs: Any,
    ) -> Tensor | SlateGenerationOutput:
        """Decodes slates: no candidate twice, none that `candidate_mask` leaves out.

        The strategy follows from the parameters, as in transformers: greedy by default, `num_beams` for beam search,
        `penalty_alpha` (and `top_k`) for contrastive decoding, `do_sample` (with `temperature`, `top_k`) for sampling.
        Greedy, beam and contrastive decoding are deterministic; sampling uses torch's global random state.

        Args:
            generation_config: Decoding parameters; default: the model's own.
            evaluator: Chooses, by predicted utility, one of the `num_return_sequences` slates of each request.
            constraints: What slates must keep, whatever the strategy (see `rerankzoo.generation.constraints`).
            **kwargs: The batch, by its keys (labels in it are ignored), and decoding parameters that replace those of
                the config (see `RerankingGenerationConfig`).

        Returns:
            Slates (B, M), or (B, S, M) for `num_return_sequences` above 1 without an evaluator; a
            `SlateGenerationOutput` with `return_dict_in_generate`. A request with fewer than M candidates gets all of
            them, then -100.

        Raises:
            ValueError: If a keyword is neither a batch key nor a decoding parameter, the parameters contradict one
                another or the batch, or a constraint does not fit the batch.
            InfeasibleConstraintError: If a request has no slate that keeps the constraints; raised before decoding.

        Example:
            >>> slates = model.generate(**batch, slate_size=4, num_beams=4)  # doctest: +SKIP
        """
        batch = {key: value for key, value in inputs(kwargs).items() if value is not None}
        unknown = sorted(set(kwargs) - set(PARAMETERS) - set(ENTRIES))
        if unknown:
            raise ValueError(f"generate() got {unknown}, neither batch keys nor decoding parameters {list(PARAMETERS)}")
        parameters = {key: value for key, value in kwargs.items() if key in PARAMETERS}
        config = (generation_config or self.generation_config).merged(**parameters)
        slate_size: int = config.slate_size or self.config.slate_size  # type: ignore[attr-defined]
        with torch.inference_mode():
            rules = bind(constraints, batch, slate_size, self.schema)
            found = decode(self.scorer(), batch, config, slate_size, rules)
            output = _output(found) if evaluator is None else _best_by(evaluator, found, batch)
        # Copies, because what inference mode makes cannot take part in training: slates as indexes of a loss, say.
        if not config.return_dict_in_generate:
            return output["slates"].clone()
        return SlateGenerationOutput(**{key: value.clone() for key, value in output.items()})

    def adjust_generation_fn(
        self,
        generation_config: RerankingGenerationConfig | None,
        from_auto_class: bool,
        from_pipeline: str | None,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        cache_dir: str | None,
        force_download: bool,
        proxies: dict[str, str] | None,
        local_files_only: bool,
        token: str | bool | None,
        revision: str,
        subfolder: str,
        trust_remote_code: bool,
        **kwargs: Any,
    ) -> None:
        """Called by `from_pretrained`: loads the generation config saved beside the weights, where there is one."""
        if generation_config is not None:
            self.generation_config = generation_config
            return
        if pretrained_model_name_or_path is None:  # weights were given as a state dict
            return
        try:
            self.generation_config = RerankingGenerationConfig.from_pretrained(
                pretrained_model_name_or_path,
                cache_dir=cache_dir,
                force_download=force_download,
                proxies=proxies,
                local_files_only=local_files_only,
                token=token,
                revision=revision,
                subfolder=subfolder,
            )
        except OSError as error:
            file = Path(pretrained_model_name_or_path) / subfolder / GENERATION_CONFIG_NAME
            if file.is_file():
                raise UnreadableFileError(f"{file} is damaged: it is no JSON") from error
            # There is none: the config's defaults stand.
            self.generation_config = RerankingGenerationConfig()


def decode(
    scorer: Scorer,
    batch: Batch,
    config: RerankingGenerationConfig,
    slate_size: int,
    rules: SlateRules | None = None,
) -> Decoded:
    """Runs the decoding routine that the parameters ask for."""
    sequences = config.num_return_sequences or 1
    if config.strategy == "sample":
        temperature = 1.0 if config.temperature is None else config.temperature
        return sample_slates(scorer, batch, slate_size, sequences, temperature, config.top_k, rules)
    if config.strategy == "contrastive":
        return contrastive_search(scorer, batch, slate_size, float(config.penalty_alpha), config.top_k, rules)
    if config.strategy == "beam":
        return beam_search(scorer, batch, slate_size, config.num_beams, sequences, rules=rules)
    return greedy_search(scorer, batch, slate_size, rules)


def _output(found: Decoded) -> dict[str, Tensor]:
    slates, scores, steps = found.slates, found.scores, found.step_scores
    if slates.shape[1] == 1:
        slates, scores, steps = slates[:, 0], scores[:, 0], steps[:, 0]
    return {"slates": slates, "scores": scores, "step_scores": steps}


def _best_by(evaluator: SlateEvaluator, found: Decoded, batch: Batch) -> dict[str, Tensor]:
    """The slate of each request with the highest predicted utility."""
    utilities = evaluator.score_slates(found.slates, **batch)  # (B, S)
    utilities = utilities.masked_fill(found.scores == float("-inf"), float("-inf"))
    best = utilities.argmax(-1)
    request = torch.arange(len(best), device=best.device)
    return {
        "slates": found.slates[request, best],
        "scores": found.scores[request, best],
        "step_scores": found.step_scores[request, best],
        "utilities": utilities[request, best],
    }
