"""Pictures to latents and back, for both presets, behind one interface.

Legend: `N` pictures, `H W` picture size, `h w` latent size (H / 8, W / 8), `C` latent channels,
`P` patches. Pictures are RGB in [-1, 1]; latents are scaled: their std is about 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from emo_cli.config import AutoencoderConfig
from emo_cli.errors import EmoError

# sd-vae-ft-mse is published with the attention names of an older diffusers.
OLD_ATTENTION_NAMES = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity; [N, W, h, w] -> the same shape, >= 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _conv(width, width)
        self.conv2 = _conv(width, width)
        nn.init.zeros_(self.conv2.weight)  # starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        change = self.conv2(functional.relu(self.conv1(x), inplace=True))
        return functional.relu(x + change, inplace=True)


class HalvingConv(nn.Conv2d):
    """A 3x3 convolution of pixel-unshuffled maps: [N, width, H, W] -> [N, wider, H / 2, W / 2].

    The same as a 6x6 one with stride 2 on the input itself, which needs no unshuffling: on a CPU
    in bf16 that alone took twice the time of the convolution.
    """

    def __init__(self, width: int, wider: int) -> None:
        super().__init__(4 * width, wider, 3, padding=1)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        kernel = functional.pixel_shuffle(self.weight, 2)
        return functional.conv2d(x, kernel, self.bias, stride=2, padding=2)


class PatchEncoder(nn.Sequential):
    """[N, 3, H, W] -> [N, C, h, w]; every level begins with a `HalvingConv`.

    So none works at the full picture size, where the time would go.
    """

    def __init__(self, widths: tuple[int, ...], blocks: tuple[int, ...], channels: int) -> None:
        layers: list[nn.Module] = []
        width = 3
        for wider, num_blocks in zip(widths, blocks, strict=True):
            # The first does nothing: files name layers by their place.
            layers += [nn.Identity(), HalvingConv(width, wider), nn.ReLU(inplace=True)]
            layers += [ResidualBlock(wider) for _ in range(num_blocks)]
            width = wider
        super().__init__(*layers, _zero(_conv(width, channels)))


class PatchDecoder(nn.Sequential):
    """[N, C, h, w] -> [N, 3, H, W]; the encoder's mirror. Widths run from fine to coarse."""

    def __init__(self, widths: tuple[int, ...], blocks: tuple[int, ...], channels: int) -> None:
        layers: list[nn.Module] = [_conv(channels, widths[-1]), nn.ReLU(inplace=True)]
        layers += [ResidualBlock(widths[-1]) for _ in range(blocks[-1])]
        for level in reversed(range(len(widths) - 1)):
            up = _conv(widths[level + 1], 4 * widths[level])
            layers += [up, nn.PixelShuffle(2), nn.ReLU(inplace=True)]
            layers += [ResidualBlock(widths[level]) for _ in range(blocks[level])]
        super().__init__(*layers, _zero(_conv(widths[0], 12)), nn.PixelShuffle(2))


class PatchAutoencoder(nn.Module):
    """The small autoencoder: networks that correct the PCA of 8x8 patches.

    The linear path alone, set in closed form, is better than the networks alone after hours on a
    CPU; the networks' last layers start at zero, so training begins at the PCA's quality.
    """

    reach: int | None = 2  # latents: those farther off change a byte by 1 at most, in `mini`

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        if 2 ** len(config.encoder_widths) != config.factor:
            raise EmoError(
                f"{len(config.encoder_widths)} encoder widths do not make factor {config.factor}",
                "Each width of a 'patch' autoencoder halves the picture once.",
            )
        channels, factor = config.latent_channels, config.factor
        self.config = config
        self.scaling = config.scaling
        self.encoder = PatchEncoder(config.encoder_widths, config.encoder_blocks, channels)
        self.decoder = PatchDecoder(config.decoder_widths, config.decoder_blocks, channels)
        self.linear_encoder = nn.Conv2d(3, channels, factor, stride=factor)
        # 3x3 latents make one patch: the neighbours' taps start at zero and learn to join patches.
        self.linear_decoder = nn.Conv2d(
            channels, 3 * factor**2, 3, padding=1, padding_mode="replicate"
        )
        self.place_patches = nn.PixelShuffle(factor)

    def encode(self, pictures: Tensor) -> Tensor:
        """[N, 3, H, W] in [-1, 1] -> scaled latents [N, C, h, w]; H and W divide by the factor."""
        return self.scaling * (self.linear_encoder(pictures) + self.encoder(pictures))

    def decode(self, latents: Tensor, *, slice_size: int | None = None) -> Tensor:
        """Scaled latents [N, C, h, w] -> pictures [N, 3, H, W], about [-1, 1], not clamped.

        `slice_size` pictures at a time; None: all at once. 3 is fastest on a CPU, where larger
        tensors are mapped into memory anew at every call.
        """
        return _in_slices(self._decode, latents / self.scaling, slice_size)

    def _decode(self, latents: Tensor) -> Tensor:
        return self.place_patches(self.linear_decoder(latents)) + self.decoder(latents)

    @torch.no_grad()
    def initialise_from_patches(self, pictures: Tensor) -> None:
        """Set the linear path to the PCA of the pictures' patches; pictures [N, 3, H, W]."""
        channels, _, size, _ = self.linear_encoder.weight.shape
        weight, bias, inverse, mean = patch_pca(pictures, channels, size)
        self.linear_encoder.weight.copy_(weight / self.scaling)
        self.linear_encoder.bias.copy_(bias / self.scaling)  # type: ignore[union-attr]
        self.linear_decoder.weight.zero_()
        self.linear_decoder.weight[:, :, 1, 1] = self.scaling * inverse.flatten(1).T
        self.linear_decoder.bias.copy_(mean.repeat_interleave(size**2))  # type: ignore[union-attr]

    @torch.no_grad()
    def rescale_latents(self, factor: float) -> None:
        """Multiply all latents by `factor`; reconstructions stay what they are."""
        for layer in (self.linear_encoder, self.encoder[-1]):
            layer.weight.mul_(factor)  # type: ignore[operator, union-attr]
            layer.bias.mul_(factor)  # type: ignore[operator, union-attr]
        for layer in (self.linear_decoder, self.decoder[0]):
            layer.weight.div_(factor)  # type: ignore[operator, union-attr]


