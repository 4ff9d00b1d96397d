"""Exponential moving average of the weights that train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


class Ema:
    """Averages of a module's trainable parameters, by name, in float32.

    With FSDP parameters are DTensors; each process averages its own parts of them.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.weights = {n: _own(p.detach()).float().clone() for n, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` (from 0); the first steps are forgotten sooner."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        current = [_own(p).detach().float() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.weights.values()), current, share)

    def state(self, *, keep: bool = True) -> dict[str, Tensor]:
        """The averages, whole, as safetensors takes them; with FSDP every process has to call this.

        keep: False for a process that only gives its parts away.
        """
        state = {}
        for name, average in self.weights.items():
            like = self.parameters[name]
            if isinstance(like, DTensor):  # one by one: a GPU holds no more than one of them whole
                average = _gathered(average, like)
            if keep:
                state[name] = average.contiguous()
        return state

    def load(self, weights: dict[str, Tensor]) -> None:
        """Go on from saved averages; the names must be the same."""
        assert weights.keys() == self.weights.keys()
        for name, average in self.weights.items():
            saved, like = weights[name], self.parameters[name]
            if isinstance(like, DTensor):  # every process has read them whole, and keeps its parts
                place = (like.device_mesh, like.placements)
                saved = distribute_tensor(saved, *place, src_data_rank=None).to_local()
            average.copy_(saved)

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


def _own(parameter: Tensor) -> Tensor:
    """This process's part: an average needs nothing of the other processes'."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _gathered(part: Tensor, like: DTensor) -> Tensor:
    """All processes' parts of one tensor, on the CPU."""
    place = (like.device_mesh, like.placements)
    whole = DTensor.from_local(part, *place, shape=like.shape, stride=like.stride())
    return whole.full_tensor().cpu()
