"""Stages `decoder` and `critic`: an autoencoder's decoder learns on while its encoder rests.

Latents stay what they were: models trained on them still fit. The absolute error alone is least
where fine hair is smooth and gaps between teeth are gone. So in the second stage a critic that sees
patches learns beside the decoder to tell drawn pictures from real ones (Isola et al. 2017; hinge
loss), and how far apart its features of both are counts too (Wang et al. 2018).

Legend: `B` batch, `S` crop size, `C` latent channels, `h w` latent size.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emo_cli.config import AutoencoderConfig
from emo_cli.model.autoencoder import PatchAutoencoder
from emo_cli.training.autoencoder_stage import (
    GRADIENT_WEIGHT,
    AutoencoderLoss,
    PictureTask,
    autoencoder_of,
    crop_samples,
    noisy_latents,
    reconstruction_losses,
)
from emo_cli.training.draws import derive_seed
from emo_cli.training.pictures import PictureCache

FEATURES_WEIGHT, CRITIC_WEIGHT = 0.06, 0.006
CRITIC_WIDTHS = (32, 64, 128)


class PatchCritic(nn.Module):
    """Real (above 0) or drawn (below 0), for each patch of 38 pixels."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, *CRITIC_WIDTHS)
        self.layers = nn.ModuleList(
            nn.Conv2d(width, wider, 4, stride=2, padding=1)
            for width, wider in zip(widths[:-1], widths[1:], strict=True)
        )
        self.verdict = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, pictures: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[B, 3, S, S] -> verdicts [B, 1, S / 8, S / 8], and the features of all layers."""
        x, features = pictures, []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.verdict(x), features


class CriticLoss(nn.Module):
    """The autoencoder and its critic, each judged by the other in one backward pass."""

    def __init__(self, autoencoder: PatchAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.critic = PatchCritic()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"picture": [B, 3, S, S], "seed": [B]} -> losses; noise as in `AutoencoderLoss`."""
        pictures = batch["picture"].contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            latents = noisy_latents(self.autoencoder.encode(pictures).float(), batch["seed"])
        drawn = self.autoencoder.decode(latents).float()
        pixel, gradient = reconstruction_losses(drawn, pictures)
        # The critic learns from drawn pictures as they are ...
        real, real_features = self.critic(pictures)
        fake, _ = self.critic(drawn.detach())
        critic = (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()) / 2
        # ... and the decoder from a critic as it is.
        resting = {name: p.detach() for name, p in self.critic.named_parameters()}
        verdict, features = torch.func.functional_call(self.critic, resting, (drawn,))
        apart = _apart(features, [x.detach() for x in real_features])
        seen_as_real = -verdict.float().mean()
        loss = pixel + GRADIENT_WEIGHT * gradient + critic
        loss = loss + FEATURES_WEIGHT * apart + CRITIC_WEIGHT * seen_as_real
        return {
            "loss": loss,
            "pixel": pixel,
            "gradient": gradient,
            "features": apart,
            "critic": critic,
        }


def _apart(features: list[Tensor], real: list[Tensor]) -> Tensor:
    """Mean over layers of the absolute difference, as a share of the real features' size."""
    shares = [
        (x.float() - y.float()).abs().mean() / y.float().abs().mean().clamp_min(1e-6)
        for x, y in zip(features, real, strict=True)
    ]
    return torch.stack(shares).mean()


class DecoderTask(PictureTask):
    """All that both stages bring to the loop."""

    def __init__(
        self,
        config: AutoencoderConfig,
        folder: Path,
        cache: PictureCache,
        seed: int,
        *,
        critic: bool,
    ) -> None:
        """Raises: EmoError when the folder's autoencoder is missing, damaged or another one."""
        from emo_cli.model.load import load_part  # imports every network

        autoencoder = PatchAutoencoder(config)
        load_part(folder, "autoencoder", autoencoder)
        torch.manual_seed(derive_seed(seed, "weights"))
        loss = CriticLoss(autoencoder) if critic else AutoencoderLoss(autoencoder)
        super().__init__(loss, crop_samples(cache))

    def export(self, module: nn.Module, folder: Path) -> None:
        """`autoencoder.safetensors` in fp16, of which the encoder is as it was."""
        from emo_cli.model.load import write_part

        folder.mkdir(parents=True, exist_ok=True)
        state = autoencoder_of(module).state_dict()
        write_part(folder, "autoencoder", state, dtype=torch.float16)