class KLAutoencoder(nn.Module):
    """diffusers' AutoencoderKL under the file's parameter names; the posterior's mode, scaled."""

    reach: int | None = None  # attention and norms: every place depends on all latents

    def __init__(self, config: AutoencoderConfig) -> None:
        from diffusers import AutoencoderKL  # slow to import, and mini does without

        super().__init__()
        widths, blocks = config.encoder_widths, set(config.encoder_blocks + config.decoder_blocks)
        if config.decoder_widths != widths or len(blocks) != 1:
            raise EmoError(
                "a 'kl' autoencoder has equal widths and blocks on both sides",
                "Get the model folder again.",
            )
        vae: Any = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=widths,
            layers_per_block=blocks.pop(),
            latent_channels=config.latent_channels,
        )
        self.scaling = config.scaling
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv

    def encode(self, pictures: Tensor) -> Tensor:
        """[N, 3, H, W] in [-1, 1] -> scaled latents [N, C, h, w]; H and W divide by the factor."""
        mean, _ = self.quant_conv(self.encoder(pictures)).chunk(2, dim=1)
        return self.scaling * mean

    def decode(self, latents: Tensor, *, slice_size: int | None = None) -> Tensor:
        """Scaled latents [N, C, h, w] -> pictures [N, 3, H, W], about [-1, 1], not clamped.

        `slice_size` pictures at a time; None: all at once.
        """
        return _in_slices(self._decode, latents / self.scaling, slice_size)

    def _decode(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents))


def build_autoencoder(config: AutoencoderConfig) -> PatchAutoencoder | KLAutoencoder:
    """The autoencoder that the config names, with fresh weights."""
    return KLAutoencoder(config) if config.kind == "kl" else PatchAutoencoder(config)


def rename_old_attention(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A diffusers VAE's tensors under today's attention names; other names stay as they are.

    Raises: EmoError when a file has the same tensor under both names.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new_name = _new_attention_name(name)
        if new_name in renamed:
            raise EmoError(f"the VAE file has '{new_name}' twice", "Get the VAE file again.")
        renamed[new_name] = tensor
    return renamed


def patch_pca(pictures: Tensor, channels: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Principal components of size x size patches, about the mean colour, as convolutions.

    Channel i has std g * sqrt(s_i), where s_i is the std of component i and g makes the overall
    std 1. Whitening (std 1 each) would let latent noise hit brightness as hard as fine detail;
    1 / sqrt(s_i) is the scaling that loses least to noise of equal strength in every channel.

    Returns: encoder weight [C, 3, size, size] and bias [C]; the patch that one unit of each
    channel adds, [C, 3, size, size]; the mean colour [3].
    """
    patches = functional.pixel_unshuffle(pictures.double(), size)  # [N, 3 * size**2, h, w]
    patches = patches.permute(0, 2, 3, 1).flatten(0, 2)  # [P, 3 * size**2]
    mean = patches.unflatten(1, (3, -1)).mean(dim=(0, 2))  # [3]
    centred = patches - mean.repeat_interleave(size**2)
    variance, components = torch.linalg.eigh(centred.T @ centred / len(centred))
    variance, components = variance.flip(0)[:channels], components.flip(1)[:, :channels].T
    components *= components.sum(dim=1, keepdim=True).sign()  # brighter is positive
    std = variance.clamp(min=1e-12).sqrt()
    gain = 1 / (std * std.mean()).sqrt()  # [C]; the mean of (gain * std)**2 is 1
    weight = (gain[:, None] * components).unflatten(1, (3, size, size))
    inverse = (components / gain[:, None]).unflatten(1, (3, size, size))
    bias = -(weight.sum(dim=(2, 3)) @ mean)
    dtype = pictures.dtype
    return weight.to(dtype), bias.to(dtype), inverse.to(dtype), mean.to(dtype)


def _new_attention_name(name: str) -> str:
    block, _, rest = name.partition(".mid_block.attentions.0.")
    layer, _, kind = rest.rpartition(".")
    if layer not in OLD_ATTENTION_NAMES:
        return name
    return f"{block}.mid_block.attentions.0.{OLD_ATTENTION_NAMES[layer]}.{kind}"


def _in_slices(
    decode: Callable[[Tensor], Tensor], latents: Tensor, slice_size: int | None
) -> Tensor:
    if slice_size is None or len(latents) <= slice_size:
        return decode(latents)
    return torch.cat([decode(part) for part in latents.split(slice_size)])


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return _initialise(nn.Conv2d(inputs, outputs, 3, padding=1))


def _initialise(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


def _zero(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(conv.weight)
    return conv
