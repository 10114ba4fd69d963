"""A semi-supervised DDVI step at MNIST shape in plain PyTorch, without any code of ddvi_fast.

One update of all networks: on a bound whose samples draw their classes for data without labels, with the score-function gradient of the classifier,
on the bound of the class and a cross-entropy for data with labels, and on fantasies. The classes share the chain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.baselines import eager
from bench.baselines.training import LEARNING_RATE, PlainStep, perceptron

CROSS_ENTROPY, SLEEP, SLEEP_TOP, SLEEP_CLASS = 10.0, 0.2, 0.2, 0.1  # weights
RADIUS, SCALE = 2.0, 0.3  # of the prior, Gaussians on a circle
SAMPLES = 2  # of each example without a label


@dataclass(frozen=True)
class Sizes:
    """Widths and numbers of the step; the defaults are those of MNIST."""

    pixels: int = 784
    hidden: int = 1000
    latent: int = 2
    context: int = 2
    classes: int = 10
    num_steps: int = 100
    chain_hidden: int = 128


class Networks(nn.Module):
    """Classifier, encoder of the chains' starts, context network, denoiser, decoder."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.classifier = perceptron(sizes.pixels, sizes.hidden, sizes.classes, dropout=0.0)
        self.encoder = perceptron(sizes.pixels, sizes.hidden, sizes.classes * 2 * sizes.latent, dropout=0.0)
        self.context_encoder = perceptron(sizes.pixels, sizes.hidden, sizes.context, dropout=0.0)
        self.denoiser = eager.Denoiser(sizes.latent, sizes.context, sizes.num_steps, sizes.chain_hidden)
        self.decoder = perceptron(sizes.latent, sizes.hidden, sizes.pixels, dropout=0.0)


def centres(classes: int, like: Tensor) -> Tensor:
    """Means [classes, 2] of the prior."""
    angles = 2 * math.pi * torch.arange(classes, device=like.device, dtype=like.dtype) / classes
    return RADIUS * torch.stack((angles.cos(), angles.sin()), 1)


Noise = Mapping[str, Tensor]


