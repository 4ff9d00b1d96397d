"""Sound files become 16 kHz mono on disk; features are windows of wav2vec, and nothing else."""

from __future__ import annotations

import dataclasses
import math
import os
import resource
import shutil
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from emo_cli.audio import AudioFeatures, build_wav2vec
from emo_cli.config import AudioConfig
from emo_cli.errors import EmoError
from emo_cli.presets import FULL, MINI
from emo_cli.sound import Sound, decode_sound

ENCODERS = {
    "mp3": ("mp3", "libmp3lame", 44100, "fltp"),
    "m4a": ("ipod", "aac", 44100, "fltp"),
    "flac": ("flac", "flac", 48000, "s16"),
    "opus": ("ogg", "libopus", 48000, "flt"),
    "mka": ("matroska", "flac", 22050, "s16"),
    "aiff": ("aiff", "pcm_s16be", 32000, "s16"),
}


def tone(rate: int, seconds: float, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def write_wav(path: Path, samples: np.ndarray, rate: int = 16000) -> Path:
    """Samples [S] or [S, channels] in -1..1 as 16-bit wav."""
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        stream.setsampwidth(2)
        stream.setframerate(rate)
        stream.writeframes((samples * 32767).round().astype("<i2").tobytes())
    return path


def encode(path: Path, *, seconds: float = 2.0, pictures: int = 0, sound: bool = True) -> Path:
    """A stereo tone in the format the suffix names; an mp4 with so many pictures beside it."""
    if path.suffix == ".ogg":
        soundfile.write(path, np.repeat(tone(44100, seconds)[:, None], 2, axis=1), 44100)
        return path
    name, codec, rate, kind = ENCODERS.get(path.suffix[1:], ("mp4", "aac", 44100, "fltp"))
    with av.open(str(path), "w", format=name) as container:
        track: Any = container.add_stream(codec, rate=rate, layout="stereo") if sound else None
        film = container.add_stream("mpeg4", rate=25) if pictures else None
        if film is not None:
            film.width = film.height = 64
            film.pix_fmt = "yuv420p"
            for _ in range(pictures):
                picture = av.VideoFrame.from_ndarray(
                    np.zeros((64, 64, 3), np.uint8), format="rgb24"
                )
                container.mux(film.encode(picture))
            container.mux(film.encode())
        if track is not None:
            samples = np.repeat(tone(rate, seconds)[None], 2, axis=0).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = rate, 0  # else AAC's priming is not marked
            for part in av.AudioResampler(format=kind, layout="stereo", rate=rate).resample(frame):
                container.mux(track.encode(part))
            container.mux(track.encode())
    return path


def cut_in_half(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def error_of(path: Path, folder: Path, **cut: float) -> EmoError:
    with pytest.raises(EmoError) as caught:
        decode_sound(path, folder, **cut)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


# --- decoding


@pytest.mark.parametrize("suffix", [*ENCODERS, "ogg", "mp4"])
def test_each_format_gives_the_same_tone_at_its_place(suffix, tmp_path):
    found = decode_sound(encode(tmp_path / f"tone.{suffix}"), tmp_path)
    expected = tone(16000, 2.0)
    assert found.duration_s == pytest.approx(2.0, abs=0.03)  # a codec may add a block
    assert len(found.samples) == round(found.duration_s * 16000)
    assert found.samples.dtype == np.float32
    middle = slice(4000, 28000)
    assert np.abs(found.samples[middle] - expected[middle]).max() < 0.03


def test_lossless_wav_at_16_khz_comes_through_exactly(tmp_path):
    samples = np.random.default_rng(0).uniform(-1, 1, 5000)
    found = decode_sound(write_wav(tmp_path / "a.wav", samples), tmp_path)
    expected = (samples * 32767).round() / 32768
    np.testing.assert_allclose(found.samples, expected, atol=1e-6)
    assert found.duration_s == 5000 / 16000


def test_two_channels_become_their_mean(tmp_path):
    left, right = tone(16000, 0.5, 300), tone(16000, 0.5, 700)
    found = decode_sound(write_wav(tmp_path / "a.wav", np.stack([left, right], 1)), tmp_path)
    np.testing.assert_allclose(found.samples, (left + right) / 2, atol=1e-3)


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 96000])
def test_the_length_is_exact_at_any_rate(rate, tmp_path):
    found = decode_sound(write_wav(tmp_path / "a.wav", tone(rate, 3.0), rate), tmp_path)
    assert found.duration_s == 3.0
    assert len(found.samples) == 48000
    assert found.num_frames(25) == 75


