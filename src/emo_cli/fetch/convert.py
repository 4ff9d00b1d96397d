"""Published weights into safetensors, once: names, shapes and values stay the publisher's."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np

from emo_cli.errors import EmoError
from emo_cli.fetch.pickles import read_array_tree, read_torchscript
from emo_cli.files import write_atomically


def convert(kind: str, source: Path, target: Path) -> None:
    """Write the tensors of `source` to `target` as safetensors.

    `kind`: `flax` (pickled variables, names joined with '/', channels last as flax has them),
    `torchscript` (attribute paths), `torch` (a pickled state dict).
    Raises: EmoError when the file is of another kind or asks for anything but plain arrays.
    """
    from safetensors.numpy import save

    readers = {"flax": read_array_tree, "torchscript": read_torchscript, "torch": read_state_dict}
    failures = (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, OSError)
    try:
        tensors = readers[kind](source)
    except (*failures, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise EmoError(
            f"{source.name} is no {kind} file of plain tensors: {error}",
            "The publisher's file has changed; it was not loaded.",
        ) from error
    if not tensors:
        raise EmoError(f"{source.name} holds no tensors", "The publisher's file has changed.")
    # Written here, not by save_file: that makes the file unreadable to other users of the folder.
    write_atomically(target, save(dict(sorted(tensors.items()))))


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """A torch state dict of either file format, read with `weights_only=True`.

    Raises: pickle.UnpicklingError when it holds more than tensors.
    """
    import torch

    values = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(values, dict):
        raise pickle.UnpicklingError("no state dict")
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise pickle.UnpicklingError(f"'{name}' is no tensor")
    return {name: value.contiguous().numpy() for name, value in values.items()}
