"""The engine on a small real model folder: lengths, seeds, resume, and what runs how often."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from small_models import SMALL_FULL, SMALL_MINI, save_small
from waits import Waits

from emo_cli import Engine, GenerateOptions
from emo_cli.accents import accents
from emo_cli.acting import act
from emo_cli.blinks import blinks
from emo_cli.conditions import windows
from emo_cli.denoiser import BackboneSteps
from emo_cli.device import CPU_BF16, Offload, choose_dtype, download, keep_freed_memory, upload
from emo_cli.errors import EmoError
from emo_cli.face_flow import FaceMoves
from emo_cli.face_points import eye_axes, lip_shape
from emo_cli.files import sha256_of
from emo_cli.generate import Request, make_video
from emo_cli.head_flow import head_flow, moved_pictures, told_places
from emo_cli.head_path import head_path
from emo_cli.model.gestures import Gestures, Head
from emo_cli.model.load import SUMS, load_model
from emo_cli.mouth import light_on
from emo_cli.portrait import mask_box
from emo_cli.quality import resolve
from emo_cli.raw_video import read_frames

FEW_STEPS = GenerateOptions(steps=2, face_region="100,50,400,450")  # needs no face detection


@pytest.fixture(scope="module")
def engine(small_model):
    return Engine(small_model, device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """1.29 s: 33 frames, so the third clip is cut to 9."""
    path = tmp_path_factory.mktemp("sound") / "a sound.wav"
    noise = np.random.default_rng(0).normal(size=int(1.29 * 22_050)) * 0.1
    soundfile.write(path, noise, 22_050)
    return path


def frames_of(engine, portrait, sound, **changes):
    options = GenerateOptions(**(vars(FEW_STEPS) | changes))
    return np.concatenate([clip.frames for clip in engine.generate(portrait, sound, options)])


@pytest.fixture(scope="module")
def frames(engine, portrait, sound):
    return frames_of(engine, portrait, sound)


def test_video_is_as_long_as_the_sound(frames):
    assert frames.shape == (33, 64, 64, 3) and frames.dtype == np.uint8


def test_same_seed_gives_the_same_video_and_another_seed_another(engine, portrait, sound, frames):
    assert np.array_equal(frames_of(engine, portrait, sound), frames)
    assert not np.array_equal(frames_of(engine, portrait, sound, seed=1), frames)


@pytest.mark.parametrize(
    "change", [{"speed": 1.9}, {"face_region": "all"}, {"guidance": 3.0}, {"solver": "unipc"}]
)
def test_each_option_changes_the_picture(engine, portrait, sound, frames, change):
    assert not np.array_equal(frames_of(engine, portrait, sound, **change), frames)


def test_a_resumed_video_equals_the_uninterrupted_one(engine, portrait, sound, frames, tmp_path):
    video = engine.prepare(portrait, sound, tmp_path, FEW_STEPS)
    first = next(engine.clips(video))
    rest = list(engine.clips(video, first=1, motion=first.motion))
    assert np.array_equal(np.concatenate([clip.frames for clip in rest]), frames[12:])


def test_frames_may_be_larger_than_what_the_networks_see(portrait, sound, frames, tmp_path):
    larger = dataclasses.replace(SMALL_MINI, frame_size=128)
    engine = Engine(save_small(tmp_path / "model", larger), device="cpu", dtype="fp32")
    shown = frames_of(engine, portrait, sound)
    assert shown.shape == (33, 128, 128, 3)
    smaller = shown.reshape(33, 64, 2, 64, 2, 3).mean((2, 4))
    assert np.abs(smaller - frames).mean() < 5
    out = tmp_path / "a.mp4"
    request = Request(portrait=portrait, audio=sound, out=out, options=FEW_STEPS,
                      overwrite=False, resume=False, quiet=True)  # fmt: skip
    report = make_video(engine, request)
    box = np.array(engine.prepare(portrait, sound, tmp_path, FEW_STEPS).portrait.face_box)
    assert report["size"] == [128, 128] and np.allclose(report["face_box"], 2 * box, atol=0.1)
    assert next(iter(read_frames(out, 0, 1))).shape == (128, 128, 3)


def test_motion_frames_change_the_next_clip(engine, portrait, sound, frames, tmp_path):
    video = engine.prepare(portrait, sound, tmp_path, FEW_STEPS)
    without = next(engine.clips(video, first=1, motion=None))
    assert not np.array_equal(without.frames, frames[12:24])


def count_calls(module, calls, name):
    return module.register_forward_hook(lambda *_: calls.append(name))


def test_reference_net_runs_once_for_the_portrait_and_once_a_clip(
    engine, portrait, sound, tmp_path
):
    model, calls = engine.model, []
    layer = model.backbone.spatial_layers()[0].block.attn2.to_k
    hooks = [
        count_calls(model.reference_net.mid_block, calls, "reference net"),
        count_calls(layer, calls, "reference keys"),
        count_calls(model.backbone.audio_projector, calls, "audio"),
        count_calls(model.backbone.mid_block, calls, "step"),
    ]
    video = engine.prepare(portrait, sound, tmp_path, FEW_STEPS)
    assert calls == ["reference net", "reference keys"]
    calls.clear()
    list(engine.clips(video))
    clip = ["audio", "step", "step"]
    # The first clip has zero maps instead of motion frames.
    expected = [clip, ["reference net", *clip], ["reference net", *clip]]
    assert sorted(calls) == sorted(sum(expected, []))
    for hook in hooks:
        hook.remove()


def test_guidance_of_one_is_the_conditional_prediction(engine, portrait, sound, frames):
    assert np.array_equal(frames_of(engine, portrait, sound, guidance=1.0), frames)


def test_guidance_batch_equals_separate_forwards(engine, portrait, sound, tmp_path):
    """Each branch of the batch sees just its own conditions."""
    options = GenerateOptions(**(vars(FEW_STEPS) | {"guidance": 2.0, "audio_guidance": 5.0}))
    video = engine.prepare(portrait, sound, tmp_path, options)
    assert [b[:2] for b in video.branches] == [(True, True), (True, False), (False, False)]
    state = video.state
    assert state.portrait is not None
    assert state.portrait[:2].any() and not state.portrait[2].any()
    assert all(keys[0].any() and not keys[2].any() for keys, _ in state.reference)
    planned = next(iter(engine_plan(video)))
    heard = engine.conditions.heard(video, planned.start, 12)
    audio = engine.conditions.audio(video, heard)
    assert torch.equal(audio[0], heard.to(audio))
    assert audio[0].any() and not audio[1].any() and not audio[2].any()


def gestures_of(engine, video):
    """What the model is told of each clip."""
    conditions = engine.conditions
    return [
        conditions.gestures(video, planned.start, conditions.heard(video, planned.start, 12))[0]
        for planned in engine_plan(video)
    ]


def test_each_clip_is_told_its_part_of_the_videos_blinks(engine, portrait, sound, tmp_path):
    options = GenerateOptions(**(vars(FEW_STEPS) | {"guidance": 2.0, "seed": 6}))
    video = engine.prepare(portrait, sound, tmp_path, options)
    lids = torch.cat([gestures.lids for gestures in gestures_of(engine, video)], 1)
    expected = torch.from_numpy(blinks(36, 6))  # the last clip is padded; both branches see
    assert expected.any() and torch.equal(lids, expected.expand(2, -1))


def test_each_clip_is_told_its_part_of_the_heads_path_and_what_the_sounds_lips_do(
    engine, portrait, sound, tmp_path
):
    options = GenerateOptions(**(vars(FEW_STEPS) | {"guidance": 2.0, "seed": 6, "speed": 1.0}))
    video = engine.prepare(portrait, sound, tmp_path, options)
    told = [gestures.head for gestures in gestures_of(engine, video)]
    box, speed = video.portrait.face_box, video.sampling.speed
    loudness = video.sound.loudness(36, 25)
    nods = accents(loudness, 6, "nods")
    moves = head_path(nods, 6, speed, box, mask_box(video.portrait.mask))
    acting = act(video.portrait, loudness, 6, speed)
    assert acting.gaze.any() and acting.brows.any()
    size = engine.config.picture_size, engine.config.latent_size
    expected = torch.from_numpy(head_flow(moves, box, *size))[None]
    assert not expected[:, 0].any() and expected[:, -1].any()
    flow = torch.cat([head.flow for head in told], 1)
    assert torch.equal(flow, expected.expand(2, -1, -1, -1, -1))
    picture = torch.from_numpy(video.portrait.picture).permute(2, 0, 1)[None] / 127.5 - 1
    points = video.portrait.face_points
    heard = windows(video.features.features(-2, 36 + 2), 5)
    with torch.inference_mode():
        lips = engine.model.lip_reader(heard[None])
    assert lips.std() > 0
    lips = lips + torch.tensor([0, float(lip_shape(points)[1])])  # wider than the portrait's
    lids, brows = (torch.from_numpy(x)[None] for x in (blinks(36, 6), acting.brows))
    gaze = torch.from_numpy(acting.gaze @ eye_axes(points).T).float()[None]
    points = torch.from_numpy(points)[None]
    face = FaceMoves(points, lips, lids, brows, gaze, light_on(picture, points))
    pictures = moved_pictures(picture, expected, face).pictures
    beside_mouth = told_places(expected, picture.shape[-1], face)
    moved, beside = (torch.cat([head[i] for head in told], 1) for i in (1, 2))
    latents = engine.model.autoencoder.encode(pictures[0])
    torch.testing.assert_close(moved[0], latents, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(beside[0], beside_mouth[0], atol=1e-5, rtol=1e-4)
    assert not moved[1].any() and not beside[1].any()  # the branch without the portrait


@torch.inference_mode()
def test_a_clip_is_told_how_it_goes_on_from_the_frame_before_it(engine, portrait, sound, tmp_path):
    """The frame before is seen as the clip before was told it; the clip itself is told no more."""
    options = GenerateOptions(**(vars(FEW_STEPS) | {"seed": 6, "speed": 1.0}))
    video = engine.prepare(portrait, sound, tmp_path, options)
    first, second, _ = engine_plan(video)
    motion = torch.randn(1, 4, 16, 8, 8)
    assert engine.conditions.of_clip(video, first, None)[1].step is None
    before = engine.conditions.of_clip(video, first, None)[0].gestures.head.moved[:, -1:]
    inputs, moved = engine.conditions.of_clip(video, second, motion)
    (lids, head), step = inputs.gestures, moved.step
    assert moved.pictures.shape == (12, 3, 64, 64) and torch.equal(moved.latents, head.moved[0])
    assert step.abs().max() > 0.01
    torch.testing.assert_close(step, head.moved[:, :1] - before, atol=1e-5, rtol=1e-4)
    alone = gestures_of(engine, video)[1]
    assert torch.equal(lids, alone.lids) and torch.equal(head.flow, alone.head.flow)
    torch.testing.assert_close(head.moved, alone.head.moved, atol=1e-5, rtol=1e-4)
    assert inputs.audio.shape == (1, 12, 5, engine.config.audio_feature_width)


def test_clips_ease_in_from_the_one_before_them_and_the_first_does_not(
    small_model, portrait, sound, frames
):
    engine = Engine(small_model, device="cpu", dtype="fp32")
    config = engine.model.config
    assert config.diffusion.join_frames == 3
    apart = dataclasses.replace(config.diffusion, join_frames=0)
    engine.model.config = dataclasses.replace(config, diffusion=apart)
    plain = frames_of(engine, portrait, sound)
    assert np.array_equal(plain[:12], frames[:12])
    assert not np.array_equal(plain[12], frames[12])
    assert np.array_equal(plain[15:24], frames[15:24])  # the second clip, behind its first three


def engine_plan(video):
    from emo_cli.clips import plan

    return plan(video.num_frames, 12)


def test_full_layout_runs_guided_with_motion_frames(portrait, sound, tmp_path):
    engine = Engine(save_small(tmp_path, SMALL_FULL), device="cpu", dtype="fp32")
    options = GenerateOptions(steps=2, guidance=3.0, face_region="box", duration_s=0.6)
    clips = list(engine.generate(portrait, sound, options))
    assert [len(clip.frames) for clip in clips] == [12, 3]
    assert clips[0].frames.std() > 0


@torch.inference_mode()
def test_every_network_of_mini_says_in_bf16_what_it_says_in_fp32(portrait):
    """On a CPU bf16 takes other kernels, of which some were wrong; the audio encoder stays out."""
    from emo_cli.model.load import EMBEDDED

    exact, low = (load_model(EMBEDDED, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert {p.dtype for p in low.audio_encoder.parameters()} == {torch.float32}
    torch.manual_seed(0)
    pixels = np.array(Image.open(portrait).convert("RGB").resize((256, 256)))
    picture = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    # As in the middle of sampling: noise alone is nothing that the networks ever see.
    still = exact.autoencoder.encode(picture)
    latents = (still[:, None] + torch.randn(1, 12, 16, 32, 32)) / 2**0.5

    def said(model, dtype):
        net, backbone = model.reference_net, model.backbone
        x, reference = latents.to(dtype), still.to(dtype)
        encoded = model.autoencoder.encode(picture.to(dtype))
        features = net.portrait_features(reference)
        video = backbone.prepare_video(features, torch.ones(1, 1, 256, 256).to(dtype), reference)
        audio = torch.ones(1, 12, 5, model.config.audio_feature_width, dtype=dtype)
        motion = net.motion_features(reference[:, None].expand(-1, 4, -1, -1, -1))
        moved = reference[:, None].expand(-1, 12, -1, -1, -1)
        head = Head(torch.zeros(1, 12, 2, 32, 32), moved, torch.zeros(1, 12, 1, 32, 32))
        gestures = Gestures(torch.zeros(1, 12), head)
        clip = backbone.prepare_clip(audio, motion, torch.ones(1, 12, 5), gestures)
        predicted = backbone(x, torch.tensor([500]), video, clip)
        return encoded, *motion, predicted, model.autoencoder.decode(reference)

    for ours, expected in zip(said(low, torch.bfloat16), said(exact, torch.float32), strict=True):
        assert (ours - expected).norm() < 0.01 * expected.norm()


def test_bf16_stays_near_fp32(small_model, portrait, sound, frames):
    engine = Engine(small_model, device="cpu", dtype="bf16")
    low = frames_of(engine, portrait, sound)
    assert np.abs(low.astype(float) - frames).mean() < 4


# ----------------------------------------------------------- guidance interval, cache, offload


def steps_of(engine, video, latents, count):
    """The denoiser of a first clip, and noisy latents for so many branches."""
    planned = next(iter(engine_plan(video)))
    inputs, _ = engine.conditions.of_clip(video, planned, None)
    clip = engine.model.backbone.prepare_clip(*inputs)
    return clip, latents.expand(count, *latents.shape[1:])


def guided_video(engine, portrait, sound, folder, **changes):
    changes = {"guidance": 3.0, "steps": 5} | changes
    options = GenerateOptions(**(vars(FEW_STEPS) | changes))
    return engine.prepare(portrait, sound, folder, options)


@pytest.mark.parametrize(
    "off",
    [{"guidance_interval": (0, 999)}, {"guidance_rescale": 0.0}, {"cache_interval": 1}],
    ids=lambda off: next(iter(off)),
)
def test_an_option_of_sampling_that_is_off_changes_no_bit(engine, portrait, sound, tmp_path, off):
    first = next(engine.clips(guided_video(engine, portrait, sound, tmp_path)))
    other = next(engine.clips(guided_video(engine, portrait, sound, tmp_path, **off)))
    assert torch.equal(first.motion, other.motion)


@pytest.mark.parametrize(
    "on",
    [{"guidance_interval": (300, 700)}, {"guidance_rescale": 0.7}, {"cache_interval": 2}],
    ids=lambda on: next(iter(on)),
)
def test_an_option_of_sampling_that_is_on_changes_the_clip(engine, portrait, sound, tmp_path, on):
    first = next(engine.clips(guided_video(engine, portrait, sound, tmp_path)))
    other = next(engine.clips(guided_video(engine, portrait, sound, tmp_path, **on)))
    assert not torch.equal(first.motion, other.motion) and other.motion.isfinite().all()


@torch.inference_mode()
def test_one_branch_of_a_guided_clip_is_the_unguided_clip(engine, portrait, sound, tmp_path):
    guided = guided_video(engine, portrait, sound, tmp_path)
    plain = guided_video(engine, portrait, sound, tmp_path, guidance=1.0)
    latents, at = torch.randn(1, 12, 16, 8, 8), torch.tensor([500])
    clip, _ = steps_of(engine, guided, latents, 2)
    alone, _ = steps_of(engine, plain, latents, 1)
    result = engine.model.backbone(latents, at, guided.state.first(), clip.first(12))
    expected = engine.model.backbone(latents, at, plain.state, alone)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layers", [1, 2, 3, 5])
@torch.inference_mode()
def test_deep_features_of_the_same_step_give_the_same_prediction(
    engine, portrait, sound, tmp_path, layers
):
    video = guided_video(engine, portrait, sound, tmp_path)
    latents, at = torch.randn(1, 12, 16, 8, 8), torch.tensor([500, 500])
    clip, both = steps_of(engine, video, latents, 2)
    backbone = engine.model.backbone
    whole = backbone(both, at, video.state, clip)
    kept, deep = backbone.forward_keeping(both, at, video.state, clip, layers)
    again = backbone.forward_reusing(both, at, video.state, clip, layers, deep)
    assert torch.equal(whole, kept) and torch.equal(whole, again)


def test_steps_between_run_no_deep_layer(engine, portrait, sound, tmp_path):
    model, calls = engine.model, []
    hooks = [
        count_calls(model.backbone.mid_block, calls, "deep"),
        count_calls(model.backbone.conv_out, calls, "step"),
    ]
    video = guided_video(engine, portrait, sound, tmp_path, cache_interval=2)
    next(engine.clips(video))
    assert calls.count("step") == 5 and calls.count("deep") == 3
    for hook in hooks:
        hook.remove()


def test_low_vram_gives_the_same_video_and_holds_weights_back(small_model, portrait, sound, frames):
    engine = Engine(small_model, device="cpu", dtype="fp32", low_vram=True)
    at_home = {name: p.data_ptr() for name, p in engine.model.named_parameters()}
    made = frames_of(engine, portrait, sound)
    assert np.abs(made.astype(int) - frames).max() <= 1  # decoded one by one
    assert {name: p.data_ptr() for name, p in engine.model.named_parameters()} == at_home


def test_low_vram_uploads_the_audio_encoder_only_for_a_window(
    small_model, portrait, sound, monkeypatch
):
    engine, uploaded = Engine(small_model, device="cpu", dtype="fp32", low_vram=True), []
    at_work = Offload.at_work

    def counted(self, part):
        uploaded.append(part)
        return at_work(self, part)

    monkeypatch.setattr(Offload, "at_work", counted)
    assert len(list(engine.generate(portrait, sound, FEW_STEPS))) == 3  # clips, of one window
    assert uploaded.count(engine.model.audio_encoder) == 1
    assert uploaded.count(engine.model.autoencoder) == 1 + 2 * 3  # a clip: the head, decoding


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_what_goes_to_the_device_and_back_is_the_same(dtype):
    there = upload(torch.arange(6, dtype=dtype).view(2, 3), torch.device("cpu"))
    assert torch.equal(download(there)(), torch.arange(6, dtype=dtype).view(2, 3))


@pytest.mark.gpu
def test_a_download_waits_for_nothing_that_came_later():
    here = torch.randn(1000)
    fetch = download(upload(here, torch.device("cuda")))
    torch.cuda._sleep(2_000_000_000)  # cycles
    assert torch.equal(fetch(), here) and not torch.cuda.current_stream().query()


def test_a_part_lies_elsewhere_only_while_it_works(engine):
    part = engine.model.reference_net
    before = [p.data_ptr() for p in part.parameters()]
    with Offload(torch.device("cpu")).at_work(part):
        assert not set(before) & {p.data_ptr() for p in part.parameters()}
    assert [p.data_ptr() for p in part.parameters()] == before


def test_clips_decoded_behind_the_next_ones_start_are_the_same(
    small_model, portrait, sound, frames, tmp_path
):
    engine = Engine(small_model, device="cpu", dtype="fp32")
    engine.overlap = True  # as on CUDA
    video = engine.prepare(portrait, sound, tmp_path, FEW_STEPS)
    clips = list(engine.clips(video))
    assert [clip.index for clip in clips] == [0, 1, 2]
    assert np.array_equal(np.concatenate([clip.frames for clip in clips]), frames)


# ------------------------------------------------------- what would wait on a GPU, without one


@pytest.mark.parametrize(
    "wait",
    [
        lambda here, there: here.to("meta"),
        lambda here, there: there.copy_(here),
        lambda here, there: there.new_tensor([1.0]),
        lambda here, there: torch.tensor([1.0], device="meta"),
    ],
)
def test_a_copy_that_would_wait_is_found(wait):
    here, there = torch.ones(2), torch.ones(2, device="meta")
    with Waits() as found:
        there = upload(here, torch.device("meta")) * 2 + there
        assert found == []
        wait(here, there)
    assert len(found) == 1 and "test_engine.py" in found[0]


@pytest.mark.parametrize("solver", ["ddim", "dpm++", "unipc"])
@pytest.mark.parametrize("layout", [SMALL_MINI, SMALL_FULL], ids=lambda layout: layout.name)
def test_no_clip_would_wait_for_a_gpu(portrait, sound, tmp_path, layout, solver):
    """Nor where a window of the sound is heard; only diffusers' UniPC makes a host wait."""
    model = load_model(save_small(tmp_path / "model", layout)).to("meta")
    engine = Engine.of_model(model, device=torch.device("meta"))
    video = guided_video(engine, portrait, sound, tmp_path, cache_interval=2, solver=solver)
    motion = None
    for planned in engine_plan(video):
        with Waits() as found:
            latents, moved = engine._denoise_clip(video, planned, motion)
            engine._start_decoding(latents, planned.num_frames, moved)
        assert all("scheduling_unipc" in line for line in found), found
        assert bool(found) == (solver == "unipc")
        motion = latents[:, -4:]