class SemiSupervisedStep(PlainStep):
    """Call it with a batch x [N, pixels] without labels: one update, which also uses the labelled examples.

    Args:
        networks: Networks to train.
        sizes: Widths and numbers.
        labelled: Labelled examples [L, pixels], class after class, equally many of each.
        per_class: Number of labelled examples of each class.
    """

    def __init__(self, networks: Networks, sizes: Sizes, labelled: Tensor, per_class: int) -> None:
        super().__init__(networks, sizes, ancestral=True)
        self.register_buffer("labelled", labelled)
        self.per_class = per_class
        self.optimizer = torch.optim.Adam(networks.parameters(), lr=LEARNING_RATE)

    def forward(self, x: Tensor) -> Tensor:
        return self.update(self.optimizer, sum(self.losses(x, *self.fantasies(len(x))).values()))

    def losses(
        self, x: Tensor, z: Tensor, imagined: Tensor, kinds: Tensor, drawn: Tensor | None = None, noise: Noise | None = None, t: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Weighted losses of x [N, pixels] and of fantasies z [N, D] with their data and classes; what is not given is drawn.

        `drawn` are the classes [SAMPLES, N] of x. `noise` holds `start` [SAMPLES N, D], `chain` [T, SAMPLES N, D] and the same of labelled examples,
        `labelled_start` [L, D] and `labelled_chain`, and of fantasies `sleep` and `top` [N, D].
        """
        return {
            "unlabelled": self.unlabelled(x, drawn, noise),
            "labelled": self.with_labels(noise),
            "sleep": self.sleep(z, imagined, kinds, noise, t),
        }

    def unlabelled(self, x: Tensor, drawn: Tensor | None, noise: Noise | None) -> Tensor:
        """Minus the bound of drawn classes."""
        log_probs, context = torch.log_softmax(self.networks.classifier(x), 1), self.networks.context_encoder(x)
        labels = torch.multinomial(log_probs.detach().exp(), SAMPLES, replacement=True).mT if drawn is None else drawn
        rows, given = torch.arange(len(x), device=x.device), None if noise is None else (noise["start"], noise["chain"])
        heads = self.networks.encoder(x).unflatten(1, (self.sizes.classes, -1))[rows, labels]
        repeated = (x.repeat(SAMPLES, 1), heads.flatten(0, 1), context.repeat(SAMPLES, 1))
        log_class = log_probs[rows, labels]
        bound = self.class_bound(labels.flatten(), *repeated, given).view(labels.shape) - math.log(self.sizes.classes) - log_class.detach()
        known = bound.detach()
        others = (known.sum(0) - known) / (SAMPLES - 1)
        score = (known - others) * log_class
        return -(bound + score - score.detach()).mean()

    def with_labels(self, noise: Noise | None) -> Tensor:
        """Minus the labelled examples' bound, and cross-entropy."""
        x, labels = self.labelled, torch.arange(self.sizes.classes, device=self.labelled.device).repeat_interleave(self.per_class)
        rows, given = torch.arange(len(x), device=x.device), None if noise is None else (noise["labelled_start"], noise["labelled_chain"])
        heads = self.networks.encoder(x).unflatten(1, (self.sizes.classes, -1))[rows, labels]
        bound = self.class_bound(labels, x, heads, self.networks.context_encoder(x), given)
        return CROSS_ENTROPY * functional.cross_entropy(self.networks.classifier(x), labels) - bound.mean()

    def class_bound(self, labels: Tensor, x: Tensor, head: Tensor, context: Tensor, given: tuple[Tensor, Tensor] | None) -> Tensor:
        """log p(x | z) + log p(z | c) + the log-ratio of the chain, of rows with the classes `labels` [N]."""
        mean, log_var = head.chunk(2, dim=-1)
        start, chain = (torch.randn_like(mean), None) if given is None else given
        y_T = mean + torch.exp(0.5 * log_var) * start
        z, path, _ = eager.sample_chain(self.networks.denoiser, y_T, context, self.tables.table, chain)
        log_prior = eager.gaussian_log_density(z, centres(self.sizes.classes, z)[labels], torch.full_like(z, SCALE**2))
        log_ratio = path - eager.gaussian_log_density(y_T, mean, log_var.exp())
        return eager.bernoulli_log_likelihood(self.networks.decoder(z), x) + log_prior + log_ratio

    @torch.no_grad()
    def fantasies(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [N, D] of the prior, images drawn from them, and their classes."""
        kinds = torch.randint(self.sizes.classes, (rows,), device=self.labelled.device)
        means = centres(self.sizes.classes, self.labelled)[kinds]
        z = means + SCALE * torch.randn_like(means)
        return z, torch.bernoulli(torch.sigmoid(self.networks.decoder(z))), kinds

    def sleep(self, z: Tensor, x: Tensor, kinds: Tensor, noise: Noise | None, t: Tensor | None) -> Tensor:
        """Errors of the chain's predictions on fantasies, of its starts, and of the classifier."""
        rows, last = torch.arange(len(z), device=z.device), torch.full((len(z),), self.sizes.num_steps - 1, device=z.device)
        t = torch.randint(self.sizes.num_steps, (len(z),), device=z.device) if t is None else t
        context, heads = self.networks.context_encoder(x), self.networks.encoder(x).unflatten(1, (self.sizes.classes, -1))
        tables = (self.tables.signal, self.tables.deviation)
        errors = eager.denoising_loss(self.networks.denoiser, z, t, context, *tables, None if noise is None else noise["sleep"])
        mean, log_var = heads[rows, kinds].chunk(2, dim=-1)
        y_T, _ = eager.add_noise(z, last, *tables, None if noise is None else noise["top"])
        top = eager.gaussian_log_density(y_T, mean, log_var.exp()).mean()
        return SLEEP * errors.mean() - SLEEP_TOP * top + SLEEP_CLASS * functional.cross_entropy(self.networks.classifier(x), kinds)
