"""Exponential moving average of the weights that train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


class Ema:
    """Averages of a module's trainable parameters, by name, in float32.

    With FSDP parameters are DTensors, and so are their averages: each process has its part.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.weights = {n: p.detach().float().clone() for n, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` (from 0); the first steps are forgotten sooner."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        current = [p.detach().float() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.weights.values()), current, share)

    def state(self, *, keep: bool = True) -> dict[str, Tensor]:
        """The averages, whole, as safetensors takes them; with FSDP every process has to call this.

        keep: False for a process that only gives its parts away.
        """
        state = {}
        for name, average in self.weights.items():
            # One by one: a GPU need not hold more than the largest of them whole.
            whole = average.full_tensor() if isinstance(average, DTensor) else average
            if keep:
                state[name] = (
                    whole.to("cpu") if isinstance(average, DTensor) else whole.contiguous()
                )
        return state

    def load(self, weights: dict[str, Tensor]) -> None:
        """Go on from saved averages; the names must be the same."""
        assert weights.keys() == self.weights.keys()
        for name, average in self.weights.items():
            whole = weights[name]
            if isinstance(average, DTensor):  # every process has read them all, and keeps its part
                mesh, placements = average.device_mesh, average.placements
                whole = distribute_tensor(whole, mesh, placements, src_data_rank=None)
            average.copy_(whole)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module computes with the averages inside `with`, and with its own weights after."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._copy(self.weights)
        try:
            yield
        finally:
            self._copy(own)

    @torch.no_grad()
    def _copy(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])
