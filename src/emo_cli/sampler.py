"""From noise to the latents of one clip: schedule, noise, guidance, denoising steps.

Shapes: G guidance branches, F frames, C latent channels, H W latent size.
"""

from __future__ import annotations

import copy
import hashlib
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from emo_cli.config import DiffusionConfig, Solver
from emo_cli.device import upload
from emo_cli.errors import EmoError

TRAIN_STEPS = 1000


class Branch(NamedTuple):
    """One forward of a guided step and its weight in the sum."""

    reference: bool
    audio: bool
    weight: float


class Step(NamedTuple):
    """One step of a trajectory."""

    timestep: int
    guided: bool  # all branches run; else the first one alone, which has all conditions
    reuse: bool  # of the deep features of an earlier step


def guidance_branches(
    reference: float, audio: float, *, conditional: bool = False
) -> tuple[Branch, ...]:
    """Which forwards guidance needs; the weights sum to 1.

    out = o(0, 0) + reference * (o(r, 0) - o(0, 0)) + audio * (o(r, a) - o(r, 0)). Equal scales
    need two forwards, 1 and 1 a single one. `conditional` keeps o(r, a) even at weight 0, first,
    for steps outside of the guided interval and for rescaling.
    """
    branches = (
        Branch(True, True, audio),
        Branch(True, False, reference - audio),
        Branch(False, False, 1 - reference),
    )
    return tuple(b for b in branches if b.weight != 0 or (conditional and b.audio))


def plan_steps(
    timesteps: list[int],
    *,
    guided: bool,
    interval: tuple[int, int] | None = None,
    cache_interval: int = 1,
) -> list[Step]:
    """What each step runs: guidance inside of `interval` (Kynkaanniemi et al. 2024), deep features
    made every `cache_interval` steps (DeepCache, Ma et al. 2024) and where more branches begin."""
    low, high = interval or (0, TRAIN_STEPS)
    steps: list[Step] = []
    made = -cache_interval  # the last step that made deep features
    for index, timestep in enumerate(timesteps):
        now = guided and low <= timestep <= high
        reuse = index - made < cache_interval and (steps[made].guided or not now)
        made = made if reuse else index
        steps.append(Step(timestep, now, reuse))
    return steps


def guide(outputs: Tensor, weights: Tensor, rescale: float = 0.0) -> Tensor:
    """Predictions [G, F, C, H, W] of all branches -> one, [1, F, C, H, W].

    rescale: how much of the conditional prediction's std (of the first branch, over the clip) is
    restored, 0 to 1 (Lin et al. 2023, eq. 15 and 16): strong guidance overexposes.
    """
    guided = (weights.view(-1, 1, 1, 1, 1) * outputs).sum(0, keepdim=True)
    if rescale == 0:
        return guided
    return guided * (rescale * outputs[0].std() / guided.std() + (1 - rescale))


def trailing_timesteps(steps: int, shift: float = 1.0) -> list[int]:
    """From pure noise on, evenly (Lin et al. 2023), or shifted towards noise.

    With a shift above 1 fewer steps lie where a picture is nearly made ("Scaling Rectified Flow
    Transformers for High-Resolution Image Synthesis", Esser et al. 2024, eq. 23): there a small
    network sharpens what it has drawn wrongly itself.
    """
    left = 1 - np.arange(steps) / steps
    shifted = shift * left / (1 + (shift - 1) * left)
    return [int(timestep) for timestep in np.round(TRAIN_STEPS * shifted) - 1]


def alphas_cumprod(config: DiffusionConfig) -> Tensor:
    """Cumulative alphas of all timesteps of training, [1000], fp32."""
    import diffusers

    scheduler: Any = diffusers.DDIMScheduler(**_schedule(config))
    return scheduler.alphas_cumprod


def build_scheduler(config: DiffusionConfig, solver: Solver, steps: int) -> Any:
    """diffusers' scheduler of a solver, set to `steps`; UniPC takes no shifted ones.

    Raises: EmoError for a number of steps that the solver cannot take exactly.
    """
    import diffusers

    scheduler: Any
    if not 1 <= steps <= TRAIN_STEPS:
        raise EmoError(f"cannot take {steps} steps", "--steps is 1 to 1000.", exit_code=2)
    common = _schedule(config)
    if solver == "ddim" and config.shift == 1:
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
    elif solver == "unipc":
        scheduler = diffusers.UniPCMultistepScheduler(**common, lower_order_final=True)
    else:
        # Of first order it is DDIM (Lu et al. 2022, sec. 4), and takes any timesteps.
        order = 1 if solver == "ddim" else 2
        scheduler = diffusers.DPMSolverMultistepScheduler(
            **common, algorithm_type="dpmsolver++", solver_order=order, lower_order_final=True
        )
        if config.shift != 1:
            scheduler.set_timesteps(timesteps=_shifted(steps, config.shift))
            return scheduler
    scheduler.set_timesteps(steps)
    return scheduler