@pytest.mark.slow
@torch.inference_mode()
def test_the_step_compiles_as_one_graph(engine, portrait, sound, tmp_path):
    """Traced whole, without a break or a look at the host; what inductor makes of it is `gpu`'s."""
    video = guided_video(engine, portrait, sound, tmp_path)
    latents, at = torch.randn(1, 12, 16, 8, 8), torch.tensor([500, 500])
    clip, both = steps_of(engine, video, latents, 2)
    steps = BackboneSteps(engine.model.backbone, compiled=True, backend="eager", fullgraph=True)
    expected = engine.model.backbone(both, at, video.state, clip)
    assert torch.equal(steps.whole(both, at, video.state, clip), expected)
    _, deep = steps.keeping(both, at, video.state, clip, 1)
    assert torch.equal(steps.reusing(both, at, video.state, clip, 1, deep), expected)


def test_a_machine_that_cannot_compile_is_told_so(engine, portrait, sound, tmp_path):
    def refuse(*_):
        raise RuntimeError("no C++ compiler found")

    video = engine.prepare(portrait, sound, tmp_path, FEW_STEPS)
    eager, engine.steps = (
        engine.steps,
        BackboneSteps(engine.model.backbone, compiled=True, backend=refuse),
    )
    try:
        with pytest.raises(EmoError, match="cannot be compiled here.*no C") as problem:
            next(engine.clips(video))
    finally:
        engine.steps = eager
    assert "--compile" in problem.value.hint and "\n" not in problem.value.message


