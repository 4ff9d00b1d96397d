"""Networks against independent references: diffusers' U-Net and AnimateDiff transformer."""

import dataclasses

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D, MotionAdapter
from small_models import SMALL_FULL, SMALL_MINI, SMALL_UNET, randomised
from torch import nn

from emo_cli.errors import EmoError
from emo_cli.model import layers, pretrained
from emo_cli.model.backbone import GATE_SCALE, Backbone, VideoState
from emo_cli.model.gestures import EyelidEmbedding, Gestures, Head
from emo_cli.model.layers import (
    FeedForward,
    GroupNorm,
    ShortAttention,
    add_branch,
    attention,
    sinusoid,
)
from emo_cli.model.reference_net import ReferenceNet
from emo_cli.model.spatial import BackboneTransformer
from emo_cli.model.speed import SpeedEncoder
from emo_cli.model.temporal import TemporalModule, TemporalState
from emo_cli.presets import FULL
from emo_cli.sampler import build_scheduler


def sd_unet(widths=SMALL_UNET.widths, heads=2, groups=8, context=20):
    """diffusers' U-Net in SD 1.5's layout."""
    return UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=widths,
        layers_per_block=2,
        attention_head_dim=heads,  # SD 1.5's config means heads by this name
        norm_num_groups=groups,
        cross_attention_dim=context,
    )


def conditions(backbone, config, *, batch=1, frames=12, seed=1):
    """Random conditions of every kind -> (reference features, keyword arguments)."""
    g = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=g)

    side, latent = config.picture_size, config.latent_size
    channels = config.autoencoder.latent_channels
    return {
        "portrait": noise(batch, channels, latent, latent),
        "mask": (noise(batch, 1, side, side) > 0).float(),
        "audio": noise(batch, frames, 5, config.audio_feature_width),
        "motion": noise(batch, config.motion_frames, channels, latent, latent),
        "speed": noise(batch, frames, 5).abs(),
        "lids": noise(batch, frames).sigmoid(),
        "flow": noise(batch, frames, 2, latent, latent),
        "moved": noise(batch, frames, channels, latent, latent),
        "eyes": torch.zeros(batch, frames, 1, latent, latent),
        "latents": noise(batch, frames, channels, latent, latent),
    }


def gestures(c):
    """What is said of lids and head."""
    return Gestures(c["lids"], Head(c["flow"], c["moved"], c["eyes"]))


def run(backbone, reference_net, c, timestep=500):
    """One forward of the Backbone under conditions `c`."""
    video = backbone.prepare_video(
        reference_net.portrait_features(c["portrait"]), c["mask"], c["portrait"]
    )
    motion = reference_net.motion_features(c["motion"])
    clip = backbone.prepare_clip(c["audio"], motion, c["speed"], gestures(c))
    times = torch.full((c["latents"].shape[0],), timestep)
    return backbone(c["latents"], times, video, clip)


@pytest.fixture(params=[SMALL_FULL, SMALL_MINI], ids=["full", "mini"])
def networks(request):
    config = request.param
    backbone = randomised(Backbone(config), 0)
    reference_net = randomised(ReferenceNet(config.unet, config.autoencoder.latent_channels), 1)
    return config, backbone, reference_net


@torch.no_grad()
def test_unet_equals_diffusers_where_only_sd_is_loaded():
    reference = randomised(sd_unet(), 3)
    backbone = Backbone(SMALL_FULL).eval()
    pretrained.load_sd_into_backbone(backbone, reference.state_dict())
    for name, parameter in reference.named_parameters():
        if ".attn2.to_out." in name:
            parameter.zero_()
    c = conditions(backbone, SMALL_FULL)
    reference_net = randomised(ReferenceNet(SMALL_UNET, 4), 1)
    ours = run(backbone, reference_net, c, timestep=321)
    theirs = reference(c["latents"][0], 321, torch.randn(12, 7, 20)).sample
    torch.testing.assert_close(ours[0], theirs, atol=1e-5, rtol=1e-5)


