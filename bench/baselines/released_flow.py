"""The inverse autoregressive flow of the released code (`iaf_vae`) in plain PyTorch, without any code of ddvi_fast.

Dropout is always on, also in the decoder; the encoder returns mean, logit of the variance, and context; `log q` contains the whole log-variance; the
prior's density is the mean of five kernel estimates, each of them clipped.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.baselines.training import BANDWIDTHS, CLAMP

DROPOUT, SLOPE = 0.2, 0.2
STEPS, WIDTH, CONTEXT = 4, 128, 10
KL_WEIGHT, RAMP = 0.01, 0.8  # weight, and fraction of the epochs in which it rises


class Perceptron(nn.Module):
    """Two hidden layers, each followed by dropout, then one head for each output width."""

    def __init__(self, inputs: int, hidden: int, outputs: list[int], rate: float = DROPOUT) -> None:
        super().__init__()
        self.rate = rate
        self.layers = nn.ModuleList([nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)])
        self.heads = nn.ModuleList([nn.Linear(hidden, width) for width in outputs])

    def forward(self, x: Tensor) -> list[Tensor]:
        for layer in self.layers:
            x = functional.dropout(functional.leaky_relu(layer(x), SLOPE), self.rate)
        return [head(x) for head in self.heads]


class Step(nn.Module):
    """One autoregressive step: the first latent is gated by a function of the second, the second by constants; `turned` swaps them afterwards."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.turned = turned
        self.of_context = nn.Linear(CONTEXT, WIDTH)
        self.first, self.second, self.third = nn.Linear(2, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.last = nn.Linear(WIDTH, 4)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The latents [N, 2] and the log-determinants [N]."""
        inputs, outputs = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0], [0.0], [1.0], [0.0]])
        hidden = torch.relu(functional.linear(z, self.first.weight * inputs, self.first.bias) + self.of_context(context))
        hidden = torch.relu(self.third(torch.relu(self.second(hidden))))
        gate, shift = functional.linear(hidden, self.last.weight * outputs, self.last.bias).chunk(2, 1)
        share = torch.sigmoid(gate)
        z = share * z + (1 - share) * shift
        return (z.flip(1) if self.turned else z), torch.log(share).sum(1)


class ReleasedFlow(nn.Module):
    """Encoder, flow and decoder; `points` [M, 2] are the prior's samples of the kernel density."""

    def __init__(self, points: Tensor, pixels: int = 784, hidden: int = 1000, rate: float = DROPOUT) -> None:
        super().__init__()
        self.encoder = Perceptron(pixels, hidden, [2, 2, CONTEXT], rate)
        self.decoder = Perceptron(2, hidden, [pixels], rate)
        self.steps = nn.ModuleList(Step(turned=number % 2 == 1) for number in range(STEPS))
        self.register_buffer("points", points)

    def sample(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A latent [N, 2] for each row, and its `log q` by the released code's formula."""
        mean, logit, context = self.encoder(x)
        variance = torch.sigmoid(logit)
        noise = torch.randn_like(mean) if noise is None else noise
        z = mean + variance.sqrt() * noise
        log_q = -(torch.log(variance) + noise.square() / 2 + math.log(2 * math.pi) / 2).sum(1)
        for step in self.steps:
            z, log_det = step(z, context)
            log_q = log_q - log_det
        return z, log_q

    def log_prior(self, z: Tensor) -> Tensor:
        """Kernel estimate of the prior's log-density, nats [N]."""
        squared = (z.unsqueeze(1) - self.points).square().sum(-1)
        constants = [2 * math.log(width) + math.log(2 * math.pi * len(self.points)) for width in BANDWIDTHS]
        each = [torch.logsumexp(-squared / (2 * width**2), 1) - constant for width, constant in zip(BANDWIDTHS, constants, strict=True)]
        return torch.logsumexp(torch.stack(each).clamp(-CLAMP, CLAMP), 0) - math.log(len(BANDWIDTHS))

    def terms(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Cross-entropy per pixel and KL divergence [N] of rows `x` [N, P]."""
        z, log_q = self.sample(x, noise)
        rebuilt = functional.binary_cross_entropy(torch.sigmoid(self.decoder(z)[0]), x, reduction="none").mean(1)
        return rebuilt, log_q - self.log_prior(z)


def kl_weight(epoch: int, epochs: int) -> float:
    """The KL weight of an epoch."""
    return KL_WEIGHT * min(1.0, epoch / int(RAMP * epochs))
