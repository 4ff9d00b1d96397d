"""The ffmpeg program: where it is, and one running child that is fed through a pipe."""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import threading
from typing import Any

from emo_cli.errors import EmoError

# What an ffmpeg must have to be of use here: distributions ship some without x264, and
# releases before 4.4 cannot set timestamps on a copied stream.
NEEDED = (("encoder=libx264", b"Encoder libx264"), ("bsf=setts", b"Bit stream filter setts"))
STDERR_LINES = 50
# What ffmpeg adds after the line that names the cause.
FAREWELL = re.compile(
    r"Conversion failed!|Task finished|Terminating thread|Nothing was written|Could not open enc"
    r"|Error while opening enc|Error sending frames|Error reinitializing|Error (opening|closing) "
)
AGAIN = "Run the same command again: it goes on from the last finished part."


def ffmpeg_path() -> str:
    """Path of ffmpeg: `EMO_FFMPEG` if set, else the system's, else the one of imageio-ffmpeg.

    A system ffmpeg without x264, or older than 4.4, is passed over.

    Raises: EmoError when there is none.
    """
    return _find_ffmpeg(os.environ.get("EMO_FFMPEG", ""), os.environ.get("PATH", ""))


@functools.lru_cache(maxsize=8)
def _find_ffmpeg(chosen: str, search_path: str) -> str:
    if chosen:
        found = shutil.which(chosen, path=search_path)
        if found is None:
            raise EmoError(
                f"EMO_FFMPEG={chosen} is not a program",
                "Set it to an ffmpeg, or unset it.",
            )
        return found
    found = shutil.which("ffmpeg", path=search_path)
    if found is not None and _has_what_is_needed(found):
        return found
    return _bundled_ffmpeg()


def _has_what_is_needed(path: str) -> bool:
    for topic, answer in NEEDED:
        command = [path, "-hide_banner", "-nostdin", "-h", topic]
        try:
            told = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
        except OSError:
            return False  # a broken program on PATH is as good as none
        if answer not in told.stdout:
            return False
    return True


def _bundled_ffmpeg() -> str:
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise EmoError(
            "ffmpeg was not found",
            "Install ffmpeg 4.4 or later, or `pip install imageio-ffmpeg`, or set EMO_FFMPEG.",
        ) from error


@functools.lru_cache(maxsize=8)
def _version_line(path: str) -> str:
    command = [path, "-version"]
    try:
        told = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    except OSError as error:
        raise EmoError(
            f"cannot run {path}: {error.strerror}", "Set EMO_FFMPEG to a working ffmpeg."
        ) from error
    return told.stdout.decode(errors="replace").partition("\n")[0].strip()


def ffmpeg_version() -> str:
    """First line of `ffmpeg -version`: another build may write other bytes."""
    return _version_line(ffmpeg_path())


def file_url(path: str | os.PathLike[str]) -> str:
    """A path as ffmpeg must see it: `file:`, so that `a:b.mp4` names no protocol.

    Each byte stands as one character: ffmpeg-python hashes its strings as UTF-8, which a file
    name need not be. `FFmpegProcess` turns them back into bytes.
    """
    return "file:" + os.fsencode(path).decode("latin-1")


class FFmpegProcess:
    """A running ffmpeg that reads its standard input from `write` and ends with `finish`.

    It runs in a session of its own, so that Ctrl-C in the terminal reaches only this process,
    which then decides (`kill`).
    """

    def __init__(self, graph: Any) -> None:
        """graph: an output node of ffmpeg-python, its files named by `file_url`."""
        quiet = ["-hide_banner", "-nostdin", "-loglevel", "error"]
        arguments = graph.compile(cmd="", overwrite_output=True)[1:]
        try:
            self._child = subprocess.Popen(
                [ffmpeg_path(), *quiet, *(argument.encode("latin-1") for argument in arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise EmoError(
                f"cannot start ffmpeg: {error.strerror}", "Set EMO_FFMPEG to a working ffmpeg."
            ) from error
        self._stderr: collections.deque[str] = collections.deque(maxlen=STDERR_LINES)
        # A full stderr pipe would stop ffmpeg, and with it us: someone always reads it.
        self._reader = threading.Thread(target=self._read_stderr, daemon=True)
        self._reader.start()

    def _read_stderr(self) -> None:
        assert self._child.stderr is not None
        with self._child.stderr as lines:
            self._stderr.extend(line.decode(errors="replace").strip() for line in lines)

    def write(self, data: bytes | memoryview) -> None:
        """Waits until ffmpeg has taken the bytes.

        Raises: EmoError with ffmpeg's own words when it has ended.
        """
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(data)
        except BrokenPipeError as error:
            self.finish()
            raise EmoError("ffmpeg ended before it had read all frames", AGAIN) from error

    def finish(self) -> None:
        """Ends the input and waits for ffmpeg.

        Raises: EmoError with ffmpeg's last useful line when it failed.
        """
        assert self._child.stdin is not None
        # The exit status says more than a pipe that ffmpeg has closed.
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        status = self._child.wait()
        self._reader.join()
        if status != 0:
            raise _failure(status, list(self._stderr))

    def kill(self) -> None:
        """Ends ffmpeg at once, whatever it was doing."""
        assert self._child.stdin is not None
        self._child.kill()
        self._child.wait()
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()


def _failure(status: int, lines: list[str]) -> EmoError:
    if status < 0:
        return EmoError(f"ffmpeg was killed ({_signal_name(-status)})", AGAIN)
    line = last_useful_line(lines) or f"exit status {status}"
    if "No space left" in line:
        return EmoError(f"the disk is full (ffmpeg: {line})", f"Free some space. {AGAIN}")
    return EmoError(f"ffmpeg failed: {line}", AGAIN)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def last_useful_line(lines: list[str]) -> str:
    """The line of ffmpeg's stderr that names the cause, without its `[mp4 @ 0x55d0]` prefix.

    A full disk is named wherever it stands; else the last line that is not a mere consequence.
    """
    plain = [re.sub(r"^(\[[^\]]*\]\s*)+", "", line) for line in lines]
    full = [line for line in plain if "No space left" in line]
    useful = [line for line in plain if line and not FAREWELL.match(line)]
    return (full or useful or plain or [""])[-1]
