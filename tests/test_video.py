import os
import stat
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from made_video import FPS, SIZE, make_video, numbered_frames, read_number, tone, write_sound

from emo_cli.errors import EmoError
from emo_cli.ffmpeg_process import ffmpeg_path, last_useful_line
from emo_cli.mp4_tags import put_tags, tag_box
from emo_cli.video import VideoWriter, check_output, check_sound, default_output
from emo_cli.work_folder import WorkFolder, work_path

FRAME_S = 1 / FPS


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    return write_sound(tmp_path / "sound.wav", tone(1.19), 44_100)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.mp4"


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """367 frames in four segments, with 14.67 s of stereo sound."""
    folder = tmp_path_factory.mktemp("long")
    stereo = np.stack([tone(14.67), tone(14.67, hz=10_000)], 1)
    make_video(folder / "out.mp4", write_sound(folder / "sound.wav", stereo, 44_100), 367)
    return folder / "out.mp4"


def packets(path: Path, kind: str) -> list[av.Packet]:
    with av.open(str(path)) as file:
        return [p for p in file.demux(**{kind: 0}) if p.dts is not None]


def pictures(path: Path) -> np.ndarray:
    """All decoded frames, uint8 RGB [F, H, W, 3]."""
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def samples(path: Path) -> np.ndarray:
    """The decoded sound [channels, N] at 48 kHz, as a player times it."""
    with av.open(str(path)) as file:
        frames = list(file.decode(audio=0))
    assert frames[0].sample_rate == 48_000
    assert frames[0].pts == 0
    return np.concatenate([frame.to_ndarray() for frame in frames], 1)


