"""What features are kept under: the way they are made, and the weights that make them."""

from __future__ import annotations

import hashlib

from emo_cli.weights import read_lock, weights_folder, weights_path


def features_digest(protocol: str, *sha256: str) -> str:
    """One digest of a protocol's text and the digests of the files that it needs."""
    return hashlib.sha256("\n".join((protocol, *sha256)).encode()).hexdigest()


def downloaded_sha256(name: str) -> str:
    """Digest of a downloaded network (`eval/i3d.safetensors`), compared with the file itself.

    Raises: EmoError that names the command to run, when the file is missing or damaged.
    """
    weights_path(name)
    return read_lock(weights_folder())[name].sha256
