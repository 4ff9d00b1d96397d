"""Sound files: whatever ffmpeg's libraries read, as 16 kHz mono, mapped from disk.

A sound's time is the count of its decoded samples from 0 on, as `video.py` muxes it: a late first
timestamp or a gap in the container shifts neither.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from emo_cli.errors import EmoError
from emo_cli.stated_length import ends_inside_a_page, stated_length_s
from emo_cli.video import SOUND_FORMATS

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.filter import Graph

SAMPLE_RATE_HZ = 16_000
FRAME_TOLERANCE = 1e-6  # of a frame: float noise in a duration makes no frame
MISSING_S, MISSING_SHARE = 0.5, 0.01  # a file that lacks more than both is cut short
HEARD_FRAMES = 500  # so many at once are in memory
PADDING_S = 0.1  # an encoder's last block may reach so far behind the end of the sound
DAMAGED = "It seems damaged or cut short: convert or copy it again."


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A decoded sound: `samples` [S] float32 in about -1..1, 16 kHz mono, mapped from disk.

    `duration_s` is exact, after `start_s` and the cut; `path` is the user's file; `notes` are
    lines to tell the user.
    """

    samples: np.ndarray
    sample_rate_hz: int
    duration_s: float
    path: Path
    start_s: float
    notes: tuple[str, ...] = ()

    def num_frames(self, fps: int) -> int:
        """ceil(duration x fps), so that the tail is never cut; 3.0 s at 25 fps are 75."""
        return max(1, math.ceil(self.duration_s * fps - FRAME_TOLERANCE))

    def loudness(self, num_frames: int, fps: int) -> np.ndarray:
        """Of each frame the root of the samples' mean square, [num_frames]; 0 beyond the end."""
        length, loud = self.sample_rate_hz // fps, np.zeros(num_frames, np.float32)
        for frame in range(min(num_frames, math.ceil(len(self.samples) / length))):
            heard = self.samples[frame * length : (frame + 1) * length]
            loud[frame] = np.sqrt(np.square(heard).mean())
            if frame % HEARD_FRAMES == 0:
                let_go(self.samples)
        let_go(self.samples)
        return loud


def let_go(samples: np.ndarray) -> None:
    """Unmap what was read of a file: its pages count as memory of this process until then."""
    if isinstance(samples.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        samples.base.madvise(mmap.MADV_DONTNEED)


def decode_sound(
    path: Path, folder: Path, *, start_s: float = 0.0, duration_s: float | None = None
) -> Sound:
    """The first sound track of a local file, cut, as 16 kHz mono, in a file that `folder` holds.

    Host memory does not grow with the length. Raises: EmoError when the file is missing, empty,
    damaged, cut short, without sound, a playlist, when `start_s` is beyond its end, or when
    `folder` cannot be written.
    """
    _check_cut(start_s, duration_s)
    _check_file(path)
    try:
        handle, name = tempfile.mkstemp(prefix="sound-", suffix=".f32", dir=folder)
    except OSError as error:
        raise _no_room(folder, error) from error
    try:
        with os.fdopen(handle, "wb") as stream:
            length_s, notes = _decode(path, stream, start_s, duration_s)
            num_samples = max(1, round(length_s * SAMPLE_RATE_HZ))
            # The resampler ends a sample early or late.
            stream.truncate(num_samples * 4)
        samples = np.memmap(name, np.float32, mode="r", shape=(num_samples,))
    except OSError as error:
        raise _no_room(folder, error) from error
    finally:
        # A mapped file lives on without its name: a killed run leaves nothing behind. Windows
        # refuses; there the folder's owner deletes it.
        with contextlib.suppress(PermissionError):
            os.unlink(name)
    return Sound(
        samples=samples,
        sample_rate_hz=SAMPLE_RATE_HZ,
        duration_s=float(length_s),
        path=path,
        start_s=start_s,
        notes=notes,
    )


def _check_cut(start_s: float, duration_s: float | None) -> None:
    if not (math.isfinite(start_s) and start_s >= 0):
        raise EmoError(f"--start {start_s} is no time", "Give seconds, from 0 on.", exit_code=2)
    if duration_s is not None and not (math.isfinite(duration_s) and duration_s > 0):
        raise EmoError(
            f"--duration {duration_s} is no length", "Give seconds, more than 0.", exit_code=2
        )


def _check_file(path: Path) -> None:
    if not path.exists():
        raise EmoError(f"sound {path} does not exist", "Check the path.")
    if not path.is_file():
        # A pipe would do for decoding, but the sound is read again for the video.
        raise EmoError(f"sound {path} is not a file", "Give one sound or video file.")
    if path.stat().st_size == 0:
        raise EmoError(f"sound {path} is empty", "Save or copy the file again.")


def _no_room(folder: Path, error: OSError) -> EmoError:
    return EmoError(
        f"cannot write the decoded sound to {folder}: {error.strerror}",
        "It takes 230 MB an hour: free some space there, or write the video elsewhere (-o).",
    )


def _decode(
    path: Path, stream: BinaryIO, start_s: float, duration_s: float | None
) -> tuple[Fraction, tuple[str, ...]]:
    """Writes the cut; returns its exact length in seconds, and notes."""
    import av

    try:
        with av.open(
            f"file:{path}",
            options={"protocol_whitelist": "file", "format_whitelist": SOUND_FORMATS},
            metadata_errors="replace",
        ) as container:
            track = _first_track(container, path)
            reader = _Reader(container, track)
            start = Fraction(start_s)
            stop = None if duration_s is None else start + Fraction(duration_s)
            _write_cut(reader, stream, start, stop)
            if stop is not None and reader.length_s >= stop:
                return stop - start, reader.notes()
            end = _end(path, reader, stated_length_s(path, container), start)
            return end - start, reader.notes()
    except av.error.FFmpegError as error:
        raise EmoError(
            f"{path.name} is not a sound that emo can read: {error.strerror}",
            "Any local sound or video file will do (wav, mp3, m4a, flac, ogg, mp4 ...), "
            "if it is not damaged; a playlist will not.",
        ) from error


def _first_track(container: InputContainer, path: Path) -> AudioStream:
    if not container.streams.audio:
        raise EmoError(
            f"{path.name} has no sound track, only {_other_content(container)}",
            "Give a file with sound in it.",
        )
    track = container.streams.audio[0]
    if track.codec_context is None:
        raise EmoError(
            f"the sound track of {path.name} is in an unknown format", "Convert it to wav or mp3."
        )
    return track


def _other_content(container: InputContainer) -> str:
    if not container.streams:
        return "an empty container"
    pictures = [stream.disposition.name == "attached_pic" for stream in container.streams.video]
    return "a cover picture" if pictures and all(pictures) else "other things"


class _Reader:
    """Frames of one track, resampled; counts what it read and what it had to leave out."""

    def __init__(self, container: InputContainer, track: AudioStream) -> None:
        self.length_s = Fraction(0)
        self.num_frames = self.num_damaged = 0
        self._container = container
        self._track = track
        self._kind: tuple[str, str, int] | None = None
        self._graph: Graph | None = None

    def notes(self) -> tuple[str, ...]:
        if self.num_damaged == 0:
            return ()
        return (f"{self.num_damaged} damaged packets of the sound are left out",)

    def chunks(self) -> Iterator[np.ndarray]:
        """16 kHz mono [n] float32, chunk after chunk."""
        for frame in self._frames():
            kind = (frame.format.name, frame.layout.name, frame.sample_rate)
            if kind != self._kind:  # a radio recording may change in between
                yield from self._flush()
                self._graph, self._kind = _resampler(frame), kind
            self.num_frames += 1
            self.length_s += Fraction(frame.samples, frame.sample_rate)
            frame.pts = None
            yield from self._resample(frame)
        yield from self._flush()

    def _frames(self) -> Iterator[AudioFrame]:
        import av

        for packet in self._container.demux(self._track):
            try:
                yield from packet.decode()
            except av.error.InvalidDataError:
                self.num_damaged += 1  # as ffmpeg does when it muxes: go on behind it

    def _flush(self) -> Iterator[np.ndarray]:
        if self._graph is not None:
            yield from self._resample(None)

    def _resample(self, frame: AudioFrame | None) -> Iterator[np.ndarray]:
        assert self._graph is not None
        self._graph.push(frame)
        while True:
            try:
                samples = self._graph.pull().to_ndarray()[0]
            except (BlockingIOError, EOFError):
                return
            # A float file may hold NaN, which would spread over a whole window of features.
            yield np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0)


