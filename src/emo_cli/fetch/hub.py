"""Files of a Hugging Face repository, into the hub's own cache.

huggingface_hub says where a file is, which commit a branch means and which digest the hub itself
holds, and keeps the cache (`HF_ENDPOINT`, `HF_HOME`, `HF_HUB_OFFLINE`, tokens). The bytes come
through `web.fetch`: hf_hub_download starts from zero after a broken run and compares no digest.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from emo_cli.errors import EmoError
from emo_cli.fetch import web
from emo_cli.weights import HubSource

UNAVAILABLE_HINT = (
    "Check the connection, and HF_ENDPOINT if it is set; then run the same command again."
)


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """What the hub says of one file: its commit, its address and its digest."""

    url: str
    commit: str
    etag: str
    expected: web.Expected


def is_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` (or `TRANSFORMERS_OFFLINE`) forbids the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cache_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def resolve(source: HubSource, *, commit: str, sha256: str) -> Resolved:
    """Ask the hub for the file at `commit` (empty: where its branch points now).

    Raises: EmoError when the hub does not answer, has no such file, states no digest, or states
    another one than `sha256`.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    revision = commit or source.branch
    url = hf_hub_url(source.repository, source.path, revision=revision)
    metadata = web.retry(lambda: _translated(lambda: get_hf_file_metadata(url), source), what=url)
    etag, found = metadata.etag or "", metadata.commit_hash or ""
    if not found or (commit and found != commit):
        raise EmoError(f"{url} answers without the commit", UNAVAILABLE_HINT)
    hub_sha256 = etag if len(etag) == 64 else ""
    git_sha1 = etag if len(etag) == 40 else ""
    if not (hub_sha256 or git_sha1 or sha256):
        raise EmoError(
            f"the hub states no digest of {source}",
            "The mirror that HF_ENDPOINT names may drop it; use another.",
        )
    if sha256 and hub_sha256 and sha256 != hub_sha256:
        raise EmoError(
            f"the hub's {source} is another file than the recorded one",
            "A newer emo-cli may know the new one.",
        )
    return Resolved(
        url=hf_hub_url(source.repository, source.path, revision=found),
        commit=found,
        etag=etag,
        expected=web.Expected(sha256=sha256 or hub_sha256, git_sha1=git_sha1, bytes=metadata.size),
    )


def blob_path(source: HubSource, resolved: Resolved) -> Path:
    """Where the hub's cache keeps this file's content."""
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=source.repository, repo_type="model")
    return cache_folder() / folder / "blobs" / resolved.etag


def fetch(source: HubSource, resolved: Resolved, report: web.Report | None) -> tuple[Path, str]:
    """Bring the file into the hub's cache; returns its path there and its sha256.

    Raises: EmoError when it cannot be had or has another digest than the hub states.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers

    cached = try_to_load_from_cache(source.repository, source.path, revision=resolved.commit)
    if isinstance(cached, str):
        try:
            return Path(cached), resolved.expected.check(Path(cached))
        except EmoError:
            _remove_cached(Path(cached))
    blob = blob_path(source, resolved)
    if blob.exists():
        blob.unlink()  # no snapshot names it, so nobody has checked it: it may be half a file
    headers = build_hf_headers()
    digest = web.fetch(
        resolved.url, blob, expected=resolved.expected, headers=headers, report=report
    )
    # The blob is there: this only adds the snapshot that names it.
    path = web.retry(
        lambda: _translated(
            lambda: hf_hub_download(source.repository, source.path, revision=resolved.commit),
            source,
        ),
        what=resolved.url,
    )
    return Path(path), digest


def _remove_cached(path: Path) -> None:
    """A damaged file of the hub's cache: the link and the content behind it."""
    content = Path(os.path.realpath(path))
    path.unlink()
    content.unlink(missing_ok=True)


def _translated(action: Callable[[], web.Result], source: HubSource) -> web.Result:
    """Run `action` with the hub's exceptions turned into ours, the passing ones Transient."""
    from huggingface_hub import errors

    try:
        return action()
    except errors.GatedRepoError as error:
        raise EmoError(
            f"{source} needs its licence to be accepted",
            "Accept it on the repository's page, then run `hf auth login`.",
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise EmoError(
            f"offline mode is on, and {source} is not here", "Unset HF_HUB_OFFLINE."
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in web.TRANSIENT_STATUS:
            raise web.TransientError(f"HTTP {status}") from error
        raise EmoError(
            f"the hub has no {source} (HTTP {status})",
            "It was moved or withdrawn, or HF_ENDPOINT names another hub.",
        ) from error
    except (errors.HTTPError, OSError) as error:
        # Transport errors: both HTTP libraries that huggingface_hub has used derive from these.
        raise web.TransientError(
            str(error).splitlines()[0] if str(error) else "no answer"
        ) from error
