"""Encoders and decoders, with initial weights from counter-based random numbers."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, distributed, rng
from ddvi_fast.dense import ACTIVATIONS, dense, dropout, narrow_matrices
from ddvi_fast.precision import as_float32
from ddvi_fast.rng import Draws

IMAGE_SHAPE = (3, 32, 32)  # shape of the convolutional networks' images


def uniform_(parameter: Tensor, low: float, high: float, draws: Draws, layer: int) -> None:
    """Fill a parameter of any shape from U(low, high), with random numbers of the stream `INITIAL + layer`."""
    flat = rng.uniform(draws, (1, parameter.numel()), rng.INITIAL + layer)
    with torch.no_grad():
        parameter.copy_((low + (high - low) * flat).view_as(parameter))


def linear(inputs: int, outputs: int, draws: Draws, layer: int, zero: bool = False) -> nn.Linear:
    """A linear layer with weights and biases from torch's default distribution, U(+-1/sqrt(inputs)), or zeros."""
    module = nn.utils.skip_init(nn.Linear, inputs, outputs, **as_float32)
    return _initialized(module, 0.0 if zero else 1 / math.sqrt(inputs), draws, layer)


def _initialized(module: nn.Module, bound: float, draws: Draws, layer: int) -> nn.Module:
    """The module, with weight and bias from U(-bound, bound)."""
    uniform_(module.weight, -bound, bound, draws, 2 * layer)
    uniform_(module.bias, -bound, bound, draws, 2 * layer + 1)
    return module


def take_rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [..] of `table` [M, W], as [.., W].

    Plain indexing would add its gradient from several threads at once, in an order that changes from run to run.
    """
    return nn.functional.embedding(index, table)


class MLP(nn.Module):
    """A multilayer perceptron on flattened inputs.

    Args:
        inputs: Number of inputs.
        hidden: Widths of the hidden layers.
        outputs: Number of outputs.
        activation: Activation of the hidden layers: ``relu``, ``leaky_relu`` (slope 0.2), ``silu``, ``tanh`` or ``none`` (default ``relu``).
        dropout: Dropout rate after each hidden layer, in [0, 1), used only where `forward` gets draws (default 0).
        draws: Random numbers of the initial weights (default `Draws(0)`); networks of one model need different ones.
        zero_output: Whether the last layer starts at zero (default False).

    Raises:
        InputError: The activation is unknown, or the rate is outside [0, 1).

    Example:
        >>> MLP(64, [256, 256], 4)(torch.zeros(3, 8, 8)).shape
        torch.Size([3, 4])
    """

    @_checks.typed
    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        *,
        activation: str = "relu",
        dropout: float = 0.0,
        draws: Draws = Draws(0),
        zero_output: bool = False,
    ) -> None:
        super().__init__()
        self.activation = _checks.choice(activation, ACTIVATIONS, "activation")
        _checks.require(0 <= dropout < 1, "dropout", "a rate in [0, 1)", dropout)
        _checks.at_least(1, inputs=inputs)
        _checks.at_least(0, outputs=outputs)
        self.dropout, self.inputs = dropout, inputs
        widths = [inputs, *_checks.integers(hidden, "hidden", at_least=1), outputs]
        last = len(widths) - 2
        self.layers = nn.ModuleList(
            linear(before, after, draws, layer, zero=zero_output and layer == last)
            for layer, (before, after) in enumerate(itertools.pairwise(widths))
        )

    @property
    def output_layer(self) -> nn.Linear:
        """The last layer."""
        return self.layers[-1]

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        """Apply the network.

        Args:
            x: Inputs [.., inputs], or [N, ..], which is flattened to [N, inputs].
            draws: Position of the rows in the run's random numbers, for dropout (default None: nothing is dropped).

        Returns:
            Outputs [.., outputs], or [N, outputs].
        """
        hidden = x if x.shape[-1] == self.inputs else x.flatten(1)
        matrices = narrow_matrices(self.layers, x)
        for index, layer in enumerate(self.layers[:-1]):
            hidden = dense(layer, hidden, self.activation, self.dropout, draws, index, matrices[index])
        # Autocast narrows the layers; their output enters densities.
        return dense(self.layers[-1], hidden, matrix=matrices[-1]).to(x.dtype)


class NoisyInput(nn.Module):
    """A network whose inputs get Gaussian noise and dropout where `forward` gets draws.

    Args:
        network: Network that is called as `network(x, draws)`.
        noise: Standard deviation of the noise, at least 0 (default 0).
        dropout: Dropout rate of the inputs, in [0, 1) (default 0).
    """

    @_checks.typed
    def __init__(self, network: nn.Module, noise: float = 0.0, dropout: float = 0.0) -> None:
        super().__init__()
        _checks.require(noise >= 0, "noise", "at least 0", noise)
        _checks.require(0 <= dropout < 1, "dropout", "a rate in [0, 1)", dropout)
        self.network, self.noise, self.dropout = network, noise, dropout

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        if draws is None:
            return self.network(x)
        flat = dropout(x.flatten(1), self.dropout, draws, rng.INPUT_DROPOUT - rng.DROPOUT)
        if self.noise > 0:
            flat = flat + self.noise * rng.normal(draws, tuple(flat.shape), rng.INPUT_NOISE, device=x.device, dtype=x.dtype)
        return self.network(flat.view_as(x), draws)


BATCH_NORM_EPS = 1e-5  # torch's default


class BatchNorm(nn.Module):
    """Batch normalization of images [N, C, H, W] whose running statistics come from data only.

    Training on data normalizes by the batch and updates the running statistics. Evaluation, and training inside `fixed_statistics`,
    normalizes by the running statistics and does not change them, because samples of a model are not data.

    Args:
        channels: Number of channels C.
        momentum: Weight of a new batch in the running statistics (default 0.1).
    """

    @_checks.typed
    def __init__(self, channels: int, momentum: float = 0.1) -> None:
        super().__init__()
        _checks.at_least(1, channels=channels)
        _checks.number(momentum, "momentum", at_least=0, at_most=1)
        self.momentum, self.fixed = momentum, False
        self.weight, self.bias = nn.Parameter(torch.ones(channels, **as_float32)), nn.Parameter(torch.zeros(channels, **as_float32))
        self.register_buffer("running_mean", torch.zeros(channels, **as_float32))
        self.register_buffer("running_var", torch.ones(channels, **as_float32))

    def forward(self, x: Tensor) -> Tensor:
        moving = self.training and not self.fixed
        if moving and distributed.current_part().count > 1:
            return self._over_parts(x)
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, moving, self.momentum)

    def _over_parts(self, x: Tensor) -> Tensor:
        """Normalize by the statistics of the whole batch, of which `x` is a part."""
        mean = distributed.batch_mean(x.mean((0, 2, 3)))
        centred = x - mean[:, None, None]
        variance = distributed.batch_mean(centred.square().mean((0, 2, 3)))
        count = x.numel() // len(mean) * distributed.current_part().count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + BATCH_NORM_EPS).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]


@contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """Context in which a module is in evaluation mode: nothing is dropped, and running statistics are used and not updated."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Context in which the parameters of the modules take no gradients."""
    trained = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


