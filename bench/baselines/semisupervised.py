"""A semi-supervised DDVI step at MNIST shape in plain PyTorch, without any code of ddvi_fast.

One update of all networks: on a bound that sums over classes for data without labels, on the bound of the class and a cross-entropy for data with
labels, and on fantasies of every class. Each class has its own chain, and the chains run one after another.
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
    """Classifier, encoder of the chains' starts, context network, one denoiser for each class, decoder."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.classifier = perceptron(sizes.pixels, sizes.hidden, sizes.classes, dropout=0.0)
        self.encoder = perceptron(sizes.pixels, sizes.hidden, sizes.classes * 2 * sizes.latent, dropout=0.0)
        self.context_encoder = perceptron(sizes.pixels, sizes.hidden, sizes.context, dropout=0.0)
        chains = (eager.Denoiser(sizes.latent, sizes.context, sizes.num_steps, sizes.chain_hidden) for _ in range(sizes.classes))
        self.denoisers = nn.ModuleList(chains)
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
        return self.update(self.optimizer, sum(self.losses(x, *self.fantasies(len(x) // self.sizes.classes)).values()))

    def losses(self, x: Tensor, z: Tensor, imagined: Tensor, noise: Noise | None = None, t: Tensor | None = None) -> dict[str, Tensor]:
        """Weighted losses of x [N, pixels] and of fantasies z [C M, D] with their data, class after class; noise is drawn if not given.

        `noise` holds `start` [C, N, D], `chain` [C, T, N, D] and the same of labelled examples, `labelled_start` [C, L / C, D] and
        `labelled_chain`, and of fantasies `sleep` and `top` [C M, D].
        """
        return {
            "unlabelled": self.unlabelled(x, noise),
            "labelled": self.with_labels(noise),
            "sleep": self.sleep(z, imagined, noise, t),
        }

    def unlabelled(self, x: Tensor, noise: Noise | None) -> Tensor:
        """Minus the bound that sums over classes."""
        log_probs = torch.log_softmax(self.networks.classifier(x), 1)
        heads = self.networks.encoder(x).unflatten(1, (self.sizes.classes, -1))
        context, total = self.networks.context_encoder(x), x.new_zeros(len(x))
        for label in range(self.sizes.classes):
            given = None if noise is None else (noise["start"][label], noise["chain"][label])
            bound = self.class_bound(label, x, heads[:, label], context, given)
            total = total + log_probs[:, label].exp() * (log_probs[:, label] - bound)
        return (total + math.log(self.sizes.classes)).mean()

    def with_labels(self, noise: Noise | None) -> Tensor:
        """Minus the labelled examples' bound, and cross-entropy."""
        x, labels = self.labelled, torch.arange(self.sizes.classes, device=self.labelled.device).repeat_interleave(self.per_class)
        heads = self.networks.encoder(x).unflatten(1, (self.sizes.classes, -1))
        context, bounds = self.networks.context_encoder(x), []
        for label in range(self.sizes.classes):
            rows = slice(label * self.per_class, (label + 1) * self.per_class)
            given = None if noise is None else (noise["labelled_start"][label], noise["labelled_chain"][label])
            bounds.append(self.class_bound(label, x[rows], heads[rows, label], context[rows], given))
        return CROSS_ENTROPY * functional.cross_entropy(self.networks.classifier(x), labels) - torch.cat(bounds).mean()

    def class_bound(self, label: int, x: Tensor, head: Tensor, context: Tensor, given: tuple[Tensor, Tensor] | None) -> Tensor:
        """log p(x | z) + log p(z | c) + the log-ratio of the chain of class `label`, [N]."""
        mean, log_var = head.chunk(2, dim=-1)
        start, chain = (torch.randn_like(mean), None) if given is None else given
        y_T = mean + torch.exp(0.5 * log_var) * start
        z, path, _ = eager.sample_chain(self.networks.denoisers[label], y_T, context, self.tables.table, chain)
        log_prior = eager.gaussian_log_density(z, centres(self.sizes.classes, z)[label], torch.full_like(z, SCALE**2))
        log_ratio = path - eager.gaussian_log_density(y_T, mean, log_var.exp())
        return eager.bernoulli_log_likelihood(self.networks.decoder(z), x) + log_prior + log_ratio

    @torch.no_grad()
    def fantasies(self, per_class: int) -> tuple[Tensor, Tensor]:
        """Latents [C M, D] of every class's prior and images drawn from them."""
        means = centres(self.sizes.classes, self.labelled).repeat_interleave(per_class, 0)
        z = means + SCALE * torch.randn_like(means)
        return z, torch.bernoulli(torch.sigmoid(self.networks.decoder(z)))

    def sleep(self, z: Tensor, x: Tensor, noise: Noise | None, t: Tensor | None) -> Tensor:
        """Errors of the chains' predictions on fantasies, of their starts, and of the classifier."""
        classes, last = self.sizes.classes, torch.full((len(z),), self.sizes.num_steps - 1, device=z.device)
        labels = torch.arange(classes, device=z.device).repeat_interleave(len(z) // classes)
        t = torch.randint(self.sizes.num_steps, (len(z),), device=z.device) if t is None else t
        context, heads = self.networks.context_encoder(x), self.networks.encoder(x).unflatten(1, (classes, -1))
        errors = []
        for label, rows in enumerate(torch.arange(len(z), device=z.device).chunk(classes)):
            given = None if noise is None else noise["sleep"][rows]
            tables = (self.tables.signal, self.tables.deviation)
            errors.append(eager.denoising_loss(self.networks.denoisers[label], z[rows], t[rows], context[rows], *tables, given))
        mean, log_var = heads[torch.arange(len(z), device=z.device), labels].chunk(2, dim=-1)
        y_T, _ = eager.add_noise(z, last, self.tables.signal, self.tables.deviation, None if noise is None else noise["top"])
        top = eager.gaussian_log_density(y_T, mean, log_var.exp()).mean()
        labelling = functional.cross_entropy(self.networks.classifier(x), labels)
        return SLEEP * torch.cat(errors).mean() - SLEEP_TOP * top + SLEEP_CLASS * labelling
