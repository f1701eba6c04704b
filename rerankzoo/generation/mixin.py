"""`generate()`: one interface to all decoding routines, for every model that has a scorer or a decoding of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.utils import GENERATION_CONFIG_NAME, ModelOutput

from rerankzoo.batch import ENTRIES, Batch, inputs
from rerankzoo.errors import SchemaMismatchError, UnreadableFileError, shown
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.generation.beam import beam_search
from rerankzoo.generation.configuration import RerankingGenerationConfig
from rerankzoo.generation.constraints.constraint import Constraint
from rerankzoo.generation.constraints.rules import SlateRules, bind
from rerankzoo.generation.contrastive import contrastive_search
from rerankzoo.generation.scorer import Evaluator, Scorer, log_distributions, of_choices
from rerankzoo.generation.search import Decoded, greedy_search, sample_slates
from rerankzoo.slates import cut_slates

#: Where `from_pretrained` finds a file.
_HUB = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")


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


class SchemaBound:
    """What was made for one schema."""

    schema: FeatureSchema

    def check_schema(self, schema: FeatureSchema) -> None:
        """Refuses, by SchemaMismatchError, a feature extractor other than the one that this was trained with."""
        made_for, other = (f"{one.name!r} (fingerprint {one.fingerprint})" for one in (self.schema, schema))
        if self.schema.fingerprint != schema.fingerprint:
            name = type(self).__name__
            raise SchemaMismatchError(f"{name} was made for schema {made_for}, the extractor has {other}")


class SlateGenerationMixin(SchemaBound):
    """Adds `generate()` to a model that makes a `Scorer`, or that overrides `decode`."""

    #: The decodings that the model has; `generate` refuses others.
    strategies: ClassVar[tuple[str, ...]] = ("greedy", "beam", "contrastive", "sample")
    generation_config_class: ClassVar[type[RerankingGenerationConfig]] = RerankingGenerationConfig
    generation_config: RerankingGenerationConfig
    config: Any

    def scorer(self) -> Scorer:
        """A scorer over this model, for decoding and mining; TypeError if it has none but decodes whole slates."""
        raise TypeError(f"{type(self).__name__} scores no prefixes; it decodes by {', '.join(self.strategies)}")

    @classmethod
    def can_generate(cls) -> bool:
        """Tells transformers to save and load a generation config with the model."""
        return True

    def generate(
        self,
        generation_config: RerankingGenerationConfig | Mapping[str, Any] | None = None,
        evaluator: Evaluator | None = None,
        constraints: Constraint | Iterable[Constraint] = (),
        **kwargs: Any,
    ) -> Tensor | SlateGenerationOutput:
        """Decodes slates: no candidate twice, none that `candidate_mask` leaves out.

        The strategy follows from the parameters, as in transformers: greedy by default, `num_beams` for beam search,
        `penalty_alpha` (and `top_k`) for contrastive decoding, `do_sample` (with `temperature`, `top_k`) for sampling.
        Greedy, beam and contrastive decoding are deterministic; sampling uses torch's global random state.

        Args:
            generation_config: Decoding parameters, also as a dictionary; default: the model's own.
            evaluator: Chooses, by predicted utility, one of the `num_return_sequences` slates of each request.
            constraints: What slates must keep, whatever the strategy (see `rerankzoo.generation.constraints`).
            **kwargs: The batch, by its keys (labels in it are ignored), and decoding parameters that replace those of
                the config (see `RerankingGenerationConfig`).

        Returns:
            Slates (B, M), or (B, S, M) for `num_return_sequences` above 1 without an evaluator; a
            `SlateGenerationOutput` with `return_dict_in_generate`. A request with fewer than M candidates gets all of
            them, then -100; one whose `slate_length` in the batch is smaller than M gets so many. Without `slate_size`
            M is the largest of these lengths.

        Raises:
            ValueError: If an argument is not what it should be, the parameters contradict one another or the batch, the
                model has no such strategy, or a constraint does not fit the batch.
            InfeasibleConstraintError: If a request has no slate that keeps the constraints; raised before decoding.
        """
        config = self._decoding(self.config_of(generation_config), kwargs)
        batch = {name: tensor for name, tensor in inputs(kwargs).items() if tensor is not None}
        if wrong := [name for name, tensor in batch.items() if not isinstance(tensor, Tensor)]:
            raise ValueError(f"generate() expected tensors, got {shown(batch[wrong[0]])} as {wrong[0]}")
        if "candidate_mask" not in batch:
            raise ValueError("generate() got no candidate_mask; pass the batch by its keys: generate(**batch)")
        if evaluator is not None and not hasattr(evaluator, "score_slates"):
            raise ValueError(f"evaluator must have score_slates(), got {shown(evaluator)}")
        with torch.inference_mode():
            rules = bind(constraints, batch, config.slate_size, self.schema) if constraints else None
            decoded = self.decode(batch, config, rules)
            if "slate_length" in batch:  # a family's own decoding need not know of pages
                decoded.slates = cut_slates(decoded.slates, batch)
            output = vars(decoded)  # (B, S, ...)
            if evaluator is not None:
                utilities = evaluator.score_slates(decoded.slates, **batch)
                utilities = utilities.masked_fill(decoded.scores == float("-inf"), float("-inf"))
                best = torch.arange(len(utilities), device=utilities.device), utilities.argmax(-1)
                output = {name: tensor[best] for name, tensor in {**output, "utilities": utilities}.items()}
            elif decoded.slates.shape[1] == 1:
                output = {name: tensor[:, 0] for name, tensor in output.items()}
        # Copies, because what inference mode makes cannot take part in training: slates as indexes of a loss, say.
        if not config.return_dict_in_generate:
            return output["slates"].clone()
        return SlateGenerationOutput(**{name: tensor.clone() for name, tensor in output.items()})

    def config_of(self, config: Any) -> RerankingGenerationConfig:
        """Decoding parameters, however they were handed over; of `None`, the model's own. ValueError for others."""
        if config is None or isinstance(config, self.generation_config_class):
            return self.generation_config if config is None else config
        if isinstance(config, RerankingGenerationConfig):
            return self.generation_config_class(**config.parameters())
        if isinstance(config, Mapping) and not config.keys() & ENTRIES.keys():
            return self.generation_config_class(**config)
        hint = "; pass the batch by its keys: generate(**batch)" if isinstance(config, Mapping) else ""
        expected = self.generation_config_class.__name__
        raise ValueError(f"generation_config must be a {expected} or a dictionary, got {type(config).__name__}{hint}")

    def _decoding(self, config: RerankingGenerationConfig, keywords: dict[str, Any]) -> RerankingGenerationConfig:
        """The decoding that a call asks for, with its slate size."""
        names = self.generation_config_class.names()
        parameters = {name: keywords[name] for name in names if name in keywords}
        if unknown := sorted(keywords.keys() - ENTRIES.keys() - parameters.keys()):
            raise ValueError(f"generate() got {unknown}, neither batch keys nor decoding parameters {list(names)}")
        if config.slate_size is None and parameters.get("slate_size") is None:
            lengths = keywords.get("slate_length")
            parameters["slate_size"] = self.config.slate_size if lengths is None else int(lengths.max())
        if parameters:
            config = config.merged(**parameters)
        else:
            config.validate()
        if config.strategy not in self.strategies:
            raise ValueError(f"{type(self).__name__} decodes by {list(self.strategies)}, got {config.strategy!r}")
        return config

    def decode(self, batch: Batch, config: RerankingGenerationConfig, rules: SlateRules | None = None) -> Decoded:
        """Runs the decoding that the parameters ask for: all that `generate`, the pipeline and the exporter decode by.

        A family with a decoding of its own overrides it. The batch has no labels; the config's strategy is one of the
        model's, and its `slate_size` is set; the rules are what `bind` made for this batch and slate size.

        Returns:
            `num_return_sequences` slates per request.
        """
        scorer, size = self.scorer(), config.slate_size or self.config.slate_size
        sequences, strategy = config.num_return_sequences or 1, config.strategy
        if strategy == "sample":
            temperature = 1.0 if config.temperature is None else config.temperature
            return sample_slates(scorer, batch, size, sequences, temperature, config.top_k, rules)
        if strategy == "contrastive":
            return contrastive_search(scorer, batch, size, float(config.penalty_alpha), config.top_k, rules)
        if strategy == "beam":
            return beam_search(scorer, batch, size, config.num_beams, sequences, rules=rules)
        return greedy_search(scorer, batch, size, rules)

    def log_likelihood(self, slates: Tensor, /, **batch: Tensor) -> Tensor:
        """Log-probability of each choice of given slates, under the distribution that sampling draws from.

        Differentiable. Of a model whose scores are values, the distribution is their softmax over the candidates left.
        Slates (B, S, M) hold indexes into the candidates, -100 pads. Labels in the batch are ignored.

        Returns:
            (B, S, M); 0 at padding, -inf where a candidate cannot stand.
        """
        return of_choices(self.log_distributions(slates, **batch), slates)

    def log_distributions(self, slates: Tensor, /, **batch: Tensor) -> Tensor:
        """Log-probability of every candidate at each position of given slates, given the items above it.

        What `log_likelihood` takes the choices' from. Slates (B, S, M) hold indexes into the candidates, -100 pads.

        Returns:
            (B, S, M, N), -inf where a candidate cannot stand; without meaning at padding.
        """
        return log_distributions(self.scorer(), inputs(batch), slates)

    def adjust_generation_fn(
        self, generation_config: Any, from_auto_class: bool, from_pipeline: str | None, path: Any, /, **kwargs: Any
    ) -> None:
        """Called by `from_pretrained`: loads the generation config saved beside the weights, where there is one."""
        if generation_config is not None:
            self.generation_config = self.config_of(generation_config)
        elif path is not None:  # else weights were given as a state dict
            hub = {name: value for name, value in kwargs.items() if name in _HUB}
            try:
                self.generation_config = self.generation_config_class.from_pretrained(path, **hub)
            except OSError as error:
                file = Path(path) / hub.get("subfolder", "") / GENERATION_CONFIG_NAME
                if file.is_file():
                    raise UnreadableFileError(f"{file} is damaged: invalid JSON") from error
                # There is none: the config's defaults stand.
                self.generation_config = self.generation_config_class()