_DEFAULTS = threading.Lock()
_dtypes: list[torch.dtype] = []  # defaults before each context of `usual_defaults` that is open in any thread


@contextmanager
def usual_defaults() -> Iterator[None]:
    """Context in which new tensors are in single precision and on the CPU, whatever torch's default dtype and device are."""
    with _DEFAULTS:
        _dtypes.append(torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        with _DEFAULTS:
            last = _dtypes.pop()  # the first one that was put here is the caller's, and threads leave in any order
            torch.set_default_dtype(last if not _dtypes else torch.float32)


@contextmanager
def fixed_statistics(module: nn.Module) -> Iterator[None]:
    """Context in which batch normalization inside `module` uses its running statistics without an update."""
    layers = [layer for layer in module.modules() if isinstance(layer, BatchNorm)]
    before = [layer.fixed for layer in layers]
    for layer in layers:
        layer.fixed = True
    try:
        yield
    finally:
        for layer, fixed in zip(layers, before, strict=True):
            layer.fixed = fixed


class ConvEncoder(nn.Module):
    """The released code's CIFAR-10 encoder: four strided convolutions with batch normalization down to 128 values, then an `MLP`.

    Args:
        outputs: Number of outputs.
        hidden: Widths of the layers after the convolutions (default one of 1000).
        activation: Activation of those layers, as in `MLP` (default ``relu``).
        dropout: Dropout rate of those layers, as in `MLP` (default 0).
        value_range: Smallest and largest value of the data, which are scaled to -1 and 1 (default 0 and 1).
        draws: Random numbers of the initial weights (default `Draws(0)`).

    Example:
        >>> ConvEncoder(4, [32])(torch.zeros(5, 3, 32, 32)).shape
        torch.Size([5, 4])
    """

    CHANNELS, KERNELS, STRIDES = (3, 16, 32, 64, 128), (3, 4, 5, 5), (1, 2, 2, 2)

    @_checks.typed
    def __init__(
        self,
        outputs: int,
        hidden: Sequence[int] = (1000,),
        *,
        activation: str = "relu",
        dropout: float = 0.0,
        value_range: tuple[float, float] = (0.0, 1.0),
        draws: Draws = Draws(0),
    ) -> None:
        super().__init__()
        _checks.require(len(value_range) == 2 and value_range[0] < value_range[1], "value_range", "(low, high) with low < high", value_range)
        self.centre, self.half = (value_range[0] + value_range[1]) / 2, (value_range[1] - value_range[0]) / 2
        pairs = zip(itertools.pairwise(self.CHANNELS), self.KERNELS, self.STRIDES, strict=True)
        self.convolutions = nn.ModuleList(_convolution(nn.Conv2d, *pair, kernel, stride, draws, i) for i, (pair, kernel, stride) in enumerate(pairs))
        self.norms = nn.ModuleList(BatchNorm(channels) for channels in self.CHANNELS[1:])
        self.head = MLP(self.CHANNELS[-1], hidden, outputs, activation=activation, dropout=dropout, draws=draws)

    @property
    def output_layer(self) -> nn.Linear:
        """The last layer."""
        return self.head.output_layer

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        """Outputs [N, outputs] for images [N, 3, 32, 32], or flattened [N, 3072]; `draws` are those of dropout."""
        hidden = ((x.reshape(-1, *IMAGE_SHAPE) - self.centre) / self.half).to(memory_format=_FAST)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            hidden = torch.relu(norm(convolution(hidden)))
        return self.head(hidden.flatten(1), draws).to(x.dtype)


class SigmoidVariances(nn.Module):
    """An encoder whose variances stay below 1, as in the released code: its outputs are means and logits of variances.

    Args:
        encoder: Network from x to [N, 2 D], or to more columns, which are kept.
        latent_dim: Number of latent dimensions D.
    """

    @_checks.typed
    def __init__(self, encoder: MLP | ConvEncoder, latent_dim: int) -> None:
        super().__init__()
        _checks.at_least(1, latent_dim=latent_dim)
        self.encoder, self.latent_dim = encoder, latent_dim

    @property
    def output_layer(self) -> nn.Linear:
        """The last layer."""
        return self.encoder.output_layer

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        """Means and log-variances [N, 2 D] for inputs [N, ..], followed by the remaining columns."""
        mean, logits, rest = self.encoder(x, draws).tensor_split((self.latent_dim, 2 * self.latent_dim), dim=-1)
        return torch.cat((mean, nn.functional.logsigmoid(logits), rest), -1)


class ConvDecoder(nn.Module):
    """The released code's CIFAR-10 decoder: a linear layer to 64 values, then four transposed convolutions up to 3 x 32 x 32.

    It has no batch normalization, so that the likelihood of one latent does not depend on the others in its batch.

    Args:
        latent_dim: Number of latent dimensions D.
        draws: Random numbers of the initial weights (default `Draws(0)`).

    Example:
        >>> ConvDecoder(2)(torch.zeros(7, 5, 2)).shape
        torch.Size([7, 5, 3072])
    """

    CHANNELS, KERNELS, STRIDES = (64, 64, 32, 16, 3), (5, 5, 5, 4), (2, 2, 2, 1)

    @_checks.typed
    def __init__(self, latent_dim: int, *, draws: Draws = Draws(0)) -> None:
        super().__init__()
        _checks.at_least(1, latent_dim=latent_dim)
        self.first = linear(latent_dim, self.CHANNELS[0], draws, 0)
        pairs = zip(itertools.pairwise(self.CHANNELS), self.KERNELS, self.STRIDES, strict=True)
        layers = (_convolution(nn.ConvTranspose2d, *pair, kernel, stride, draws, i) for i, (pair, kernel, stride) in enumerate(pairs))
        self.convolutions = nn.ModuleList(layers)

    def forward(self, z: Tensor) -> Tensor:
        """Unbounded outputs [.., 3072] for latents [.., D]; the likelihood limits their range."""
        hidden = self.first(z.reshape(-1, z.shape[-1]))[..., None, None]
        for convolution in self.convolutions:
            hidden = convolution(torch.relu(hidden)).to(memory_format=_FAST)
        return hidden.reshape(*z.shape[:-1], math.prod(IMAGE_SHAPE)).to(z.dtype)


def _convolution(family: type[nn.Module], inputs: int, outputs: int, kernel: int, stride: int, draws: Draws, number: int) -> nn.Module:
    """A convolution with initial weights from U(+-1/sqrt(n)), where n is the number of inputs of an output."""
    module = nn.utils.skip_init(family, inputs, outputs, kernel, stride, **as_float32)
    reach = kernel**2 if family is nn.Conv2d else max(1.0, (kernel / stride) ** 2)
    return _initialized(module, 1 / math.sqrt(inputs * reach), draws, _FIRST_CONVOLUTION + number)


_FAST = torch.channels_last  # the layout of images in which torch's convolutions on the CPU are fastest
_FIRST_CONVOLUTION = 64  # layers of an MLP with the same draws come before it
