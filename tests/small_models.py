"""Small configs of both presets' layouts, for tests."""

import dataclasses

import torch

from emo_cli.config import ModelConfig
from emo_cli.model.emo_model import EmoModel
from emo_cli.model.load import save_model
from emo_cli.presets import FULL, MINI

# SD 1.5's layout (four levels, no attention on the last) with few channels.
SMALL_UNET = dataclasses.replace(
    FULL.unet,
    widths=(16, 32, 32, 32),
    heads=(2, 2, 2, 2),
    norm_groups=8,
    time_width=64,
)
SMALL_AUDIO = dataclasses.replace(
    FULL.audio,
    conv_dim=(8,) * 7,
    hidden_width=16,
    num_layers=2,
    num_heads=2,
    feed_forward_width=32,
    position_kernel=4,
    position_groups=2,
    projector_frame_width=8,
    projector_width=16,
    num_tokens=3,
    token_width=12,
)
SMALL_FULL: ModelConfig = dataclasses.replace(
    FULL,
    name="full",
    picture_size=64,
    frame_size=64,
    unet=SMALL_UNET,
    autoencoder=dataclasses.replace(
        FULL.autoencoder,
        encoder_widths=(32, 32, 32, 32),
        encoder_blocks=(1, 1, 1, 1),
        decoder_widths=(32, 32, 32, 32),
        decoder_blocks=(1, 1, 1, 1),
    ),
    audio=SMALL_AUDIO,
    face_locator_widths=(4, 8, 8),
)
SMALL_MINI: ModelConfig = dataclasses.replace(
    MINI,
    name="mini",
    picture_size=64,
    frame_size=64,
    unet=dataclasses.replace(MINI.unet, widths=(16, 32, 32), norm_groups=8, time_width=32),
    autoencoder=dataclasses.replace(
        MINI.autoencoder, encoder_widths=(8, 8, 8), decoder_widths=(8, 8, 8)
    ),
    audio=dataclasses.replace(
        SMALL_AUDIO, conv_bias=True, feature_norm="layer", stable_layer_norm=True
    ),
    # One forward a step, as most tests are about something else.
    diffusion=dataclasses.replace(MINI.diffusion, steps=8, audio_guidance=1.0),
    face_locator_widths=(4, 4, 4),
)


def randomised(module: torch.nn.Module, seed: int = 0, scale: float = 0.05) -> torch.nn.Module:
    """The same module with every parameter random, so that no zero start hides a fault."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(scale * noise + (1.0 if parameter.dim() == 1 else 0.0) * 0.5)
    return module.eval()


def save_small(folder, config=SMALL_MINI, **changes):
    """A random model of `config`, with every part's weights random, as a model folder."""
    stages = ("autoencoder", "audio", "image", "video", "speed")
    trained = {"untrained": False, "trained_stages": stages}
    torch.manual_seed(0)
    model = EmoModel(dataclasses.replace(config, **(trained | changes)))
    randomised(model.backbone, 1)
    randomised(model.reference_net, 2)
    save_model(model, folder, dtype=torch.float32)
    return folder
