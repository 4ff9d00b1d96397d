"""What users film, at 25 fps and 16 kHz mono, on one clock: frame k shows second k / 25.

Pictures are turned as the file says, de-interlaced, with square pixels, and at most LONGEST_SIDE
wide or high; that picture is what every coordinate of a dataset or a metric means.

Legend: `H W` the picture, `T` frames, `S` the side of a square crop, `N` samples.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO

import numpy as np

from emo_cli.errors import EmoError
from emo_cli.ffmpeg_process import ffmpeg_path, last_useful_line
from emo_cli.sound import SAMPLE_RATE_HZ
from emo_cli.video import SOUND_FORMATS

FPS = 25
LONGEST_SIDE = 2560
# fmt: off
VIDEO_SUFFIXES = {
    ".3gp", ".asf", ".avi", ".dv", ".f4v", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4",
    ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv",
}
# fmt: on
# What the file may be packed in: a playlist named film.mp4 must not be followed.
VIDEO_FORMATS = f"{SOUND_FORMATS},dv,gxf,ivf,mxf,nut,rm,swf,wtv,yuv4mpegpipe"
SAMPLES_PER_FRAME = SAMPLE_RATE_HZ // FPS
# `start_time=0`: a stream that begins late is held back, so that sound and picture share a clock.
EVEN_FRAMES = f"yadif=deint=interlaced,fps={FPS}:start_time=0"
SQUARE_PIXELS = (
    f"scale=w='max(2,round(iw*sar*min(1,{LONGEST_SIDE}/max(iw*sar,ih))))'"
    f":h='max(2,round(ih*min(1,{LONGEST_SIDE}/max(iw*sar,ih))))',setsar=1"
)
EXACT = "flags=lanczos+accurate_rnd+full_chroma_int"
# rematrix_maxval: the mean of two channels, not their sum; async: gaps stay as long as they are.
MONO = f"aresample={SAMPLE_RATE_HZ}:ochl=mono:osf=flt:rematrix_maxval=1:async=1:first_pts=0"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a container says of itself."""

    width: int
    height: int
    fps: float
    duration_s: float  # 0 where the container does not say
    has_sound: bool


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A square part of the picture."""

    x: int
    y: int
    side: int


def probe(path: Path) -> Probe:
    """Size, rate, length and tracks of a local file, without decoding it.

    Raises: EmoError when it is no readable video.
    """
    import av

    try:
        with av.open(
            f"file:{path}",
            options={"protocol_whitelist": "file", "format_whitelist": VIDEO_FORMATS},
            metadata_errors="replace",
        ) as container:
            tracks = [
                track
                for track in container.streams.video
                if track.disposition.name != "attached_pic" and track.codec_context is not None
            ]
            if not tracks:
                raise EmoError("no picture track", "Give videos.")
            track = tracks[0]
            length = Fraction(container.duration or 0, 1_000_000)
            if track.duration is not None and track.time_base is not None:
                length = track.duration * track.time_base
            return Probe(
                width=track.codec_context.width,
                height=track.codec_context.height,
                fps=float(track.average_rate or 0),
                duration_s=float(length),
                has_sound=bool(container.streams.audio),
            )
    except (av.error.FFmpegError, OSError) as error:
        raise EmoError(f"unreadable: {error.strerror}", "Convert or copy it again.") from error


def read_frames(
    path: Path,
    first: int,
    count: int,
    *,
    every: int = 1,
    crop: Crop | None = None,
    size: int | None = None,
) -> Iterator[np.ndarray]:
    """Every `every`-th of the frames first..first+count-1, uint8 RGB [H, W, 3], one at a time.

    With `crop`, only that part; with `size`, scaled to [S, S, 3]. Ends early where the video does.
    Raises: EmoError when ffmpeg cannot read it.
    """
    filters = [EVEN_FRAMES, f"trim=end_frame={count}"]
    filters += [f"framestep={every}"] if every > 1 else []
    filters += [SQUARE_PIXELS]
    filters += [f"crop={crop.side}:{crop.side}:{crop.x}:{crop.y}:exact=1"] if crop else []
    # The last scale also converts to RGB: once, with the exact conversion.
    filters += [f"scale={size or 'iw'}:{size or 'ih'}:{EXACT}", "format=rgb24"]
    output = ["-map", "0:V:0", "-an", "-vf", ",".join(filters)]
    # A PPM says its own size: no one has to guess what the filters make of odd pixels.
    output += ["-c:v", "ppm", "-f", "image2pipe"]
    with _ffmpeg(path, first, output) as stream:
        while (picture := _read_ppm(stream)) is not None:
            yield picture


def read_sound(path: Path, first: int, count: int) -> np.ndarray | None:
    """The sound of those frames, float32 [count * 640] at 16 kHz; padded with silence at its end.

    None: nothing of the sound lies there. Raises: EmoError when ffmpeg cannot read it.
    """
    length = count * SAMPLES_PER_FRAME
    filters = f"{MONO},atrim=end_sample={length}"
    output = ["-map", "0:a:0", "-vn", "-af", filters, "-c:a", "pcm_f32le", "-f", "f32le"]
    with _ffmpeg(path, first, output) as stream:
        samples = np.frombuffer(stream.read(), "<f4")[:length]
    if len(samples) == 0:
        return None
    samples = np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0)
    return np.pad(samples, (0, length - len(samples)))


@contextlib.contextmanager
def _ffmpeg(path: Path, first: int, output: list[str]) -> Iterator[IO[bytes]]:
    """ffmpeg's standard output, its input beginning at a frame; killed if left before the end."""
    with ffmpeg_output(path, ["-ss", f"{first / FPS:.6f}"] if first else [], output) as stream:
        yield stream


@contextlib.contextmanager
def ffmpeg_output(path: Path, seek: list[str], output: list[str]) -> Iterator[IO[bytes]]:
    """Standard output of ffmpeg reading a local file; killed if left before its end.

    Raises: EmoError with ffmpeg's own words when it fails.
    """
    command: list[str | bytes] = [ffmpeg_path(), "-hide_banner", "-nostdin", "-loglevel", "error"]
    # One thread: many videos are read side by side.
    command += ["-protocol_whitelist", "file,pipe", "-format_whitelist", VIDEO_FORMATS]
    command += ["-threads", "1", *seek, "-i", b"file:" + os.fsencode(path), *output, "-"]
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # Ctrl-C is for us
        )
        assert child.stdout is not None
        try:
            yield child.stdout
            at_end = child.stdout.read(1) == b""
        except BaseException:
            at_end = False
            raise
        finally:
            if not at_end:
                child.kill()
            child.stdout.close()
            status = child.wait()
        if at_end and status != 0:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").splitlines()
            line = last_useful_line(lines) or f"status {status}"
            raise EmoError(f"ffmpeg: {line}", "Convert or copy the video again.")


def _read_ppm(stream: IO[bytes]) -> np.ndarray | None:
    """The next picture [H, W, 3]; None at the end, and for a last picture that is cut short."""
    if stream.readline() != b"P6\n":
        return None
    width, height = map(int, stream.readline().split())
    stream.readline()  # the largest value, 255
    data = stream.read(width * height * 3)
    if len(data) < width * height * 3:
        return None
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)
