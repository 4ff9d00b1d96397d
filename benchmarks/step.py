"""One denoising step of ours and one of diffusers' UNetMotionModel of the same widths, in turn.

    python benchmarks/step.py --against diffusers [--preset mini|full] [--device D] [--dtype T]

Both have random weights and see one clip of 12 frames without guidance. Ours attends to reference,
sound, motion frames and speed, theirs to 77 text tokens, so times are compared per FLOP. `cpu s`
are the process's own seconds, which other work on the machine disturbs least; on a GPU look at `s`.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial

import torch
from measure import flops, machine_rates, peak_memory_mib, timings
from torch import Tensor, nn

from emo_cli import __version__
from emo_cli.config import ModelConfig
from emo_cli.device import choose_device, choose_dtype
from emo_cli.model.backbone import Backbone
from emo_cli.model.gestures import Gestures, Head
from emo_cli.model.reference_net import ReferenceNet
from emo_cli.presets import PRESETS

TEXT_TOKENS = 77


def on_device(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """As the engine holds it."""
    network = network.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return network.to(memory_format=torch.channels_last)


@torch.inference_mode()
def our_step(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor]:
    """The Backbone's forward with all conditions prepared, as in the middle of a clip."""
    with device:
        backbone = on_device(Backbone(config), device, dtype)
        reference_net = on_device(
            ReferenceNet(config.unet, config.autoencoder.latent_channels), device, dtype
        )
    assert isinstance(backbone, Backbone) and isinstance(reference_net, ReferenceNet)
    frames, side, size = config.clip_frames, config.latent_size, config.picture_size
    random = partial(torch.randn, device=device, dtype=dtype)
    latents = random(1, frames, config.autoencoder.latent_channels, side, side)
    window = 2 * config.window + 1
    video = backbone.prepare_video(
        reference_net.portrait_features(latents[:, 0]), random(1, 1, size, size), latents[:, 0]
    )
    clip = backbone.prepare_clip(
        random(1, frames, window, config.audio_feature_width),
        reference_net.motion_features(latents[:, : config.motion_frames]),
        torch.ones(1, frames, window, device=device),
        Gestures(
            torch.zeros(1, frames, device=device),
            Head(random(1, frames, 2, side, side), latents, latents[:, :, :1].sigmoid()),
        ),
    )
    return partial(backbone, latents, torch.full((1,), 500, device=device), video, clip)


@torch.inference_mode()
def diffusers_step(
    config: ModelConfig, device: torch.device, dtype: torch.dtype
) -> Callable[[], Tensor]:
    """UNetMotionModel of the same widths, blocks, heads and groups."""
    from diffusers import UNetMotionModel

    unet, frames, side = config.unet, config.clip_frames, config.latent_size
    channels = config.autoencoder.latent_channels
    attends = [("CrossAttn" if there else "") for there in unet.attention]
    with device:
        network = UNetMotionModel(
            sample_size=side,
            in_channels=channels,
            out_channels=channels,
            down_block_types=tuple(f"{kind}DownBlockMotion" for kind in attends),
            up_block_types=tuple(f"{kind}UpBlockMotion" for kind in reversed(attends)),
            block_out_channels=unet.widths,
            layers_per_block=unet.layers_per_block,
            norm_num_groups=unet.norm_groups,
            cross_attention_dim=config.audio.token_width,
            num_attention_heads=unet.heads,
            motion_num_attention_heads=unet.heads,
            use_motion_mid_block=unet.temporal_in_middle,
        )
        network = on_device(network, device, dtype)
    random = partial(torch.randn, device=device, dtype=dtype)
    latents = random(1, channels, frames, side, side)
    text = random(frames, TEXT_TOKENS, config.audio.token_width)  # the same for every frame
    return lambda: network(latents, 500, text, return_dict=False)[0]


def compare(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, repeats: int
) -> dict[str, dict[str, float]]:
    """Times, counted GFLOP and rates of both, by name."""
    steps = {
        "emo": our_step(config, device, dtype),
        "diffusers": diffusers_step(config, device, dtype),
    }
    with torch.inference_mode():
        counts = {name: flops(step, device) for name, step in steps.items()}
        times = timings(steps, device, repeats)
    return {
        name: {
            "s": times[name].wall_s,
            "cpu_s": times[name].cpu_s,
            "gflop": counts[name] / 1e9,
            "gflop_per_s": counts[name] / times[name].wall_s / 1e9,
            "gflop_per_cpu_s": counts[name] / times[name].cpu_s / 1e9,
        }
        for name in steps
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", choices=["diffusers"], default="diffusers")
    parser.add_argument("--preset", choices=list(PRESETS), default="mini")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    dtype = choose_dtype(arguments.dtype, device)
    rates = machine_rates(device, dtype)
    rows = compare(PRESETS[arguments.preset], device, dtype, arguments.repeats)
    show(arguments.preset, device, dtype, rates, rows)


def show(
    preset: str,
    device: torch.device,
    dtype: torch.dtype,
    rates: dict[str, float],
    rows: dict[str, dict[str, float]],
) -> None:
    """A table for people, and a JSON line for programs."""
    print(f"{'one step':12}{'s':>9}{'cpu s':>9}{'GFLOP':>10}{'GFLOP/s':>10}{'of matmul':>11}")
    for name, row in rows.items():
        share = row["gflop_per_s"] / rates["matmul"]
        print(
            f"{name:12}{row['s']:9.3f}{row['cpu_s']:9.3f}{row['gflop']:10.1f}"
            f"{row['gflop_per_s']:10.1f}{share:11.2f}"
        )
    ours, theirs = rows["emo"], rows["diffusers"]
    per_flop = {
        clock: ours[f"gflop_per_{clock}"] / theirs[f"gflop_per_{clock}"] for clock in ("s", "cpu_s")
    }
    print(
        f"per FLOP ours is {per_flop['s']:.2f} times as fast ({per_flop['cpu_s']:.2f} by cpu s); "
        f"matmul {rates['matmul']:.0f}, convolution {rates['convolution']:.0f} GFLOP/s"
    )
    result = {
        "emo": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "preset": preset,
        "steps": rows,
        "per_flop": per_flop,
        "rates_gflop_per_s": rates,
        "peak_memory_mib": peak_memory_mib(device),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
