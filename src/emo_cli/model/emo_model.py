"""All networks of one model, as one module and as the files of a model folder."""

from __future__ import annotations

from torch import nn

from emo_cli.audio import build_wav2vec
from emo_cli.config import ModelConfig
from emo_cli.model.autoencoder import build_autoencoder
from emo_cli.model.backbone import Backbone
from emo_cli.model.lip_reader import LipReader
from emo_cli.model.reference_net import ReferenceNet

# What each file of a model folder holds, and the stage of `emo train` that makes it.
PARTS = {
    "autoencoder": ("the autoencoder", "autoencoder"),
    "audio_encoder": ("the wav2vec encoder", "audio"),
    "lip_reader": ("the lips' reader", "lips"),
    "reference_net": ("ReferenceNet", "image"),
    "backbone": ("the Backbone", "image"),
    "temporal": ("the temporal modules and speed layers", "video"),
}


def parts_of(config: ModelConfig) -> list[str]:
    """The files of this model's folder, in the order in which they are made."""
    return [part for part in PARTS if part != "lip_reader" or config.unet.told_lips]


class EmoModel(nn.Module):
    """Autoencoder, audio encoder, ReferenceNet and Backbone with everything inside it; and the
    lips' reader, where a model is told its lips."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.autoencoder = build_autoencoder(config.autoencoder)
        self.audio_encoder = build_wav2vec(config.audio)
        reads = config.audio.hidden_width, config.window
        self.lip_reader = LipReader(*reads) if config.unet.told_lips else None
        self.reference_net = ReferenceNet(config.unet, config.autoencoder.latent_channels)
        self.backbone = Backbone(config)


def part_of(name: str) -> str:
    """The file that the parameter `name` of an `EmoModel` belongs to.

    Stage 3 trains exactly the part `temporal` (EMO sec. 3.3).
    """
    if ".motion_modules." in name or name.startswith("backbone.speed_encoder."):
        return "temporal"
    return name.partition(".")[0]


def key_in_file(name: str) -> str:
    """A parameter's name inside its part's file: without the network's own prefix."""
    return name.partition(".")[2]
