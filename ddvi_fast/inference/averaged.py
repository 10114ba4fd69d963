"""Average of weights over the steps of a training, and the best of them by a validation loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ddvi_fast.engine import checkpoint

_MEMORY = 0.998  # decay of the average of the weights in a step, once it is long enough


class Averaged:
    """Exponential average of the weights of modules over the steps of their training, and the best one so far by a validation loss.

    Args:
        parameters: The weights, which are trained in place.
        loss: Function that computes the validation loss at the present weights.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], loss: Callable[[], float]) -> None:
        self.parameters, self.loss = parameters, loss
        self.mean = [parameter.detach().clone() for parameter in parameters]
        self.best, self.lowest, self.step, self.found_at = [value.clone() for value in self.mean], loss(), 0, 0

    @torch.no_grad()
    def follow(self) -> None:
        """Take the weights of one more step into the average, which is over all of the first steps."""
        self.step += 1
        share = max(1 - _MEMORY, 9 / (10 + self.step))
        torch._foreach_lerp_(self.mean, [parameter.detach() for parameter in self.parameters], share)

    @torch.no_grad()
    def check(self) -> None:
        """Compute the validation loss of the average, and keep it if it is the lowest."""
        present = [parameter.detach().clone() for parameter in self.parameters]
        self._put(self.mean)
        if (loss := self.loss()) < self.lowest:
            self.lowest, self.found_at, self.best = loss, self.step, [value.clone() for value in self.mean]
        self._put(present)

    def finish(self) -> None:
        """Put the best weights into the modules."""
        self._put(self.best)

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def state(self) -> dict[str, Tensor]:
        """Return the average, the best weights and their loss, from which `load_state` continues."""
        values = {f"{kind}.{place}": value for kind in ("mean", "best") for place, value in enumerate(getattr(self, kind))}
        numbers = torch.tensor([self.lowest, self.step, self.found_at], dtype=torch.float64, device="cpu")
        return {**values, "numbers": numbers}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned.

        Raises:
            InputError: If it is that of other weights.
        """
        wanted = self.state()
        checkpoint.load_tensors({name: state[name] for name in state}, wanted)
        for kind in ("mean", "best"):
            setattr(self, kind, [wanted[f"{kind}.{place}"] for place in range(len(self.mean))])
        self.lowest, self.step, self.found_at = float(wanted["numbers"][0]), *(int(number) for number in wanted["numbers"][1:])
