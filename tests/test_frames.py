"""From latents to frames: what the autoencoder loses of the portrait, and what was drawn."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import SMALL_MINI, randomised

from emo_cli.conditions import MovedPortrait
from emo_cli.frames import DRAWN, SAME, start_decoding
from emo_cli.model.emo_model import EmoModel

SIDE, PLACE = 64, 8


@pytest.fixture(scope="module")
def autoencoder():
    return randomised(EmoModel(SMALL_MINI).autoencoder, scale=0.1)


@pytest.fixture(scope="module")
@torch.no_grad()
def moved(autoencoder):
    pictures = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) - 0.5
    return MovedPortrait(pictures, autoencoder.encode(pictures), None)


def as_bytes(pictures):
    return (pictures * 127.5 + 127.5).round().permute(0, 2, 3, 1).to(torch.uint8).numpy()


def test_a_portrait_that_was_not_redrawn_keeps_what_the_autoencoder_loses(autoencoder, moved):
    frames = start_decoding(autoencoder, moved.latents, moved=moved)()
    assert np.array_equal(frames, as_bytes(moved.pictures))
    plain = start_decoding(autoencoder, moved.latents)()
    assert np.abs(plain.astype(int) - frames).mean() > 5
    # As long as the clip, which may be cut.
    assert np.array_equal(start_decoding(autoencoder, moved.latents[:2], moved=moved)(), frames[:2])


def test_frames_are_as_large_as_what_is_shown(autoencoder, moved):
    generator = torch.Generator().manual_seed(2)
    shown = torch.rand(3, 3, 2 * SIDE, 2 * SIDE, generator=generator) - 0.5
    larger = moved._replace(pictures=shown)
    assert np.array_equal(
        start_decoding(autoencoder, moved.latents, moved=larger)(), as_bytes(shown)
    )
    redrawn = moved.latents + 1.1 * DRAWN  # nothing is left of what was to be shown
    with torch.no_grad():
        expected = F.interpolate(autoencoder.decode(redrawn), scale_factor=2, mode="bicubic")
    frames = start_decoding(autoencoder, redrawn, moved=larger)()
    assert np.abs(frames.astype(int) - as_bytes(expected.clamp(-1, 1))).max() <= 1


def test_what_was_drawn_stays_and_between_both_is_a_mixture(autoencoder, moved):
    latents = moved.latents.clone()
    latents[:, :, :4] += 1.1 * DRAWN  # the upper half is drawn, in every channel
    mixed = start_decoding(autoencoder, latents, moved=moved)().astype(int)
    plain = start_decoding(autoencoder, latents)().astype(int)
    border = SIDE // 2
    assert np.array_equal(mixed[:, : border - PLACE // 2], plain[:, : border - PLACE // 2])
    assert np.abs(mixed - plain)[:, border + PLACE :].mean() > 5

    with torch.no_grad():
        between = moved.latents + (SAME + DRAWN) / 2
        half = (autoencoder.decode(between) + moved.pictures) / 2
    frames = start_decoding(autoencoder, between, moved=moved)().astype(int)
    assert np.abs(frames - as_bytes(half.clamp(-1, 1))).max() <= 1
