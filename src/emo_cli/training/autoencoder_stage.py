"""Stage `autoencoder`: mini's small autoencoder learns pictures from the PCA of their patches.

Legend: `B` batch, `S` crop size, `C` latent channels, `h w` latent size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from emo_cli.config import AutoencoderConfig
from emo_cli.errors import EmoError
from emo_cli.model.autoencoder import KLAutoencoder, PatchAutoencoder
from emo_cli.training.draws import Draw, derive_seed, sample_noise, sample_uniform
from emo_cli.training.pictures import PictureCache, Stored, random_crop, whole_picture

CROP = 96  # pixels
NOISE = (0.05, 0.15)  # of the latents' std; a few-step sampler leaves about 10 %
GRADIENT_WEIGHT = 0.5
PCA_CROPS = 768
VALIDATION_PER_SOURCE = 12  # pictures; `emo train` reports all of them at the end
PICTURE_SIZE = 256


class CropSamples:
    """Random crops; sources are drawn equally often, so that a large one does not drown others."""

    def __init__(self, cache: PictureCache) -> None:
        self.cache = cache
        found = [cache.files(s, held_out=False) for s in range(len(cache.source_names))]
        self.sources = [files for files in found if files]

    def __len__(self) -> int:
        return len(self.sources) * max((len(files) for files in self.sources), default=0)

    def __getitem__(self, drawn: Draw) -> dict[str, Tensor]:
        place, source = divmod(drawn.index, len(self.sources))
        files = self.sources[source]
        frames = files[place % len(files)]
        frame = frames[derive_seed(drawn.seed, "frame") % len(frames)]
        crop = random_crop(self.cache[frame], CROP, derive_seed(drawn.seed, "crop"))
        return {"picture": torch.from_numpy(crop)}


class AutoencoderLoss(nn.Module):
    """The autoencoder and what it is judged by while it trains."""

    def __init__(self, autoencoder: PatchAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"picture": [B, 3, S, S], "seed": [B]} -> losses.

        Noise of 5 to 15 % of the latents' std is added, as a sampler will: the encoder learns a
        code that bears it, the decoder to remove it.
        """
        pictures = batch["picture"].contiguous(memory_format=torch.channels_last)
        # Losses in fp32 also where the networks compute in bf16.
        latents = self.autoencoder.encode(pictures).float()  # [B, C, h, w]
        std = latents.std()
        decoded = self.autoencoder.decode(noisy_latents(latents, batch["seed"])).float()
        pixel, gradient = reconstruction_losses(decoded, pictures)
        # Noise follows the std, so nothing else would hold the latents' scale in place.
        scale = 0.01 * std.log().square()
        loss = pixel + GRADIENT_WEIGHT * gradient + scale
        return {"loss": loss, "pixel": pixel, "gradient": gradient, "latent_std": std}


def noisy_latents(latents: Tensor, seeds: Tensor) -> Tensor:
    """Latents [B, C, h, w] as a sampler leaves them: with noise of a share of their std."""
    share = sample_uniform(seeds, "strength", latents)
    strength = latents.std() * (NOISE[0] + (NOISE[1] - NOISE[0]) * share)  # [B]
    noise = sample_noise(seeds, "noise", tuple(latents.shape[1:]), latents)
    return latents + strength[:, None, None, None] * noise


