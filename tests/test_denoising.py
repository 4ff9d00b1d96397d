"""The loss of the stages image, video and speed."""

import dataclasses

import pytest
import torch
from small_models import SMALL_FULL, SMALL_MINI, randomised

from emo_cli.face_flow import FaceMoves
from emo_cli.face_points import usual_points
from emo_cli.head_flow import moved_pictures, told_places
from emo_cli.model.emo_model import EmoModel, part_of
from emo_cli.model.gestures import Gestures, Head
from emo_cli.mouth import light_on
from emo_cli.presets import FULL, MINI
from emo_cli.training.cut import cut_window
from emo_cli.training.denoising import DenoisingLoss, DenoisingOptions, snr_weight
from emo_cli.training.denoising_stage import loss_options, within_reach
from emo_cli.training.stages import IMAGE, SPEED, VIDEO, stage_row
from emo_cli.training.start import freeze_others

PLAIN = DenoisingOptions(
    clip=True,
    audio=True,
    drop_both=0.0,
    drop_audio=0.0,
    drop_motion=0.0,
    mean_speed=0.0,
    motion_noise=0.0,
    noisiest=0.0,
    sampled_timesteps=0.0,
    noise_offset=0.0,
    min_snr=None,
    mouth_weight=1.0,
    jaw_weight=1.0,
    eye_weight=1.0,
    change_weight=0.0,
)


TOLD = ("face_points", "lips", "lids", "brows", "gaze")


def loss_of(config=SMALL_MINI, **changes):
    torch.manual_seed(0)
    model = EmoModel(config)
    randomised(model.backbone, 1)
    randomised(model.reference_net, 2)
    return DenoisingLoss(model, dataclasses.replace(PLAIN, **changes))


def batch_of(config=SMALL_MINI, clips=2, frames=16):
    g = torch.Generator().manual_seed(5)
    side, latent = config.picture_size, config.latent_size
    channels, clip = config.autoencoder.latent_channels, frames - 4 if frames > 1 else 1
    return {
        "latents": torch.randn(clips, frames, channels, latent, latent, generator=g),
        "reference_latents": torch.randn(clips, channels, latent, latent, generator=g),
        "mask": (torch.rand(clips, side, side, generator=g) > 0.5).float(),
        "mouth": torch.rand(clips, clip, latent, latent, generator=g),
        "lids": torch.rand(clips, clip, generator=g),
        "lips": torch.rand(clips, clip, 2, generator=g) * torch.tensor([0.2, 0.1])
        + torch.tensor([0.0, 0.5]),
        "brows": 0.03 * torch.randn(clips, clip, generator=g),
        "gaze": 0.03 * torch.randn(clips, clip, 2, generator=g),
        "face_points": torch.from_numpy(usual_points((12, 12, 52, 56))).expand(clips, -1, -1),
        "flow": torch.randn(clips, clip, 2, latent, latent, generator=g),
        "reference": torch.randint(256, (clips, side, side, 3), generator=g).byte(),
        "eyes": torch.rand(clips, clip, latent, latent, generator=g),
        "jaw": torch.rand(clips, clip, latent, latent, generator=g),
        "audio": torch.randn(clips, clip + 4, config.audio_feature_width, generator=g),
        "speed": torch.rand(clips, clip + 4, generator=g),
        "seed": torch.arange(clips) + 7,
    }


@pytest.mark.parametrize("config", [SMALL_MINI, SMALL_FULL], ids=["v", "epsilon"])
def test_a_right_prediction_has_no_loss_and_a_zero_one_the_targets_power(config, monkeypatch):
    module, batch = loss_of(config), batch_of(config)
    clean = batch["latents"][:, 4:]
    noise = module._noise(batch["seed"], clean)

    def target(noisy, timesteps, video, clip):
        alpha = module.alphas[timesteps].view(-1, 1, 1, 1, 1)
        torch.testing.assert_close(noisy, alpha.sqrt() * clean + (1 - alpha).sqrt() * noise)
        if config.diffusion.prediction == "epsilon":
            return noise
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean

    monkeypatch.setattr(module.backbone, "forward", target)
    losses = module(batch)
    assert losses["loss"] == 0 and losses["mouth"] == 0
    monkeypatch.setattr(module.backbone, "forward", lambda *a: 0 * target(*a))
    assert module(batch)["loss"].item() == pytest.approx(1, abs=0.15)  # both are unit normal


