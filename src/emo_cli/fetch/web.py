"""Fetch one file over HTTP: resumed where it broke off, in place only when its digest fits."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from emo_cli import __version__
from emo_cli.errors import EmoError
from emo_cli.files import sha256_of

ATTEMPTS = 5  # in a row that brought nothing new
PAUSE_S = 1.0  # before the second attempt; doubles each time
LONGEST_PAUSE_S = 16.0
TIMEOUT_S = 30.0  # without a single byte
CHUNK_BYTES = 1 << 18
TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})

# Called with the bytes that are here and the bytes there will be (None: not known).
Report = Callable[[int, int | None], None]
Result = TypeVar("Result")


class TransientError(Exception):
    """A failure that another attempt may cure."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What is known beforehand of a file; an empty digest means not known."""

    sha256: str = ""
    git_sha1: str = ""  # a hub's digest of a file that is not in LFS
    bytes: int | None = None

    def check(self, path: Path) -> str:
        """The file's sha256, once size and digests fit.

        Raises: EmoError otherwise; the caller removes the file.
        """
        size = path.stat().st_size
        digest = sha256_of(path)
        fits = self.bytes in (None, size) and self.sha256 in ("", digest)
        if fits and self.git_sha1:
            blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            blob.update(path.read_bytes())
            fits = blob.hexdigest() == self.git_sha1
        if not fits:
            raise EmoError(
                f"what arrived as {path.name.removesuffix('.part')} has the wrong digest or size",
                "It was removed. Run the same command again; if it stays so, the publisher's "
                "file has changed or something on the way alters it.",
            )
        return digest


def fetch(
    url: str,
    target: Path,
    *,
    expected: Expected,
    headers: dict[str, str] | None = None,
    report: Report | None = None,
) -> str:
    """Bring `url` to `target` and return its sha256. A broken transfer stays as `target.part`
    and is taken up by the next call.

    Raises: EmoError when the address does not answer, or the file has another digest or size.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = part_path(target)

    def attempt() -> None:
        _transfer(url, part, expected.bytes, headers or {}, report)

    retry(attempt, what=url, progress=lambda: _size(part))
    return settle(part, target, expected)


def part_path(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def settle(part: Path, target: Path, expected: Expected) -> str:
    """Give a complete download its name if it is what was expected, else remove it."""
    try:
        digest = expected.check(part)
    except EmoError:
        part.unlink()
        raise
    finally:
        _validator_path(part).unlink(missing_ok=True)
    os.replace(part, target)
    return digest


def retry(
    action: Callable[[], Result], *, what: str, progress: Callable[[], int] = lambda: 0
) -> Result:
    """Run `action` until it passes; TransientError is tried again with growing pauses, for as
    long as not ATTEMPTS in a row leave `progress()` where it was."""
    failures, pause_s = 0, PAUSE_S
    while True:
        before = progress()
        try:
            return action()
        except TransientError as error:
            if progress() > before:
                failures, pause_s = 0, PAUSE_S
            failures += 1
            if failures >= ATTEMPTS:
                raise EmoError(
                    f"{what} does not answer as it should: {error}",
                    "Check the connection and run the same command again: it goes on from where "
                    "it broke off.",
                ) from error
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _transfer(
    url: str, part: Path, size: int | None, headers: dict[str, str], report: Report | None
) -> None:
    """One attempt: the bytes that are still missing, appended to `part`."""
    start = _resume_point(part, size)
    if size is not None and start == size:
        return
    try:
        response = urllib.request.urlopen(_request(url, headers, part, start), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        _raise_for_status(error, part)
    except (OSError, http.client.HTTPException) as error:
        raise TransientError(str(error) or type(error).__name__) from error
    with response:
        if response.status != 206:
            start = 0
        total = _total_bytes(response, start)
        if None not in (size, total) and size != total:
            raise EmoError(
                f"{url} offers {total} bytes where {size} were expected",
                "The publisher's file has changed, or something on the way alters it.",
            )
        _remember_validator(response, part)
        _append(response, part, start, total if total is not None else size, report)


def _append(
    response: http.client.HTTPResponse,
    part: Path,
    start: int,
    total: int | None,
    report: Report | None,
) -> None:
    done = start
    with part.open("r+b" if start else "wb") as stream:
        stream.seek(start)
        stream.truncate()
        while True:
            try:
                chunk = response.read1(CHUNK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise TransientError(str(error) or type(error).__name__) from error
            if not chunk:
                break
            stream.write(chunk)
            done += len(chunk)
            if report:
                report(done, total)
    if total is not None and done != total:
        raise TransientError(f"{done} of {total} bytes arrived")


def _request(url: str, headers: dict[str, str], part: Path, start: int) -> urllib.request.Request:
    request = urllib.request.Request(
        url, headers={"Accept-Encoding": "identity", "User-Agent": f"emo-cli/{__version__}"}
    )
    for name, value in headers.items():
        # Not carried along by a redirect: a token is for the hub, not for its storage.
        request.add_unredirected_header(name, value)
    if start:
        request.add_header("Range", f"bytes={start}-")
        if validator := _read_validator(part):
            request.add_header("If-Range", validator)
    return request


def _raise_for_status(error: urllib.error.HTTPError, part: Path) -> None:
    if error.code == 416:
        # Our part is longer than the file: it belongs to another version.
        part.unlink(missing_ok=True)
        raise TransientError("the file has become shorter") from error
    if error.code in TRANSIENT_STATUS:
        raise TransientError(f"HTTP {error.code}") from error
    hint = "The publisher has moved the file; a newer emo-cli may know where."
    if error.code in (401, 403):
        hint = "The publisher asks for permission, or a signed address ran out: try again."
    raise EmoError(f"{error.url} answers HTTP {error.code}", hint) from error


def _total_bytes(response: http.client.HTTPResponse, start: int) -> int | None:
    if response.status == 206:
        where, _, total = response.headers.get("Content-Range", "").partition("/")
        if not where.startswith(f"bytes {start}-"):
            raise TransientError(f"asked for bytes from {start}, got '{where}'")
        return int(total) if total.isdigit() else None
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _resume_point(part: Path, size: int | None) -> int:
    """Bytes of an earlier attempt that still count. Of a file whose size nobody stated they do
    only if the server can say that it is still the same file."""
    start = _size(part)
    if size is None and not _read_validator(part):
        return 0
    return start if size is None or start <= size else 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _validator_path(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _remember_validator(response: http.client.HTTPResponse, part: Path) -> None:
    etag = response.headers.get("ETag", "")
    validator = etag if etag and not etag.startswith("W/") else ""
    if validator:
        _validator_path(part).write_text(validator, encoding="latin-1")
    else:
        _validator_path(part).unlink(missing_ok=True)


def _read_validator(part: Path) -> str:
    path = _validator_path(part)
    return path.read_text(encoding="latin-1") if path.exists() else ""
