"""Denoising chain in C++: all steps of a tile of rows while it stays in cache, and a backward pass that recomputes activations.

The backward pass needs memory O(T N D): it reads the trajectory and draws the noise again.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ddvi_fast._operands import ChainOperands, Differentiable
from ddvi_fast.native import denoiser, loader

_SOURCES = ("start", "context", *denoiser.WEIGHTS, "coefficients", "noise")
_INPUTS = (*_SOURCES, *denoiser.INDEX)
_RESULTS = ("z", "path", "trajectory")
_UPSTREAM = ("z_upstream", "path_upstream", "trajectory_upstream")
_GRADIENTS = tuple(f"d_{name}" for name in _SOURCES)
_NO_NOISE, _GIVEN_NOISE, _DRAWN_NOISE = range(3)


class ChainArguments(ctypes.Structure):
    """Mirror of the structure in csrc/chain_arguments.h."""

    _fields_ = denoiser.fields("noise_source", _INPUTS, (*_RESULTS, *_UPSTREAM), _GRADIENTS)


def unsupported(precision: str = "float32", **tensors: Tensor | None) -> str | None:
    """The reason why the kernel cannot run this chain, or None if it can; `tensors` are its float32 operands by name."""
    return denoiser.unusable("chain", precision, tensors)


def forward(operands: ChainOperands, keep_trajectory: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`reference.chain.sample_chain` of contiguous tensors.

    The precision bf16 rounds weights and inputs of the hidden layers and adds in float32, with products of bf16 where the processor has
    them and of float32 elsewhere.

    Returns:
        `z` [.., R, D]; the path log-ratio [.., R] in nats, None for a deterministic chain; and, where it is kept, the trajectory
        [T + 1, .., R, D], start first.
    """
    y_T, coefficients = operands.y_T, operands.coefficients
    arguments = _arguments(operands)
    z = torch.empty_like(y_T)
    path = None if arguments.noise_source == _NO_NOISE else y_T.new_empty(y_T.shape[:-1])
    trajectory = y_T.new_empty((coefficients.shape[0] + 1, *y_T.shape)) if keep_trajectory else None
    loader.fill(arguments, _RESULTS, (z, path, trajectory))
    loader.library().ddvi_chain_forward(ctypes.byref(arguments))
    return z, path, trajectory


class SingleSteps:
    """The steps of a chain with given noise one at a time: the context and the noise of a step need to exist when it is run.

    Args:
        operands: Operands of the chain; their context is not read.
        contexts: Memory of the contexts [T, .., R, C].
        trajectory: Memory of the states [T + 1, .., R, D], with the start.
        paths: Memory of the steps' log-ratios [T, .., R], the first one run first.
    """

    def __init__(self, operands: ChainOperands, contexts: Tensor, trajectory: Tensor, paths: Tensor) -> None:
        biases = operands.time_table.movedim(-3, 0).contiguous()  # those of all groups at one step stand together
        self._count, self._kept = len(paths), (operands, contexts, trajectory, paths, biases)
        self._arguments = _arguments(operands._replace(context=contexts[0]))
        self._arguments.steps = 1
        of_step = {"context": contexts, "time_table": biases, "coefficients": operands.coefficients, "noise": operands.noise}
        self._of_step = {name: (value.data_ptr(), _bytes(value[0])) for name, value in of_step.items()}
        self._states, self._paths = (trajectory.data_ptr(), _bytes(trajectory[0])), (paths.data_ptr(), _bytes(paths[0]))

    def run(self, step: int) -> None:
        """Run the 0-based step `step`: fill its entries of the trajectory and of the paths."""
        arguments, place = self._arguments, self._count - 1 - step
        for name, (address, size) in self._of_step.items():
            setattr(arguments, name, address + step * size)
        (states, state), (paths, path) = self._states, self._paths
        arguments.start, arguments.z, arguments.path = states + place * state, states + (place + 1) * state, paths + place * path
        loader.library().ddvi_chain_forward(ctypes.byref(arguments))


def backward(
    operands: ChainOperands, trajectory: Tensor, d_z: Tensor | None, d_path: Tensor | None, d_trajectory: Tensor | None, needed: Differentiable,
    stepwise: bool = False,
) -> Differentiable:  # fmt: skip
    """The gradients that are `needed`, from those of the three results of `forward`.

    Sums over rows have one order, whatever the number of threads. A `stepwise` chain has a context for each step: that of `operands` is the
    first of contiguous ones [T, .., R, C]. The gradient of the context is then the sum over the steps.
    """
    arguments = _arguments(operands)
    loader.fill(arguments, ("trajectory", *_UPSTREAM), (trajectory, d_z, d_path, d_trajectory))
    # The kernel carries the gradient of the start in any case.
    gradients = denoiser.new_gradients(arguments, _GRADIENTS, operands, needed, latents=True)
    library = loader.library()
    (library.ddvi_chain_backward_stepwise if stepwise else library.ddvi_chain_backward)(ctypes.byref(arguments))
    return gradients.only(needed)


def _arguments(operands: ChainOperands) -> ctypes.Structure:
    source = _GIVEN_NOISE if operands.noise is not None else _NO_NOISE if operands.state is None else _DRAWN_NOISE
    return denoiser.arguments(ChainArguments, _INPUTS, operands, source)


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()