def test_a_sound_track_is_timed_by_its_samples_not_by_its_pictures(tmp_path):
    found = decode_sound(encode(tmp_path / "film.mp4", seconds=2.0, pictures=100), tmp_path)
    assert found.num_frames(25) == 50


@pytest.mark.parametrize(
    ("duration_s", "frames"),
    [(3.0, 75), (3.0 + 1e-12, 75), (3.001, 76), (0.1 + 0.2, 8), (1e-4, 1), (7.24, 181)],
)
def test_the_tail_is_never_cut_and_float_noise_adds_no_frame(duration_s, frames):
    assert made_sound(np.zeros(1), duration_s).num_frames(25) == frames


def test_start_and_duration_cut_the_sound(tmp_path):
    samples = np.random.default_rng(0).uniform(-1, 1, 32000)
    path = write_wav(tmp_path / "a.wav", samples)
    whole = decode_sound(path, tmp_path)
    part = decode_sound(path, tmp_path, start_s=0.5, duration_s=0.75)
    np.testing.assert_array_equal(part.samples, whole.samples[8000:20000])
    assert (part.duration_s, part.start_s, part.num_frames(25)) == (0.75, 0.5, 19)
    rest = decode_sound(path, tmp_path, start_s=1.5, duration_s=9.0)
    np.testing.assert_array_equal(rest.samples, whole.samples[24000:])
    assert rest.duration_s == 0.5


def test_names_that_look_like_options_or_protocols_are_just_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("-i.wav", "a:b.wav", 'it\'s "it" ü %03d.wav', "concat:x|y.wav"):
        path = write_wav(Path(name), tone(16000, 0.2))
        assert decode_sound(path, tmp_path).duration_s == 0.2


def test_nan_in_a_float_wav_becomes_silence(tmp_path):
    samples = tone(16000, 0.5).astype("<f4")
    samples[100] = np.nan
    path = write_wav(tmp_path / "a.wav", np.zeros(16000))
    head = bytearray(path.read_bytes()[:44])
    head[20:22], head[34:36] = b"\x03\0", b"\x20\0"  # IEEE float, 32 bits
    head[28:32], head[32:34] = (64000).to_bytes(4, "little"), b"\x04\0"
    path.write_bytes(bytes(head) + samples.tobytes())
    assert np.isfinite(decode_sound(path, tmp_path).samples).all()


def test_silence_is_a_sound(tmp_path):
    found = decode_sound(write_wav(tmp_path / "a.wav", np.zeros(8000)), tmp_path)
    assert found.num_frames(25) == 13
    assert not found.samples.any()


def test_a_streamed_wav_without_a_length_is_read_whole(tmp_path):
    path = write_wav(tmp_path / "a.wav", tone(16000, 1.0))
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert decode_sound(path, tmp_path).duration_s == 1.0


def test_damage_within_a_sound_is_left_out_and_said(tmp_path):
    path = encode(tmp_path / "a.mp3", seconds=5.0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 600] = b"\x55" * 600
    path.write_bytes(data)
    found = decode_sound(path, tmp_path)
    assert "damaged" in " ".join(found.notes)
    assert found.duration_s > 4.5