# ------------------------------------------------------------------ models that cannot be used


@pytest.fixture
def folder(small_model, tmp_path):
    return Path(shutil.copytree(small_model, tmp_path / "model"))


def test_a_missing_part_is_refused_and_its_stage_named(folder):
    (folder / "temporal.safetensors").unlink()
    with pytest.raises(EmoError, match="lacks the temporal modules") as caught:
        Engine(folder, device="cpu")
    assert "emo train video" in caught.value.hint


def test_a_changed_weight_file_is_refused(folder):
    file = folder / "backbone.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(EmoError, match="wrong digest"):
        Engine(folder, device="cpu")


def rewrite(folder, part, change):
    from safetensors.torch import load_file, save_file

    file = folder / f"{part}.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    sums = (folder / SUMS).read_text().splitlines()
    lines = [
        f"{sha256_of(file)}  {file.name}" if line.endswith(file.name) else line for line in sums
    ]
    (folder / SUMS).write_text("\n".join(lines) + "\n")


def test_nan_in_weights_is_refused_by_name(folder):
    rewrite(folder, "backbone", lambda t: t["conv_in.weight"].fill_(float("nan")))
    with pytest.raises(EmoError, match="conv_in.weight holds NaN"):
        Engine(folder, device="cpu")


def test_a_missing_tensor_is_refused_by_name(folder):
    rewrite(folder, "reference_net", lambda t: t.pop("conv_in.weight"))
    with pytest.raises(EmoError, match="conv_in.weight is missing"):
        Engine(folder, device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format 99"),
        ({"fps": "many"}, "config.json.fps"),
        ({"surprise": 1}, "'surprise' is not known"),
        (vars(SMALL_FULL) | {"frame_size": 128}, "frame_size is 128, picture_size 64"),
    ],
)
def test_a_wrong_config_is_refused(folder, change, message):
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config, default=dataclasses.asdict))
    with pytest.raises(EmoError, match=message):
        Engine(folder, device="cpu")


