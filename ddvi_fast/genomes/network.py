"""What an encoder sees of genotypes: standardised counts, the mean where a call is missing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddvi_fast.genomes.standardise import Scaling
from ddvi_fast.rng import Draws


class Standardised(nn.Module):
    """A network of counts [N, M], NaN where a call is missing, which it sees by Patterson's scaling (see `standardise`).

    Args:
        network: called as ``network(x, draws)`` with standardised genotypes; its last layer is ``output_layer``.
        scaling: of the training samples.

    Example:
        >>> from ddvi_fast.networks import MLP
        >>> encoder = Standardised(MLP(3, [8], 2), Scaling(torch.tensor([0.2, 1.0, 1.5]), torch.ones(3)))
        >>> encoder(torch.tensor([[0.0, 1.0, torch.nan]])).shape
        torch.Size([1, 2])
    """

    def __init__(self, network: nn.Module, scaling: Scaling) -> None:
        super().__init__()
        self.network = network
        here = network.output_layer.weight.device
        self.register_buffer("mean", scaling.mean.to(here, copy=True))
        # Many columns of variance 1 would make the first layer's sums as large as their root.
        self.register_buffer("scale", (scaling.scale / len(scaling.scale) ** 0.5).to(here))

    @property
    def output_layer(self) -> nn.Linear:
        """The last layer."""
        return self.network.output_layer

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        """[N, M] -> what the network makes of it."""
        return self.network(((x - self.mean) * self.scale).nan_to_num(0.0), draws)


@torch.no_grad()
def start_at_frequencies(decoder: nn.Module, scaling: Scaling) -> None:
    """Shift a decoder's last layer so that its logits start at the frequencies of the training samples."""
    decoder.output_layer.bias += torch.logit(scaling.mean / 2, eps=1e-3).to(decoder.output_layer.bias)