def test_nothing_is_left_in_the_folder(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    found = decode_sound(write_wav(tmp_path / "a.wav", tone(16000, 1.0)), folder)
    error_of(write_wav(tmp_path / "b.wav", np.zeros(0)), folder)
    if os.name == "posix":
        assert list(folder.iterdir()) == []
    assert float(found.samples.max()) == pytest.approx(0.5, abs=0.01)


MEMORY_SCRIPT = """
import resource, sys
from pathlib import Path
from emo_cli.sound import decode_sound
decode_sound(Path(sys.argv[1]), Path(sys.argv[3]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = decode_sound(Path(sys.argv[2]), Path(sys.argv[3]))
print(len(found.samples), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_host_memory_does_not_grow_with_the_length(tmp_path):
    short = write_wav(tmp_path / "short.wav", np.zeros(16000))
    long = write_wav(tmp_path / "long.wav", np.zeros(10 * 60 * 16000))
    command = [sys.executable, "-c", MEMORY_SCRIPT, str(short), str(long), str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    num_samples, grown_kb = map(int, told.stdout.split())
    assert num_samples == 10 * 60 * 16000  # 38 MB of samples
    assert grown_kb < 20_000


def test_jfk_and_the_song_of_shared_data_are_decoded(shared_data, tmp_path):
    lengths = {"jfk.flac": 11.0, "karissa_hobbs_lets_go_fishin.ogg": None}
    for name, length_s in lengths.items():
        found = decode_sound(shared_data / "audio" / name, tmp_path)
        assert length_s is None or found.duration_s == pytest.approx(length_s, abs=0.01)
        assert found.num_frames(25) >= found.duration_s * 25 - 1e-6
        assert found.samples.std() > 0.01


# --- files that are no sound


def test_missing_folder_and_empty_files_are_refused(tmp_path):
    (tmp_path / "empty.wav").touch()
    assert "does not exist" in error_of(tmp_path / "no.wav", tmp_path).message
    assert "not a file" in error_of(tmp_path, tmp_path).message
    assert "is empty" in error_of(tmp_path / "empty.wav", tmp_path).message


def test_a_sound_of_no_length_is_refused(tmp_path):
    path = write_wav(tmp_path / "a.wav", np.zeros(0))
    assert "length is zero" in error_of(path, tmp_path).message


def test_files_of_other_kinds_are_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, 40000, np.uint8).tobytes()
    for name, content in {"a.mp3": noise, "b.wav": b"hello", "c.ogg": b"\0" * 5000}.items():
        (tmp_path / name).write_bytes(content)
        assert "not a sound" in error_of(tmp_path / name, tmp_path).message


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nreal.wav\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXTINF:5,\nreal.wav\n",
        "ffconcat version 1.0\nfile real.wav\n",
        "v=0\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
    ],
)
def test_a_playlist_named_song_wav_is_not_followed(playlist, tmp_path):
    write_wav(tmp_path / "real.wav", tone(16000, 1.0))
    (tmp_path / "song.wav").write_text(playlist)
    error_of(tmp_path / "song.wav", tmp_path)


def test_a_picture_named_song_wav_is_refused(tmp_path):
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "song.wav", "JPEG")
    error_of(tmp_path / "song.wav", tmp_path)


def test_a_film_without_sound_is_refused(tmp_path):
    path = encode(tmp_path / "mute.mp4", pictures=10, sound=False)
    assert "no sound track" in error_of(path, tmp_path).message


def test_a_file_with_only_a_cover_picture_is_refused(tmp_path):
    with av.open(str(tmp_path / "song.m4a"), "w", format="mp4") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 64
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        container.mux(cover.encode(picture))
    assert "only a cover picture" in error_of(tmp_path / "song.m4a", tmp_path).message


@pytest.mark.parametrize("suffix", ["wav", "mp3", "m4a", "flac", "ogg", "opus", "mka", "aiff"])
def test_a_sound_cut_in_half_is_refused(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    if suffix == "wav":
        write_wav(path, tone(16000, 4.0))
    else:
        encode(path, seconds=4.0)
    error = error_of(cut_in_half(path), tmp_path)
    assert "cut short" in error.message or "not a sound" in error.message
    if "--duration" in error.hint:
        rest_s = float(error.hint.rpartition(" ")[2].rstrip("."))
        assert decode_sound(path, tmp_path, duration_s=rest_s).duration_s == rest_s


def test_a_start_beyond_the_end_is_refused(tmp_path):
    path = write_wav(tmp_path / "a.wav", tone(16000, 1.0))
    for start_s in (1.0, 5.0):
        assert "beyond the end" in error_of(path, tmp_path, start_s=start_s).message


@pytest.mark.parametrize("cut", [{"start_s": -1.0}, {"start_s": math.nan}, {"duration_s": 0.0}])
def test_cuts_that_are_no_times_are_wrong_usage(cut, tmp_path):
    path = write_wav(tmp_path / "a.wav", tone(16000, 1.0))
    assert error_of(path, tmp_path, **cut).exit_code == 2


def test_a_full_disk_is_one_clear_error_and_leaves_no_file(tmp_path):
    path = write_wav(tmp_path / "a.wav", tone(16000, 4.0))
    folder = tmp_path / "work"
    folder.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        error = error_of(path, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot write" in error.message
    assert list(folder.iterdir()) == []


def test_a_missing_work_folder_is_one_clear_error(tmp_path):
    path = write_wav(tmp_path / "a.wav", tone(16000, 0.1))
    assert "cannot write" in error_of(path, tmp_path / "no").message


# --- features


def small_config(**changes: Any) -> AudioConfig:
    small = dataclasses.replace(
        MINI.audio,
        conv_dim=(8,) * 7,
        hidden_width=16,
        num_layers=3,
        num_heads=2,
        feed_forward_width=24,
        position_kernel=8,
        position_groups=4,
        window_s=1.0,
        context_s=0.25,
    )
    return dataclasses.replace(small, **changes)


def small_full_config() -> AudioConfig:
    return small_config(feature_norm="group", stable_layer_norm=False, conv_bias=False)


def made_sound(samples: np.ndarray, duration_s: float | None = None) -> Sound:
    return Sound(
        samples=samples.astype(np.float32),
        sample_rate_hz=16000,
        duration_s=len(samples) / 16000 if duration_s is None else duration_s,
        path=Path("a.wav"),
        start_s=0.0,
    )


def wandering_noise(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise whose loudness and offset wander, so that normalising over other windows shows."""
    count = round(seconds * 16000)
    noise = np.random.default_rng(seed).normal(size=count)
    loudness = 1 + 0.9 * np.sin(np.arange(count) / 5000)
    return 0.1 * noise * loudness + 0.05 * np.linspace(0, 1, count)


def naive_features(samples: np.ndarray, model: Wav2Vec2Model, config: AudioConfig, fps: int):
    """Frame by frame, each from its own window, by transformers' extractor and numpy.interp."""
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False)
    rows = []
    for frame in range(math.ceil(len(samples) / 16000 * fps - 1e-6)):
        centre = (frame + 0.5) / fps
        k = math.floor(centre / config.window_s)
        begin = max(0, round((k * config.window_s - config.context_s) * 16000))
        end = round(((k + 1) * config.window_s + config.context_s) * 16000)
        window = samples[begin:end].astype(np.float32)
        values = extractor(window, sampling_rate=16000, return_tensors="pt").input_values
        values = torch.nn.functional.pad(values, (0, max(0, 400 - values.shape[1])))
        with torch.no_grad():
            output = model(values, output_hidden_states=True)
        states = [*output.hidden_states[1:-1], output.last_hidden_state]
        hidden = torch.cat(states, -1)[0].double().numpy()
        times = (begin + np.arange(len(hidden)) * 320 + 200) / 16000
        rows.append([np.interp(centre, times, column) for column in hidden.T])
    return np.array(rows)


