"""EG-Rerank and its kin: a generator taught by policy gradients from an evaluator's word.

AliExpress Learning-To-Rank: Maximizing Online Model Performance without Going Online (arXiv 2003.11941, Alibaba). A
frozen evaluator predicts the feedback of slates, a generator draws several slates per request, and each choice is
reinforced by how much more it earned than the same position of the request's other slates. That is a group-normalised
policy gradient (GRPO) years before its name; GRN and Dual-Rerank differ in the advantage. All are cases of
`rerankzoo.training.EvaluatorReward`:

| method | `advantage` | and |
|---|---|---|
| EG-Rerank (PPO) | `position` | `normalise`, `discount` 0.01, `clip` 0.1, `entropy_weight` 0.001, `num_slates` 5 |
| GRPO | `slate` | `normalise` |
| GRN (arXiv 2104.00860, Taobao) | `self_plus_difference` | |
| Dual-Rerank's LDRO (arXiv 2604.07420, Kuaishou) | `decoupled` | |

B requests, N candidates, M positions, S slates, D hidden; R rows being decoded.

Where this differs from the papers, or fills in what our sources (abstracts, public TensorFlow code of LibRerank, notes)
do not state:

- Candidates attend to one another before they are pointed at; the published encoder is an MLP per item, its pointer an
  MLP of item and decoder state. The default decoder is a causal Transformer; the published LSTM is `decoder: lstm`,
  here with the mean candidate as its first input and the encoded item chosen last as every other.
- `discount` is 1 by default. The published 0.01 makes every choice answer for its own gain only.
- A position's gain is what it adds to the value of the slate down to it, by any evaluator; the published one is the
  predicted click of the position, which later items may still change.
- Entropy is drawn, not computed: `-entropy_weight log pi` is earned besides, whose gradient is the entropy's.
- One step is made with each draw, as in the public code: the ratio to the policy that drew is 1 but for dropout.
- The discriminator between logged and generated slates (EG-Rerank+) is not there; `supervised_weight` keeps the policy
  near the log.
- GRN: self and differential reward count the same (our sources do not tell their weights), their sum is
  `V(l) - V(l without the item)`. GRN's own network, GRU and attention, is not there.
- Dual-Rerank: the formulas of the decoupled normalisation are our reading; its student of one pass and the distillation
  are not there.
"""

from __future__ import annotations

from rerankzoo.models.egrerank.configuration_egrerank import EGRerankConfig
from rerankzoo.models.recurrent_pointer import RecurrentPointerGenerator
from rerankzoo.models.registry import register_model


@register_model
class EGRerankForReranking(RecurrentPointerGenerator):
    """EG-Rerank's generator: candidate encoder, decoder, pointer. Decodes greedily unless told otherwise."""

    config: EGRerankConfig
    config_class = EGRerankConfig
    paper = (
        "EG-Rerank",
        "AliExpress Learning-To-Rank: Maximizing Online Model Performance without Going Online, "
        "<https://arxiv.org/abs/2003.11941>.",
    )

    def __init__(self, config: EGRerankConfig) -> None:
        super().__init__(config)
        self.features = self.make_feature_embedding()
        self.make_layers()
        self.post_init()


__all__ = ["EGRerankForReranking"]
