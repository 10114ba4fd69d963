"""Export of a posterior with torch.export: encoder and sampler in one program that needs only torch."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, _files
from ddvi_fast._backend import use_backend
from ddvi_fast.networks import evaluation
from ddvi_fast.posteriors import Posterior
from ddvi_fast.rng import DeviceDraws, Draws

_TOLERANCE = 1e-3  # largest difference of the exported program, in nats and in units of the latents


class Sampler(nn.Module):
    """Module that is exported. It returns samples `z` [K, N, D] and, if the posterior has a density, `log_ratio` [K, N] in nats.

    Args:
        posterior: The posterior, in evaluation mode.
        num_samples: Samples per row, K (int).
    """

    def __init__(self, posterior: Posterior, num_samples: int) -> None:
        super().__init__()
        self.posterior, self.num_samples = posterior, num_samples

    def forward(self, x: Tensor, position: Tensor) -> tuple[Tensor, ...]:
        """Sample.

        Args:
            x: Data [N, ...].
            position: Seed and draw index of the first row, int64 [2], on the same device.
        """
        sample = self.posterior.sample(x, self.num_samples, DeviceDraws(position))
        return tuple(part for part in sample if part is not None)


def sampler(posterior: Posterior, example: Tensor, *, num_samples: int = 1) -> torch.export.ExportedProgram:
    """Export encoder and sampler of a posterior for any batch size; the numbers of steps and of samples are fixed.

    The program contains operators of torch only, including the random numbers: `torch.export.load` runs it without ddvi_fast installed, and
    AOTInductor compiles it. `program.module()(x, position)` with `position = torch.tensor([seed, first_index])` returns what
    `posterior.sample(x, num_samples, Draws(seed, first_index))` returns, up to rounding. The program is compared with the posterior at
    another batch size before it is returned.

    Args:
        posterior: The posterior, on the device on which the program will run.
        example: At least two rows of data [N, ...] in the shape that the encoder takes.
        num_samples: Samples per row, K (int, default 1).

    Returns:
        The exported program.

    Raises:
        InputError: If `example` does not fit, or if the posterior cannot be traced (`Hamiltonian`, and chains with informed steps or frame
            updates, which compute gradients while they sample).

    Example:
        >>> from ddvi_fast import networks, posteriors
        >>> posterior = posteriors.Gaussian(networks.MLP(5, [8], 4), latent_dim=2)
        >>> program = sampler(posterior, torch.zeros(3, 5), num_samples=7).module()
        >>> z, log_ratio = program(torch.zeros(100, 5), torch.tensor([0, 0]))
        >>> z.shape, log_ratio.shape
        (torch.Size([7, 100, 2]), torch.Size([7, 100]))
    """
    _checks.tensor(example, "example")
    _checks.require(example.dim() >= 2 and len(example) >= 2, "example", "at least two rows, [N, ...]", example)
    _checks.require(num_samples >= 1, "num_samples", "at least 1", num_samples)
    for name in ("informed_steps", "frame_updates"):
        number, called = max((getattr(part, name, 0) for part in posterior.modules()), default=0), name.replace("_", " ")
        hint = "its samples need gradients of the model"
        _checks.require(number == 0, "posterior", f"one without {called}, for export", f"{number} {called}", hint)
    informed = any(getattr(part, "informed", None) is not None for part in posterior.modules())
    _checks.require(not informed, "posterior", "one whose q(c | x) does not see the model, for export", "informed classes")
    position, wrapped = Draws(0).state(example.device), Sampler(posterior, num_samples)
    with evaluation(wrapped), torch.no_grad(), use_backend("reference"):
        program = _traced(wrapped, example, position)
        _verify(program, wrapped, torch.cat((example, example[:1])), Draws(1, 5).state(example.device))
    return program


def save(program: torch.export.ExportedProgram, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write an exported program to a file.

    Args:
        program: Program that `sampler` returned.
        path: File to write, usually with the suffix ``.pt2``.
        overwrite: Replace an existing file (bool, default False).

    Returns:
        The path.

    Raises:
        InputError: If the file exists and `overwrite` is False.
    """
    path = Path(path)
    _checks.require(overwrite or not path.exists(), "output", "a new file", str(path), "overwrite=true replaces it")
    with _files.replacing(path) as fresh:
        contents = io.BytesIO()  # torch's own writer of files does not say why it could not write one
        torch.export.save(program, contents)
        fresh.write_bytes(contents.getbuffer())
    return path


def _traced(wrapped: Sampler, example: Tensor, position: Tensor) -> torch.export.ExportedProgram:
    shapes = {"x": {0: torch.export.Dim("batch")}, "position": None}
    try:
        return torch.export.export(wrapped, (example, position), dynamic_shapes=shapes)
    except Exception as error:  # the tracer raises many types
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        _checks.fail("posterior", "one that torch.export can trace", f"{type(wrapped.posterior).__name__}, {reason}")


def _verify(program: torch.export.ExportedProgram, wrapped: Sampler, x: Tensor, position: Tensor) -> None:
    for made, expected in zip(program.module()(x, position), wrapped(x, position), strict=True):
        torch.testing.assert_close(made, expected, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)
