"""The command line as a user meets it: outputs, exit codes, one line and a hint for bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from emo_cli import cli
from emo_cli.files import sha256_of

FAST = ["--steps", "1", "--face-region", "100,50,400,450"]


@pytest.fixture
def work(tmp_path, monkeypatch, portrait):
    """A folder of the user's own, with a portrait and half a second of sound."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EMO_DEBUG", raising=False)
    shutil.copy(portrait, tmp_path / "portrait.jpg")
    write_sound(tmp_path / "song.wav", 0.5)
    return tmp_path


def write_sound(path: Path, seconds: float) -> None:
    noise = np.random.default_rng(1).normal(size=(int(seconds * 16_000), 2)) * 0.05
    soundfile.write(path, noise, 16_000)


def emo(small_model, *arguments, fast=True):
    options = FAST if fast else []
    return cli.run(["generate", *arguments, "--model", str(small_model), "--quiet", *options])


def listing(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256_of(p) for p in folder.rglob("*") if p.is_file()}


def test_generate_prints_the_path_and_makes_a_video_as_long_as_the_sound(work, small_model, capsys):
    assert emo(small_model, "portrait.jpg", "song.wav") == 0
    out, err = capsys.readouterr()
    assert out == "portrait_song.mp4\n" and err == ""
    with av.open("portrait_song.mp4") as video:
        assert sum(1 for _ in video.decode(video=0)) == 13  # ceil(0.5 * 25)
        assert video.metadata["synthetic"] == "true"
    report = json.loads(Path("portrait_song.json").read_text())
    assert report["frames"] == 13 and report["options"]["steps"] == 1
    assert report["peak_device_mib"] is None  # on a CPU
    assert sorted(p.name for p in work.iterdir()) == [
        "portrait.jpg",
        "portrait_song.json",
        "portrait_song.mp4",
        "song.wav",
    ]


def test_json_prints_one_object_a_sound_and_the_engine_is_shared(work, small_model, capsys):
    write_sound(work / "two words.wav", 0.2)
    (work / "out").mkdir()
    code = emo(small_model, "portrait.jpg", "song.wav", "two words.wav", "-o", "out", "--json")
    lines = capsys.readouterr().out.splitlines()
    assert code == 0 and [json.loads(line)["frames"] for line in lines] == [13, 5]
    assert (work / "out" / "portrait_two words.mp4").exists()


def test_an_existing_output_is_kept_unless_told(work, small_model, capsys):
    Path("mine.mp4").write_text("precious")
    assert emo(small_model, "portrait.jpg", "song.wav", "-o", "mine.mp4") == 1
    assert Path("mine.mp4").read_text() == "precious"
    assert "--overwrite" in capsys.readouterr().err
    assert emo(small_model, "portrait.jpg", "song.wav", "-o", "mine.mp4", "--overwrite") == 0


@pytest.mark.parametrize(
    "name", ['it\'s "my" song.wav', "pièce – 歌.wav", "-o.wav", "a:b.wav", "100%d.wav", "[x].wav"]
)
def test_odd_names_are_just_names(work, small_model, name, capsys):
    (work / "song.wav").rename(work / name)
    assert cli.run(
        ["generate", "--model", str(small_model), *FAST, "--", "portrait.jpg", name]
    ) == 0  # fmt: skip
    assert (work / f"portrait_{Path(name).stem}.mp4").exists()


def test_one_bad_sound_does_not_stop_the_others(work, small_model, capsys):
    Path("empty.wav").touch()
    assert emo(small_model, "portrait.jpg", "empty.wav", "song.wav") == 1
    out, err = capsys.readouterr()
    assert out == "portrait_song.mp4\n"
    assert "empty.wav" in err and "1 of 2 videos" in err


def picture(path, mode="RGB", size=(200, 200)):
    Image.new(mode, size, 128).save(path)


def playlist(path):
    path.write_text("#EXTM3U\n/etc/passwd\nsong.wav\n")


def cover_only(path):
    """An mp3 tag with a picture and no sound behind it."""
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("mjpeg", rate=1)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuvj420p"
        for packet in stream.encode(av.VideoFrame(32, 32, "yuvj420p")):
            file.mux(packet)
        file.mux(stream.encode())


