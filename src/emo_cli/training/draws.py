"""Everything random in training, as pure functions of (seed, epoch or step, sample).

No generator is carried along, so a run that stopped at step s goes on exactly as if it had not,
and any number of processes or micro-batches sees the same samples with the same noise.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

FIRST_CLIP = "first clip"


@dataclass(frozen=True)
class Draw:
    """One sample of a run: which one, and the seed of its crop, noise and dropped conditions."""

    index: int
    seed: int  # 0 .. 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Share:
    """The part of every global batch that one process computes, in micro-batches."""

    process: int
    num_processes: int
    micro_batches: int


def derive_seed(*parts: int | str) -> int:
    """A seed in 0 .. 2**63 - 1 that is a pure function of its parts."""
    digest = hashlib.sha256(repr(parts).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def draw(seed: int, position: int, num_samples: int) -> Draw:
    """The sample at a position of the endless stream of epochs; each epoch has its own order."""
    epoch, place = divmod(position, num_samples)
    index = epoch_order(seed, epoch, num_samples)[place]
    return Draw(index, derive_seed(seed, epoch, index))


@functools.lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_samples: int) -> list[int]:
    """A permutation of the samples: none comes twice in an epoch."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    return torch.randperm(num_samples, generator=generator).tolist()


def micro_batches(
    seed: int, first_step: int, last_step: int, batch: int, num_samples: int, share: Share
) -> Iterator[list[Draw]]:
    """The micro-batches of one process from `first_step` up to, not with, `last_step`.

    Together the processes' micro-batches of a step are the same `batch` samples however many
    there are; `batch` divides by their product.
    """
    parts = share.num_processes * share.micro_batches
    assert batch % parts == 0
    size = batch // parts
    for step in range(first_step, last_step):
        for micro in range(share.micro_batches):
            part = micro * share.num_processes + share.process
            first = step * batch + part * size
            yield [draw(seed, first + i, num_samples) for i in range(size)]


def sample_noise(seeds: Tensor, purpose: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Standard normal [B, *shape], row i a pure function of (seeds[i], purpose) and the device.

    seeds [B] int64; dtype and device are those of `like`.
    """
    noise = torch.empty(len(seeds), *shape, dtype=like.dtype, device=like.device)
    for row, seed in zip(noise, seeds.tolist(), strict=True):
        row.normal_(generator=_generator(derive_seed(seed, purpose), like.device))
    return noise


def sample_uniform(seeds: Tensor, purpose: str, like: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), [B], each a pure function of (seeds[i], purpose)."""
    values = [derive_seed(seed, purpose) / 2**63 for seed in seeds.tolist()]
    return torch.tensor(values, dtype=like.dtype, device=like.device)


def begins_video(seed: int, share: float) -> bool:
    """Whether a sample stands for the first clip of a video: no motion frames before it."""
    return derive_seed(seed, FIRST_CLIP) / 2**63 < share


def _generator(seed: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(seed)