def folded_norm(norm):
    """GroupNorm of every frame for itself, as the original AnimateDiff does."""

    class PerFrame(nn.Module):
        def forward(self, x):  # [B, C, F, H, W]
            return torch.stack([norm(frame) for frame in x.unbind(2)], 2)

    return PerFrame()


def animatediff_pair():
    theirs = AnimateDiffTransformer3D(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=16,
        norm_num_groups=8,
        positional_embeddings="sinusoidal",
        num_positional_embeddings=32,
    )
    randomised(theirs, 5)
    ours = TemporalModule(16, heads=2, groups=8, factor=4, self_attentions=2, speed_width=6).eval()
    tensors = {n: t for n, t in theirs.state_dict().items() if not n.endswith(".pe")}
    missing, unexpected = ours.load_state_dict(tensors, strict=False)
    assert not unexpected and all("_speed." in name for name in missing)
    return theirs, ours


@torch.no_grad()
def test_temporal_module_equals_animatediff_with_motion_frames_in_front():
    theirs, ours = animatediff_pair()
    theirs.norm = folded_norm(theirs.norm)
    x = torch.randn(2, 16, 16, 4, 4)  # [B, M+F, C, H, W]
    expected = theirs(x.flatten(0, 1), num_frames=16).unflatten(0, (2, 16))[:, 4:]
    state = ours.prepare(x[:, :4], torch.randn(2, 12, 6))
    result = ours(x[:, 4:].flatten(0, 1), state).unflatten(0, (2, 12))
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_temporal_module_equals_unchanged_animatediff_for_one_frame():
    theirs, ours = animatediff_pair()
    x = torch.randn(3, 16, 4, 4)
    none = torch.zeros(3, 0, 16, 16)
    state = TemporalState(
        none, (none, none, none), ours.block.attn_speed.fold(torch.randn(3, 1, 6)),
        torch.zeros(3, 2, 1, 1), sinusoid(1, 16, like=x)[:, None],
    )  # fmt: skip
    torch.testing.assert_close(ours(x, state), theirs(x, num_frames=1), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_short_attention_equals_plain_attention():
    layer = randomised(ShortAttention(16, 10, 4), 2, scale=0.3)
    x, context = torch.randn(3, 20, 16), torch.randn(3, 7, 10)
    plain = layer(x, *layer.keys_values(context))
    torch.testing.assert_close(layer.attend(x, layer.fold(context)), plain, atol=1e-5, rtol=1e-5)


def test_branch_added_in_pieces_equals_the_whole(monkeypatch):
    layer, t = randomised(FeedForward(16, 2), 2, scale=0.3), torch.randn(3, 5, 16)
    with torch.enable_grad():
        whole = add_branch(t, layer)
    monkeypatch.setattr("emo_cli.model.layers.PIECE_ROWS", 4)
    with torch.no_grad():
        torch.testing.assert_close(add_branch(t.clone(), layer), whole, atol=1e-6, rtol=1e-5)
        strided = t.transpose(0, 1).contiguous().transpose(0, 1)
        torch.testing.assert_close(add_branch(strided, layer), whole, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_group_norm_of_small_maps_in_bf16_equals_fp32_rounded_once():
    norm, x = randomised(GroupNorm(4, 16), 2, scale=0.3).bfloat16(), torch.randn(2, 16, 8, 8)
    x = x.bfloat16().contiguous(memory_format=torch.channels_last)
    expected = nn.functional.group_norm(x.float(), 4, norm.weight.float(), norm.bias.float())
    assert torch.equal(norm(x), expected.bfloat16())


def test_attention_of_few_keys_equals_sdpa():
    q, k, v = torch.randn(5, 2, 12, 8), torch.randn(5, 2, 16, 8), torch.randn(5, 2, 16, 8)
    expected = nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(attention(q, k, v), expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_speed_attention_adds_time_positions_to_its_queries():
    module = randomised(
        TemporalModule(16, heads=2, groups=8, factor=2, self_attentions=1, speed_width=6), 3, 0.3
    )
    state = module.prepare(torch.randn(1, 4, 16, 2, 2), torch.randn(1, 12, 6))
    y = torch.randn(1, 12, 4, 16)
    layer, positions = module.block.attn_speed, state.positions
    offset = state.speed_offset.expand(-1, -1, 12, 4).flatten(2)
    folded = layer.attend(y.flatten(1, 2), state.speed, offset)
    moved = layer.attend((y + positions[4:]).flatten(1, 2), state.speed)
    torch.testing.assert_close(folded, moved, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("condition", ["portrait", "audio", "motion", "mask", "speed"])
@torch.no_grad()
def test_every_condition_changes_the_output(networks, condition):
    config, backbone, reference_net = networks
    c = conditions(backbone, config)
    other = conditions(backbone, config, seed=2)
    before = run(backbone, reference_net, c)
    after = run(backbone, reference_net, c | {condition: other[condition]})
    assert (before - after).abs().max() > 1e-5


@pytest.mark.parametrize("condition", ["audio", "motion", "mask", "speed"])
@torch.no_grad()
def test_new_layers_start_silent(condition):
    backbone = Backbone(SMALL_MINI).eval()
    reference_net = ReferenceNet(SMALL_MINI.unet, 16).eval()
    c = conditions(backbone, SMALL_MINI)
    other = conditions(backbone, SMALL_MINI, seed=2)
    before = run(backbone, reference_net, c)
    after = run(backbone, reference_net, c | {condition: other[condition]})
    assert torch.equal(before, after)


@torch.no_grad()
def test_clips_of_a_batch_do_not_see_each_other(networks):
    config, backbone, reference_net = networks
    if (
        backbone.copy is not None
    ):  # the gate of random weights makes eight times as much of rounding
        backbone.conv_out.weight[-1] /= GATE_SCALE
    c = conditions(backbone, config, batch=2)
    both = run(backbone, reference_net, c)
    second = run(backbone, reference_net, {k: v[1:] for k, v in c.items()})
    torch.testing.assert_close(both[1:], second, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_motion_frames_and_portrait_do_not_see_each_other(networks):
    """So the portrait's pass once a video and the motion's once a clip are the paper's one."""
    config, _, reference_net = networks
    x = torch.randn(5, config.autoencoder.latent_channels, config.latent_size, config.latent_size)
    together, apart = reference_net(x), reference_net.portrait_features(x[:1])
    torch.testing.assert_close([f[:1] for f in together.reference], apart, atol=1e-5, rtol=1e-4)
    motion = reference_net.motion_features(x[None, 1:])
    torch.testing.assert_close([f[1:] for f in together.motion], [m[0] for m in motion],
                               atol=1e-5, rtol=1e-4)  # fmt: skip


@torch.no_grad()
def test_zero_maps_of_a_first_clip_have_the_shapes_of_motion_features(networks):
    config, backbone, reference_net = networks
    c = conditions(backbone, config)
    motion = reference_net.motion_features(c["motion"])
    zero = backbone.zero_motion(1, config.latent_size, like=c["latents"])
    assert [z.shape for z in zero] == [m.shape for m in motion]
    assert all(not z.any() for z in zero)


@torch.no_grad()
def test_the_gate_leads_to_the_moved_portrait_where_it_is_open_and_at_eyes_and_nowhere_else():
    backbone = randomised(Backbone(SMALL_MINI), 0)
    reference_net = randomised(ReferenceNet(SMALL_MINI.unet, 16), 1)
    c = conditions(backbone, SMALL_MINI)
    backbone.conv_out.weight[-1] = 0
    backbone.conv_out.bias[-1] = 40
    scheduler = build_scheduler(SMALL_MINI.diffusion, "ddim", 4)
    latents = c["latents"]
    for step in scheduler.timesteps:
        v = run(backbone, reference_net, c | {"latents": latents}, int(step))
        latents = scheduler.step(v, step, latents).prev_sample
    torch.testing.assert_close(latents, c["moved"], atol=1e-4, rtol=1e-4)

    backbone.conv_out.bias[-1] = -40
    shut = run(backbone, reference_net, c)
    eyes = torch.zeros_like(c["eyes"])
    eyes[..., 2:4, 3:6] = 1
    backbone.conv_out.bias[-1] = 40
    open_everywhere = run(backbone, reference_net, c)
    backbone.conv_out.bias[-1] = -40
    found = run(backbone, reference_net, c | {"eyes": eyes})
    torch.testing.assert_close(found, torch.where(eyes > 0, open_everywhere, shut))
    backbone.copy = None
    torch.testing.assert_close(shut, run(backbone, reference_net, c)[:, :, :-1])


@torch.no_grad()
def test_eyelids_reach_the_backbone_where_it_is_told_and_are_silent_when_new():
    frames = torch.arange(12)
    blink = (frames == 5).float()[None]
    for config in (SMALL_MINI, SMALL_FULL):
        backbone = randomised(Backbone(config), 0)
        net = randomised(ReferenceNet(config.unet, config.autoencoder.latent_channels), 1)
        c = conditions(backbone, config)
        shut, open_ = (run(backbone, net, c | {"lids": x}) for x in (blink, 0 * blink))
        assert torch.equal(shut, open_) != config.unet.told_lids
    embedding = EyelidEmbedding(32)
    assert not embedding(blink).any()
    rows = randomised(embedding, 0)(blink)  # [F, T]: each frame has its own
    assert (rows[frames != 5] == rows[0]).all() and not torch.equal(rows[5], rows[0])


@torch.no_grad()
def test_the_heads_moves_reach_the_backbone_where_it_is_told():
    for config in (SMALL_MINI, SMALL_FULL):
        backbone = randomised(Backbone(config), 0)
        net = randomised(ReferenceNet(config.unet, config.autoencoder.latent_channels), 1)
        c = conditions(backbone, config)
        plain = run(backbone, net, c)
        for part in ("flow", "moved"):
            other = run(backbone, net, c | {part: 0 * c[part]})
            assert torch.equal(plain, other) != config.unet.told_head


def test_a_single_picture_needs_no_temporal_layers(networks):
    config, backbone, reference_net = networks
    c = conditions(backbone, config, frames=1)
    video = backbone.prepare_video(
        reference_net.portrait_features(c["portrait"]), c["mask"], c["portrait"]
    )
    clip = backbone.prepare_clip(c["audio"], [], c["speed"], gestures(c))
    out = backbone(c["latents"], torch.tensor([10]), video, clip)
    assert out.shape == c["latents"].shape and isinstance(video, VideoState)


def test_speed_buckets_follow_the_papers_formula():
    encoder = SpeedEncoder(FULL.speed, window=2)
    speed = torch.tensor([0.0, 0.7, 1.9])
    buckets = encoder.buckets(speed)
    for i, (c, r) in enumerate(zip(FULL.speed.centres, FULL.speed.radii, strict=True)):
        torch.testing.assert_close(buckets[:, i], torch.tanh((speed - c) / r * 3))


def test_reference_attention_starts_from_the_self_attention_of_its_block():
    unet = randomised(sd_unet(), 3)
    backbone = Backbone(SMALL_FULL)
    pretrained.load_sd_into_backbone(backbone, unet.state_dict())
    layers = [m for m in backbone.modules() if isinstance(m, BackboneTransformer)]
    assert len(layers) == 16  # SD 1.5: 6 down, 1 middle, 9 up
    for layer in layers:
        assert torch.equal(layer.block.attn2.to_k.weight, layer.block.attn1.to_k.weight)
        assert not layer.block.attn2.to_out[0].weight.any()


def original_names(tensors):
    """diffusers' motion adapter -> key names of `mm_sd_v15_v2.ckpt`."""
    out = {}
    for name, tensor in tensors.items():
        head, _, tail = name.partition(".motion_modules.")
        index, _, tail = tail.partition(".")
        for new, old in (
            (".attn1.", ".attention_blocks.0."), (".attn2.", ".attention_blocks.1."),
            (".norm1.", ".norms.0."), (".norm2.", ".norms.1."), (".norm3.", ".ff_norm."),
            (".pos_embed.", ".attention_blocks.0.pos_encoder."),
        ):  # fmt: skip
            tail = tail.replace(new, old)
        out[f"{head}.motion_modules.{index}.temporal_transformer.{tail}"] = tensor
        if "pos_encoder" in tail:
            out[f"{head}.motion_modules.{index}.temporal_transformer."
                + tail.replace("blocks.0.pos", "blocks.1.pos")] = tensor  # fmt: skip
    return out


@pytest.mark.parametrize("layout", ["diffusers", "original"])
@pytest.mark.parametrize("middle", [False, True], ids=["v1.5-3", "v1.5-2"])
def test_animatediff_loads_strictly_in_both_layouts(layout, middle):
    adapter = MotionAdapter(
        block_out_channels=SMALL_UNET.widths,
        motion_num_attention_heads=2,
        motion_norm_num_groups=8,
        use_motion_mid_block=middle,
    )
    config = dataclasses.replace(
        SMALL_FULL, unet=dataclasses.replace(SMALL_UNET, temporal_in_middle=middle)
    )
    backbone, tensors = Backbone(config), randomised(adapter).state_dict()
    named = original_names(tensors) if layout == "original" else dict(tensors)
    pretrained.load_animatediff(backbone, named)
    ours = backbone.state_dict()
    assert all(torch.equal(ours[n], t) for n, t in tensors.items() if not n.endswith(".pe"))

    named.pop(next(n for n in named if "up_blocks.3" in n and n.endswith("proj_out.weight")))
    with pytest.raises(EmoError, match="up_blocks.3.*proj_out.weight is missing"):
        pretrained.load_animatediff(backbone, named)


@pytest.mark.parametrize("fault", ["missing", "not known", "has shape"])
def test_a_faulty_sd_file_is_refused_by_name(fault):
    tensors = dict(randomised(sd_unet()).state_dict())
    name = "mid_block.resnets.1.conv2.weight"
    if fault == "missing":
        del tensors[name]
    elif fault == "has shape":
        tensors[name] = tensors[name][:3]
    else:
        name = "extra.weight"
        tensors[name] = torch.zeros(1)
    with pytest.raises(EmoError, match=f"{name}.* {fault}"):
        pretrained.load_sd_into_backbone(Backbone(SMALL_FULL), tensors)


def test_full_has_the_names_shapes_and_counts_of_sd_and_animatediff():
    with torch.device("meta"):
        unet = sd_unet(FULL.unet.widths, heads=8, groups=32, context=768)
        adapter = MotionAdapter(use_motion_mid_block=False)
        backbone, reference_net = Backbone(FULL), ReferenceNet(FULL.unet, 4)
        pretrained.load_sd_into_backbone(backbone, unet.state_dict())
        pretrained.load_sd_into_reference_net(reference_net, unet.state_dict())
    theirs = {n: p.shape for n, p in adapter.named_parameters()}
    ours = {
        n: p.shape
        for n, p in backbone.named_parameters()
        if ".motion_modules." in n and "_speed." not in n
    }
    assert ours == theirs
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964  # SD 1.5


def test_attention_of_five_dimensions_reaches_fused_kernels_with_four(monkeypatch):
    shapes = []

    def fused(q, k, v):
        shapes.append(q.shape)
        return q

    monkeypatch.setattr(layers.F, "scaled_dot_product_attention", fused)
    q, k = torch.empty(2, 5, 3, 12, 8, device="meta"), torch.empty(2, 5, 3, 16, 8, device="meta")
    assert layers.attention(q, k, k).shape == q.shape and shapes == [(10, 3, 12, 8)]