def test_conditions_reach_the_networks_as_at_inference():
    module, batch = loss_of(), batch_of()
    noisy, steps = torch.randn(2, 12, 16, 8, 8), torch.tensor([300, 999])
    with torch.no_grad():
        ours = module._predict(batch, noisy, steps, batch["latents"][:, :4])
        net, backbone = module.reference_net, module.backbone
        for i in range(2):
            portrait = batch["reference_latents"][i : i + 1]
            video = backbone.prepare_video(
                net.portrait_features(portrait), batch["mask"][i : i + 1, None], portrait
            )
            audio = torch.stack([batch["audio"][i, f : f + 5] for f in range(12)])[None]
            speed = torch.stack([batch["speed"][i, f : f + 5] for f in range(12)])[None]
            motion = net.motion_features(batch["latents"][i : i + 1, :4])
            flow = batch["flow"][i : i + 1]
            picture = batch["reference"][i : i + 1].permute(0, 3, 1, 2) / 127.5 - 1
            told = [batch[n][i : i + 1] for n in TOLD]
            face = FaceMoves(*told, light=light_on(picture, told[0]))
            shown = moved_pictures(picture, flow, face).pictures
            moved = module.frozen[0].encode(shown[0])[None]
            head = Head(flow, moved, told_places(flow, picture.shape[-1], face))
            gestures = Gestures(batch["lids"][i : i + 1], head)
            clip = backbone.prepare_clip(audio, motion, speed, gestures)
            alone = backbone(noisy[i : i + 1], steps[i : i + 1], video, clip)
            # The gate of random weights makes eight times as much of a rounding.
            torch.testing.assert_close(ours[i : i + 1], alone, atol=5e-5, rtol=1e-4)


def test_without_its_picture_the_reference_is_moved_as_the_autoencoder_shows_it():
    module, batch = loss_of(), batch_of(clips=1)
    portrait, keep = batch["reference_latents"], torch.ones(1)
    del batch["reference"]
    with torch.no_grad():
        autoencoder = module.frozen[0]
        pictures, told = autoencoder.decode(portrait), [batch[name] for name in TOLD]
        face = FaceMoves(*told, light=light_on(pictures, told[0]))
        beside_mouth = told_places(batch["flow"], pictures.shape[-1], face)
        pictures = moved_pictures(pictures, batch["flow"], face).pictures
        expected = autoencoder.encode(pictures[0])[None]
    flow, moved, told = module._head(batch, portrait, keep)
    assert torch.equal(told, beside_mouth) and 0 < told.mean() < 1
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(flow, batch["flow"])
    null = module._head(batch, portrait, 0 * keep)
    assert not null.moved.any() and not null.told.any()


def test_windows_see_the_heads_maps_where_they_lie(monkeypatch):
    module, batch = loss_of(), batch_of()
    whole = module._head(batch, batch["reference_latents"], torch.ones(2))
    batch["corner"] = torch.tensor([[1, 3], [2, 0]])
    for name in ("latents", "mouth", "jaw", "eyes"):
        cut = [cut_window(x, c, 4) for x, c in zip(batch[name], batch["corner"], strict=True)]
        batch[name] = torch.stack(cut)
    seen = []
    forward = module.backbone.forward
    monkeypatch.setattr(module.backbone, "forward", lambda *a: seen.append(a[3]) or forward(*a))
    assert module(batch)["loss"].isfinite()
    for maps, every in zip(seen[0].head, whole, strict=True):
        torch.testing.assert_close(maps[0], every[0, ..., 1:5, 3:7])
        torch.testing.assert_close(maps[1], every[1, ..., 2:6, 0:4])


def test_dropped_conditions_are_the_nulls_of_guidance(monkeypatch):
    module, batch = loss_of(drop_both=1.0, drop_motion=1.0, mean_speed=1.0), batch_of()
    seen = {}
    video, clip = module.backbone.prepare_video, module.backbone.prepare_clip
    monkeypatch.setattr(
        module.backbone, "prepare_video", lambda *a: seen.update(video=a) or video(*a)
    )
    monkeypatch.setattr(module.backbone, "prepare_clip", lambda *a: seen.update(clip=a) or clip(*a))
    module(batch)
    features, mask, portrait = seen["video"]
    audio, motion, speed, gestures = seen["clip"]
    assert not any(x.any() for x in features) and not portrait.any() and mask.any()
    assert not audio.any() and not any(x.any() for x in motion)
    assert torch.equal(gestures.lids, batch["lids"])
    assert torch.equal(gestures.head.flow, batch["flow"]) and not gestures.head.moved.any()
    assert torch.allclose(speed, batch["speed"].mean(1)[:, None, None].expand_as(speed))


def test_sound_is_always_dropped_with_the_reference():
    module = loss_of(drop_both=0.3, drop_audio=0.3)
    seeds, like = torch.arange(4000), torch.zeros(1)
    reference = module._keep(seeds, "conditions", 0.3, like)
    audio = module._keep(seeds, "conditions", 0.6, like)
    assert (audio <= reference).all()
    assert reference.mean().item() == pytest.approx(0.7, abs=0.03)
    assert audio.mean().item() == pytest.approx(0.4, abs=0.03)


