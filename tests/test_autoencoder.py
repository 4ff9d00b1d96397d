"""The autoencoders: their linear path, their shapes, and parity with diffusers."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from emo_cli.errors import EmoError
from emo_cli.model.autoencoder import (
    HalvingConv,
    KLAutoencoder,
    PatchAutoencoder,
    build_autoencoder,
    rename_old_attention,
)
from emo_cli.presets import FULL, MINI

SMALL = dataclasses.replace(
    MINI.autoencoder,
    latent_channels=6,
    encoder_widths=(8, 12, 16),
    encoder_blocks=(1, 0, 1),
    decoder_widths=(8, 12, 16),
    decoder_blocks=(0, 1, 1),
)
SMALL_KL = dataclasses.replace(
    FULL.autoencoder,
    factor=2,
    encoder_widths=(32, 64),
    encoder_blocks=(1, 1),
    decoder_widths=(32, 64),
    decoder_blocks=(1, 1),
)


def smooth_pictures(num: int = 4, size: int = 64, seed: int = 0) -> torch.Tensor:
    """Random smooth pictures in [-1, 1]: neighbouring pixels agree, as in photographs."""
    noise = torch.randn(num, 3, size // 8 + 1, size // 8 + 1, generator=_generator(seed))
    smooth = torch.nn.functional.interpolate(noise, size=size, mode="bicubic")
    fine = 0.05 * torch.randn(num, 3, size, size, generator=_generator(seed + 1))
    return (0.2 + 0.4 * smooth + fine).clamp(-1, 1)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _patches(pictures: torch.Tensor) -> np.ndarray:
    """[N, 3, H, W] -> [P, 3 * 8 * 8], written with loops over places, not with unshuffle."""
    n, _, height, width = pictures.shape
    array = pictures.double().numpy()
    rows = [
        array[i, :, y : y + 8, x : x + 8].reshape(-1)
        for i in range(n)
        for y in range(0, height, 8)
        for x in range(0, width, 8)
    ]
    return np.stack(rows)


def test_fresh_patch_autoencoder_reconstructs_like_an_svd_of_the_patches():
    pictures = smooth_pictures()
    model = PatchAutoencoder(SMALL)
    model.initialise_from_patches(pictures)

    patches = _patches(pictures)
    mean = np.repeat(pictures.double().mean(dim=(0, 2, 3)).numpy(), 64)
    _, _, basis = np.linalg.svd(patches - mean, full_matrices=False)
    basis = basis[:6]
    expected = (patches - mean) @ basis.T @ basis + mean

    with torch.no_grad():
        decoded = model.decode(model.encode(pictures))
    np.testing.assert_allclose(_patches(decoded), expected, atol=2e-5)


def test_pca_channels_have_the_square_root_of_their_component_std_and_overall_std_one():
    pictures = smooth_pictures()
    model = PatchAutoencoder(SMALL)
    model.initialise_from_patches(pictures)
    with torch.no_grad():
        latents = model.encode(pictures)
    power = latents.double().square().mean(dim=(0, 2, 3)).numpy()

    patches = _patches(pictures)
    mean = np.repeat(pictures.double().mean(dim=(0, 2, 3)).numpy(), 64)
    std = np.linalg.svd(patches - mean, compute_uv=False)[:6] / np.sqrt(len(patches))
    np.testing.assert_allclose(power, std / std.mean(), rtol=1e-4)
    assert power.mean() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (8, 24), (72, 40)])
def test_any_size_that_divides_by_eight_passes(size):
    model = PatchAutoencoder(MINI.autoencoder)
    with torch.no_grad():
        latents = model.encode(torch.zeros(2, 3, *size))
        pictures = model.decode(latents)
    assert latents.shape == (2, 16, size[0] // 8, size[1] // 8)
    assert pictures.shape == (2, 3, *size)


def test_a_halving_convolution_is_one_of_the_unshuffled_picture():
    torch.manual_seed(0)
    conv = HalvingConv(5, 7)
    x = torch.randn(2, 5, 12, 8, generator=_generator(1))
    unshuffled = torch.nn.functional.pixel_unshuffle(x, 2)
    expected = torch.nn.functional.conv2d(unshuffled, conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(conv(x), expected)


def test_slices_and_memory_format_do_not_change_the_pictures():
    torch.manual_seed(0)
    model = PatchAutoencoder(SMALL)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    latents = torch.randn(5, 6, 4, 4, generator=_generator(3))
    with torch.no_grad():
        whole = model.decode(latents)
        sliced = model.decode(latents, slice_size=2)
        model.to(memory_format=torch.channels_last)
        last = model.decode(latents.to(memory_format=torch.channels_last), slice_size=3)
    torch.testing.assert_close(sliced, whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(last, whole, atol=1e-5, rtol=0)


def test_every_parameter_learns_after_the_first_steps():
    torch.manual_seed(0)
    pictures = smooth_pictures(2, 32)
    model = PatchAutoencoder(SMALL)
    model.initialise_from_patches(pictures)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        (model.decode(model.encode(pictures)) - 2 * pictures).square().mean().backward()
        optimizer.step()
    still = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
    assert still == []


def test_rescaled_latents_decode_to_the_same_pictures():
    torch.manual_seed(0)
    model = PatchAutoencoder(dataclasses.replace(SMALL, scaling=0.7))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pictures = smooth_pictures(2, 32)
    with torch.no_grad():
        latents = model.encode(pictures)
        decoded = model.decode(latents)
        model.rescale_latents(1.5)
        torch.testing.assert_close(model.encode(pictures), 1.5 * latents)
        torch.testing.assert_close(model.decode(1.5 * latents), decoded, atol=1e-5, rtol=1e-5)


def test_mini_autoencoder_keeps_to_its_size_budget():
    model = build_autoencoder(MINI.autoencoder)
    halves = {"encoder": 0, "decoder": 0}
    for name, parameter in model.named_parameters():
        halves[name.split(".")[0].removeprefix("linear_")] += parameter.numel()
    assert halves["encoder"] <= 0.95e6
    assert halves["decoder"] <= 2.1e6


def test_widths_that_do_not_make_the_factor_are_refused():
    with pytest.raises(EmoError, match="factor 4"):
        PatchAutoencoder(dataclasses.replace(SMALL, factor=4))


@pytest.fixture
def kl_pair() -> tuple[AutoencoderKL, KLAutoencoder]:
    torch.manual_seed(1)
    oracle = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64),
        layers_per_block=1,
        latent_channels=4,
    ).eval()
    model = build_autoencoder(SMALL_KL)
    assert isinstance(model, KLAutoencoder)
    return oracle, model


def test_kl_autoencoder_equals_diffusers_on_shared_weights(kl_pair):
    oracle, model = kl_pair
    model.load_state_dict(oracle.state_dict(), strict=True)
    pictures = smooth_pictures(3, 16)
    with torch.no_grad():
        mode = oracle.encode(pictures).latent_dist.mode()
        latents = model.encode(pictures)
        torch.testing.assert_close(latents, 0.18215 * mode, atol=1e-5, rtol=0)
        decoded = model.decode(latents, slice_size=2)
        torch.testing.assert_close(decoded, oracle.decode(mode).sample, atol=1e-5, rtol=0)


def test_kl_autoencoder_loads_the_old_attention_names_strictly(kl_pair):
    oracle, model = kl_pair
    new_to_old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, tensor in oracle.state_dict().items():
        for new_part, old_part in new_to_old.items():
            name = name.replace(f".{new_part}.", f".{old_part}.")
        old[name] = tensor
    assert old.keys() != oracle.state_dict().keys()
    model.load_state_dict(rename_old_attention(old), strict=True)
    renamed = rename_old_attention(dict(oracle.state_dict()))
    assert renamed.keys() == oracle.state_dict().keys()


def test_a_tensor_under_both_names_is_refused():
    names = [f"encoder.mid_block.attentions.0.{n}.weight" for n in ("query", "to_q")]
    with pytest.raises(EmoError, match="twice"):
        rename_old_attention({name: torch.zeros(1) for name in names})


def test_full_autoencoder_has_the_names_and_shapes_of_sd_vae_ft_mse():
    with torch.device("meta"):
        model = build_autoencoder(FULL.autoencoder)
        oracle = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
        )
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in oracle.state_dict().items()}
    assert sum(shape.numel() for shape in shapes.values()) == 83_653_863