def fake_ffmpeg(folder: Path, body: str) -> Path:
    """A shell script in ffmpeg's place that answers -version like the real one."""
    script = folder / "ffmpeg"
    script.write_text(f'#!/bin/sh\ncase "$*" in *-version*) echo fake; exit;; esac\n{body}\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


# --- the finished file ---


def test_frames_are_counted_and_spaced_exactly_across_segment_joins(long_video: Path) -> None:
    found = packets(long_video, "video")
    assert len(found) == 367
    times = [packet.pts * packet.time_base for packet in found]
    assert times == [index * found[0].time_base * 1000 for index in range(367)]
    assert all(packet.pts == packet.dts for packet in found)
    assert {packet.duration * packet.time_base for packet in found} == {times[1]}
    assert float(times[1]) == pytest.approx(FRAME_S)
    assert [i for i, packet in enumerate(found) if packet.is_keyframe] == [0, 120, 240, 360]


def test_each_frame_decodes_to_itself_across_segment_joins(long_video: Path) -> None:
    assert [read_number(frame) for frame in pictures(long_video)] == list(range(367))


def test_a_seek_into_any_segment_finds_the_right_frame(long_video: Path) -> None:
    for wanted in (119, 120, 121, 239, 240, 366):
        with av.open(str(long_video)) as file:
            stream = file.streams.video[0]
            file.seek(wanted * 1000, stream=stream)
            frame = next(f for f in file.decode(stream) if f.pts == wanted * 1000)
            assert read_number(frame.to_ndarray(format="rgb24")) == wanted


def test_picture_and_sound_end_within_one_frame_and_no_sound_is_cut(long_video: Path) -> None:
    with av.open(str(long_video)) as file:
        picture, sound = file.streams.video[0], file.streams.audio[0]
        picture_s = float(picture.duration * picture.time_base)
        sound_s = float(sound.duration * sound.time_base)
        assert picture.start_time == sound.start_time == 0
    assert picture_s == pytest.approx(367 * FRAME_S, abs=1e-6)
    assert sound_s == pytest.approx(14.67, abs=1e-4)
    last_tenth = samples(long_video)[0, int(14.57 * 48_000) : int(14.66 * 48_000)]
    assert np.sqrt(np.mean(last_tenth**2)) == pytest.approx(0.5 / 2**0.5, rel=0.1)


def test_the_original_sound_is_kept_in_all_its_channels_and_heights(long_video: Path) -> None:
    left, right = samples(long_video)
    spectrum = np.abs(np.fft.rfft(right[48_000:96_000]))
    assert np.argmax(spectrum) == 10_000  # a 16 kHz copy ends at 8 kHz
    assert np.argmax(np.abs(np.fft.rfft(left[48_000:96_000]))) == 440


def test_flashes_and_clicks_meet_in_the_first_and_in_the_last_second(
    tmp_path: Path, out: Path
) -> None:
    times_s = (0.4, 11.6)
    clicks = np.zeros(12 * 44_100)
    for time_s in times_s:
        clicks[round(time_s * 44_100)] = 0.9

    def flashes(first: int, count: int) -> np.ndarray:
        bright = [any(first + i == round(t * FPS) for t in times_s) for i in range(count)]
        levels = np.where(bright, 230, 20).astype(np.uint8)
        return np.broadcast_to(levels[:, None, None, None], (count, SIZE, SIZE, 3))

    make_video(out, write_sound(tmp_path / "c.wav", clicks, 44_100), 300, frames_of=flashes)
    brightness = pictures(out).mean((1, 2, 3))
    assert list(np.flatnonzero(brightness > 120)) == [10, 290]
    loud = np.abs(samples(out)[0])
    for time_s in times_s:
        middle = round(time_s * 48_000)
        peak = middle - 2400 + np.argmax(loud[middle - 2400 : middle + 2400])
        assert abs(peak - middle) <= 48  # 1 ms


def test_sound_behind_the_last_frame_is_left_out(tmp_path: Path, out: Path) -> None:
    make_video(out, write_sound(tmp_path / "padded.wav", tone(1.1), 44_100), 25)
    with av.open(str(out)) as file:
        sound = file.streams.audio[0]
        assert float(sound.duration * sound.time_base) == pytest.approx(1.0, abs=1e-4)


def test_start_and_duration_cut_the_sound(tmp_path: Path, out: Path) -> None:
    steps = np.concatenate([tone(2, hz=hz) for hz in (300, 600, 900)])
    path = write_sound(tmp_path / "steps.wav", steps, 44_100)
    make_video(out, path, 50, start_s=2.5, duration_s=2.0)
    found = samples(out)[0]
    assert len(found) == pytest.approx(96_000, abs=1024)
    first, second = found[4_800:19_200], found[76_800:91_200]  # 0.3 s each
    assert np.argmax(np.abs(np.fft.rfft(first))) == 180  # 600 Hz
    assert np.argmax(np.abs(np.fft.rfft(second))) == 270  # 900 Hz


def test_a_sound_track_that_starts_late_is_used_from_its_first_sample(
    tmp_path: Path, out: Path
) -> None:
    late = tmp_path / "late.mkv"
    with av.open(str(late), "w") as file:
        track = file.add_stream("pcm_s16le", rate=48_000, layout="mono")
        data = np.zeros((1, 48_000), np.int16)
        data[0, 9_600] = 30_000
        frame = av.AudioFrame.from_ndarray(data, format="s16", layout="mono")
        frame.sample_rate, frame.pts = 48_000, 24_000
        for packet in [*track.encode(frame), *track.encode()]:
            file.mux(packet)
    make_video(out, late, 25)
    assert abs(int(np.argmax(np.abs(samples(out)[0]))) - 9_600) <= 48


@pytest.mark.parametrize("channels", [1, 3, 6, 8])
def test_any_number_of_channels_is_kept(tmp_path: Path, out: Path, channels: int) -> None:
    many = np.stack([tone(1, hz=300 * (i + 1)) for i in range(channels)], 1)
    make_video(out, write_sound(tmp_path / "many.wav", many, 44_100), 25)
    with av.open(str(out)) as file:
        assert file.streams.audio[0].channels == channels


def test_colours_come_back_and_are_tagged_bt709(out: Path, sound: Path) -> None:
    colours = [(230, 20, 20), (20, 230, 20), (20, 20, 230), (230, 230, 230), (128, 128, 128)]

    def patches(first: int, count: int) -> np.ndarray:
        return np.stack([np.full((SIZE, SIZE, 3), c, np.uint8) for c in colours])[:count]

    make_video(out, sound, len(colours), frames_of=patches)
    with av.open(str(out)) as file:
        context = file.streams.video[0].codec_context
        tags = (context.colorspace, context.color_primaries, context.color_trc)
        assert tags == (1, 1, 1) and context.color_range == 1 and context.pix_fmt == "yuv420p"
        planes = [f.to_ndarray(format="yuv420p") for f in file.decode(video=0)]
    for colour, plane in zip(colours, planes, strict=True):
        y = plane[SIZE // 2, SIZE // 2]
        u, v = plane[SIZE + 4, 8], plane[SIZE + SIZE // 4 + 4, 8]
        assert np.allclose(bt709_to_rgb(float(y), float(u), float(v)), colour, atol=4)


def bt709_to_rgb(y: float, u: float, v: float) -> tuple[float, float, float]:
    """ITU-R BT.709, limited range."""
    luma, blue, red = (y - 16) * 255 / 219, (u - 128) * 255 / 224, (v - 128) * 255 / 224
    return luma + 1.5748 * red, luma - 0.1873 * blue - 0.4681 * red, luma + 1.8556 * blue


def test_a_reader_gets_the_tags_back(long_video: Path) -> None:
    with av.open(str(long_video)) as file:
        tags = file.metadata
    assert tags["comment"].startswith("AI-generated") and "seed 7" in tags["comment"]
    assert tags["synthetic"] == "true" and tags["seed"] == "7"
    assert tags["encoder"].startswith("emo-cli 0.")
    assert "creation_time" not in tags


def test_tags_of_any_text_come_back_and_frames_stay_whole(out: Path, sound: Path) -> None:
    make_video(out, sound, 30)
    put_tags(out, tag_box({"comment": "Zoë = 'x'\n", "a key: é": "語"}))
    with av.open(str(out)) as file:
        assert file.metadata["comment"] == "Zoë = 'x'\n"
        assert file.metadata["a key: é"] == "語"
    assert [read_number(frame) for frame in pictures(out)] == list(range(30))


def test_tags_without_room_are_refused_before_anything_is_written(out: Path, sound: Path) -> None:
    make_video(out, sound, 3)
    before = out.read_bytes()
    with pytest.raises(ValueError, match="too few"):
        put_tags(out, tag_box({"comment": "x" * 9999}))
    assert out.read_bytes() == before


def test_the_index_comes_first_so_that_players_start_at_once(long_video: Path) -> None:
    data, kinds, offset = long_video.read_bytes(), [], 0
    while offset < len(data):
        size, kind = struct.unpack(">I4s", data[offset : offset + 8])
        kinds.append(kind)
        offset += size
    assert offset == len(data)
    assert kinds.index(b"moov") < kinds.index(b"mdat")


# --- names ---


@pytest.mark.parametrize(
    "name",
    [
        "two words.mp4",
        'it\'s "quoted".mp4',
        "Zoë 語.mp4",
        "-i.mp4",
        "a:b.mp4",
        "http:x.mp4",
        "%d.mp4",
        "a,b;c|d[0]$HOME`x`\\.mp4",
        "file:x.mp4",
        "new\nline.mp4",
        os.fsdecode(b"latin-\xe9.mp4"),
    ],
)
def test_any_file_name_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    sound = write_sound(Path(name).with_suffix(".wav"), tone(0.5), 44_100)
    check_output(Path(name), False)
    make_video(Path(name), sound, 13)
    assert sorted(os.listdir()) == sorted(str(Path(name).with_suffix(s)) for s in SUFFIXES)
    assert (tmp_path / name).read_bytes()[4:8] == b"ftyp"


SUFFIXES = (".json", ".mp4", ".wav")


def test_the_default_name_is_made_of_both_inputs() -> None:
    assert default_output(Path("/a/me.v2.png"), Path("b/song.wav")) == Path("me.v2_song.mp4")


# --- outputs that are refused ---


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "folder"),
        ("there.mp4", "exists"),
        ("reported.mp4", "reported.json exists"),
        ("dangling.mp4", "exists"),
        ("missing/out.mp4", "does not exist"),
        ("there.mp4/out.mp4", "does not exist"),
        ("out.avi", "not an .mp4"),
        ("out", "not an .mp4"),
        ("x" * 246 + ".mp4", "File name too long"),
    ],
)
def test_an_output_that_must_not_be_written_is_refused(
    tmp_path: Path, name: str, says: str
) -> None:
    (tmp_path / "there.mp4").write_text("precious")
    (tmp_path / "reported.json").write_text("precious")
    (tmp_path / "dangling.mp4").symlink_to("nowhere")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(EmoError, match=says) as raised:
        check_output(tmp_path / name, False)
    assert raised.value.hint
    assert sorted(tmp_path.iterdir()) == before


