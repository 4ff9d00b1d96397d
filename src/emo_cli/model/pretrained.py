"""The published parents of `full`: SD 1.5, AnimateDiff, wav2vec2, by explicit key maps.

Strict: every tensor of a parent's file is used or listed here as not needed; every parameter of
ours comes from a parent or is listed here as new. New layers keep their silent start.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from emo_cli.config import ModelConfig
from emo_cli.errors import EmoError
from emo_cli.model.autoencoder import rename_old_attention
from emo_cli.model.backbone import Backbone
from emo_cli.model.emo_model import EmoModel
from emo_cli.model.layers import sinusoid
from emo_cli.model.load import check_finite, check_keys
from emo_cli.model.reference_net import ReferenceNet
from emo_cli.weights import weights_path

# Parameters of the Backbone that no parent has (EMO sec. 3.2), by part of their name.
NEW_IN_BACKBONE = (
    ".attn2.to_out.",
    ".norm_audio.",
    ".attn_audio.",
    "face_locator.",
    "audio_projector.",
    "speed_encoder.",
    ".motion_modules.",
)
NEW_IN_TEMPORAL = (".norm_speed.", ".attn_speed.")
BEHIND_LAST_TAP = ("conv_norm_out.", "conv_out.")


@dataclass(frozen=True, kw_only=True)
class Parents:
    """The safetensors files that `full` is born from."""

    unet: Path
    vae: Path
    motion: Path
    wav2vec: Path


def downloaded_parents() -> Parents:
    """What `emo download full` brought, verified.

    Raises: EmoError that names the command, when a file is missing or damaged.
    """
    model = "diffusion_pytorch_model.safetensors"
    return Parents(
        unet=weights_path(f"full/unet/{model}"),
        vae=weights_path(f"full/vae/{model}"),
        motion=weights_path(f"full/motion/{model}"),
        wav2vec=weights_path("full/wav2vec2/model.safetensors"),
    )


def model_from_parents(config: ModelConfig, parents: Parents) -> EmoModel:
    """A model before its first stage: the parents' weights, and silent new layers."""
    model = EmoModel(config)
    unet = _read(parents.unet)
    load_sd_into_backbone(model.backbone, unet)
    load_sd_into_reference_net(model.reference_net, unet)
    load_animatediff(model.backbone, _read(parents.motion))
    load_vae(model.autoencoder, _read(parents.vae))
    load_wav2vec(model.audio_encoder, _read(parents.wav2vec))
    return model.eval()


def load_sd_into_backbone(backbone: Backbone, unet: dict[str, Tensor]) -> None:
    """SD 1.5's `unet/` in diffusers layout.

    Text cross-attention is dropped. Reference-attention starts from the self-attention of the
    same block, because the text's key and value widths do not fit; its output starts at zero.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in unet.items():
        if ".attn2." in name:
            continue
        tensors[name] = _linear(name, tensor)
        if ".attn1.to_" in name and ".to_out." not in name:
            tensors[name.replace(".attn1.", ".attn2.")] = tensor
    _assign(backbone, tensors, "SD 1.5 U-Net", new=NEW_IN_BACKBONE)


def load_sd_into_reference_net(network: ReferenceNet, unet: dict[str, Tensor]) -> None:
    """The same file; without text cross-attention and what lies behind the last tapped layer."""
    tensors = {
        name: _linear(name, tensor)
        for name, tensor in unet.items()
        if ".attn2." not in name and not name.startswith(BEHIND_LAST_TAP)
    }
    _assign(network, tensors, "SD 1.5 U-Net", new=())


def load_animatediff(backbone: Backbone, tensors: dict[str, Tensor]) -> None:
    """AnimateDiff v1.5 motion modules: diffusers' adapter or the original key names.

    The file's position table must be the one we compute; speed layers stay new.
    """
    renamed = {_animatediff_name(name): tensor for name, tensor in tensors.items()}
    for name in [n for n in renamed if n.endswith(".pe")]:
        _check_positions(name, renamed.pop(name))
    modules = {
        name: parameter
        for name, parameter in backbone.state_dict().items()
        if ".motion_modules." in name and not _any_in(NEW_IN_TEMPORAL, name)
    }
    check_keys(modules, renamed, "AnimateDiff")
    backbone.load_state_dict(renamed, strict=False)


def load_vae(autoencoder: nn.Module, tensors: dict[str, Tensor]) -> None:
    """An SD VAE in diffusers layout, under old or new attention names."""
    _assign(autoencoder, rename_old_attention(tensors), "SD VAE", new=())


def load_wav2vec(encoder: nn.Module, tensors: dict[str, Tensor]) -> None:
    """wav2vec2-base-960h: with its CTC head's prefix, and under old or new weight-norm names."""
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith("lm_head.") or name.endswith("masked_spec_embed"):
            continue  # the CTC head and the mask of pre-training are not used
        name = name.removeprefix("wav2vec2.")
        name = name.replace("conv.weight_g", "conv.parametrizations.weight.original0")
        renamed[name.replace("conv.weight_v", "conv.parametrizations.weight.original1")] = tensor
    _assign(encoder, renamed, "wav2vec2", new=("masked_spec_embed",))


def _animatediff_name(name: str) -> str:
    """Original key names (`mm_sd_v15_v2.ckpt`) and old ones of diffusers -> ours."""
    for old, new in (
        ("module.", ""),
        (".temporal_transformer.", "."),
        (".attention_blocks.0.pos_encoder.", ".pos_embed."),
        (".attention_blocks.1.pos_encoder.", ".pos_embed_2."),
        (".attention_blocks.0.", ".attn1."),
        (".attention_blocks.1.", ".attn2."),
        (".norms.0.", ".norm1."),
        (".norms.1.", ".norm2."),
        (".ff_norm.", ".norm3."),
    ):
        name = name.removeprefix(old) if old == "module." else name.replace(old, new)
    return name


def _check_positions(name: str, table: Tensor) -> None:
    ours = sinusoid(table.shape[-2], table.shape[-1], like=torch.zeros(()))
    if not torch.allclose(table.float().reshape(ours.shape), ours, atol=2e-3):  # stored in fp16
        raise EmoError(f"AnimateDiff: {name} is not its sinusoid", "Is it a v1.5 motion module?")


def _linear(name: str, tensor: Tensor) -> Tensor:
    """SD 1.5 stores the projections around its transformers as 1x1 convolutions."""
    is_projection = name.endswith((".proj_in.weight", ".proj_out.weight"))
    return tensor[:, :, 0, 0] if is_projection and tensor.dim() == 4 else tensor


def _any_in(patterns: tuple[str, ...], name: str) -> bool:
    return any(pattern in name for pattern in patterns)


def _assign(
    module: nn.Module, tensors: dict[str, Tensor], source: str, *, new: tuple[str, ...]
) -> None:
    expected = {n: t for n, t in module.state_dict().items() if not _any_in(new, n)}
    check_keys(expected, tensors, source)
    module.load_state_dict(tensors, strict=False)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise EmoError(f"cannot read {file}: {error}", "Run `emo download full` again.") from error
    check_finite(tensors, file)
    return tensors