@pytest.mark.parametrize("seconds", [0.01, 0.5, 1.0, 2.013, 3.3])
@pytest.mark.parametrize("config", [small_config(), small_full_config()], ids=["layer", "group"])
def test_windows_equal_a_naive_reference_for_each_frame(seconds, config):
    torch.manual_seed(0)
    model = build_wav2vec(config)
    samples = wandering_noise(seconds)
    found = AudioFeatures(made_sound(samples), model, config=config, fps=25)
    expected = naive_features(samples, model, config, 25)
    features = found.features(0, found.num_frames)
    assert features.shape == (len(expected), 3 * 16)
    assert features.dtype == torch.float32
    np.testing.assert_allclose(features.numpy(), expected, atol=2e-5)


def test_windows_are_not_the_same_as_encoding_at_once():
    config = small_full_config()
    torch.manual_seed(0)
    model, samples = build_wav2vec(config), wandering_noise(3.0)
    windowed = AudioFeatures(made_sound(samples), model, config=config, fps=25)
    once = dataclasses.replace(config, window_s=20.0)
    whole = AudioFeatures(made_sound(samples), model, config=once, fps=25)
    assert (windowed.features(0, 75) - whole.features(0, 75)).abs().max() > 1e-3


def test_one_window_is_transformers_hidden_states_at_the_frame_rate():
    config = small_full_config()
    torch.manual_seed(0)
    model = build_wav2vec(config)
    samples = wandering_noise(0.9).astype(np.float32)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    values = extractor(samples, sampling_rate=16000, return_tensors="pt").input_values
    with torch.no_grad():
        states = torch.cat(model(values, output_hidden_states=True).hidden_states[1:], -1)[0]
    # At 50 fps of the hidden steps themselves, frame f's centre lies 10 ms + 20 ms f, and hidden
    # step i's 12.5 ms + 20 ms i: one eighth of a step before it.
    features = AudioFeatures(made_sound(samples), model, config=config, fps=50).features(1, 40)
    expected = states[:39] * 0.125 + states[1:40] * 0.875
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [small_config(), small_full_config()], ids=["layer", "group"])
@pytest.mark.parametrize("samples", [32_080, 32_081, 32_400, 90_000])  # 100, 100, 101, 281 steps
def test_convolutions_in_pieces_equal_transformers_on_the_whole_sound(config, samples):
    torch.manual_seed(0)
    model = build_wav2vec(config)
    reference = Wav2Vec2Model(model.config).eval().feature_extractor
    reference.load_state_dict(model.feature_extractor.state_dict())
    sounds = torch.from_numpy(wandering_noise(samples / 16000).reshape(1, -1)).float().repeat(2, 1)
    sounds[1] *= -3
    with torch.no_grad():
        expected = reference(sounds)
        torch.testing.assert_close(model.feature_extractor(sounds), expected, atol=1e-6, rtol=1e-6)


