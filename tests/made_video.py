"""Writes a video whose frames say their number; also run as a program that is killed half way.

python made_video.py OUT SOUND NUM_FRAMES [DIE_AT_CLIP]
"""

from __future__ import annotations

import os
import signal
import sys
import wave
from pathlib import Path

import numpy as np
import torch

from emo_cli.video import VideoWriter, provenance_tags
from emo_cli.work_folder import WorkFolder

SIZE = 64
FPS = 25
CLIP = 12
BITS = 10
BLOCK = 16  # pixels a side: survives compression
MUX = 1_000_000  # as DIE_AT_CLIP: when the video is joined but has not yet got its name


def numbered_frames(first: int, count: int) -> np.ndarray:
    """uint8 [F, H, W, 3]: a frame's number as light and dark blocks."""
    frames = np.full((count, SIZE, SIZE, 3), 40, np.uint8)
    for i in range(count):
        for bit in range(BITS):
            y, x = divmod(bit, SIZE // BLOCK)
            if (first + i) >> bit & 1:
                frames[i, y * BLOCK : (y + 1) * BLOCK, x * BLOCK : (x + 1) * BLOCK] = 210
    return frames


def read_number(frame: np.ndarray) -> int:
    """The number that a decoded frame [H, W, 3] shows."""
    blocks = frame.mean(-1).reshape(SIZE // BLOCK, BLOCK, SIZE // BLOCK, BLOCK).mean((1, 3))
    return sum(int(blocks.flat[bit] > 125) << bit for bit in range(BITS))


def latents_after(clip: int) -> torch.Tensor:
    return torch.full((4, 16, 8, 8), 1 / (clip + 3)).to(torch.bfloat16)


def write_sound(path: Path, samples: np.ndarray, rate_hz: int) -> Path:
    """samples: [N] or [N, channels] in -1..1."""
    columns = samples.reshape(len(samples), -1)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(columns.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes((columns * 32767).astype("<i2").tobytes())
    return path


def tone(duration_s: float, rate_hz: int = 44_100, hz: float = 440.0) -> np.ndarray:
    time_s = np.arange(round(duration_s * rate_hz)) / rate_hz
    return 0.5 * np.sin(2 * np.pi * hz * time_s)


def make_video(
    out: Path,
    sound: Path,
    num_frames: int,
    *,
    fingerprint: dict | None = None,
    resume: bool = True,
    overwrite: bool = False,
    stop_at_clip: int | None = None,
    frames_of=numbered_frames,
    start_s: float = 0.0,
    duration_s: float | None = None,
) -> str:
    """Writes the video as `emo generate` does and returns the note of the work folder."""
    work = WorkFolder.open(out, fingerprint or {"seed": 7}, resume=resume)
    with work, VideoWriter(work, size=(SIZE, SIZE), fps=FPS) as writer:
        for clip in range(work.next_clip, -(-num_frames // CLIP)):
            if clip == stop_at_clip:
                raise KeyboardInterrupt
            count = min(CLIP, num_frames - clip * CLIP)
            writer.add(clip, frames_of(clip * CLIP, count), latents_after(clip))
        writer.finish(
            sound_path=sound,
            start_s=start_s,
            duration_s=duration_s,
            num_frames=num_frames,
            tags=provenance_tags(7),
            report={"seed": 7},
            overwrite=overwrite,
        )
    return work.note


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    out, sound, num_frames = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    die_at = int(sys.argv[4]) if len(sys.argv) > 4 else None
    if die_at == MUX:
        import emo_cli.video

        emo_cli.video.put_tags = _die

    def frames_of(first: int, count: int) -> np.ndarray:
        if first // CLIP == die_at:
            _die()
        return numbered_frames(first, count)

    make_video(out, sound, num_frames, frames_of=frames_of)


if __name__ == "__main__":
    main()
