"""What must not grow with the length of a sound."""

import sys
from pathlib import Path

import pytest
import torch
from small_models import SMALL_MINI

from emo_cli.audio import AudioFeatures, build_wav2vec, decode_sound

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_pages_of_a_long_sound_are_let_go_once_they_are_heard(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from length import write_sound

    sound = decode_sound(write_sound(tmp_path / "long.wav", 61), tmp_path)
    torch.manual_seed(0)
    encoder = build_wav2vec(SMALL_MINI.audio)
    features = AudioFeatures(sound, encoder, config=SMALL_MINI.audio, fps=25)
    sound.samples.sum()  # as a short look at all of it
    assert mapped_kib(tmp_path) > 3000
    features.features(30 * 25, 31 * 25)
    assert mapped_kib(tmp_path) < 200
    loud = sound.loudness(61 * 25, 25)
    assert loud.all() and mapped_kib(tmp_path) < 200
    again = AudioFeatures(sound, encoder, config=SMALL_MINI.audio, fps=25)
    assert torch.equal(again.features(30 * 25, 31 * 25), features.features(30 * 25, 31 * 25))


def mapped_kib(folder: Path) -> int:
    """Resident pages of files in a folder."""
    resident, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and ":" not in line.split()[0]:
            ours = str(folder) in line
        elif ours and line.startswith("Rss:"):
            resident += int(line.split()[1])
    return resident


def test_the_ends_of_picture_and_sound_are_read_from_the_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import av
    import numpy as np
    from length import frames_apart

    for seconds, apart in ((1.0, 0.0), (1.2, 5.0)):
        path = tmp_path / f"{seconds}.mkv"
        with av.open(str(path), "w") as file:
            video = file.add_stream("rawvideo", rate=25, width=16, height=16, pix_fmt="yuv420p")
            audio = file.add_stream("pcm_s16le", rate=16_000, layout="mono")
            for _ in range(25):
                picture = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), "rgb24")
                file.mux(video.encode(picture))
            samples = np.zeros((1, round(16_000 * seconds)), np.int16)
            frame = av.AudioFrame.from_ndarray(samples, "s16", "mono")
            frame.sample_rate = 16_000
            file.mux(audio.encode(frame))
            for stream in (video, audio):
                file.mux(stream.encode(None))
        assert frames_apart(path) == pytest.approx(apart, abs=0.1)


def teardown_module():
    sys.modules.pop("length", None)


def test_memory_grows_by_the_hosts_or_by_the_devices_share(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from length import memory_ratio

    def used(host, device=None):
        return {"peak_mib": host, "peak_device_mib": device}

    assert memory_ratio(used(550.0), used(500.0)) == pytest.approx(1.1)
    assert memory_ratio(used(500.0, 90.0), used(500.0, 60.0)) == pytest.approx(1.5)
    assert memory_ratio(used(600.0, 60.0), used(500.0, 60.0)) == pytest.approx(1.2)
