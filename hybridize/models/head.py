"""OutputHead: the projection to logits, with the divisor that some families have."""

from torch import Tensor, nn


class OutputHead(nn.Linear):
    """Logits = hidden @ weight.T / divisor, for a vocabulary."""

    def __init__(self, hidden_size: int, vocab_size: int, divisor: float = 1.0) -> None:
        super().__init__(hidden_size, vocab_size, bias=False)
        self.divisor = divisor

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return the logits (B, T, V)."""
        logits_BTV = super().forward(hidden_BTD)
        return logits_BTV if self.divisor == 1 else logits_BTV / self.divisor
