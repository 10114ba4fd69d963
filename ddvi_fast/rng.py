"""Counter-based random numbers: Philox 4x32-10, the same bits for any batch split, order, device or tiling.

The key is the 64-bit seed, the counter is (draw low, draw high, block, stream): docs/method.md, section 6. A *draw* is the position of a
sample in the whole run, a *stream* is the use of a number, a *block* holds four words of one row. Four words make four normals (two
Box-Muller pairs), so a row of D numbers uses `ceil(D / 4)` blocks. A *lane* is a distance between draws: `STREAMS` and `LANES` list all.

`formula` is the specification in plain PyTorch. Unless the reference backend is chosen, the fused kernels of the device make the numbers:
words and uniforms bit for bit the same, normals to a few units in the last place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddvi_fast import _backend, _checks, _operator


class Stream(NamedTuple):
    """Consecutive streams: the first, how many, and the numbers drawn from them."""

    first: int
    count: int
    use: str


# Every stream of the package.
STREAMS = {
    "CHAIN": Stream(0 << 16, 1 << 16, "noise of denoising step i"),
    "START": Stream(1 << 16, 1 << 16, "y_T of a posterior, or z of a one-step posterior; level i of a hierarchy"),
    "TIME": Stream(2 << 16, 1 << 16, "timesteps of the sleep term, and its choices"),
    "NOISE": Stream(3 << 16, 1 << 16, "forward noising; step i of a sampler with noise of its own"),
    "PRIOR": Stream(4 << 16, 1 << 16, "prior samples: the class, then up to three further numbers"),
    "OBSERVATION": Stream(5 << 16, 1 << 16, "fantasies x ~ p(x | z)"),
    "ORDER": Stream(6 << 16, 1, "order of the examples in an epoch; offset of systematic resampling"),
    "AUGMENT": Stream((6 << 16) + 1, 1, "mirrored images"),
    "PIXELS": Stream((6 << 16) + 2, 1, "black and white pixels drawn from shades"),
    "LABELLED": Stream((6 << 16) + (1 << 15), 1, "labelled examples that join a batch"),
    "DROPOUT": Stream(7 << 16, 1 << 10, "dropout of layer i"),
    "INPUT_DROPOUT": Stream((7 << 16) + (1 << 10), 1, "dropout of a network's inputs"),
    "INPUT_NOISE": Stream((7 << 16) + (1 << 10) + 1, 1, "Gaussian noise on a network's inputs"),
    "INITIAL": Stream(8 << 16, 1 << 15, "initial weights of parameter i"),
    "CLASSES": Stream((8 << 16) + (1 << 15), 1, "classes drawn from q(c | x)"),
    "PCA_START": Stream((8 << 16) + (1 << 15), 1, "start of the subspace iteration of a PCA"),
    "UPSTREAM": Stream(0xFFFF << 16, 1, "upstream gradients of tests"),
}
(
    CHAIN, START, TIME, NOISE, PRIOR, OBSERVATION, ORDER, AUGMENT, PIXELS, LABELLED, DROPOUT, INPUT_DROPOUT, INPUT_NOISE, INITIAL, CLASSES,
    PCA_START, UPSTREAM,
) = (stream.first for stream in STREAMS.values())  # fmt: skip

# Distance in draws between two importance samples (or groups) of a row; it does not depend on their number.
IMPORTANCE_STRIDE = 1 << 40
MOST_SAMPLES = (1 << 63) // IMPORTANCE_STRIDE  # importance samples of a row, as many as draws have numbers for


class Lane(NamedTuple):
    """Draws set apart from those that begin at the same row: their distance, their streams (none: all), and their use."""

    distance: int
    streams: tuple[int, ...]
    use: str


def _sample(number: int, streams: tuple[int, ...], use: str) -> Lane:
    """The lane of an importance sample: a batch has fewer samples than lanes below 2^23."""
    return Lane(number * IMPORTANCE_STRIDE, streams, use)


_NETWORK = (DROPOUT, INPUT_DROPOUT, INPUT_NOISE)
# Every lane that is set apart by hand.
LANES = {
    "encoder": _sample(0, _NETWORK, "dropout of the encoder"),
    "context": _sample(1, _NETWORK, "dropout of the context encoder, so that the two do not drop the same units"),
    "top": _sample(1, (NOISE,), "noise of y_T in the sleep term"),
    "classifier": _sample(2, _NETWORK, "dropout of the classifier"),
    "decoder": _sample(2, _NETWORK, "dropout of the decoder, which the released code alone has"),
    "generated": _sample(4, _NETWORK, "dropout of the discriminator, on latents in the generator's loss"),
    "fake": _sample(5, _NETWORK, "dropout of the discriminator, on latents"),
    "real": _sample(6, _NETWORK, "dropout of the discriminator, on prior samples"),
    "bound": _sample(1 << 12, (), "evidence bound beside the fit to simulations"),
    "candidates": _sample(1 << 17, (), "prior samples among which a datum finds its latent"),
    "levels": _sample((1 << 17) + 1, (), "the choice among these samples"),
    "labelled": _sample((1 << 17) + 2, (), "labelled examples of a batch, and the noise of their samples"),
    "missing": _sample((1 << 17) + 3, (PIXELS,), "entries that are missing of simulations"),
    "refinement": _sample(1 << 18, (), "samples that optimize the encoder's output for a datum"),
    "refinement_check": _sample(1 << 19, (), "samples that choose among these outputs"),
    "paths": _sample(1 << 20, (), "paths of a chain whose density is estimated, and noised paths from their ends"),
    "annealing": _sample(1 << 21, (), "chains that anneal from the prior to the posterior"),
    "annealing_pilot": _sample(3 << 20, (), "chains that choose the step sizes of these"),
    "looked_at": Lane(1 << 50, (), "simulations that standardize data, apart from those of training"),
    "calibration": Lane(1 << 51, (), "simulations for calibration, apart from those of training"),
    "held_out": Lane(3 << 50, (), "simulations held out of a fit to a fixed number of them, and the noise of their loss"),
    "split": Lane(1 << 62, (ORDER,), "split into training and test examples, beyond the order of every epoch"),
    "validation": Lane((1 << 62) + (1 << 60), (ORDER,), "split into training and validation examples, beyond that of the test examples"),
    "labels": Lane((1 << 62) + (1 << 61), (ORDER,), "choice of labelled examples, beyond those of the splits"),
    "test_pixels": Lane(1 << 62, (PIXELS,), "pixels of test examples, drawn once, apart from those of training"),
}

# Pairs that are equal by mistake, with the reason why that is harmless. They stay equal so that results of earlier runs can be repeated.
EQUAL = {
    frozenset(("CLASSES", "PCA_START")): "a PCA is fitted before training, and does not depend on its start but for rounding",
    frozenset(("classifier", "decoder")): "two networks drop the units of the same numbers, with the released code's bound of classes",
}

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_FEISTEL_ROUNDS, _LISTED = 5, 1024  # rounds of a bijection, and the largest range whose order is listed


def samples(value: int, argument: str = "num_samples", at_least: int = 1) -> int:
    """Check that a number of samples for each row is an integer for which there are draws, and return it as Python's.

    Example:
        >>> samples(1000)
        1000
    """
    found = _checks.integer(value, argument, at_least)
    _checks.require(found <= MOST_SAMPLES, argument, f"at most {MOST_SAMPLES}", found)
    return found


class _Position:
    """Base of draws on the host and on the device, which have a `seed` and a `first_index`."""

    def importance(self, first_sample: int):
        """The draws of the same rows, starting with importance sample `first_sample`."""
        return self.advance(first_sample * IMPORTANCE_STRIDE)

    def lane(self, name: str):
        """The draws of the same rows in the lane `name` of `LANES`."""
        return self.advance(LANES[name].distance)

    def indices(self, rows_shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
        """Draw indices, int64 [*rows_shape]: the last axis counts rows, the flattened ones before it importance samples."""
        *lead, rows = rows_shape
        index = self.first_index + torch.arange(rows, device=device)
        index = index + IMPORTANCE_STRIDE * torch.arange(math.prod(lead), device=device).unsqueeze(-1)
        return index.reshape(rows_shape)


@dataclass(frozen=True)
class Draws(_Position):
    """Position of a batch of samples in the run: row `i` is draw `first_index + i` of `seed`.

    Args:
        seed: Seed of the run (int, 64 bits).
        first_index: Draw of the first row (int, 63 bits, default 0).

    Example:
        >>> Draws(seed=7).advance(128)
        Draws(seed=7, first_index=128)
    """

    seed: int
    first_index: int = 0

    offset = 0  # of `first_index`, which `state` already has

    def __post_init__(self) -> None:
        for name, value, bits in (("seed", self.seed, 64), ("first_index", self.first_index, 63)):
            if type(value) is not int or not 0 <= value < 1 << bits:  # NumPy's integers would overflow where streams are derived
                object.__setattr__(self, name, _checks.integer(value, name, 0, 1 << bits))

    def advance(self, rows: int) -> Draws:
        """The draws that start `rows` rows later."""
        return Draws(self.seed, self.first_index + rows)

    def spread(self, count: int) -> Draws:
        """The draws of `count` rows per row: row `i` has rows `i * count` to `(i + 1) * count - 1`, so that no two batches share any."""
        return Draws(self.seed, self.first_index * count)

    def state(self, device: torch.device | str = "cpu") -> Tensor:
        """Seed (its 64 bits as a signed number) and first index for kernels, int64 [2] on `device`, made without synchronization."""
        device = torch.device(device)
        if device.type == "cpu":
            return torch.tensor((_signed(self.seed), self.first_index), device=device)
        state = torch.full((2,), self.first_index, dtype=torch.int64, device=device)
        state[:1].fill_(_signed(self.seed))
        return state


@dataclass(frozen=True)
class DeviceDraws(_Position):
    """`Draws` whose seed and first index are on a device: after `move_to`, recorded work draws new numbers.

    Args:
        position: Seed and first index, int64 [2], as from `Draws.state`; `move_to` changes them in place.
        offset: Number that is added to the first index (int, default 0).

    Example:
        >>> draws = DeviceDraws(Draws(seed=1).state())
        >>> recorded = draws.advance(2)
        >>> draws.move_to(Draws(seed=1, first_index=40))
        >>> bool((normal(recorded, (3, 2), START) == normal(Draws(1, 42), (3, 2), START)).all())
        True
    """

    position: Tensor
    offset: int = 0

    def __post_init__(self) -> None:
        _checks.tensor(self.position, "position", (2,), floating=False)
        _checks.require(self.position.dtype == torch.int64, "position", "an int64 tensor", self.position)

    @property
    def seed(self) -> Tensor:
        """The seed, a scalar on the device."""
        return self.position[0]

    @property
    def first_index(self) -> Tensor:
        """The first index, a scalar on the device."""
        return self.position[1] + self.offset

    def move_to(self, draws: Draws) -> None:
        """Move to the position of `draws`; all draws that were made from these follow."""
        self.position[:1].fill_(_signed(draws.seed))
        self.position[1:].fill_(draws.first_index)

    def advance(self, rows: int) -> DeviceDraws:
        """As in `Draws`; the result follows `move_to`."""
        return DeviceDraws(self.position, self.offset + rows)

    def spread(self, count: int) -> DeviceDraws:
        """As in `Draws`, from the position at the time of the call (in a recorded step, of the replay)."""
        return self if count == 1 else DeviceDraws(torch.stack((self.seed, self.first_index * count)))

    def state(self, device: torch.device | str = "cpu") -> Tensor:
        """The position, which must be on `device`."""
        _checks.require(self.position.device.type == torch.device(device).type, "draws", f"draws on {device}", self.position)
        return self.position


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int | Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox 4x32 on four int64 tensors that hold 32-bit words (Salmon et al. 2011)."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        # An int64 product of two 32-bit words wraps past 2^63, but its low and high words are still right.
        low, high = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((high >> 32) & _MASK) ^ c1 ^ k0, high & _MASK, ((low >> 32) & _MASK) ^ c3 ^ k1, low & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def words(
    draws: Draws | DeviceDraws, shape: tuple[int, ...], stream: int, device: torch.device | str = "cpu", *, planes: int | None = None
) -> Tensor:
    """Random 32-bit words as int64, shape [..., N, D]; with `planes`, [planes, ..., N, D] from as many consecutive streams."""
    return _numbers("words", draws, shape, stream, device, planes)


def uniform(
    draws: Draws | DeviceDraws,
    shape: tuple[int, ...],
    stream: int,
    *,
    planes: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniforms `((r >> 8) + 0.5) 2^-24`, rounded to float32, shape [..., N, D]; `planes` as in `words`."""
    return _numbers("uniform", draws, shape, stream, device, planes).to(_checks.instance(dtype, torch.dtype, "dtype", "a torch.dtype"))


