"""From noise to the latents of one clip: schedule, noise, guidance, denoising steps.

Shapes: G guidance branches, F frames, C latent channels, H W latent size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from emo_cli.config import DiffusionConfig, Solver
from emo_cli.errors import EmoError

TRAIN_STEPS = 1000


class Branch(NamedTuple):
    """One forward of a guided step and its weight in the sum."""

    reference: bool
    audio: bool
    weight: float


def guidance_branches(reference: float, audio: float) -> tuple[Branch, ...]:
    """Which forwards guidance needs; the weights sum to 1.

    out = o(0, 0) + reference * (o(r, 0) - o(0, 0)) + audio * (o(r, a) - o(r, 0)). Equal scales
    need two forwards, 1 and 1 a single one.
    """
    branches = (
        Branch(True, True, audio),
        Branch(True, False, reference - audio),
        Branch(False, False, 1 - reference),
    )
    return tuple(branch for branch in branches if branch.weight != 0)


def build_scheduler(config: DiffusionConfig, solver: Solver, steps: int) -> Any:
    """diffusers' scheduler of a solver, set to `steps`.

    Raises: EmoError for a number of steps that the solver cannot take exactly.
    """
    import diffusers

    scheduler: Any
    if not 1 <= steps <= TRAIN_STEPS:
        raise EmoError(f"cannot take {steps} steps", "--steps is 1 to 1000.", exit_code=2)
    common = {
        "num_train_timesteps": TRAIN_STEPS,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "beta_schedule": config.beta_schedule,
        "prediction_type": config.prediction,
        "timestep_spacing": config.spacing,
        "steps_offset": 1 if config.spacing == "leading" else 0,
        "rescale_betas_zero_snr": config.zero_terminal_snr,
    }
    if solver == "ddim":
        if TRAIN_STEPS % steps:
            # diffusers steps by 1000 // steps, so other numbers do not end at a clean picture.
            fits = [n for n in range(1, TRAIN_STEPS + 1) if TRAIN_STEPS % n == 0]
            below = max(n for n in fits if n < steps)
            above = min(n for n in fits if n > steps)
            raise EmoError(
                f"DDIM cannot take {steps} steps: they do not divide {TRAIN_STEPS}",
                f"Use --steps {below} or {above}, or --solver dpm++.",
                exit_code=2,
            )
        # Leading steps end at timestep 1, as SD 1.5 was published; trailing ones at the picture.
        to_one = config.spacing == "trailing"
        scheduler = diffusers.DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=to_one)
    elif solver == "dpm++":
        scheduler = diffusers.DPMSolverMultistepScheduler(
            **common, algorithm_type="dpmsolver++", lower_order_final=True
        )
    else:
        scheduler = diffusers.UniPCMultistepScheduler(**common, lower_order_final=True)
    scheduler.set_timesteps(steps)
    return scheduler


def clip_generator(seed: int, clip_index: int) -> torch.Generator:
    """A clip's own random numbers, the same on every device and from every resume point."""
    digest = hashlib.sha256(f"emo:{seed}:{clip_index}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def clip_noise(
    shape: tuple[int, ...], generator: torch.Generator, shared: float, dtype: torch.dtype
) -> Tensor:
    """Unit noise [1, F, C, H, W]; a share of its variance is common to all frames of the clip."""
    own = torch.randn(shape, generator=generator, dtype=torch.float32)
    if shared == 0:
        return own.to(dtype)
    common = torch.randn((shape[0], 1, *shape[2:]), generator=generator, dtype=torch.float32)
    return (shared**0.5 * common + (1 - shared) ** 0.5 * own).to(dtype)


@torch.inference_mode()
def denoise(
    predict: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    scheduler: Any,
    branches: tuple[Branch, ...],
    dtype: torch.dtype,
) -> Tensor:
    """Noise [1, F, C, H, W] -> latents of the same shape, in fp32.

    `predict(latents [G, F, C, H, W], timesteps [G])` runs all guidance branches as one batch.
    The steps never wait for the device.
    """
    count = len(branches)
    scheduler.set_timesteps(scheduler.num_inference_steps)
    steps = scheduler.timesteps.tolist()
    timesteps = scheduler.timesteps.to(noise.device)
    weights = torch.tensor([branch.weight for branch in branches], device=noise.device)
    latents = noise.float()
    for index, step in enumerate(steps):
        inputs = latents.to(dtype).expand(count, *latents.shape[1:])
        outputs = predict(inputs, timesteps[index].expand(count)).float()
        if count > 1:
            outputs = (weights.view(-1, 1, 1, 1, 1) * outputs).sum(0, keepdim=True)
        latents = scheduler.step(outputs, step, latents).prev_sample
    return latents
