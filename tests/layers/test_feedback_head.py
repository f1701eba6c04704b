from __future__ import annotations

import pytest
import torch

from rerankzoo.features.schema import FeatureSchema
from rerankzoo.layers import FeedbackHead


def test_starts_at_the_rates_of_the_log(schema: FeatureSchema) -> None:
    names = [target.name for target in schema.targets]
    assert len(names) == 2
    head = FeedbackHead(3, schema, {names[1]: names[0]})
    head.start_at([0.2, 0.05])
    torch.testing.assert_close(head.bias.sigmoid(), torch.tensor([0.2, 0.25]))
    torch.testing.assert_close(head.probabilities(head.bias), torch.tensor([0.2, 0.05]))
    head.start_at([0.2, 0.3])  # a parent that happens less often: fitted rates are no chain
    assert head.bias[1].item() == pytest.approx(0)
