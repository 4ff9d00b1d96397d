"""From latents to frames: what the autoencoder loses of the portrait, and what was drawn."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import SMALL_MINI, randomised

from emo_cli.conditions import MovedPortrait
from emo_cli.frames import DRAWN, MADE_UP, SAME, start_decoding, with_detail
from emo_cli.model.emo_model import EmoModel
from emo_cli.model.load import EMBEDDED, load_model

SIDE, PLACE = 64, 8


@pytest.fixture(scope="module")
def autoencoder():
    return randomised(EmoModel(SMALL_MINI).autoencoder, scale=0.1)


@pytest.fixture(scope="module")
@torch.no_grad()
def moved(autoencoder):
    pictures = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) - 0.5
    made_up = torch.ones(3, 1, SIDE, SIDE)
    return MovedPortrait(pictures, made_up, autoencoder.encode(pictures), None)


@pytest.fixture
def no_lines(monkeypatch):
    """Of what is made up no line is taken, so that what is drawn stays to the last bit."""
    monkeypatch.setattr("emo_cli.frames.MADE_UP", 1.0)


def as_bytes(pictures):
    return (pictures * 127.5 + 127.5).round().permute(0, 2, 3, 1).to(torch.uint8).numpy()


def test_a_portrait_that_was_not_redrawn_keeps_what_the_autoencoder_loses(autoencoder, moved):
    frames = start_decoding(autoencoder, moved.latents, moved=moved)()
    assert np.array_equal(frames, as_bytes(moved.pictures))
    plain = start_decoding(autoencoder, moved.latents)()
    assert np.abs(plain.astype(int) - frames).mean() > 5
    # As long as the clip, which may be cut.
    assert np.array_equal(start_decoding(autoencoder, moved.latents[:2], moved=moved)(), frames[:2])


def test_frames_are_as_large_as_what_is_shown(autoencoder, moved, no_lines):
    generator = torch.Generator().manual_seed(2)
    shown = torch.rand(3, 3, 2 * SIDE, 2 * SIDE, generator=generator) - 0.5
    larger = moved._replace(pictures=shown, made_up=torch.ones(3, 1, 2 * SIDE, 2 * SIDE))
    assert np.array_equal(
        start_decoding(autoencoder, moved.latents, moved=larger)(), as_bytes(shown)
    )
    redrawn = moved.latents + 1.1 * DRAWN  # nothing is left of what was to be shown
    with torch.no_grad():
        expected = F.interpolate(autoencoder.decode(redrawn), scale_factor=2, mode="bicubic")
    frames = start_decoding(autoencoder, redrawn, moved=larger)()
    assert np.abs(frames.astype(int) - as_bytes(expected.clamp(-1, 1))).max() <= 1


def test_what_was_drawn_stays_and_between_both_is_a_mixture(
    autoencoder, moved, no_lines, monkeypatch
):
    monkeypatch.setattr(autoencoder, "reach", None)  # as for `plain`, to the last bit
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


def stripes(angle, contrast=0.4, size=2 * SIDE):
    """Lines of three pixels of S, [1, 3, size, size]."""
    x = torch.arange(size) * (SIDE / size) * 2 * torch.pi / 6
    angle = torch.tensor(angle)
    return contrast * (x * angle.cos() + x[:, None] * angle.sin()).sin().expand(1, 3, -1, -1)


def drawn(pictures, shown, made_up=0.0):
    """Frames where all has been drawn."""
    made_up = torch.full_like(shown[:, :1], made_up)
    return with_detail(pictures, torch.ones(1, 1, PLACE, PLACE), shown, made_up)


INNER = (..., slice(16, -16), slice(16, -16))


def test_lines_drawn_as_the_portrait_has_them_are_as_sharp_as_there_in_the_shades_drawn():
    shown = stripes(0.4)
    soft = 0.3 * F.interpolate(shown, (SIDE, SIDE), mode="area") + torch.tensor(0.2)
    frames = drawn(soft, shown)
    assert (frames - (shown + 0.2))[INNER].abs().mean() < 0.03
    assert (F.interpolate(soft, scale_factor=2, mode="bicubic") - shown - 0.2).abs().mean() > 0.15
    # Less so where the portrait has none of its own.
    as_drawn = F.interpolate(soft, scale_factor=2, mode="bicubic")
    between = torch.lerp(frames, as_drawn, MADE_UP)
    torch.testing.assert_close(drawn(soft, shown, made_up=1.0), between, atol=0.01, rtol=0)


def test_lines_that_are_not_the_portraits_stay_as_they_are_drawn():
    mine, other = stripes(0.4, 0.8), F.interpolate(stripes(1.9, 0.8), (SIDE, SIDE), mode="area")
    enlarged = F.interpolate(other, scale_factor=2, mode="bicubic")
    assert (drawn(other, mine) - enlarged)[INNER].abs().mean() < 0.1 * enlarged.abs().mean()
    opposite = drawn(-F.interpolate(mine, (SIDE, SIDE), mode="area"), mine)
    assert (opposite + mine)[INNER].abs().mean() < 0.2 * mine.abs().mean()  # twice as far


def test_what_is_drawn_without_lines_takes_the_portraits():
    mine = stripes(0.4)
    other = 0.1 * F.interpolate(stripes(1.9), (SIDE, SIDE), mode="area") - 0.2
    assert (drawn(other, mine) - (mine - 0.2))[INNER].abs().mean() < 0.1 * mine.abs().mean()


def test_pores_of_skin_are_the_portraits_although_nothing_has_drawn_them():
    skin = 0.05 * torch.randn(1, 3, 2 * SIDE, 2 * SIDE, generator=torch.Generator().manual_seed(3))
    frames = drawn(torch.full((1, 3, SIDE, SIDE), 0.1), skin)
    assert (frames - 0.1).std() > 0.7 * skin.std()
    assert frames.mean() == pytest.approx(0.1, abs=0.01)


def test_beyond_the_part_that_was_drawn_nothing_would_be_changed(monkeypatch):
    """On a GPU, where asking for that part would make the host wait, all of it is decoded."""
    autoencoder = load_model(EMBEDDED).autoencoder
    generator = torch.Generator().manual_seed(4)
    shades = torch.rand(2, 3, 16, 16, generator=generator) - 0.5
    shown = F.interpolate(shades, (4 * SIDE, 4 * SIDE), mode="bicubic")
    made_up = torch.rand(2, 1, 4 * SIDE, 4 * SIDE, generator=generator)
    with torch.no_grad():
        latents = autoencoder.encode(F.interpolate(shown, (2 * SIDE, 2 * SIDE), mode="area"))
    moved = MovedPortrait(shown, made_up, latents, None)
    redrawn = latents.clone()
    redrawn[0, :, 8:10, 2:4] += 0.1
    redrawn[1, :, 9, 15] += 1  # in the last column
    shapes, decode = [], autoencoder.decode
    monkeypatch.setattr(autoencoder, "decode", lambda x: (shapes.append(x.shape), decode(x))[1])
    part = start_decoding(autoencoder, redrawn, moved=moved)()
    assert shapes == [(2, 16, 6, 16)]  # two latents around it, not beyond the picture
    monkeypatch.setattr(autoencoder, "reach", None)
    whole = start_decoding(autoencoder, redrawn, moved=moved)()
    assert shapes[-1] == latents.shape
    assert np.abs(part.astype(int) - whole).max() <= 1
    changed = (part != as_bytes(shown)).any(-1)
    assert changed[0].any() and changed[1].any()
    assert not changed[:, : 7 * 2 * PLACE].any()  # a latent above what was drawn
