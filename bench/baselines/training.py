"""The DDVI training step of the released code at MNIST shape in plain PyTorch, without any code of ddvi_fast.

One wake update (reconstruction, KL of the chain's start to N(0, I), kernel density of the prior, mean matching at one random step), then sleep
updates of the chain and its context network, each on new fantasies. Every update is an Adam step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.baselines import eager

BANDWIDTHS = (0.005, 0.008, 0.01, 0.03, 0.05)
CLAMP = 1000.0
KL_WEIGHT = 0.003
LEARNING_RATE = 1e-4


def perceptron(inputs: int, hidden: int, outputs: int, dropout: float) -> nn.Sequential:
    """Two hidden layers with LeakyReLU and dropout, then a linear head."""
    layers: list[nn.Module] = []
    for before in (inputs, hidden):
        layers += [nn.Linear(before, hidden), nn.LeakyReLU(0.2)]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(hidden, outputs))


@dataclass(frozen=True)
class Sizes:
    """Widths of the step; the defaults are those of MNIST."""

    pixels: int = 784
    hidden: int = 1000
    latent: int = 2
    context: int = 2
    num_steps: int = 40
    chain_hidden: int = 128
    kde_points: int = 10_000
    sleep_updates: int = 3


class Networks(nn.Module):
    """Encoder of the chain's start, context network, denoiser and decoder."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.encoder = perceptron(sizes.pixels, sizes.hidden, 2 * sizes.latent, dropout=0.2)
        self.context_encoder = perceptron(sizes.pixels, sizes.hidden, sizes.context, dropout=0.4)
        self.denoiser = eager.Denoiser(sizes.latent, sizes.context, sizes.num_steps, sizes.chain_hidden)
        self.decoder = perceptron(sizes.latent, sizes.hidden, sizes.pixels, dropout=0.0)


class Tables(nn.Module):
    """Tables of a linear noise schedule: the chain's [T, 5], deterministic or ancestral, and columns [T] of the noising process."""

    def __init__(self, num_steps: int, ancestral: bool) -> None:
        super().__init__()
        betas = torch.linspace(1e-4, 0.02, num_steps, dtype=torch.float64)
        bars = torch.cumprod(1 - betas, 0)
        before, scale = torch.cat((bars.new_ones(1), bars[:-1])), (1 - betas).sqrt()
        if ancestral:
            variances = betas * (1 - before) / (1 - bars)
            variances[0] = variances[1]
            weights = 1 / scale, -betas / ((1 - bars).sqrt() * scale), variances.sqrt()
        else:
            weight_state = before.sqrt() / bars.sqrt()
            weights = weight_state, (1 - before).sqrt() - weight_state * (1 - bars).sqrt(), torch.zeros_like(betas)
        columns = {
            "table": torch.stack((*weights, scale, betas), 1),
            "signal": bars.sqrt(),
            "deviation": (1 - bars).sqrt(),
            "weight_z": before.sqrt() * betas / (1 - bars),
            "weight_y": scale * (1 - before) / (1 - bars),
        }
        for name, column in columns.items():
            self.register_buffer(name, column.float())


def sample_pinwheel(count: int, device: torch.device | str, arms: int = 10) -> Tensor:
    """Samples [count, 2] of the pinwheel prior."""
    features = torch.randn(count, 2, device=device) * torch.tensor([0.15, 0.005], device=device) + torch.tensor([1.0, 0.0], device=device)
    angles = 2 * math.pi * torch.randint(arms, (count,), device=device) / arms + 0.25 * torch.exp(features[:, 0])
    cos, sin = torch.cos(angles), torch.sin(angles)
    return torch.stack((features[:, 0] * cos + features[:, 1] * sin, features[:, 1] * cos - features[:, 0] * sin), 1)


class PlainStep(nn.Module):
    """Base of the training steps.

    Args:
        networks: Networks to train.
        sizes: Widths and numbers of steps.
        ancestral: Whether the chain is ancestral or deterministic.
    """

    def __init__(self, networks: nn.Module, sizes: Any, ancestral: bool) -> None:
        super().__init__()
        self.networks, self.sizes = networks, sizes
        self.tables = Tables(sizes.num_steps, ancestral).to(next(networks.parameters()).device)

    def compiled(self) -> PlainStep:
        """Compile each network with torch.compile; the loops remain loops."""
        for network in self.networks.children():
            for part in network if isinstance(network, nn.ModuleList) else [network]:
                part.compile(dynamic=False)
        return self

    @staticmethod
    def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
        """One step of the optimizer."""
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()