def normal(
    draws: Draws | DeviceDraws,
    shape: tuple[int, ...],
    stream: int,
    *,
    planes: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normals by Box-Muller, shape [..., N, D]: row `i` is draw `first_index + i`; `planes` as in `words`.

    The values are float32 numbers in every `dtype`, so that a float64 computation gets the numbers of a float32 kernel.

    Example:
        >>> draws = Draws(seed=1)
        >>> whole = normal(draws, (4, 2), START)
        >>> bool((whole[2:] == normal(draws.advance(2), (2, 2), START)).all())
        True
    """
    return _numbers("normal", draws, shape, stream, device, planes).to(_checks.instance(dtype, torch.dtype, "dtype", "a torch.dtype"))


def integers(draws: Draws | DeviceDraws, count: int | tuple[int, ...], high: int, stream: int, device: torch.device | str = "cpu") -> Tensor:
    """Uniform integers from 0 to `high` - 1, int64 [count]: number `i` is draw `first_index + i`.

    A `count` of several numbers is a shape whose leading axes are importance samples.

    Example:
        >>> whole = integers(Draws(seed=1), 4, 10, ORDER)
        >>> whole[2:].equal(integers(Draws(seed=1, first_index=2), 2, 10, ORDER)), bool((whole < 10).all())
        (True, True)
    """
    _checks.integer(high, "high", 1)
    shape, device = count if isinstance(count, tuple) else (count,), torch.device(device)
    if high < 1 << 24 and not _operator.needs_dispatch() and _backend.fused(device) == "triton":
        return _backend.implementation("triton", "integers").integers(draws.state(device), draws.offset, shape, stream, high)
    places = uniform(draws, (*shape, 1), stream, device=device).squeeze(-1) * high
    return places.long().clamp(max=high - 1)


def permutation(draws: Draws | DeviceDraws, size: int, device: torch.device | str = "cpu") -> Tensor:
    """A random order of `range(size)`, int64 [size], from the stream `ORDER`; ties are broken by position."""
    keys = words(draws, (_checks.integer(size, "size", 0), 2), ORDER, device)
    return torch.argsort((keys[:, 0] << 31) ^ keys[:, 1], stable=True)


def shuffled(draws: Draws, count: int, size: int) -> Tensor:
    """Places in `range(size)`, int64 [count], of draws that go through it in a random order, another one each time, in constant memory.

    Draw `i` is place `i mod size` of the order number `i // size`. The order of a large range is a keyed bijection: a Feistel network on the
    next power of 4, applied again until it leads into the range (Black and Rogaway 2002).

    Example:
        >>> sorted(shuffled(Draws(seed=1), 5, 5).tolist()), shuffled(Draws(1, 2), 3, 5).equal(shuffled(Draws(1), 5, 5)[2:])
        ([0, 1, 2, 3, 4], True)
    """
    _checks.integer(size, "size", 1)
    first, parts = draws.first_index, [torch.zeros(0, dtype=torch.int64, device="cpu")]
    while count > 0:
        order, place = divmod(first, size)
        part, key = min(count, size - place), Draws(draws.seed, order)
        if size <= _LISTED:
            ranks = words(key, (1, 2 * size), ORDER)[0].view(-1, 2)
            parts.append(torch.argsort((ranks[:, 0] << 31) ^ ranks[:, 1], stable=True)[place : place + part])
        else:
            parts.append(torch.from_numpy(_bijection(np.arange(place, place + part), size, key)))
        first, count = first + part, count - part
    return torch.cat(parts)


def _bijection(places: NDArray[np.int64], size: int, draws: Draws) -> NDArray[np.int64]:
    """The images of `places` under a bijection of `range(size)` that `draws` choose."""
    half, keys = ((size - 1).bit_length() + 1) // 2, words(draws, (1, 2 * _FEISTEL_ROUNDS), ORDER)[0].tolist()
    moved = _feistel(places, half, keys)
    while len(outside := np.flatnonzero(moved >= size)):
        moved[outside] = _feistel(moved[outside], half, keys)
    return moved


def _feistel(places: NDArray[np.int64], half: int, keys: list[int]) -> NDArray[np.int64]:
    """The images of numbers of `2 half` bits under a bijection of these."""
    low = (1 << half) - 1
    left, right = places >> half, places & low
    for first, second in zip(keys[::2], keys[1::2], strict=True):
        mixed = ((right ^ first) * (_MULTIPLIERS[0] >> 1)) & _MASK
        mixed = ((mixed ^ (mixed >> 15) ^ second) * (_MULTIPLIERS[1] >> 1)) & _MASK
        left, right = right, left ^ ((mixed ^ (mixed >> 16)) & low)
    return (left << half) | right


def formula(
    kind: str, draws: Draws | DeviceDraws, shape: tuple[int, ...], stream: int, planes: int = 1, device: torch.device | str = "cpu"
) -> Tensor:
    """The specification of `words` (int64), `uniform` and `normal` (float32) in plain PyTorch: [planes, ..., N, D].

    The arithmetic of normals is float64, and the result is rounded once.
    """
    *rows_shape, width = shape
    index = draws.indices(tuple(rows_shape), device).unsqueeze(-1)
    blocks = torch.arange((width + 3) // 4, device=device)
    streams = (stream + torch.arange(planes, device=device)).view(-1, *[1] * len(shape))
    quads = torch.stack(philox(torch.broadcast_tensors(index & _MASK, (index >> 32) & _MASK, blocks, streams), draws.seed), dim=-1)
    if kind == "words":
        return quads.flatten(-2)[..., :width]
    uniforms = ((quads >> 8).double() + 0.5).mul_(2.0**-24).float()
    if kind == "uniform":
        return uniforms.flatten(-2)[..., :width]
    pairs = uniforms.double().unflatten(-1, (2, 2))
    radius, angle = torch.sqrt(-2 * torch.log(pairs[..., 0])), 2 * torch.pi * pairs[..., 1]
    both = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return both.flatten(-3)[..., :width].float()


def _numbers(kind: str, draws: Draws | DeviceDraws, shape: tuple[int, ...], stream: int, device: torch.device | str, planes: int | None) -> Tensor:
    _checks.require(isinstance(draws, _Position), "draws", "Draws or DeviceDraws", draws)
    _checks.require(isinstance(shape, (tuple, list)) and len(shape) >= 2, "shape", "[..., N, D]", shape)
    shape = tuple(size if isinstance(size, torch.SymInt) else _checks.integer(size, f"shape[{axis}]", 0) for axis, size in enumerate(shape))
    planes = planes if planes is None else _checks.integer(planes, "planes", 0)
    if not any(isinstance(size, torch.SymInt) for size in shape):
        _checks.require(math.prod(shape) * (planes or 1) < 1 << 60, "shape", "fewer than 2^60 numbers", (planes, *shape))
    _checks.integer(stream, "stream", 0)
    device = torch.device(device)
    backend, count = _backend.fused(device), 1 if planes is None else planes
    if backend == "reference":
        made = formula(kind, draws, shape, stream, count, device)
    else:
        made = _fill(kind, draws.state(device), draws.offset, shape, stream, count, backend)
    return made.squeeze(0) if planes is None else made


def _compute_fill(kind: str, state: Tensor, offset: int, shape: list[int], stream: int, planes: int, backend: str) -> Tensor:
    return _backend.implementation(backend, "noise").fill(kind, state, offset, tuple(shape), stream, planes)


def _fake_fill(kind: str, state: Tensor, offset: int, shape: list[int], stream: int, planes: int, backend: str) -> Tensor:
    return state.new_empty((planes, *shape), dtype=torch.int64 if kind == "words" else torch.float32)


_fill = _operator.Operator(
    "fill(str kind, Tensor state, SymInt offset, SymInt[] shape, SymInt stream, SymInt planes, str backend) -> Tensor", _compute_fill, _fake_fill
)


def _signed(seed: int) -> int:
    return seed - (1 << 64) if seed >> 63 else seed
