"""From an engine and two files to a finished video: work folder, progress, encoding, report."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emo_cli import __version__, console
from emo_cli.config import GenerateOptions
from emo_cli.files import sha256_of
from emo_cli.quality import resolve
from emo_cli.video import VideoWriter, check_output, check_sound, provenance_tags
from emo_cli.work_folder import WorkFolder

if TYPE_CHECKING:
    from emo_cli.engine import Engine, Video


@dataclass(frozen=True, kw_only=True)
class Request:
    """One video to make."""

    portrait: Path
    audio: Path
    out: Path
    options: GenerateOptions
    overwrite: bool
    resume: bool
    quiet: bool


def make_video(engine: Engine, request: Request) -> dict[str, Any]:
    """Make one video file and its JSON report; returns the report.

    Raises: EmoError for whatever a user can put right; finished parts are kept for the next
    run of the same command.
    """
    started = time.perf_counter()
    check_output(request.out, request.overwrite, [request.portrait, request.audio])
    with WorkFolder.open(request.out, _fingerprint(engine, request), resume=request.resume) as work:
        if work.note and not request.quiet:
            console.note(work.note)
        video = engine.prepare(request.portrait, request.audio, work.path, request.options)
        check_sound(request.audio)  # now, not when all frames are made
        for line in () if request.quiet else (*video.portrait.notes, *video.sound.notes):
            console.note(line)
        prepared = time.perf_counter()
        report = _write_clips(engine, video, work, request, prepared - started)
    return report


def _write_clips(
    engine: Engine, video: Video, work: WorkFolder, request: Request, prepare_s: float
) -> dict[str, Any]:
    size = len(video.portrait.shown)
    started, seconds = time.perf_counter(), []
    with (
        VideoWriter(work, size=(size, size), fps=engine.config.fps) as writer,
        console.frame_progress(
            request.out.name, video.num_frames, work.frames_done, quiet=request.quiet
        ) as advance,
    ):
        for clip in engine.clips(video, work.next_clip, work.motion_latents):
            writer.add(clip.index, clip.frames, clip.motion)
            advance(len(clip.frames))
            seconds.append(clip.seconds)
        timings = {
            "prepare_s": round(prepare_s, 3),
            "clips_s": round(time.perf_counter() - started, 3),
            "clip_s": [round(value, 3) for value in seconds],
        }
        report = _report(engine, video, request, timings)
        writer.finish(
            sound_path=request.audio,
            start_s=request.options.start_s,
            duration_s=request.options.duration_s,
            num_frames=video.num_frames,
            tags=provenance_tags(request.options.seed),
            report=report,
            overwrite=request.overwrite,
        )
    return report


def _fingerprint(engine: Engine, request: Request) -> dict[str, Any]:
    """All that the frames depend on: another value means starting over."""
    return {
        "version": __version__,
        "model": engine.digest,
        "portrait": sha256_of(request.portrait) if request.portrait.is_file() else "",
        "audio": sha256_of(request.audio) if request.audio.is_file() else "",
        "options": dataclasses.asdict(request.options),
        "sampling": dataclasses.asdict(resolve(request.options, engine.config)),
        "compiled": engine.compiled,
        "low_vram": engine.low_vram,
        "device": engine.device.type,
        "dtype": str(engine.dtype),
    }


def _report(
    engine: Engine, video: Video, request: Request, timings: dict[str, Any]
) -> dict[str, Any]:
    """What OUT.json says: how to make the same video again, and how long it took."""
    from emo_cli.device import peak_device_mib  # imports torch

    config, size = engine.config, len(video.portrait.shown)
    scale = size / config.picture_size
    options = dataclasses.asdict(request.options) | dataclasses.asdict(video.sampling)
    return {
        "video": str(request.out),
        "synthetic": True,
        "emo_version": __version__,
        "portrait": str(request.portrait),
        "audio": str(request.audio),
        "model": {"name": config.name, "digest": engine.digest, "untrained": config.untrained},
        "options": options,
        "device": str(engine.device),
        "dtype": str(engine.dtype).removeprefix("torch."),
        "compiled": engine.compiled,
        "low_vram": engine.low_vram,
        "frames": video.num_frames,
        "fps": config.fps,
        "size": [size, size],
        "duration_s": round(video.sound.duration_s, 6),
        "face_box": [round(value * scale, 1) for value in video.portrait.face_box],
        "crop": list(video.portrait.crop),
        "timings": timings,
        "peak_device_mib": peak_device_mib(engine.device),
    }
