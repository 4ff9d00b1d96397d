"""From frames to the finished file: H.264 in segments, the original sound, tags, one rename.

F frames of a clip, H W picture in pixels (both even). Frames are uint8 RGB [F, H, W, 3].

A segment is SEGMENT_CLIPS clips as a raw H.264 stream that opens with its own key frame and has
no B-frames: display order is coding order, so frame n of the joined bytes is at exactly n / fps,
and segments join without re-encoding, edit lists or timestamps of their own.
"""

from __future__ import annotations

import collections
import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emo_cli import __version__
from emo_cli.errors import EmoError
from emo_cli.ffmpeg_process import AGAIN, FFmpegProcess, ffmpeg_path, file_url
from emo_cli.files import move_into_place, write_atomically
from emo_cli.mp4_tags import put_tags, room_for, tag_box
from emo_cli.output_file import check_output, default_output, report_path
from emo_cli.work_folder import (
    SEGMENT_CLIPS,
    WorkFolder,
    writing,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = [
    "SOUND_FORMATS",
    "VideoWriter",
    "check_output",
    "check_sound",
    "default_output",
    "ffmpeg_path",
    "provenance_tags",
]

QUEUED_CLIPS = 2  # computed but not yet encoded: bounds the memory
ACCESS_UNIT_DELIMITER = b"\0\0\1\x09"  # x264 sets one before each frame (aud=1)

# ffmpeg's RGB conversion defaults to BT.601 and does not tag: players then guess by height.
BT709 = "range=tv:color_primaries=bt709:color_trc=bt709:colorspace=bt709"
PICTURE_FILTER = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_int,"
    f"format=yuv420p,setparams={BT709}"
)
# x264 writes the same bytes for the same number of threads, so that is not left to the machine.
H264 = {
    "c:v": "libx264",
    "preset": "medium",
    "crf": 16,
    "threads": 4,
    "bf": 0,
    "g": 9999,
    "sc_threshold": 0,
    "x264-params": "aud=1",
    "flags:v": "+bitexact",
    "format": "h264",
}
AAC = {"c:a": "aac", "b:a": "192k", "ar": 48_000, "flags:a": "+bitexact"}
# What the sound may be packed in: a playlist named song.wav must not be followed.
SOUND_FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,eac3,flac,flv,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,"
    "mp3,mpeg,mpegts,ogg,tta,w64,wav,wv"
)


def provenance_tags(seed: int) -> dict[str, str]:
    """What the file says of itself: that it is synthetic, what made it, and with which seed."""
    maker = f"emo-cli {__version__}"
    return {
        "comment": f"AI-generated video: a synthetic talking face made by {maker}, seed {seed}.",
        "encoder": maker,
        "synthetic": "true",
        "seed": str(seed),
    }


def check_sound(path: Path) -> None:
    """Encodes the first second of a sound, so that one that cannot be muxed fails early.

    Raises: EmoError with ffmpeg's reason.
    """
    import ffmpeg

    FFmpegProcess(ffmpeg.output(_sound(path, 0, 1), "-", format="null", **AAC)).finish()


def _sound(path: Path, start_s: float, duration_s: float) -> Any:
    """The first sound track as an ffmpeg stream, cut.

    Samples count from 0, in order, as they do for the frames: a late first timestamp or a gap
    in the container must not shift the sound against the lips.
    """
    import ffmpeg

    sound = ffmpeg.input(
        file_url(path), protocol_whitelist="file,pipe", format_whitelist=SOUND_FORMATS
    )
    span = {"start": f"{start_s:.6f}", "duration": f"{duration_s:.6f}"}
    cut = sound["a:0"].filter("asetpts", "N/SR/TB").filter("atrim", **span)
    return cut.filter("asetpts", "PTS-STARTPTS")


