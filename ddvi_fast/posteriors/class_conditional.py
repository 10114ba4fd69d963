"""Posteriors over latent and class, q(z, c | x) = q(c | x) q(z | x, c), for priors with classes (docs/method.md, section 4).

Any family can be `q(z | x, c)`: its encoders return one row for each class and example. The chains of all classes are one grouped call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddvi_fast import _backend, _checks, rng
from ddvi_fast._operator import Part
from ddvi_fast.denoisers import ResidualMLP, StepView
from ddvi_fast.dense import on_device
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import ACTIVATIONS, MLP, evaluation, linear
from ddvi_fast.posteriors.base import Encoded, Posterior, PosteriorSample, check_sample_arguments
from ddvi_fast.posteriors.class_factors import best_factors
from ddvi_fast.posteriors.diffusion import Diffusion
from ddvi_fast.posteriors.informed import Target
from ddvi_fast.precision import as_float32
from ddvi_fast.priors import Prior
from ddvi_fast.priors.partitions import require_partitions
from ddvi_fast.rng import Draws

INFORMED = ("trained", "fitted")  # ways in which q(c | x) sees the model


class PerClass(nn.Module):
    """Network with one output of width W for each class: the output [N, C W] of a network, reshaped to [C, N, W].

    Args:
        network: Network called as `network(x, draws)` that returns [N, C W].
        num_classes: Number of classes, C (int).
    """

    @_checks.typed
    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.network, self.num_classes = network, num_classes

    @property
    def output_layer(self) -> nn.Linear:
        """The last layer of the network; the rows of a class are consecutive."""
        return self.network.output_layer

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.network(x, draws).unflatten(-1, (self.num_classes, -1)).movedim(-2, 0)


class ClassMLP(nn.Module):
    """Multilayer perceptron of `[x, one-hot c]` for every class at once, from [N, ...] to [C, N, outputs].

    The part of the first layer that depends on `x` is computed once for all classes.

    Args:
        inputs: Number of dimensions of x (int).
        hidden: Widths of the hidden layers, at least one.
        outputs: Number of outputs (int).
        num_classes: Number of classes, C (int).
        activation: Name of the activation, as in `networks.MLP` (default ``relu``).
        draws: Position of the initial weights in the random stream (default `Draws(0)`).

    Raises:
        InputError: If there is no hidden layer, or if the activation is unknown.
    """

    @_checks.typed
    def __init__(
        self, inputs: int, hidden: Sequence[int], outputs: int, num_classes: int, *, activation: str = "relu", draws: Draws = Draws(0)
    ) -> None:
        super().__init__()
        _checks.require(len(hidden) >= 1, "hidden", "at least one layer, for an encoder with a class input", hidden)
        self.activation = _checks.choice(activation, ACTIVATIONS, "activation")
        self.first = MLP(inputs, [], hidden[0], draws=draws)
        self.classes = linear(num_classes, hidden[0], draws.importance(1), 0)
        self.rest = MLP(hidden[0], hidden[1:], outputs, activation=activation, draws=draws.importance(2))

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        shifts = (self.classes.weight.mT + self.classes.bias).unsqueeze(1)
        return self.rest(ACTIVATIONS[self.activation](self.first(x) + shifts), draws)


class ClassDiffusion(Diffusion):
    """Diffusion posteriors `q(z | x, c)` of C classes: an encoder with one head per class and a grouped denoiser of C networks.

    The sleep methods of `Diffusion` take class-major rows with equally many rows of each class: row `c M + i` belongs to class `c`.

    Args:
        encoder: Network called as `encoder(x, draws)` that returns [C, N, 2 D], such as a `PerClass`.
        denoiser: Denoiser with `groups=C`.
        schedule: Noising process with the denoiser's number of steps.
        options: Keyword arguments of `Diffusion`. The context encoder returns [N, W], shared by the classes, or [C, N, W].

    Raises:
        InputError: If the denoiser has no groups, or if the parts do not fit together.
    """

    def __init__(self, encoder: nn.Module, denoiser: ResidualMLP, schedule: Any, **options: Any) -> None:
        _checks.require(denoiser.groups is not None, "denoiser", "one with a group for each class (groups=C)", "groups = None")
        super().__init__(encoder, denoiser, schedule, **options)

    def active_denoiser(self) -> FlatGroups:
        """Return the denoisers at the active steps, as a network of class-major rows."""
        return FlatGroups(super().active_denoiser())

    def draw(self, encoded: Encoded, num_samples: int, draws: Draws) -> tuple[Tensor, Tensor | None]:
        """Draw samples [K, C, N, D] of every class and their log-ratios [K, C, N] in one grouped call."""
        y_T = self._drawn_start(encoded, num_samples, draws)
        shared = ("x", "context") if encoded.context is None or encoded.context.dim() == 2 else ("x",)
        parts = {name: part.unsqueeze(1) for name, part in encoded._asdict().items() if part is not None and name not in shared}
        of_rows = encoded._replace(**parts)
        chain = self.run(of_rows, y_T.transpose(0, 1), draws=draws)
        path = None if chain.path is None else chain.path.transpose(0, 1)
        return chain.z.transpose(0, 1), self._with_start(path, y_T, encoded)

    def draw_of_class(self, encoded: Encoded, labels: Tensor, draws: Draws) -> tuple[Tensor, Tensor | None]:
        """Draw one sample per row and importance sample, of the class in `labels`: each row goes through the network of its class only.

        Args:
            encoded: Output of the encoders for these classes, parts [K, N, ..] (the context [N, W] or [K, N, W]).
            labels: Classes, int64 [K, N].
            draws: Position of the first row in the random stream.

        Returns:
            Samples [K, N, D] and their log-ratios [K, N] or None.
        """
        y_T = self._drawn_start(encoded, 1, draws)[0]
        chain = self.run(encoded, y_T, draws=draws, groups=labels)
        return chain.z, self._with_start(chain.path, y_T, encoded)

    def _groups_of(self, z: Tensor) -> Tensor:
        """The classes of class-major rows; the noise of a row does not depend on its class."""
        return class_major(self.denoiser.groups, len(z) // self.denoiser.groups, z.device)


class FlatGroups:
    """Adapter that calls a grouped denoiser with class-major rows [C M, D] instead of [C, M, D]."""

    def __init__(self, denoiser: ResidualMLP | StepView) -> None:
        self._denoiser = denoiser

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)

    def __call__(self, y: Tensor, context: Tensor | None, t: Tensor) -> Tensor:
        split = (self._denoiser.groups, -1)
        grouped = None if context is None else context.unflatten(0, split)
        return self._denoiser(y.unflatten(0, split), grouped, t.unflatten(0, split)).flatten(0, 1)


class ClassEncoded(NamedTuple):
    """Output of the encoders of a `ClassConditional`: log q(c | x) [N, C], and the parts [C, N, W] of the family's encoders."""

    log_probs: Tensor
    family: Any