class TrainingStep(PlainStep):
    """Call it with a batch x [N, pixels]: one wake update and the sleep updates.

    Args:
        networks: Networks to train.
        sizes: Widths and numbers of steps.
        points: Prior samples [M, D] of the kernel density; drawn once if not given.
    """

    def __init__(self, networks: Networks, sizes: Sizes, points: Tensor | None = None) -> None:
        super().__init__(networks, sizes, ancestral=False)
        device = next(networks.parameters()).device
        self.register_buffer("points", sample_pinwheel(sizes.kde_points, device) if points is None else points)
        self.density = eager.kde_log_density
        chain = [*networks.denoiser.parameters(), *networks.context_encoder.parameters()]
        self.wake_optimizer = torch.optim.Adam(networks.parameters(), lr=LEARNING_RATE)
        self.sleep_optimizer = torch.optim.Adam(chain, lr=LEARNING_RATE)

    def compiled(self) -> PlainStep:
        """Compile the networks and the kernel density."""
        self.density = torch.compile(eager.kde_log_density, dynamic=False)
        return super().compiled()

    def forward(self, x: Tensor) -> Tensor:
        loss = self.update(self.wake_optimizer, self.wake_loss(x))
        for _ in range(self.sizes.sleep_updates):
            self.update(self.sleep_optimizer, self.sleep_loss(*self.fantasies(len(x))))
        return loss

    def wake_loss(self, x: Tensor, start_noise: Tensor | None = None, t: Tensor | None = None) -> Tensor:
        """The wake loss of x [N, pixels]; noise [N, D] and timesteps [N] are drawn if not given."""
        mean, log_var = self.networks.encoder(x).chunk(2, dim=-1)
        context = self.networks.context_encoder(x)
        start_noise = torch.randn_like(mean) if start_noise is None else start_noise
        t = torch.randint(self.sizes.num_steps, (len(x),), device=x.device) if t is None else t
        y_T = mean + torch.exp(0.5 * log_var) * start_noise
        z, _, states = eager.sample_chain(self.networks.denoiser, y_T, context, self.tables.table, stochastic=False)
        reconstruction = functional.binary_cross_entropy_with_logits(self.networks.decoder(z), x)
        kl = eager.gaussian_kl(mean, log_var).mean()
        prior = -self.density(z, self.points, BANDWIDTHS, CLAMP).mean()
        return reconstruction + KL_WEIGHT * (kl + prior) + self.mean_matching(states, context, t)

    def mean_matching(self, states: list[Tensor], context: Tensor, t: Tensor) -> Tensor:
        """Huber error between the noising process's mean and the chain's, at step t of each row."""
        trajectory, tables, z = torch.stack(states), self.tables, states[-1]
        y = trajectory[self.sizes.num_steps - 1 - t, torch.arange(len(t), device=t.device)]
        target = tables.weight_z[t].unsqueeze(1) * z + tables.weight_y[t].unsqueeze(1) * y
        predicted = tables.table[t, 0].unsqueeze(1) * y + tables.table[t, 1].unsqueeze(1) * self.networks.denoiser(y, context, t)
        return functional.smooth_l1_loss(target, predicted)

    @torch.no_grad()
    def fantasies(self, count: int) -> tuple[Tensor, Tensor]:
        """Latents [count, D] of the prior and images [count, pixels] drawn from them."""
        z = sample_pinwheel(count, self.points.device)
        return z, torch.bernoulli(torch.sigmoid(self.networks.decoder(z)))

    def sleep_loss(self, z: Tensor, x: Tensor, t: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Huber error of the noise that the chain predicts on fantasies."""
        t = torch.randint(self.sizes.num_steps, (len(z),), device=z.device) if t is None else t
        context = self.networks.context_encoder(x)
        return eager.denoising_loss(self.networks.denoiser, z, t, context, self.tables.signal, self.tables.deviation, noise).mean()
