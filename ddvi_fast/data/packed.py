"""Data sets of genotype counts (0, 1, 2 or missing) that stay packed, and the networks that read them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ddvi_fast import _checks
from ddvi_fast.data.dataset import Dataset, rows_of
from ddvi_fast.data.packing import packed_width, unpack_scaled
from ddvi_fast.rng import Draws


def code_counts(codes: np.ndarray) -> np.ndarray:
    """Number of times that each code 0 to 3 occurs in each row of `codes`, uint8 [rows, columns]: int32 [rows, 4]."""
    return np.stack([np.count_nonzero(codes == code, axis=1) for code in range(4)], axis=1).astype(np.int32)


def frequencies(counts: np.ndarray) -> np.ndarray:
    """Frequency of the counted allele among the calls, float64 [M], from `code_counts` [M, 4]; NaN where there is no call."""
    calls = counts[:, :3].sum(1)
    with np.errstate(invalid="ignore"):
        return (counts[:, 1] + 2.0 * counts[:, 2]) / (2.0 * calls)


@dataclass(frozen=True)
class Scaling:
    """Mean and factor of each variant, float32 [M]; the factor of a constant variant is 0.

    A genotype `g` with frequency `p` of the counted allele becomes ``(g - 2 p) / sqrt(2 p (1 - p))`` (Patterson, Price and Reich 2006,
    equation 3, up to the constant sqrt 2: variance 1 in Hardy-Weinberg equilibrium). `p` is the frequency among the calls.
    """

    mean: Tensor
    scale: Tensor

    @staticmethod
    def of(counts: np.ndarray) -> Scaling:
        """The scaling from the number of samples with code 0, 1, 2 and 3 at each variant, [M, 4]."""
        frequency = np.nan_to_num(frequencies(counts))
        variance = 2 * frequency * (1 - frequency)
        scale = np.divide(1.0, np.sqrt(variance), out=np.zeros_like(variance), where=variance > 0)
        return Scaling(torch.from_numpy((2 * frequency).astype(np.float32)), torch.from_numpy(scale.astype(np.float32)))


@dataclass(frozen=True, eq=False)
class PackedDataset(Dataset):
    """2-bit packed genotypes: `inputs` are counts 0 to 2 for a binomial likelihood of two trials, NaN where a call is missing.

    Args:
        train_inputs, test_inputs: Packed rows, uint8 [N, ceil(M / 4)].
        scaling: Mean and factor of each variant among the training calls, float32 [M] each.

    Example:
        >>> rows = torch.tensor([[0b11100100], [0b00000010]], dtype=torch.uint8)
        >>> data = PackedDataset("tiny", rows, None, rows[:1], None, value_range=(0.0, 2.0), scaling=Scaling(torch.ones(4), torch.ones(4)))
        >>> data.inputs()
        tensor([[0., 1., 2., nan], [2., 0., 0., 0.]])
    """

    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.require(isinstance(self.scaling, Scaling), "scaling", "the scaling of the variants", self.scaling)
        width = packed_width(self.num_dimensions)
        packed = self.train_inputs.dtype == torch.uint8 and self.train_inputs.shape[1:] == (width,)
        _checks.require(packed, "train_inputs", f"packed rows of {width} bytes", self.train_inputs)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example: the number of variants."""
        return (len(self.scaling.mean),)

    @property
    def has_pixel_metric(self) -> bool:
        return False

    def inputs(self, indices: Tensor | slice | None = None, split: str = "train") -> Tensor:
        """Counts of the examples `indices`, float32 [B, M], unpacked on the device of the packed rows; NaN where a call is missing."""
        raw = self._split(split)[0]
        rows = raw if indices is None else raw[rows_of(indices, len(raw))]
        nothing = torch.zeros_like(self.scaling.mean)
        return unpack_scaled(rows, nothing, torch.ones_like(nothing), torch.full_like(nothing, torch.nan))

    def to(self, device: torch.device | str) -> PackedDataset:
        moved = super().to(device)
        return replace(moved, scaling=Scaling(self.scaling.mean.to(device), self.scaling.scale.to(device)))

    def wrap_encoder(self, network: nn.Module) -> Standardised:
        return Standardised(network, self.scaling)

    @torch.no_grad()
    def initialize_decoder(self, decoder: nn.Module) -> None:
        """Shift the last layer so that its logits start at the allele frequencies of the training samples."""
        decoder.output_layer.bias += torch.logit(self.scaling.mean / 2, eps=1e-3).to(decoder.output_layer.bias)


class Standardised(nn.Module):
    """A network whose input counts [N, M] are standardised by `Scaling`; a missing call (NaN) becomes the mean, 0.

    Args:
        network: Module called as ``network(x, draws)`` with standardised genotypes; its last layer is ``output_layer``.
        scaling: Scaling of the training samples.

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
        """Apply the network to standardised counts, [N, M] -> [N, outputs]."""
        return self.network(((x - self.mean) * self.scale).nan_to_num(0.0), draws)
