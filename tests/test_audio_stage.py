"""Stage `audio`: its teacher, synthesised speech, sound cache, samples, loss and command."""

import importlib.util
import shutil
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import WhisperConfig, WhisperModel

from emo_cli.audio import build_wav2vec
from emo_cli.errors import EmoError
from emo_cli.face_motion import lip_opening
from emo_cli.faces import FaceFinder
from emo_cli.presets import MINI
from emo_cli.training import audio_data, audio_noise, commands, speech_synthesis, splits
from emo_cli.training.audio_data import open_sound_cache, resampled
from emo_cli.training.audio_stage import PIECE_ROWS, AudioLoss, AudioTask, SoundSamples
from emo_cli.training.draws import Draw
from emo_cli.training.lips import lip_openings
from emo_cli.training.teacher import load_teacher
from emo_cli.training.teacher_targets import TeacherTargets

RATE = 16_000
ROOT = Path(__file__).resolve().parent.parent
TEACHER = WhisperConfig(
    d_model=16,
    encoder_layers=4,
    encoder_attention_heads=2,
    encoder_ffn_dim=32,
    decoder_layers=1,
    decoder_attention_heads=2,
    decoder_ffn_dim=16,
    vocab_size=60,
    pad_token_id=0,
    bos_token_id=0,
    eos_token_id=0,
    decoder_start_token_id=0,
)


@pytest.fixture(scope="module")
def whisper():
    torch.manual_seed(0)
    return WhisperModel(TEACHER)