def test_a_window_is_convolved_piece_by_piece_unless_it_trains_or_its_norm_spans_all_time():
    def calls(config: AudioConfig, *, grad: bool) -> int:
        convolutions, seen = build_wav2vec(config).feature_extractor, []
        convolutions.conv_layers[0].register_forward_hook(lambda *_: seen.append(1))
        with torch.set_grad_enabled(grad):
            convolutions(torch.randn(1, 26 * 16000))
        return len(seen)

    assert calls(small_config(), grad=False) == 13
    assert calls(small_config(), grad=True) == 1
    assert calls(small_full_config(), grad=False) == 1


def test_frames_outside_the_sound_repeat_its_edges():
    config = small_config()
    found = AudioFeatures(
        made_sound(wandering_noise(2.2)), build_wav2vec(config), config=config, fps=25
    )
    inside = found.features(0, 55)
    around = found.features(-3, 60)
    assert torch.equal(around[3:58], inside)
    assert torch.equal(around[:3], inside[:1].expand(3, -1))
    assert torch.equal(around[58:], inside[-1:].expand(5, -1))


def test_the_order_and_size_of_requests_do_not_matter():
    config = small_config()
    torch.manual_seed(0)
    model, tail = build_wav2vec(config), made_sound(wandering_noise(4.7))
    whole = AudioFeatures(tail, model, config=config, fps=25).features(0, 118)
    found = AudioFeatures(tail, model, config=config, fps=25)
    for start, stop in [(100, 118), (0, 12), (20, 32), (74, 76), (5, 60)]:
        assert torch.equal(found.features(start, stop), whole[start:stop])


def test_each_window_is_encoded_once_in_a_forward_pass_and_two_are_kept():
    config = small_config()
    model = build_wav2vec(config)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    found = AudioFeatures(made_sound(wandering_noise(6.0)), model, config=config, fps=25)
    for start in range(0, 150, 12):
        found.features(start - 2, start + 14)
    assert len(calls) == 6
    assert len(found._kept) == 2


def test_a_centre_behind_the_last_sample_belongs_to_the_last_window():
    config = small_config(context_s=0.0)
    sound = made_sound(wandering_noise(1.0), duration_s=1.00001)
    found = AudioFeatures(sound, build_wav2vec(config), config=config, fps=25)
    assert found.num_frames == 26
    assert found.features(0, 26).isfinite().all()