def reconstruction_losses(decoded: Tensor, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Mean absolute error of pixels, and of differences between neighbouring pixels."""
    error = decoded - pictures
    across = (error[..., :, 1:] - error[..., :, :-1]).abs().mean()
    down = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return error.abs().mean(), across + down


class PictureTask:
    """What stages that learn from pictures bring to the loop, whatever their loss."""

    def __init__(self, module: nn.Module, samples: CropSamples) -> None:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.module = module
        self.samples = samples
        self.cache = samples.cache

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """PSNR in dB on held-out people, per source; also with 10 % noise on the latents."""
        measures: dict[str, float] = {}
        for source, name in enumerate(self.cache.source_names):
            files = self.cache.files(source, held_out=True)
            step = max(1, len(files) // VALIDATION_PER_SOURCE)
            frames = [frames[0] for frames in files][::step][:VALIDATION_PER_SOURCE]
            if frames:
                clean, noisy = self.psnr(autoencoder_of(module), frames)
                measures |= {f"psnr_{name}": clean, f"psnr_noise10_{name}": noisy}
        return measures

    def psnr(self, autoencoder: PatchAutoencoder, frames: list[Stored]) -> tuple[float, float]:
        """Mean PSNR in dB of frames at 256 pixels, of clean latents and with 10 % noise."""
        device = next(autoencoder.parameters()).device
        return clean_and_noisy_psnr(autoencoder, self._validation_pictures(frames).to(device))

    def _validation_pictures(self, frames: list[Stored]) -> Tensor:
        pictures = [whole_picture(self.cache[frame], PICTURE_SIZE) for frame in frames]
        return torch.from_numpy(np.stack(pictures))


class AutoencoderTask(PictureTask):
    """All that stage `autoencoder` brings to the loop."""

    def __init__(self, config: AutoencoderConfig, cache: PictureCache, seed: int) -> None:
        samples = crop_samples(cache)
        torch.manual_seed(derive_seed(seed, "weights"))
        autoencoder = PatchAutoencoder(config)
        draws = [Draw(i % len(samples), derive_seed(seed, "pca", i)) for i in range(PCA_CROPS)]
        crops = torch.stack([samples[drawn]["picture"] for drawn in draws])
        autoencoder.initialise_from_patches(crops)
        super().__init__(AutoencoderLoss(autoencoder), samples)

    def export(self, module: nn.Module, folder: Path) -> None:
        """`autoencoder.safetensors` in fp16, latents scaled to std 1 on held-out pictures."""
        from emo_cli.model.load import write_part  # imports every network

        trained = autoencoder_of(module)
        autoencoder = PatchAutoencoder(trained.config)
        autoencoder.load_state_dict(trained.state_dict())
        held_out = [
            frames[0]
            for source in range(len(self.cache.source_names))
            for frames in self.cache.files(source, held_out=True)
        ]
        if held_out:
            pictures = self._validation_pictures(held_out)
            with torch.no_grad():
                latents = torch.cat([autoencoder.encode(p) for p in pictures.split(3)])
            autoencoder.rescale_latents(1 / latents.std().item())
        folder.mkdir(parents=True, exist_ok=True)
        write_part(folder, "autoencoder", autoencoder.state_dict(), dtype=torch.float16)


def crop_samples(cache: PictureCache) -> CropSamples:
    """Raises: EmoError when nothing is left to learn from."""
    samples = CropSamples(cache)
    if len(samples) == 0:
        raise EmoError(
            "all pictures belong to people held out for validation", "Name more folders."
        )
    return samples


def autoencoder_of(module: nn.Module) -> PatchAutoencoder:
    """The network that a task's module trains."""
    assert isinstance(module.autoencoder, PatchAutoencoder)
    return module.autoencoder


def clean_and_noisy_psnr(
    autoencoder: PatchAutoencoder | KLAutoencoder, pictures: Tensor
) -> tuple[float, float]:
    """Mean PSNR in dB of pictures [N, 3, S, S]: of their latents, and with 10 % noise on them."""
    latents = torch.cat([autoencoder.encode(p) for p in pictures.split(3)])
    seeds = torch.tensor([derive_seed("validation", i) for i in range(len(latents))])
    noise = sample_noise(seeds, "noise", tuple(latents.shape[1:]), latents)
    clean = autoencoder.decode(latents, slice_size=3)
    noisy = autoencoder.decode(latents + 0.1 * latents.std() * noise, slice_size=3)
    return mean_psnr(clean, pictures), mean_psnr(noisy, pictures)


def mean_psnr(decoded: Tensor, pictures: Tensor) -> float:
    """Mean over pictures of the PSNR in dB, as 8-bit pictures: rounded and clamped."""
    rounded = ((decoded.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    error = ((rounded - pictures) / 2).square().flatten(1).mean(dim=1)
    return (-10 * error.log10()).mean().item()