class VideoWriter:
    """Encodes clips in the background, as they come, and puts the video together at the end.

    At most QUEUED_CLIPS clips wait in memory. Leaving the `with` block early ends ffmpeg and
    keeps the finished segments in the work folder.
    """

    def __init__(self, work: WorkFolder, *, size: tuple[int, int], fps: int) -> None:
        """size: height and width in pixels, both even."""
        self._work = work
        self._height, self._width = size
        self._fps = fps
        self._next_clip = work.next_clip
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="video")
        self._pending: collections.deque[Future[None]] = collections.deque()
        self._part = work.part_path("segment")
        self._video = work.part_path("video")
        self._ffmpeg: FFmpegProcess | None = None
        # Of the open segment; only the worker touches these.
        self._num_clips = 0
        self._num_frames = 0
        self._motion_latents: torch.Tensor | None = None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, clip_index: int, frames: np.ndarray, motion_latents: torch.Tensor) -> None:
        """Hands over the next clip; returns at once unless encoding lags behind.

        frames: uint8 [F, H, W, 3]; motion_latents: any shape and dtype, what the clip after
        this one starts from. Neither may be written to afterwards.

        Raises: EmoError when ffmpeg or the disk has failed, now or on an earlier clip.
        """
        if clip_index != self._next_clip:
            raise ValueError(f"clip {clip_index} given, {self._next_clip} expected")
        if frames.shape[1:] != (self._height, self._width, 3) or frames.dtype != "uint8":
            raise ValueError(f"frames are {frames.dtype} {frames.shape}")
        self._next_clip += 1
        self._wait(leave=QUEUED_CLIPS - 1)
        self._pending.append(self._worker.submit(self._encode, frames, motion_latents))

    def finish(
        self,
        *,
        sound_path: Path,
        start_s: float,
        duration_s: float | None,
        num_frames: int,
        tags: Mapping[str, str],
        report: Mapping[str, Any],
        overwrite: bool = False,
    ) -> Path:
        """Joins segments and sound, moves the file to its name, writes OUT.json, cleans up.

        The sound is the original from `start_s` on, `duration_s` long (None: to its end), but
        never longer than the picture: what is behind `num_frames` is an encoder's padding.

        Raises: EmoError when ffmpeg or the disk fails, or OUT has appeared meanwhile and
        `overwrite` is not set; the segments are kept.
        """
        out = self._work.out
        self._pending.append(self._worker.submit(self._end_segment))
        self._wait(leave=0)
        if self._work.frames_done != num_frames:
            raise ValueError(f"{self._work.frames_done} frames written, {num_frames} expected")
        check_output(out, overwrite)
        box = tag_box(tags)
        picture_s = num_frames / self._fps
        sound = _sound(sound_path, start_s, min(duration_s or picture_s, picture_s))
        self._join_segments(self._mux_graph(sound, room_for(box)))
        with writing(out):
            put_tags(self._video, box)
            move_into_place(self._video, out)
            write_atomically(report_path(out), (json.dumps(report, indent=2) + "\n").encode())
        self._work.remove()
        return out

    def close(self) -> None:
        """Ends ffmpeg and the background thread; an unfinished segment is thrown away."""
        self._worker.shutdown(wait=False, cancel_futures=True)
        self._kill()  # wakes a worker that waits for ffmpeg
        self._worker.shutdown(wait=True)
        self._kill()  # the worker may just have started one
        self._part.unlink(missing_ok=True)
        self._video.unlink(missing_ok=True)

    def _kill(self) -> None:
        if self._ffmpeg is not None:
            self._ffmpeg.kill()

    def _wait(self, *, leave: int) -> None:
        """Waits until at most `leave` clips are queued; the first failure comes out here."""
        while self._pending and (len(self._pending) > leave or self._pending[0].done()):
            self._pending.popleft().result()

    def _encode(self, frames: np.ndarray, motion_latents: torch.Tensor) -> None:
        import numpy as np

        if self._ffmpeg is None:
            self._ffmpeg = FFmpegProcess(self._segment_graph())
        self._ffmpeg.write(np.ascontiguousarray(frames).data.cast("B"))
        self._num_clips += 1
        self._num_frames += len(frames)
        self._motion_latents = motion_latents
        if self._num_clips == SEGMENT_CLIPS:
            self._end_segment()

    def _end_segment(self) -> None:
        if self._ffmpeg is None:
            return
        self._ffmpeg.finish()
        written = self._part.read_bytes().count(ACCESS_UNIT_DELIMITER)
        if written != self._num_frames:
            raise EmoError(f"ffmpeg wrote {written} of {self._num_frames} frames", AGAIN)
        assert self._motion_latents is not None
        self._work.commit(
            self._part,
            num_clips=self._num_clips,
            num_frames=self._num_frames,
            motion_latents=self._motion_latents,
        )
        self._ffmpeg, self._num_clips, self._num_frames = None, 0, 0

    def _segment_graph(self) -> Any:
        import ffmpeg

        size = f"{self._width}x{self._height}"
        frames = ffmpeg.input(
            "pipe:0", format="rawvideo", pix_fmt="rgb24", s=size, framerate=self._fps
        )
        return ffmpeg.output(frames["v:0"], file_url(self._part), vf=PICTURE_FILTER, **H264)

    def _mux_graph(self, sound: Any, comment: str) -> Any:
        import ffmpeg

        picture = ffmpeg.input("pipe:0", format="h264", framerate=self._fps)
        tick = f"1/({self._fps}*TB)"
        return ffmpeg.output(
            picture["v:0"],
            sound,
            file_url(self._video),
            **{
                "c:v": "copy",
                # 6-9: parameter sets, delimiters, x264's remarks: not part of an mp4's samples.
                "bsf:v": f"setts=ts=N*{tick}:duration={tick},filter_units=remove_types=6-9",
                "video_track_timescale": self._fps * 1000,
                **AAC,
                "fflags": "+bitexact",
                "map_metadata": -1,
                "metadata": f"comment={comment}",
                "max_interleave_delta": 0,  # else the order in the file depends on timing
                "movflags": "+faststart",
                "format": "mp4",
            },
        )

    def _join_segments(self, graph: Any) -> None:
        self._ffmpeg = FFmpegProcess(graph)
        for segment in self._work.segments:
            with segment.path.open("rb") as stream:
                shutil.copyfileobj(stream, self._ffmpeg)
        self._ffmpeg.finish()
        self._ffmpeg = None