def test_a_share_of_timesteps_is_that_of_sampling():
    module = loss_of(sampled_timesteps=0.5)
    steps = module._timesteps(torch.arange(800)).tolist()
    among = sum(step in set(module.sampled) for step in steps) / len(steps)
    assert module.sampled[0] == 999 and among == pytest.approx(0.5, abs=0.06)
    assert len(set(steps)) > 300


def test_a_share_of_clips_is_at_the_noisiest_timestep():
    steps = loss_of(noisiest=0.3)._timesteps(torch.arange(800))
    assert (steps == 999).float().mean().item() == pytest.approx(0.3, abs=0.05)
    others = steps[steps != 999]
    assert torch.equal(others, loss_of()._timesteps(torch.arange(800))[steps != 999])


def test_training_noise_is_the_prior_of_sampling():
    module = loss_of()
    noise = module._noise(torch.arange(4), torch.zeros(4, 12, 16, 32, 32)).flatten(2)
    assert noise.var().item() == pytest.approx(1, abs=0.03)
    shared = torch.corrcoef(noise[0])[0, 1:].mean().item()
    assert shared == pytest.approx(SMALL_MINI.diffusion.shared_noise, abs=0.05)


def test_an_offset_of_the_noise_is_one_number_for_each_channel_of_a_clip():
    seeds, clean = torch.arange(300), torch.zeros(300, 12, 4, 2, 2)
    plain, offset = loss_of(SMALL_FULL), loss_of(SMALL_FULL, noise_offset=0.5)
    added = offset._noise(seeds, clean) - plain._noise(seeds, clean)
    constant = added[:, :1, :, :1, :1]
    torch.testing.assert_close(added, constant.expand_as(added), atol=1e-5, rtol=0)
    assert constant.std().item() == pytest.approx(0.5, abs=0.03)
    assert abs(torch.corrcoef(constant[:, 0, :2, 0, 0].T)[0, 1]) < 0.15  # of channels, by clips
    alone = offset._noise(seeds[7:8], clean[7:8]) - plain._noise(seeds[7:8], clean[7:8])
    torch.testing.assert_close(alone, added[7:8])


def test_full_trains_with_the_papers_numbers():
    image, video, speed = (stage_row(name, "full") for name in ("image", "video", "speed"))
    assert (image.batch, image.clip_frames, image.motion_frames) == (48, 1, 0)
    assert (video.batch, video.clip_frames, video.motion_frames) == (4, 12, 4)
    assert {stage.lr for stage in (image, video, speed)} == {1e-5}
    assert loss_options("video", FULL).drop_motion == 0.2


def test_offset_noise_and_min_snr_are_for_schedules_that_end_before_pure_noise():
    def chosen(stage, config):
        options = loss_options(stage, config)
        return options.noise_offset, options.min_snr

    assert chosen("image", FULL) == chosen("video", FULL) == chosen("speed", FULL) == (0.05, 5.0)
    assert chosen("video", MINI) == (0.0, None)
    assert chosen("distill", FULL) == (0.0, None)  # a student is sampled from plain noise


def test_same_seeds_give_the_same_loss_and_other_seeds_another():
    module, batch = loss_of(drop_both=0.2, motion_noise=0.1), batch_of()
    first = module(batch)["loss"]
    assert torch.equal(module(batch)["loss"], first)
    assert not torch.equal(module(batch | {"seed": batch["seed"] + 1})["loss"], first)


def test_min_snr_is_per_sample_and_never_with_a_zero_terminal_snr():
    alpha = torch.tensor([0.999, 0.5, 0.1])
    snr = alpha / (1 - alpha)
    expected = torch.minimum(snr, torch.tensor(5.0)) / snr
    torch.testing.assert_close(snr_weight(alpha, FULL.diffusion, 5.0), expected)
    with pytest.raises(ValueError, match="min-SNR"):
        loss_of(SMALL_MINI, min_snr=5.0)


def wrong_at(frame, y, x):
    """A Backbone whose output is far off in one latent pixel of one frame and else zero."""
    place = (0, frame, 0, y, x)
    where = tuple(torch.tensor([index]) for index in place)
    return lambda noisy, *_: torch.zeros_like(noisy).index_put(where, torch.tensor(50.0))