@pytest.mark.parametrize("name", ["nowhere", "full"])
def test_unknown_models_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EmoError):
        Engine(name, device="cpu")


def test_a_model_that_misses_a_stage_is_never_used_silently(tmp_path):
    folder = save_small(tmp_path, trained_stages=("autoencoder", "audio", "image"))
    with pytest.raises(EmoError, match="stage 'video'") as caught:
        Engine(folder, device="cpu")
    assert "emo train video" in caught.value.hint
    Engine(folder, device="cpu", allow_untrained=True)


def test_an_untrained_model_says_so(tmp_path):
    folder = save_small(tmp_path, untrained=True, trained_stages=("autoencoder",))
    assert "not fully trained" in Engine(folder, device="cpu").note


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_an_absent_device_is_refused(small_model):
    with pytest.raises(EmoError, match="there is no cuda") as caught:
        Engine(small_model, device="cuda")
    assert "--device cpu" in caught.value.hint
    with pytest.raises(EmoError, match="is no device"):
        Engine(small_model, device="toaster")


def test_full_device_memory_gives_a_hint(engine, portrait, sound, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine.model.reference_net, "portrait_features", full)
    with pytest.raises(EmoError, match="out of memory") as caught:
        list(engine.generate(portrait, sound, FEW_STEPS))
    assert "--dtype bf16" in caught.value.hint