@pytest.fixture(scope="module")
def teacher_folder(whisper, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    whisper.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    """Ten short voices, every second one with phonemes; at least one is held out."""
    folder = tmp_path_factory.mktemp("sounds") / "voices"
    folder.mkdir()
    names = [f"v{i}" for i in range(200)]
    held_out = [n for n in names if splits.is_held_out(folder / f"{n}.wav")]
    for index, name in enumerate([*held_out[:2], *names[:8]]):
        write_wav(folder / f"{name}.wav", voice(1.0 + 0.3 * index, 100 + 20 * index))
        if index % 2 == 0:
            (folder / f"{name}.phones").write_text("pau:0.2 aa:0.5 m:0.8 pau:1.0\n")
    return folder


def voice(length_s: float, pitch_hz: float) -> np.ndarray:
    time = np.arange(int(length_s * RATE)) / RATE
    buzz = np.sign(np.sin(2 * np.pi * pitch_hz * time))
    return 0.3 * buzz * (0.5 + 0.5 * np.sin(2 * np.pi * 3 * time))


def write_wav(path: Path, samples: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((samples * 32767).astype("<i2").tobytes())


@pytest.fixture(scope="module")
def cache(sounds, teacher_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return open_sound_cache([sounds], folder, load_teacher(teacher_folder), (2, 4), print)


def write_ctranslate2(path: Path, state: dict[str, torch.Tensor]) -> None:
    """The encoder's weights as CTranslate2 stores them, format 6."""
    found: dict[str, np.ndarray] = {"encoder/num_heads": np.array(2, np.int16)}
    for name, tensor in state.items():
        values = tensor.numpy()
        if name == "embed_positions.weight":
            found["encoder/position_encodings/encodings"] = values
            continue
        part, kind = name.rsplit(".", 1)
        names = {"self_attn_layer_norm": "self_attention/layer_norm", "fc1": "ffn/linear_0"}
        names |= {"final_layer_norm": "ffn/layer_norm", "fc2": "ffn/linear_1"}
        names |= {"self_attn.out_proj": "self_attention/linear_1"}
        if part.endswith(("k_proj", "v_proj")):
            continue
        norm = part.endswith("layer_norm")
        kind = {"weight": "gamma", "bias": "beta"}[kind] if norm else kind
        if part.startswith("layers."):
            _, layer, rest = part.split(".", 2)
            if rest == "self_attn.q_proj":
                q, k, v = (state.get(name.replace("q_proj", f"{w}_proj")) for w in "qkv")
                values = torch.cat([q, torch.zeros_like(q) if k is None else k, v]).numpy()
                names[rest] = "self_attention/linear_0"
            part = f"layer_{layer}/{names[rest]}"
        found[f"encoder/{part}/{kind}"] = values
    with path.open("wb") as file:
        file.write(struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(found)))
        for name, values in found.items():
            number = 2 if values.dtype == np.int16 else 0
            shape = struct.pack(f"<B{values.ndim}I", values.ndim, *values.shape)
            head = struct.pack("<BI", number, values.nbytes)
            file.write(text(name) + shape + head + values.tobytes())


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def test_a_teacher_hears_the_same_in_both_layouts(whisper, teacher_folder, tmp_path):
    write_ctranslate2(tmp_path / "model.bin", whisper.encoder.state_dict())
    sound = voice(2.0, 140).astype(np.float32)
    a = load_teacher(teacher_folder).features(sound, (2, 4))
    b = load_teacher(tmp_path).features(sound, (2, 4))
    assert a.shape == (100, 32)
    torch.testing.assert_close(a, b)


def test_a_teacher_that_is_absent_or_cut_short_is_named(whisper, tmp_path):
    with pytest.raises(EmoError, match="holds no Whisper model"):
        load_teacher(tmp_path)
    write_ctranslate2(tmp_path / "model.bin", whisper.encoder.state_dict())
    whole = (tmp_path / "model.bin").read_bytes()
    for length in (3, 40, len(whole) // 2):
        (tmp_path / "model.bin").write_bytes(whole[:length])
        with pytest.raises(EmoError, match="cannot read"):
            load_teacher(tmp_path)


def test_phonemes_are_read_at_the_times_of_the_rows(tmp_path):
    path = tmp_path / "a.phones"
    path.write_text("pau:0.5 aa:1.0 m:2.0\n")
    times = np.array([0.1, 0.6, 1.5, 9.0])
    spoken = [speech_synthesis.PHONEMES[p] for p in speech_synthesis.phoneme_rows(path, times, 2.0)]
    assert spoken == ["pau", "aa", "m", "m"]
    # The sound turned out half as long as its phonemes.
    spoken = [speech_synthesis.PHONEMES[p] for p in speech_synthesis.phoneme_rows(path, times, 1.0)]
    assert spoken == ["pau", "m", "m", "m"]
    path.write_text("pau:0.5 aa:0.2\n")
    with pytest.raises(ValueError, match="order"):
        speech_synthesis.phoneme_rows(path, times, 2.0)


@pytest.mark.skipif(
    not (shutil.which("flite") and shutil.which("espeak-ng")), reason="flite or espeak-ng missing"
)
def test_synthesised_speech_goes_on_where_it_stopped_and_tells_its_phonemes(tmp_path):
    assert len(list(speech_synthesis.synthesise(tmp_path, 3, seed=1))) == 3
    assert len(list(speech_synthesis.synthesise(tmp_path, 4, seed=1))) == 1
    for path in (tmp_path / "flite").glob("*.wav"):
        with wave.open(str(path)) as file:
            length_s = file.getnframes() / file.getframerate()
        end = float(path.with_suffix(".phones").read_text().split(":")[-1])
        assert end == pytest.approx(length_s, rel=0.1)


def test_utterances_are_pure_functions_of_seed_and_index():
    assert speech_synthesis.utterance(3, 5) == speech_synthesis.utterance(3, 5)
    assert speech_synthesis.utterance(3, 5) != speech_synthesis.utterance(4, 5)


def test_a_faster_copy_is_higher_by_as_much():
    tone = np.sin(2 * np.pi * 400 * np.arange(RATE) / RATE).astype(np.float32)
    fast = resampled(tone, 1.25)
    assert len(fast) == RATE / 1.25
    peak_hz = np.abs(np.fft.rfft(fast)).argmax() * RATE / len(fast)
    assert peak_hz == pytest.approx(500, abs=2)
    assert np.sqrt(np.mean(fast**2)) == pytest.approx(np.sqrt(0.5), rel=0.02)


def test_the_envelope_is_1_at_the_loudest_and_minus_1_in_silence():
    loud = audio_data.envelope(np.concatenate([voice(1, 100), np.zeros(RATE)]).astype(np.float32))
    assert loud[:50].max() == pytest.approx(1, abs=0.01)
    assert (loud[52:] == -1).all()


def test_the_cache_keeps_every_target_at_the_row_of_its_sound(cache, sounds):
    assert sum(s.held_out for s in cache.sounds) >= 1
    for sound in cache.sounds:
        samples = cache.samples[sound.first_row * 320 : (sound.first_row + sound.num_rows) * 320]
        expected = audio_data.envelope(samples.astype(np.float32) / 32768)
        assert np.abs(cache.rows("envelope", sound) - expected).max() < 0.02
        known = Path(sound.file).with_suffix(".phones").exists()
        assert (cache.rows("phoneme", sound) != audio_data.UNKNOWN_PHONEME).all() == known
        assert cache.rows("teacher", sound).shape == (sound.num_rows, 32)
        assert sound.rate == 1 or not sound.held_out


def test_a_killed_cache_goes_on_and_equals_the_uninterrupted_one(
    sounds, teacher_folder, cache, tmp_path, monkeypatch
):
    teacher = load_teacher(teacher_folder)
    monkeypatch.setattr(audio_data, "WINDOW_S", 8)  # several windows
    whole = open_sound_cache([sounds], tmp_path / "a", teacher, (2, 4), print)
    hear, calls = teacher.features, []

    def killed(samples, layers):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return hear(samples, layers)

    monkeypatch.setattr(teacher, "features", killed)
    with pytest.raises(KeyboardInterrupt):
        open_sound_cache([sounds], tmp_path / "b", teacher, (2, 4), print)
    parts = open_sound_cache([sounds], tmp_path / "b", teacher, (2, 4), print)
    assert np.array_equal(whole.targets["teacher"], parts.targets["teacher"])


def test_a_cache_of_other_sounds_is_refused_and_broken_sounds_are_dropped(teacher_folder, tmp_path):
    teacher = load_teacher(teacher_folder)
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "broken.wav").write_bytes(b"RIFF, but no sound")
    with pytest.raises(EmoError, match="none of the files"):
        open_sound_cache([folder], tmp_path / "cache", teacher, (2, 4), print)
    write_wav(folder / "good.wav", voice(1, 120))
    said: list[str] = []
    cache = open_sound_cache([folder], tmp_path / "cache", teacher, (2, 4), said.append)
    assert [Path(s.file).name for s in cache.sounds] == ["good.wav"]
    assert any("dropped" in line and "broken.wav" in line for line in said)
    write_wav(folder / "more.wav", voice(1, 120))
    with pytest.raises(EmoError, match="other sounds"):
        open_sound_cache([folder], tmp_path / "cache", teacher, (2, 4), print)


def test_a_folder_without_sounds_is_named(tmp_path):
    with pytest.raises(EmoError, match="holds no sound"):
        audio_data.find_sounds(tmp_path)
    with pytest.raises(EmoError, match="does not exist"):
        audio_data.find_sounds(tmp_path / "absent")


def test_samples_are_pure_functions_of_their_draw(cache):
    samples = SoundSamples(cache)
    a, b, c = (samples[Draw(0, seed)] for seed in (5, 5, 6))
    assert all(torch.equal(a[name].nan_to_num(), b[name].nan_to_num()) for name in a)
    assert not torch.equal(a["sound"], c["sound"])
    assert a["sound"].shape == (2 * PIECE_ROWS * 320,)
    assert a["teacher"].shape == (2 * PIECE_ROWS - 1, 32)
    assert a["sound"].mean().abs() < 1e-3
    assert a["sound"].std() == pytest.approx(1, abs=1e-2)


def test_no_sample_is_held_out_and_short_sounds_are_filled_with_silence(cache):
    samples = SoundSamples(cache)
    assert not any(sound.held_out for sound in samples.entries)
    short = min(samples.entries, key=lambda sound: sound.num_rows)
    piece = samples.piece(short, PIECE_ROWS, seed=1)
    assert piece["known"].sum() == short.num_rows
    unknown = ~piece["known"]
    assert np.abs(piece["sound"].reshape(-1, 320)[unknown]).max() == 0
    assert (piece["envelope"][unknown] == -1).all()


def test_disturbances_keep_length_and_are_finite_even_in_silence():
    rng = np.random.default_rng(0)
    pieces = [voice(1, 100).astype(np.float32), np.zeros(RATE, np.float32)]
    for _ in range(30):
        sound = audio_noise.disturbed(pieces, rng)
        assert sound.shape == (2 * RATE,)
        assert np.isfinite(sound).all()


def test_targets_that_are_not_known_teach_nothing_and_bring_no_nan(cache):
    samples = SoundSamples(cache)
    task = AudioTask(MINI.audio, cache, seed=0)
    batch = {name: value[None] for name, value in samples[Draw(0, 1)].items()}
    assert batch["lips"].isnan().all()
    losses = task.module(batch)
    losses["loss"].backward()
    assert losses["lips"] == 0
    gradients = {n: p.grad for n, p in task.module.named_parameters() if p.grad is not None}
    assert all(torch.isfinite(g).all() for g in gradients.values())
    assert gradients["heads.lips.weight"].abs().max() == 0


def test_the_trained_encoder_computes_as_the_one_that_is_shipped():
    torch.manual_seed(0)
    loss = AudioLoss(MINI.audio, teacher_width=4, lip_scale=(0.0, 1.0)).eval()
    plain = build_wav2vec(MINI.audio)
    plain.load_state_dict(loss.encoder.state_dict())
    sound = torch.randn(1, RATE)
    with torch.no_grad():
        layers, _ = loss.hear(sound)
        torch.testing.assert_close(layers[-1], plain(sound).last_hidden_state)


def test_mixed_precision_hears_the_same_on_a_cpu():
    torch.manual_seed(0)
    loss = AudioLoss(MINI.audio, teacher_width=4, lip_scale=(0.0, 1.0)).eval()
    sound = torch.randn(1, RATE)
    with torch.no_grad():
        exact, _ = loss.hear(sound)
        with torch.autocast("cpu", torch.bfloat16):
            mixed, _ = loss.hear(sound)
    for a, b in zip(exact, mixed, strict=True):
        assert (a - b.float()).std() < 0.05 * a.std()


def test_teacher_targets_lose_the_position_and_keep_what_was_heard(monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(audio_data, "WINDOW_S", 6)  # 300 rows, of which 100 are used
    rows = np.arange(100 * 80)
    heard = rng.standard_normal((len(rows), 3)).astype(np.float32)
    towards = rng.standard_normal((3, 12))
    position = rng.standard_normal((300, 12))[audio_data.window_positions(rows)]
    teacher = (heard @ towards + 5 * position).astype(np.float32)
    cache = StreamOfRows(teacher)
    targets = TeacherTargets(cache)(1000, 2000)
    assert targets.shape == (1000, 12)
    known, *_ = np.linalg.lstsq(heard[1000:2000], targets, rcond=None)
    error = targets - heard[1000:2000] @ known
    assert np.mean(error**2) < 0.1 * np.mean(targets**2)


class StreamOfRows:
    """As much of a SoundCache as the teacher's targets need: one layer, no gaps."""

    layers = (1,)

    def __init__(self, teacher: np.ndarray) -> None:
        self.targets = {"teacher": teacher}
        self.num_rows, self.teacher_width = teacher.shape

    def is_sound(self, rows):
        return np.ones(len(rows), bool)


def test_the_audio_command_trains_resumes_and_writes_a_loadable_part(
    tmp_path, sounds, teacher_folder, capsys
):
    options = {"teacher": teacher_folder, "out": tmp_path, "batch": 2, "steps": 2, "threads": 1}
    commands.audio([sounds], device="cpu", **options)
    path = tmp_path / "model" / "audio_encoder.safetensors"
    assert capsys.readouterr().out.strip() == str(path)
    weights = load_file(path)
    assert {t.dtype for t in weights.values()} == {torch.float16}
    build_wav2vec(MINI.audio).load_state_dict({n: t.float() for n, t in weights.items()})
    first = path.read_bytes()
    commands.audio([sounds], device="cpu", **options)
    assert path.read_bytes() == first
    with pytest.raises(EmoError, match="other options"):
        commands.audio([sounds], device="cpu", **options | {"seed": 1})


def test_lip_opening_is_measured_in_mouth_widths():
    landmarks = np.zeros((478, 3))
    landmarks[13], landmarks[14] = (0, -2, 0), (0, 2, 0)
    landmarks[61], landmarks[291] = (-5, 0, 0), (5, 0, 0)
    assert lip_opening(landmarks) == pytest.approx(0.4)


def test_the_lips_of_a_speaker_move_on_shared_data(shared_data):
    clip = sorted((shared_data / "grid_s1").glob("*.mp4"))[0]
    with FaceFinder() as finder:
        openings = lip_openings(clip, finder)
    assert openings.shape == (75,)
    assert not np.isnan(openings).any()
    assert openings.max() > 0.15 > 0.1 > openings.min()


def test_the_probe_reads_what_is_linear_in_the_features_and_sees_a_delay():
    specification = importlib.util.spec_from_file_location(
        "audio_probe", ROOT / "benchmarks" / "audio_probe.py"
    )
    probe = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(probe)
    rng = np.random.default_rng(0)
    clips = [Path(f"{i}.mp4") for i in range(20)]
    features = {clip: rng.standard_normal((75, 6)).astype(np.float32) for clip in clips}
    windows = {clip: probe.windowed(x) for clip, x in features.items()}
    lips = {clip: np.roll(x[:, 2], 1).astype(np.float32) for clip, x in features.items()}
    found = probe.probe(windows, lips, clips[:15], clips[15:])
    assert found["r2"] > 0.95
    assert found["best_offset"] == 0
    noise = {clip: rng.standard_normal(75).astype(np.float32) for clip in clips}
    assert abs(probe.probe(windows, noise, clips[:15], clips[15:])["r"]) < 0.2