def test_overwrite_allows_a_file_but_no_folder_pipe_or_input(tmp_path: Path) -> None:
    for name in ("there.mp4", "portrait.mp4", "pipe.json"):
        (tmp_path / name).touch()
    (tmp_path / "link.mp4").hardlink_to(tmp_path / "portrait.mp4")
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    inputs = [tmp_path / "portrait.mp4", tmp_path / "missing.wav"]
    check_output(tmp_path / "there.mp4", True, inputs)
    for name, says in [
        ("portrait.mp4", "is an input"),
        ("link.mp4", "is an input"),
        ("folder.mp4", "is a folder"),
        ("pipe.mp4", "not a plain file"),
    ]:
        with pytest.raises(EmoError, match=says):
            check_output(tmp_path / name, True, inputs)


def test_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    # Not chmod: the tests may run as root, whom no mode stops.
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(EmoError, match="Permission denied"):
        check_output(tmp_path / "out.mp4", False)


# --- ffmpeg that fails, and interruption ---


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("head -c 99999 >/dev/null; kill -9 $$", r"killed \(SIGKILL\)"),
        ("echo 'Unknown encoder x' >&2; exit 8", "Unknown encoder x"),
        (
            "cat >/dev/null; echo '[out#0/h264 @ 0x1] Error: No space left on device' >&2\n"
            "echo 'Conversion failed!' >&2; exit 228",
            "disk is full",
        ),
        ("cat >/dev/null; exit 3", "exit status 3"),
        ("exec <&-; sleep 0.3", "ended before"),
    ],
)
def test_a_failing_ffmpeg_is_one_line_and_leaves_no_file(
    out: Path, sound: Path, monkeypatch: pytest.MonkeyPatch, body: str, says: str
) -> None:
    folder = out.parent / "bin"
    folder.mkdir()
    monkeypatch.setenv("EMO_FFMPEG", str(fake_ffmpeg(folder, body)))
    with pytest.raises(EmoError, match=says) as raised:
        make_video(out, sound, 300)
    assert "\n" not in raised.value.message and raised.value.hint
    assert sorted(path.name for path in out.parent.iterdir()) == ["bin", "sound.wav"]