BAD = {
    "missing portrait": (lambda w: None, ["nobody.png", "song.wav"], "nobody.png"),
    "empty portrait": (lambda w: (w / "e.png").touch(), ["e.png", "song.wav"], "e.png"),
    "no picture": (lambda w: (w / "t.png").write_text("hello"), ["t.png", "song.wav"], "t.png"),
    "folder as portrait": (lambda w: (w / "d").mkdir(), ["d", "song.wav"], "d"),
    "truncated portrait": (
        lambda w: (w / "c.jpg").write_bytes((w / "portrait.jpg").read_bytes()[:9000]),
        ["c.jpg", "song.wav"],
        "c.jpg",
    ),
    "tiny portrait": (lambda w: picture(w / "s.png", size=(9, 9)), ["s.png", "song.wav"], "s.png"),
    "missing sound": (lambda w: None, ["portrait.jpg", "no.wav"], "no.wav"),
    "empty sound": (lambda w: (w / "e.wav").touch(), ["portrait.jpg", "e.wav"], "e.wav"),
    "zero-length sound": (
        lambda w: write_sound(w / "z.wav", 0),
        ["portrait.jpg", "z.wav"],
        "z.wav",
    ),
    "truncated sound": (
        lambda w: (write_sound(w / "c.wav", 4), os.truncate(w / "c.wav", 9000)),
        ["portrait.jpg", "c.wav"],
        "c.wav",
    ),
    "text as sound": (
        lambda w: (w / "t.wav").write_text("hello"),
        ["portrait.jpg", "t.wav"],
        "t.wav",
    ),
    "picture as sound": (lambda w: None, ["portrait.jpg", "portrait.jpg"], "portrait.jpg"),
    "playlist": (lambda w: playlist(w / "p.wav"), ["portrait.jpg", "p.wav"], "p.wav"),
    "cover only": (lambda w: cover_only(w / "c.wav"), ["portrait.jpg", "c.wav"], "c.wav"),
    "start beyond the end": (
        lambda w: None,
        ["portrait.jpg", "song.wav", "--start", "9"],
        "song.wav",
    ),
    "missing folder": (
        lambda w: None,
        ["portrait.jpg", "song.wav", "-o", "nowhere/out.mp4"],
        "nowhere",
    ),
    "not an mp4": (lambda w: None, ["portrait.jpg", "song.wav", "-o", "out.gif"], "out.gif"),
    "unknown model": (
        lambda w: None,
        ["portrait.jpg", "song.wav", "--model", "huge"],
        "huge",
    ),
    "region outside": (
        lambda w: None,
        ["portrait.jpg", "song.wav", "--face-region", "9000,9000,9100,9100"],
        "face region",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_line_and_a_hint_and_leaves_nothing(case, work, small_model, capsys):
    make, arguments, named = BAD[case]
    make(work)
    before = listing(work)
    code = cli.run(["generate", "--model", str(small_model), "--quiet", *FAST, *arguments])
    out, err = capsys.readouterr()
    lines = err.strip().splitlines()
    assert code == 1 and out == ""
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: ")
    assert named in lines[0]
    assert listing(work) == before and not list(work.glob(".*"))


def test_no_face_names_the_way_out_and_a_face_index_is_checked(work, small_model, capsys):
    picture(work / "wall.png")
    assert emo(small_model, "wall.png", "song.wav", fast=False) == 1
    err = capsys.readouterr().err
    assert "no face found in wall.png" in err and "--face-region X0,Y0,X1,Y1" in err
    assert emo(small_model, "portrait.jpg", "song.wav", "--face", "7", fast=False) == 1
    assert "no face 7" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--speed", "5"],
        ["--face-region", "banana"],
        ["--steps", "400"],
        ["--solver", "euler"],
        ["--dtype", "int3"],
        ["--device", "toaster"],
        ["--duration", "0"],
        ["--nonsense"],
    ],
)
def test_wrong_usage_exits_with_2(work, small_model, arguments, capsys):
    command = ["generate", "portrait.jpg", "song.wav", "--model", str(small_model), *arguments]
    assert cli.run(command) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not list(work.glob("*.mp4"))


def test_debug_shows_the_traceback(work, monkeypatch):
    monkeypatch.setenv("EMO_DEBUG", "1")
    with pytest.raises(cli.EmoError):
        cli.run(["generate", "nobody.png", "song.wav"])


def test_help_needs_no_torch_and_version_prints():
    code = "import sys; from emo_cli import cli; cli.run(['--help']); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "False" and "generate" in result.stdout
    result = subprocess.run(
        [sys.executable, "-m", "emo_cli", "--version"], capture_output=True, text=True
    )
    assert result.stdout == "emo-cli 0.1.0\n"


def start_long_video(small_model, out="long.mp4"):
    """A video of 30 s in a process of its own; returns once its first segment is kept."""
    write_sound(Path("long.wav"), 30)
    command = [sys.executable, "-m", "emo_cli", "generate", "portrait.jpg", "long.wav"]
    process = subprocess.Popen(
        [*command, "-o", out, "--model", str(small_model), "--steps", "4", *FAST[2:]],
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # A test run in a shell's background has SIGINT ignored, and would hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    work = Path(f".{out}.emo-work")
    deadline = time.monotonic() + 120
    while not list(work.glob("*.safetensors")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return process


def test_ctrl_c_exits_with_130_and_leaves_no_output(work, small_model):
    process = start_long_video(small_model)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in err
    assert not Path("long.mp4").exists() and Path(".long.mp4.emo-work").is_dir()


@pytest.mark.slow
def test_a_killed_video_goes_on_and_equals_the_uninterrupted_one(work, small_model):
    process = start_long_video(small_model)
    process.kill()
    process.wait()
    assert not Path("long.mp4").exists()
    options = ["--model", str(small_model), "--steps", "4", *FAST[2:]]
    assert cli.run(["generate", "portrait.jpg", "long.wav", "-o", "long.mp4", *options]) == 0
    assert cli.run(["generate", "portrait.jpg", "long.wav", "-o", "whole.mp4", *options]) == 0
    assert sha256_of(Path("long.mp4")) == sha256_of(Path("whole.mp4"))
    assert not list(work.glob(".*"))