@pytest.mark.parametrize(
    ("part", "weight"), [("mouth", "mouth_weight"), ("jaw", "jaw_weight"), ("eyes", "eye_weight")]
)
def test_errors_in_a_faces_parts_weigh_more(part, weight, monkeypatch):
    module = loss_of(**{weight: 9.0})
    batch = batch_of()
    batch[part] = torch.zeros(2, 12, 8, 8)
    batch[part][..., 2, 2] = 1
    monkeypatch.setattr(module.backbone, "forward", wrong_at(0, 2, 2))
    inside = module(batch)["loss"]
    monkeypatch.setattr(module.backbone, "forward", wrong_at(0, 5, 5))
    assert inside > module(batch)["loss"]


def test_the_mouths_share_of_the_loss_is_that_of_a_window_in_a_whole_picture_too():
    module = loss_of(mouth_weight=6.0)

    def share(side):
        batch = batch_of() | {"mouth": torch.zeros(2, 12, side, side)}
        batch["mouth"][..., 2:5, 2:6] = 1
        batch["jaw"] = batch["eyes"] = torch.zeros_like(batch["mouth"])
        wrong = batch["mouth"][:, :, None].expand(-1, -1, 16, -1, -1)
        steps = torch.tensor([500, 500])
        return module._losses(wrong, torch.zeros_like(wrong), steps, batch)["loss"].item()

    assert share(16) == pytest.approx(12 * 6 / (256 + 12 * 5))
    assert share(32) == pytest.approx(share(16), rel=0.15)  # not a quarter of it


def test_errors_that_flicker_weigh_more_than_those_that_stay():
    """An error that stays is a change at the first frame alone, after motion frames without."""
    stays = torch.full((2, 12, 16, 8, 8), 3.0)
    flickers = stays * (-1.0) ** torch.arange(12).view(1, 12, 1, 1, 1)
    steps, batch = torch.tensor([500, 500]), batch_of()

    def loss(error, weight):
        module = loss_of(change_weight=weight)
        return module._losses(error, torch.zeros_like(error), steps, batch)["loss"].item()

    assert loss(stays, 0.0) == loss(flickers, 0.0) == pytest.approx(9)
    assert loss(stays, 0.5) == pytest.approx(9 * (1 + 0.5 * 1 / 12))
    assert loss(flickers, 0.5) == pytest.approx(9 * (1 + 0.5 * (1 + 11 * 4) / 12))


@pytest.mark.parametrize("config", [SMALL_MINI, SMALL_FULL], ids=["mini", "full"])
@pytest.mark.parametrize("stage", [IMAGE, VIDEO, SPEED], ids=lambda s: s.name)
def test_all_that_a_stage_trains_gets_a_gradient(stage, config):
    """Processes that train together wait for each of them."""
    clip = stage.clip_frames > 1
    module, row = loss_of(config, clip=clip, audio=clip), within_reach(stage, config)
    freeze_others(module, row.trains, row.freezes)
    module(batch_of(config, frames=16 if clip else 1))["loss"].backward()
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    assert [n for n, p in trained.items() if p.grad is None] == []


@pytest.mark.parametrize("stage", [IMAGE, VIDEO, SPEED], ids=lambda s: s.name)
def test_a_stage_changes_its_own_parameters_and_leaves_all_others_bit_identical(stage):
    clip = stage.clip_frames > 1
    module = loss_of(clip=clip, audio=clip)
    model_names = {id(p): n for n, p in module.named_parameters()}
    freeze_others(module, stage.trains, stage.freezes)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    trained = [p for p in module.parameters() if p.requires_grad]
    module(batch_of(frames=16 if clip else 1))["loss"].backward()
    torch.optim.AdamW(trained, lr=1e-2).step()
    changed = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    assert changed <= {model_names[id(p)] for p in trained}
    temporal = {n for n in before if part_of(n) == "temporal"}
    if stage is SPEED:
        # The paper's third stage: temporal modules and speed layers, nothing else.
        assert changed == temporal
    elif stage is IMAGE:
        assert not changed & temporal and any("face_locator" in n for n in changed)
        assert any(n.startswith("reference_net.") for n in changed)
        assert not any("audio" in n for n in changed)
    else:
        assert any("attn_audio" in n for n in changed)
        assert any(".motion_modules." in n for n in changed)
        assert not any("speed" in n for n in changed)


def test_gradient_checkpointing_changes_no_gradient_and_keeps_less():
    kept, gradients = [], []
    for recompute in (False, True):
        module = loss_of()
        module.backbone.recompute = recompute
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x
        ):
            loss = module(batch_of())["loss"]
        kept.append(sum(sizes))
        loss.backward()
        gradients.append([p.grad for p in module.parameters() if p.grad is not None])
    assert kept[1] < 0.7 * kept[0]
    assert len(gradients[0]) == len(gradients[1]) > 100
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