def test_an_ffmpeg_that_drops_frames_is_found_out(
    out: Path, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = f'head -c {SIZE * SIZE * 3 * 7} | "{ffmpeg_path()}" "$@"\ncat >/dev/null; exit 0'
    monkeypatch.setenv("EMO_FFMPEG", str(fake_ffmpeg(out.parent, body)))
    with pytest.raises(EmoError, match="wrote 7 of 30 frames"):
        make_video(out, sound, 30)


def test_a_talkative_ffmpeg_does_not_block(
    out: Path, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = f'head -c 3000000 /dev/zero | tr "\\0" "\\n" >&2\nexec "{ffmpeg_path()}" "$@"'
    monkeypatch.setenv("EMO_FFMPEG", str(fake_ffmpeg(out.parent, body)))
    make_video(out, sound, 30)
    assert len(packets(out, "video")) == 30


def test_an_unreadable_sound_is_an_error_and_keeps_the_segments(tmp_path: Path, out: Path) -> None:
    playlist = tmp_path / "song.wav"
    playlist.write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n")
    with pytest.raises(EmoError, match="ffmpeg failed"):
        make_video(out, playlist, 30)
    assert not out.exists() and not list(work_path(out).glob("*.part"))
    good = write_sound(playlist, tone(1.2), 44_100)
    assert make_video(out, good, 30) == "going on after 30 finished frames"


def test_a_sound_that_cannot_be_muxed_is_found_at_once(tmp_path: Path) -> None:
    check_sound(write_sound(tmp_path / "good.wav", tone(0.1), 8_000))
    playlist = tmp_path / "song.wav"
    playlist.write_text("#EXTM3U\n#EXTINF:1,\ngood.wav\n#EXT-X-ENDLIST\n")
    with pytest.raises(EmoError, match="ffmpeg failed"):
        check_sound(playlist)


def test_ctrl_c_ends_ffmpeg_and_leaves_only_the_work_folder(out: Path, sound: Path) -> None:
    children: list = []

    def frames_of(first: int, count: int) -> np.ndarray:
        if first == 156:  # the fourth clip of the second segment
            raise KeyboardInterrupt
        return numbered_frames(first, count)

    started = VideoWriter._segment_graph

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            VideoWriter, "_segment_graph", lambda self: children.append(self) or started(self)
        )
        make_video(out, sound, 300, frames_of=frames_of)
    assert len(children) == 2
    assert children[-1]._ffmpeg._child.poll() == -9
    assert sorted(p.name for p in out.parent.iterdir()) == [work_path(out).name, "sound.wav"]
    assert not list(work_path(out).glob("*.part"))


def test_clips_out_of_order_or_of_another_shape_are_refused(out: Path) -> None:
    frames = numbered_frames(0, 12)
    with (
        WorkFolder.open(out, {}) as work,
        VideoWriter(work, size=(SIZE, SIZE), fps=FPS) as writer,
    ):
        for clip, wrong in [(1, frames), (0, frames[:, :32]), (0, frames.astype(np.float32))]:
            with pytest.raises(ValueError):
                writer.add(clip, wrong, None)


# --- which ffmpeg ---


def test_a_system_ffmpeg_is_used_only_if_it_can_do_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EMO_FFMPEG", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    bundled = "/elsewhere/ffmpeg"
    monkeypatch.setattr("emo_cli.ffmpeg_process._bundled_ffmpeg", lambda: bundled)
    script = fake_ffmpeg(tmp_path, 'echo "Codec not recognized"')
    assert ffmpeg_path() == bundled
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    fake_ffmpeg(tmp_path, 'echo "Encoder libx264"; echo "Bit stream filter setts"')
    assert ffmpeg_path() == str(script)


def test_no_ffmpeg_at_all_is_an_error_with_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise RuntimeError

    monkeypatch.delenv("EMO_FFMPEG", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_exe", none)
    with pytest.raises(EmoError, match="ffmpeg was not found") as raised:
        ffmpeg_path()
    assert "imageio-ffmpeg" in raised.value.hint


def test_the_useful_line_names_the_cause() -> None:
    assert last_useful_line(["[a @ 0x1] [b @ 0x2] bad", "", "Conversion failed!"]) == "bad"
    full = "av_interleaved_write_frame(): No space left on device"
    assert last_useful_line([full, "[out#0/mp4 @ 0x1] Error closing file"]) == full
    told = ["[aac @ 0x1] Unsupported channel layout", "[fc#0 @ 0x2] Task finished with error"]
    assert last_useful_line(told) == "Unsupported channel layout"
    assert last_useful_line([]) == ""
