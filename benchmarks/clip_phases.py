"""The parts of a clip as calls to time and to count, and how often a clip makes each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from measure import flops

from emo_cli.audio import AudioFeatures
from emo_cli.clips import plan
from emo_cli.denoiser import ClipDenoiser
from emo_cli.engine import Engine, Video
from emo_cli.sampler import clip_generator, clip_noise, plan_steps


@dataclass(frozen=True, kw_only=True)
class Phase:
    """times: how often a clip makes the call; 0: once per video or sound."""

    call: Callable[[], Any]
    times: int


@torch.inference_mode()
def clip_phases(engine: Engine, video: Video) -> dict[str, Phase]:
    """What a clip with motion frames consists of, kind by kind of step; weights are resident."""
    config, device = engine.config, engine.device
    last = list(plan(video.num_frames, config.clip_frames))[-2:]
    before, planned = last[0], last[-1]
    size, channels = config.latent_size, config.autoencoder.latent_channels
    shape = (1, config.clip_frames, channels, size, size)
    noise = clip_noise(shape, clip_generator(0, 0), 0.0).to(device)
    latents, moved = noise, None
    if config.unet.told_head:  # a CPU decodes what was drawn, which of noise were all
        latents, _ = engine._denoise_clip(video, before, None)
        latents, moved = engine._denoise_clip(video, planned, latents[:, -config.motion_frames :])
    motion = latents[:, -config.motion_frames :]

    def prepare() -> Any:
        conditions, _ = engine.conditions.of_clip(video, planned, motion)
        return engine.model.backbone.prepare_clip(*conditions)

    def hear() -> Any:
        encoder = engine.model.audio_encoder
        sound = AudioFeatures(video.sound, encoder, config=config.audio, fps=config.fps)
        return sound.features(0, 1)

    phases = {
        "audio, a window": Phase(call=hear, times=0),
        "reference": Phase(call=partial(engine._video_state, video.seen, video.branches), times=0),
        "clip conditions": Phase(call=prepare, times=1),
    }
    phases |= step_phases(engine, video, prepare(), noise.to(engine.dtype))
    decode = partial(engine._start_decoding, latents, config.clip_frames, moved)
    return phases | {"decode": Phase(call=decode, times=1)}


def step_phases(engine: Engine, video: Video, clip: Any, latents: torch.Tensor) -> dict[str, Phase]:
    """The kinds of step of the video's trajectory: guided or not, with deep features made anew,
    or reused."""
    sampling, count = video.sampling, len(video.branches)
    denoiser = ClipDenoiser(
        engine.steps,
        video.state,
        clip,
        branches=count,
        frames=engine.config.clip_frames,
        layers=sampling.cache_layers if sampling.cache_interval > 1 else 0,
    )
    steps = plan_steps(
        video.scheduler.timesteps.tolist(),
        guided=count > 1,
        interval=sampling.guidance_interval,
        cache_interval=sampling.cache_interval,
    )
    phases = {}
    for (guided, reuse), times in Counter(step[1:] for step in steps).items():
        rows = count if guided else 1
        inputs = latents.expand(rows, *latents.shape[1:])
        at = torch.full((rows,), 500, device=engine.device)
        if reuse and denoiser.deep is None:
            denoiser(inputs, at, False)
        name = ("guided step" if guided else "step") + (", deep features reused" if reuse else "")
        phases[name] = Phase(call=partial(denoiser, inputs, at, reuse), times=times)
    return phases


def count_clip(engine: Engine, phases: dict[str, Phase]) -> dict[str, int]:
    """FLOPs of each phase, and of a whole clip under `clip`."""
    with torch.inference_mode():
        counts = {name: flops(phase.call, engine.device) for name, phase in phases.items()}
    return counts | {"clip": sum(counts[name] * phase.times for name, phase in phases.items())}