def test_silence_gives_finite_features():
    config = small_config()
    found = AudioFeatures(made_sound(np.zeros(9000)), build_wav2vec(config), config=config, fps=25)
    assert found.features(0, found.num_frames).isfinite().all()


def test_half_precision_encoders_give_float32():
    config = small_config()
    torch.manual_seed(0)
    model, sound = build_wav2vec(config), made_sound(wandering_noise(1.5))
    exact = AudioFeatures(sound, model, config=config, fps=25).features(0, 38)
    rough = AudioFeatures(sound, model.bfloat16(), config=config, fps=25).features(0, 38)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().mean() < 0.05 * exact.abs().mean() + 0.02


def test_full_is_wav2vec2_base_parameter_for_parameter():
    with torch.device("meta"):
        ours = build_wav2vec(FULL.audio)
        base = Wav2Vec2Model(Wav2Vec2Config())  # its defaults are wav2vec2-base-960h
    shapes = {name: tuple(value.shape) for name, value in ours.state_dict().items()}
    assert shapes == {name: tuple(value.shape) for name, value in base.state_dict().items()}
    assert not ours.training
    assert sum(value.numel() for value in ours.parameters()) == 94_371_712


def test_mini_is_small_and_of_the_layer_norm_kind():
    model = build_wav2vec(MINI.audio)
    assert sum(value.numel() for value in model.parameters()) <= 2_000_000
    assert model.config.do_stable_layer_norm
    assert model.config.feat_extract_norm == "layer"


def test_the_encoder_never_masks_or_drops_even_in_training_mode():
    torch.manual_seed(0)
    model = build_wav2vec(small_config())
    values = torch.randn(1, 8000)
    with torch.no_grad():
        rest = model(values).last_hidden_state
        assert torch.equal(model.train()(values).last_hidden_state, rest)


def test_decoded_sound_feeds_features_without_being_read_into_memory(tmp_path):
    path = write_wav(tmp_path / "a.wav", wandering_noise(2.5).clip(-1, 1))
    found = decode_sound(path, tmp_path)
    assert isinstance(found.samples, np.memmap)
    config = small_config()
    model = build_wav2vec(config)
    mapped = AudioFeatures(found, model, config=config, fps=25).features(0, 63)
    copy = AudioFeatures(made_sound(np.array(found.samples)), model, config=config, fps=25)
    assert torch.equal(mapped, copy.features(0, 63))


def test_ffmpeg_program_hears_the_same(tmp_path):
    from emo_cli.video import ffmpeg_path

    program = ffmpeg_path()
    assert shutil.which(program)
    path = encode(tmp_path / "a.flac", seconds=1.3)
    command = [program, "-v", "error", "-i", str(path), "-ac", "1", "-ar", "16000"]
    command += ["-c:a", "pcm_f32le", "-f", "f32le", "-"]
    told = subprocess.run(command, capture_output=True, check=True).stdout
    reference = np.frombuffer(told, np.float32)
    found = decode_sound(path, tmp_path).samples
    assert abs(len(reference) - len(found)) <= 1
    count = min(len(reference), len(found))
    # That command sums two channels over the square root of two.
    scale = np.dot(found[:count], reference[:count]) / np.dot(reference[:count], reference[:count])
    np.testing.assert_allclose(found[:count], reference[:count] * scale, atol=1e-3)


def test_loudness_is_the_sounds_in_each_frame(tmp_path):
    samples = np.concatenate([tone(16000, 0.4), 0 * tone(16000, 0.4), 0.5 * tone(16000, 0.42)])
    sound = decode_sound(write_wav(tmp_path / "a.wav", samples), tmp_path)
    loud = sound.loudness(36, 25)
    assert loud.shape == (36,)
    full = 0.5 / math.sqrt(2)
    assert loud[:10] == pytest.approx(full, rel=0.02) and not loud[10:20].any()
    assert loud[20:31] == pytest.approx(full / 2, rel=0.02)  # the last frame is not full
    assert not loud[31:].any()