def test_the_embedded_model_loads_and_fits_its_budget():
    from emo_cli.model.load import EMBEDDED

    model = load_model(EMBEDDED)
    files = list(EMBEDDED.glob("*.safetensors"))
    assert sum(f.stat().st_size for f in files) <= 36_000_000
    assert all(f.stat().st_size < 16_000_000 for f in files)
    assert model.config.name == "mini"


# ------------------------------------------------------------------------------------- on a GPU


@pytest.fixture(scope="module")
def cuda_engines(tmp_path_factory):
    """Eager, compiled and low-VRAM engines of one small `full`, and one of `mini`, in bf16."""
    folder = save_small(tmp_path_factory.mktemp("full"), SMALL_FULL)
    ways = {"eager": {}, "compiled": {"compiled": True}, "low_vram": {"low_vram": True}}
    engines = {name: Engine(folder, device="cuda", **how) for name, how in ways.items()}
    mini = save_small(tmp_path_factory.mktemp("mini"))
    return engines | {"mini": Engine(mini, device="cuda")}


def motion_of(engine, portrait, sound, folder, **changes):
    clips = list(engine.clips(guided_video(engine, portrait, sound, folder, **changes)))
    return torch.cat([clip.motion for clip in clips])


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["compiled", "low_vram"])
@pytest.mark.parametrize("cache_interval", [1, 2])
def test_other_ways_to_run_on_cuda_equal_eager(
    cuda_engines, portrait, sound, tmp_path, way, cache_interval
):
    """In bf16, whose rounding compiled kernels do once where eager ones do it several times."""
    ours, eager = (
        motion_of(cuda_engines[name], portrait, sound, tmp_path, cache_interval=cache_interval)
        for name in (way, "eager")
    )
    assert (ours - eager).norm() < (0.05 if way == "compiled" else 1e-6) * eager.norm()


