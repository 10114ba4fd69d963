"""Base class of training objectives, and the loss terms and updates that it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ddvi_fast import _checks
from ddvi_fast.rng import Draws


@dataclass(frozen=True)
class Progress:
    """Position of a training step within its phase.

    Objectives read every quantity that changes during training through `varying` or `fixed`, so that a training step can be recorded
    once (as a CUDA graph) and replayed.

    Args:
        epoch: Epochs completed since the start of the phase (float, may be fractional).
        epochs: Length of the phase in epochs (int).
        num_steps: Length of the phase in training steps (int), or None if unknown. A recorded step needs it.

    Example:
        >>> Progress(epoch=2.5, epochs=10).fraction
        0.25
    """

    epoch: float
    epochs: int
    num_steps: int | None = None

    @property
    def fraction(self) -> float:
        """Completed fraction of the phase, from 0 to 1."""
        return self.epoch / max(1, self.epochs)

    def varying(self, number: Callable[[Progress], float]) -> float | Tensor:
        """Return `number(self)`, a value that may change at every step; in a recorded step it is a scalar tensor on the device."""
        return number(self)

    def fixed(self, number: Callable[[Progress], float]) -> float:
        """Return `number(self)`, a host value that is constant for many steps; a change makes the engine record the step anew."""
        return number(self)


# Full KL weight of every kind of schedule (`reverse_warmup` counts whole epochs), and no blur of the prior.
END_OF_TRAINING = Progress(epoch=1000, epochs=1000)


@dataclass(frozen=True)
class Terms:
    """Named loss terms and their weights.

    Args:
        values: Terms by name, each a tensor [N] with one value per example (a scalar for a term of the whole batch), in nats unless the
            objective states otherwise.
        weights: Weight of each term in the loss: a float, or a scalar tensor in a recorded step.

    Example:
        >>> terms = Terms({"reconstruction": torch.tensor([2.0, 4.0]), "kl": torch.tensor([1.0, 1.0])}, {"reconstruction": 1.0, "kl": 0.5})
        >>> terms.total()
        tensor(3.5000)
    """

    values: Mapping[str, Tensor]
    weights: Mapping[str, float | Tensor]

    def total(self) -> Tensor:
        """Return the loss to minimize: the weighted sum of the terms' means, a scalar tensor."""
        return torch.stack([self.weights[name] * mean for name, mean in self._means.items() if self._counts(name)]).sum()

    @cached_property
    def _means(self) -> dict[str, Tensor]:
        return {name: value.mean() for name, value in self.values.items()}

    def _counts(self, name: str) -> bool:
        # A weight on the device cannot be read here; a zero on the host saves the gradient of its term.
        return isinstance(self.weights[name], Tensor) or self.weights[name] != 0

    def means(self) -> dict[str, Tensor]:
        """Return the unweighted mean of each term, detached, for logging."""
        return {name: mean.detach() for name, mean in self._means.items()}


@dataclass(frozen=True)
class Update:
    """One optimizer step on one parameter group.

    Args:
        group: Name of the parameter group, a key of `Objective.parameter_groups`.
        terms: Function without arguments that computes the terms to minimize. It is called once, after the previous update was applied.
    """

    group: str
    terms: Callable[[], Terms]


class Objective(nn.Module):
    """Base class of training objectives. An objective owns the modules that it trains.

    Call it to get the loss of a batch. Objectives that train several parameter groups in turn are used through `updates`, as the trainer
    does:

    ```python
    for update in objective.updates(x, progress, draws):
        optimizers[update.group].zero_grad()
        update.terms().total().backward()
        optimizers[update.group].step()
    ```

    A subclass with one update per batch implements `terms`. One with several overrides `updates` and `parameter_groups`.
    """

    def forward(self, x: Tensor, progress: Progress | None = None, draws: Draws | None = None) -> Tensor:
        """Compute the loss of a batch.

        If the objective has several parameter groups (`Adversarial`), the loss is the sum over its updates. Each update's gradient reaches
        its own group only, so that one `backward()` gives every parameter its gradient.

        Args:
            x: Data [N, ...].
            progress: Position within the training phase, on which the KL weight and the prior's blur depend. Default: the end of training,
                that is, full KL weight and no blur.
            draws: Position of the batch's first row in the random stream. Default: `Draws(0)`. No state is kept between calls, so every
                call without `draws` uses the same noise; in a training loop pass `Draws(seed, step * len(x))`.

        Returns:
            The loss to minimize, a scalar tensor: a mean over the batch, in nats per example for objectives that are bounds.

        Raises:
            InputError: If parameter groups overlap, as with alternating sleep updates. Their gradients must not be added; iterate over
                `updates` instead.

        Example:
            >>> from ddvi_fast import likelihoods, models, networks, objectives, posteriors, priors
            >>> model = models.LatentVariableModel(priors.make("gaussian", dim=2), networks.MLP(2, [8], 5), likelihoods.make("bernoulli"))
            >>> objective = objectives.ELBO(model, posteriors.Gaussian(networks.MLP(5, [8], 4), latent_dim=2))
            >>> optimizer = torch.optim.Adam(objective.parameters())
            >>> x = torch.rand(4, 5)
            >>> for step in range(3):
            ...     loss = objective(x, draws=Draws(0, step * len(x)))
            ...     optimizer.zero_grad()
            ...     loss.backward()
            ...     optimizer.step()
            >>> loss.shape
            torch.Size([])
        """
        groups = self.parameter_groups()
        members = [id(parameter) for group in groups.values() for parameter in group]
        _checks.require(
            len(members) == len(set(members)),
            "objective",
            "parameter groups that do not overlap",
            f"{', '.join(groups)} with common parameters",
            "iterate over objective.updates(x, progress, draws) and step the optimizer of each update's group",
        )
        updates = self.updates(x, END_OF_TRAINING if progress is None else progress, Draws(0) if draws is None else draws)
        return torch.stack([update.terms().total() for update in updates]).sum()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the trainable parameters by group; every group has its own optimizer."""
        return {"wake": [parameter for parameter in self.parameters() if parameter.requires_grad]}

    def updates(self, x: Tensor, progress: Progress, draws: Draws) -> Iterator[Update]:
        """Yield the updates of one batch in order.

        Args:
            x: Data [N, ...].
            progress: Position within the training phase.
            draws: Position of the batch's first row in the random stream; row `i` uses draw `first_index + i`.
        """
        yield Update("wake", lambda: self.terms(x, progress, draws))

    def terms(self, x: Tensor, progress: Progress, draws: Draws) -> Terms:
        """Compute the terms of a batch `x` [N, ...]; the arguments are those of `updates`."""
        raise NotImplementedError