def _resampler(frame: AudioFrame) -> Graph:
    from av.filter import Graph

    graph = Graph()
    source = graph.add_abuffer(
        sample_rate=frame.sample_rate,
        format=frame.format,
        layout=frame.layout,
        time_base=Fraction(1, frame.sample_rate),
    )
    # rematrix_maxval: the mean of two channels, not their sum over the square root of two.
    options = f"{SAMPLE_RATE_HZ}:ochl=mono:osf=flt:rematrix_maxval=1"
    graph.link_nodes(source, graph.add("aresample", options), graph.add("abuffersink"))
    graph.configure()
    return graph


def _write_cut(
    reader: _Reader, stream: BinaryIO, start_s: Fraction, stop_s: Fraction | None
) -> None:
    skip = round(start_s * SAMPLE_RATE_HZ)
    stop = None if stop_s is None else round(stop_s * SAMPLE_RATE_HZ)
    position = 0
    for chunk in reader.chunks():
        first, last = max(skip - position, 0), len(chunk)
        if stop is not None:
            last = min(last, stop - position)
        if last > first:
            stream.write(chunk[first:last].tobytes())
        position += len(chunk)
        if stop is not None and position >= stop:
            return


def _end(path: Path, reader: _Reader, stated_s: Fraction, start_s: Fraction) -> Fraction:
    """Where the sound ends, in seconds, when all of it has been read."""
    length_s = reader.length_s
    if reader.num_damaged > reader.num_frames:
        raise EmoError(f"the sound track of {path.name} cannot be decoded", DAMAGED)
    if length_s == 0:
        raise EmoError(f"there is no sound in {path.name}: its length is zero", DAMAGED)
    lacks = stated_s - length_s > max(MISSING_S, MISSING_SHARE * stated_s)
    if lacks or ends_inside_a_page(path):
        of = f" of {float(stated_s):.2f}" if lacks else ""
        rest_s = math.floor((length_s - start_s) * 100) / 100
        use_rest = f", or use what is there: --duration {rest_s:.2f}" if rest_s > 0 else ""
        raise EmoError(
            f"{path.name} is cut short: {float(length_s):.2f}{of} s can be read",
            f"Copy it again{use_rest}.",
        )
    padded = stated_s < length_s < stated_s + Fraction(PADDING_S)
    end_s = stated_s if padded else length_s
    if start_s >= end_s:
        raise EmoError(
            f"--start {float(start_s):g} is beyond the end of {path.name}, {float(end_s):.2f} s",
            "Give an earlier start.",
        )
    return end_s