class ClassConditional(Posterior):
    """Posterior `q(z, c | x) = q(c | x) q(z | x, c)` for a prior with C equally likely classes (docs/method.md, sections 4 and 7).

    As a posterior of `z` it draws the class first, and a row then goes through the family of its drawn class only. The class is a part of
    the weight: `log w = log p(x | z) + log p(z | c) + log p(c) - log q(c | x) - log q(z | x, c)`, with `p(u)` in place of `p(z | c)` in the
    prior's coordinates, whose mean is a bound on log p(x).

    Args:
        classifier: Network called as `classifier(x, draws)`, from x [N, ...] to logits of q(c | x) [N, C].
        family: `q(z | x, c)` in any coordinates, whose encoders return [C, N, W], such as `PerClass`. The chain of a `Diffusion` is shared by
            the classes, which differ by their frame and context; a `ClassDiffusion` has a chain for each class.
        prior: Prior of the latents.
        trunk: Network called as `trunk(x, draws)`, whose output the classifier and the family take in place of x. Default: None.
        informed: How q(c | x) sees the model (default ``None``: not at all). Its logits are then `a h_c(x) + b s_c(x)`, with the classifier's `h` and
            `s_c = log p(x, mean_c | c) + log det S_c`, the log-density at the mean of the frame of each class and the volume of the frame, which
            is log p(x, c) by the Laplace approximation. ``"trained"``: a = 1, and b is trained with the classifier from 0.1. ``"fitted"``: a = 1
            and b = 0 in training mode, and both are set by `fit_factors` afterwards. No gradient passes through `s`, which costs the updates of
            the frame and a pass of the decoder for each class. Needs the encoder's frame and `inform`.

    Raises:
        InputError: If the prior has no classes, if the family has the coordinates of another prior, or if it has no frame to be informed in.

    Example:
        >>> from ddvi_fast import networks, priors
        >>> from ddvi_fast.posteriors import Gaussian
        >>> family = Gaussian(PerClass(networks.MLP(5, [8], 10 * 4), 10), latent_dim=2)
        >>> posterior = ClassConditional(networks.MLP(5, [8], 10), family, priors.make("pinwheel"))
        >>> posterior.sample(torch.zeros(3, 5), num_samples=7).z.shape
        torch.Size([7, 3, 2])
        >>> posterior.sample_classes(torch.zeros(3, 5), num_samples=7).z.shape
        torch.Size([10, 7, 3, 2])
    """

    @_checks.typed
    def __init__(self, classifier: nn.Module, family: Posterior, prior: Prior, trunk: nn.Module | None = None, informed: str | None = None) -> None:
        super().__init__()
        self.num_classes = require_partitions(prior)
        _checks.require(not family.pushes or family.prior is prior, "prior", "that of the family's coordinates", prior)
        self.trunk, self.classifier, self.family, self.prior, self.latent_dim = trunk, classifier, family, prior, prior.dim
        self.coordinates, self.pushes, self.recordable = family.coordinates, family.pushes, family.recordable
        self.why_no_density = family.why_no_density
        framed = isinstance(family, Diffusion) and family.whitens
        _checks.require(framed or informed is None, "informed", "None without a chain in the encoder's frame", informed)
        self.informed = None if informed is None else _checks.choice(informed, INFORMED, "informed")
        self.score_gain = nn.Parameter(torch.full((), _FIRST_GAIN, **as_float32)) if informed == "trained" else None
        self.register_buffer("class_factors", torch.tensor((1.0, 0.0), **as_float32) if informed == "fitted" else None)
        self._target: Target | None = None

    @property
    def has_density(self) -> bool:
        return self.family.has_density

    def features(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        """Return what the classifier and the family take in place of data `x` [N, ...]."""
        return x if self.trunk is None else self.trunk(x, draws if self.training else None)

    def encode(self, x: Tensor, draws: Draws | None = None) -> ClassEncoded:
        """Return log q(c | x) [N, C] and the output of the family's encoders for every class."""
        features = self.features(x, draws)
        family = self._encode_family(x, features, draws)
        return ClassEncoded(self._log_class_probs(x, features, family, draws), family)

    def _encode_family(self, x: Tensor, features: Tensor, draws: Draws | None) -> Any:
        """The output of the family's encoders for the features of data `x` and every class."""
        encoded = self.family.encode_features(features, draws)
        if not self.family.sees_model:
            return encoded
        return self.family.with_data(encoded, x, torch.arange(self.num_classes, device=x.device).unsqueeze(1))

    def family_of_class(self, encoded: ClassEncoded, labels: Tensor) -> Any:
        """Return the family's part of the output of `encode`, parts [.., N, W], for the classes `labels` [.., N]."""
        return self.family.with_frame(of_class(encoded.family, labels))

    def inform(self, target: LatentVariableModel) -> ClassConditional:
        """Give the model to q(c | x) and to the informed steps of the family, see `Diffusion.inform`; returns the posterior."""
        _checks.require(isinstance(self.family, Diffusion), "posterior", "one with a chain, for informed steps", type(self.family).__name__)
        if self.informed is not None:
            self._target = Target(target, self.family.prior if self.pushes else None)
        if self.family.sees_model or self.informed is None:
            self.family.inform(target)
        return self

    def log_class_probs(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        """Compute log q(c | x) [N, C] of data `x` [N, ...]; `draws` are used for dropout in training mode."""
        features = self.features(x, draws)
        family = None if self._factors() is None else self._encode_family(x, features, draws)
        return self._log_class_probs(x, features, family, draws)

    def _factors(self) -> tuple[Tensor | float, Tensor] | None:
        """Factors of the classifier and of the model in the logits of q(c | x), or None where it does not see the model."""
        if self.score_gain is not None:
            return 1.0, self.score_gain
        return None if self.class_factors is None or self.training else (self.class_factors[0], self.class_factors[1])

    def _log_class_probs(self, x: Tensor, features: Tensor, family: Any, draws: Draws | None) -> Tensor:
        draws = draws.lane("classifier") if self.training and draws is not None else None
        logits, factors = self.classifier(features, draws), self._factors()
        if factors is not None:
            scores = ClassConditional._scores  # a decorator would load the compiler when the class is made
            scored = torch.compiler.disable(scores) if torch.compiler.is_compiling() else scores
            logits = factors[0] * logits + factors[1] * scored(self, x, family)
        return torch.log_softmax(logits, -1)

    @torch.no_grad()
    def _scores(self, x: Tensor, family: Encoded) -> Tensor:
        """The part of the logits [N, C] that the model gives, for data `x` [N, ...] and the frames of all classes; the best class has 0."""
        if self._target is None:
            _checks.fail("target", "the model that q(c | x) sees", None, "call posterior.inform(model)")
        classes = torch.arange(self.num_classes, device=family.mean.device).unsqueeze(1).expand(family.mean.shape[:-1])
        framed = self.family.with_frame(family)
        centre = self.family.unwhitened(framed, torch.zeros_like(family.mean))
        scores = self._target.values(x, centre, classes) + self.family.log_scale(framed)
        return (scores - scores.amax(0)).mT

    @torch.no_grad()
    def fit_factors(self, model: LatentVariableModel, x: Tensor, num_samples: int = 8, draws: Draws | None = None) -> ClassConditional:
        """Set the factors in the logits of a q(c | x) with ``informed="fitted"`` to those with the best bound on data, all else unchanged.

        The bound of a row is `sum_c q(c | x) (L_c - log q(c | x))`, with `L_c` the bound on `log p(x, c)` of the family of class c.

        Args:
            model: Model of the bound.
            x: Data [N, ...]; two factors need some hundred rows.
            num_samples: Samples for each row and class, of which L_c is the mean (int, default 8).
            draws: Position of the first row in the random stream. Default: `Draws(0)`.

        Returns:
            The posterior, which is in evaluation mode afterwards.

        Raises:
            InputError: If the factors are not to be fitted.
        """
        _checks.require(self.informed == "fitted", "informed", "fitted, for factors that are not trained", self.informed)
        self.eval()
        draws = check_sample_arguments(x, num_samples, draws, self)
        with evaluation(model):
            parts = [self._class_bounds(model, rows, num_samples, draws.advance(index * _ROWS)) for index, rows in enumerate(x.split(_ROWS))]
        self.class_factors.copy_(best_factors(*(torch.cat(part) for part in zip(*parts, strict=True))))
        return self

    def _class_bounds(self, model: LatentVariableModel, x: Tensor, num_samples: int, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """The classifier's logits, the model's scores, and bounds on log p(x, c) with some samples, each [N, C]."""
        features = self.features(x)
        family = self._encode_family(x, features, None)
        sample = self.sample_classes_encoded(family, num_samples, draws)
        bounds = (model.log_likelihood(x, sample.z) + sample.log_prior_ratio).mean(1) - math.log(self.num_classes)
        return self.classifier(features, None), self._scores(x, family), bounds.mT

    def sample_classes(self, x: Tensor, num_samples: int = 1, draws: Draws | None = None) -> PosteriorSample:
        """Draw samples of `q(z | x, c)` for every class.

        Args:
            x: Data [N, ...].
            num_samples: Samples per row and class, K (int, default 1).
            draws: Position of the first row in the random stream. Default: `Draws(0)`.

        Returns:
            Samples `z` [C, K, N, D] and their ratios given the class [C, K, N] in nats, or None; `log_prior_ratio` has no class terms.
        """
        draws = check_sample_arguments(x, num_samples, draws, self)
        return self.sample_classes_encoded(self._encode_family(x, self.features(x, draws), draws), num_samples, draws)

    def sample_classes_encoded(self, encoded: Any, num_samples: int, draws: Draws) -> PosteriorSample:
        """Draw samples as `sample_classes` does, given the output of the family's encoders."""
        encoded = self.family.with_frame(encoded)
        y, log_ratio = self.family.draw(encoded, num_samples, draws)
        sample = self.place(encoded, y, log_ratio, torch.arange(self.num_classes, device=y.device).unsqueeze(1))
        return PosteriorSample(*(None if part is None else part.transpose(0, 1) for part in sample))

    def encode_of_class(self, x: Tensor, labels: Tensor, draws: Draws | None = None) -> Any:
        """Return the output of the family's encoders, parts [.., N, W], for each row of `x` [N, ...] and its class, `labels` [.., N]."""
        return self.family.with_frame(of_class(self._encode_family(x, self.features(x, draws), draws), labels))

    def sample_of_class(self, x: Tensor, labels: Tensor, draws: Draws) -> PosteriorSample:
        """Draw one sample of `q(z | x, c)` for each class of `labels`.

        Args:
            x: Data [N, ...].
            labels: Classes, int64 [K, N].
            draws: Position of the first row in the random stream.

        Returns:
            Samples `z` [K, N, D] and their ratios given the class [K, N] in nats, or None; `log_prior_ratio` has no class terms.
        """
        return self._of_class(self.encode_of_class(x, labels, draws), labels, draws)

    def sample_encoded(self, encoded: ClassEncoded, num_samples: int, draws: Draws, labels: Tensor | None = None) -> PosteriorSample:
        """Draw samples as in `Posterior`, the class first unless `labels` [K, N] are given.

        The draw of the class has no gradient: a path gradient does not train q(c | x).
        """
        return self.sample_with_class(encoded, num_samples, draws, labels)[0]

    def sample_with_class(
        self, encoded: ClassEncoded, num_samples: int, draws: Draws, labels: Tensor | None = None
    ) -> tuple[PosteriorSample, Tensor]:
        """Draw samples as `sample_encoded` does, and return log q(c | x) [K, N] of their classes too.

        Gradients reach q(c | x) only through the second result; the same term in `log_prior_ratio` is a constant.
        """
        labels = draw_classes(encoded.log_probs, num_samples, draws) if labels is None else labels
        return self.with_class(encoded, self._of_class(self.family_of_class(encoded, labels), labels, draws), labels)

    def with_class(self, encoded: ClassEncoded, sample: PosteriorSample, labels: Tensor) -> tuple[PosteriorSample, Tensor]:
        """Add the terms of the class to samples given their classes `labels` [K, N]; returns them as `sample_with_class` does."""
        log_class = chosen_rows([encoded.log_probs.mT.unsqueeze(-1)], labels)[0].squeeze(-1)
        if sample.log_prior_ratio is None:
            return sample, log_class
        log_prior_ratio = sample.log_prior_ratio - math.log(self.num_classes) - log_class.detach()
        return PosteriorSample(sample.z, None, log_prior_ratio), log_class

    def _of_class(self, chosen: Any, labels: Tensor, draws: Draws) -> PosteriorSample:
        """One sample of the family for each class of `labels` [K, N], given the parts [K, N, W] of these classes."""
        if isinstance(self.family, ClassDiffusion):
            return self.place(chosen, *self.family.draw_of_class(chosen, labels, draws), labels)
        y, log_ratio = self.family.draw(chosen, 1, draws)
        return self.place(chosen, y[0], None if log_ratio is None else log_ratio[0], labels)

    def place(self, encoded: Any, y: Tensor, log_ratio: Tensor | None, labels: Tensor | None = None) -> PosteriorSample:
        """Map samples of the family as in `Posterior`, given its parts of their classes `labels`; `log_prior_ratio` is given the class."""
        sample = self.family.place(encoded, y, log_ratio, labels)
        if log_ratio is None or self.pushes:
            return sample
        return sample._replace(log_prior_ratio=self.prior.log_prob(sample.z, labels) + sample.log_ratio)


def draw_classes(log_probs: Tensor, num_samples: int, draws: Draws) -> Tensor:
    """Draw classes [K, N] from log-probabilities [N, C], by inversion of the distribution function."""
    uniform = rng.uniform(draws, (num_samples, log_probs.shape[0], 1), rng.CLASSES, device=log_probs.device, dtype=log_probs.dtype)
    return classes_at(uniform, log_probs)


def classes_at(level: Tensor, log_probs: Tensor) -> Tensor:
    """Return the classes [K, N] at the levels [K, N, 1] of the distribution functions with log-probabilities [N, C]."""
    return (level > log_probs.exp().cumsum(-1)).sum(-1).clamp(max=log_probs.shape[-1] - 1)


def class_major(num_classes: int, rows_per_class: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the classes of class-major rows, int64 [C M]."""
    return torch.arange(num_classes, device=device).repeat_interleave(rows_per_class)


def rows_per_class(rows: int, num_classes: int) -> int:
    """Return the number of rows of each class, at least 1, for about `rows` rows in all."""
    return max(1, rows // num_classes)


def of_class(encoded: Any, labels: Tensor) -> Any:
    """Select the classes `labels` [.., N] from the parts [C, N, W] of `encoded`; parts that classes share, [N, W] or None, are unchanged."""
    if isinstance(encoded, Encoded) and encoded.x is not None:
        return of_class(encoded._replace(x=None, labels=None), labels)._replace(x=encoded.x, labels=labels)
    places = [place for place, part in enumerate(encoded) if part is not None and part.dim() == 3]
    chosen = dict(zip(places, chosen_rows([encoded[place] for place in places], labels), strict=True))
    parts = [chosen.get(place, part) for place, part in enumerate(encoded)]
    return type(encoded)(*parts) if hasattr(encoded, "_fields") else tuple(parts)


def chosen_rows(parts: Sequence[Tensor], labels: Tensor) -> Sequence[Tensor]:
    """Rows [.., N, W] of the classes `labels`, int64 [.., N], from each of the parts [C, N, W]."""
    if 1 <= len(parts) <= _MOST_PARTS and all(on_device(part) and part.dtype == torch.float32 for part in parts):
        return _chosen_rows(labels.contiguous(), *parts)
    return _plain_chosen(labels, *parts)


_MOST_PARTS = 3  # that the kernel takes
_FIRST_GAIN = 0.1  # first factor of the model, if it is trained
_ROWS = 256  # rows of which bounds for each class are computed at a time


def _plain_chosen(labels: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
    rows = torch.arange(labels.shape[-1], device=labels.device)
    return tuple(part[labels, rows] for part in parts)


def _forward(labels: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
    return _backend.implementation("triton", "classes").forward(labels, [part if part.stride(2) == 1 else part.contiguous() for part in parts])


def _backward(inputs, results, upstream, needed):
    labels, *parts = inputs
    return None, *_backend.implementation("triton", "classes").backward(upstream, labels, parts)


_chosen_rows = Part("ChosenRows", _plain_chosen, _forward, _backward)