@pytest.mark.gpu
def test_low_vram_holds_fewer_weights_on_the_device(cuda_engines, portrait, sound, tmp_path):
    engine = cuda_engines["low_vram"]
    assert all(p.device.type == "cpu" for p in engine.model.parameters())
    weights = sum(p.numel() * p.element_size() for p in engine.model.parameters())
    peaks = {}
    for name in ("eager", "low_vram"):  # the eager engine's weights lie there both times
        torch.cuda.reset_peak_memory_stats()
        motion_of(cuda_engines[name], portrait, sound, tmp_path)
        peaks[name] = torch.cuda.max_memory_allocated()
    assert peaks["low_vram"] < peaks["eager"] + weights
    assert all(p.device.type == "cpu" for p in engine.model.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
@pytest.mark.parametrize("name", ["eager", "mini"])
def test_a_clip_never_waits_for_the_device(cuda_engines, portrait, sound, tmp_path, name, solver):
    engine = cuda_engines[name]
    video = guided_video(engine, portrait, sound, tmp_path, cache_interval=2, solver=solver)
    list(engine.clips(video))  # warm
    channels = engine.config.autoencoder.latent_channels
    motion = torch.randn(1, 4, channels, 8, 8, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for planned in engine_plan(video):
            engine._denoise_clip(video, planned, motion)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("unit", [*CPU_BF16, None])
def test_a_cpu_works_in_bf16_only_where_it_multiplies_it(monkeypatch, unit):
    for name in CPU_BF16:
        monkeypatch.setattr(torch.cpu, name, lambda has=name == unit: has, raising=False)
    numbers = torch.bfloat16 if unit else torch.float32
    assert choose_dtype("auto", torch.device("cpu")) == numbers
    for name in CPU_BF16:
        monkeypatch.delattr(torch.cpu, name)  # a torch that does not say
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32


def test_a_model_has_its_own_usual_speed_and_the_user_wins(engine):
    usual = engine.config.speed.usual
    assert resolve(GenerateOptions(), engine.config).speed == usual
    assert resolve(GenerateOptions(speed=usual / 2), engine.config).speed == usual / 2


@pytest.mark.parametrize("library", ["glibc", "musl", ""])
def test_only_glibc_is_asked_to_keep_freed_memory(monkeypatch, library: str) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: (library, "2"))
    asked: list[int] = []

    class LibC:
        def mallopt(self, option: int, value: int) -> int:
            asked.append(option)
            return 1

    monkeypatch.setattr("ctypes.CDLL", lambda name: LibC())
    assert keep_freed_memory() == (library == "glibc") == bool(asked)