def _shifted(steps: int, shift: float) -> list[int]:
    timesteps = trailing_timesteps(steps, shift)
    if len(set(timesteps)) < steps:
        most = int(TRAIN_STEPS / shift)
        raise EmoError(f"cannot take {steps} steps", f"--steps is 1 to {most}.", exit_code=2)
    return timesteps


def _schedule(config: DiffusionConfig) -> dict[str, Any]:
    return {
        "num_train_timesteps": TRAIN_STEPS,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "beta_schedule": config.beta_schedule,
        "prediction_type": config.prediction,
        "timestep_spacing": config.spacing,
        "steps_offset": 1 if config.spacing == "leading" else 0,
        "rescale_betas_zero_snr": config.zero_terminal_snr,
    }


def clip_generator(seed: int, clip_index: int) -> torch.Generator:
    """A clip's own random numbers, the same on every device and from every resume point."""
    digest = hashlib.sha256(f"emo:{seed}:{clip_index}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def video_generator(seed: int, purpose: str) -> np.random.Generator:
    """A video's own random numbers for one purpose."""
    digest = hashlib.sha256(f"emo:{seed}:{purpose}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def clip_noise(
    shape: tuple[int, ...],
    generator: torch.Generator,
    shared: float,
    shared_temperature: float = 1.0,
) -> Tensor:
    """Noise [1, F, C, H, W], fp32: a share of its variance is common to all frames of the clip.

    Below a temperature of 1 that common part, in which a clip differs from the next, is weaker
    than in training.
    """
    noise = torch.randn(shape, generator=generator)
    if not shared:
        return noise
    common = torch.randn((shape[0], 1, *shape[2:]), generator=generator)
    return shared_temperature * shared**0.5 * common + (1 - shared) ** 0.5 * noise


class Predictor(Protocol):
    """Predicted noise, or v, of noisy latents [G, F, C, H, W] at timesteps [G]."""

    def __call__(self, latents: Tensor, timesteps: Tensor, reuse: bool, /) -> Tensor:
        """`reuse`: take the deep features that the last call without it made."""


def ease_in(
    latents: Tensor, before: Tensor, frames: int, told_step: Tensor | None = None
) -> Tensor:
    """Latents [1, F, C, H, W] whose first `frames` come nearer to the frame before [1, 1, C, H, W].

    A clip begins a little beside where the one before it ended. Half of that step is taken back
    in the first frame, and less in each that follows, so that it is no longer seen; but not of
    the told one, by which head, lips and eyelids have gone on.
    """
    eased = latents.clone()
    step = latents[:, :1] - before
    if told_step is not None:
        step = step - told_step
    share = 0.5 * torch.arange(frames, 0, -1, device=latents.device) / frames
    eased[:, :frames] -= share.view(1, -1, 1, 1, 1) * step
    return eased


@torch.inference_mode()
def denoise(
    predict: Predictor,
    noise: Tensor,
    scheduler: Any,
    branches: tuple[Branch, ...],
    dtype: torch.dtype,
    *,
    guidance_interval: tuple[int, int] | None = None,
    guidance_rescale: float = 0.0,
    cache_interval: int = 1,
) -> Tensor:
    """Noise [1, F, C, H, W] -> latents of the same shape, in fp32.

    All guidance branches run as one batch; outside of the interval the first one runs alone. With
    DDIM and DPM-Solver++ the host never waits for the device; diffusers' UniPC makes it.
    """
    scheduler = copy.deepcopy(scheduler)  # which counts the steps that it has made
    steps = plan_steps(
        scheduler.timesteps.tolist(),
        guided=len(branches) > 1,
        interval=guidance_interval,
        cache_interval=cache_interval,
    )
    timesteps = upload(scheduler.timesteps, noise.device)
    weights = upload(torch.tensor([branch.weight for branch in branches]), noise.device)
    latents = noise.float()
    for index, step in enumerate(steps):
        count = len(branches) if step.guided else 1
        inputs = latents.to(dtype).expand(count, *latents.shape[1:])
        outputs = predict(inputs, timesteps[index].expand(count), step.reuse).float()
        if step.guided:
            outputs = guide(outputs, weights, guidance_rescale)
        latents = scheduler.step(outputs, step.timestep, latents).prev_sample
    return latents
