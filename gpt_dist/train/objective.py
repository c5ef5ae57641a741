"""What is minimised: modules from a batch to its loss.

Shapes: R sequences, B examples, T time, D hidden, N predicted tokens.
"""

from __future__ import annotations

from torch import Tensor, nn

from gpt_dist.model import GPT, IGNORED_LABEL


class LanguageModelObjective(nn.Module):
    """L1 of the paper: mean negative log-likelihood of the next token, in nats."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar in fp32, over labels [B, T] other than IGNORED_LABEL; 0 if none is."""
        losses = self.model.token_losses(self.model(tokens), labels)  # [B, T]
        counted = labels != IGNORED_LABEL
        return (losses * counted).sum() / counted.sum().clamp(min=1)
