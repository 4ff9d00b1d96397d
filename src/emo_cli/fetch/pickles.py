"""Arrays out of pickles, read without building a single object that the pickle names.

Every name a pickle asks for is answered by an inert stand-in of this file, or refused. Nothing of
numpy, torch or the publisher's package is called while the pickle runs.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

# What an array may hold; no objects, no strings.
NUMPY_CODES = frozenset({"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"})
TORCH_STORAGES = {
    "HalfStorage": "f2",
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "CharStorage": "i1",
    "ShortStorage": "i2",
    "IntStorage": "i4",
    "LongStorage": "i8",
    "ByteStorage": "u1",
    "BoolStorage": "b1",
}
MAX_DEPTH = 64


class _Dtype:
    """Stand-in for numpy.dtype."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code = code
        self.byte_order = "<"

    def __setstate__(self, state: tuple) -> None:
        self.byte_order = state[1]

    def to_numpy(self) -> np.dtype:
        if self.code not in NUMPY_CODES or self.byte_order not in ("<", "|", "="):
            raise pickle.UnpicklingError(f"dtype {self.byte_order}{self.code} is not allowed")
        return np.dtype("<" + self.code)


class _Array:
    """Stand-in for numpy.ndarray: keeps what numpy would have been given."""

    state: tuple = ()

    def __setstate__(self, state: tuple) -> None:
        self.state = state

    def to_numpy(self) -> np.ndarray:
        _, shape, dtype, is_fortran, raw = self.state
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array without plain content")
        flat = np.frombuffer(raw, dtype=dtype.to_numpy())
        return flat.reshape(shape, order="F" if is_fortran else "C").copy(order="C")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


class _NumpyUnpickler(pickle.Unpickler):
    _ALLOWED: dict[str, Any] = {
        "numpy.core.multiarray._reconstruct": _reconstruct,
        "numpy._core.multiarray._reconstruct": _reconstruct,
        "numpy.ndarray": _Array,
        "numpy.dtype": _Dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        return _allowed(self._ALLOWED, f"{module}.{name}")


def read_array_tree(path: Path) -> dict[str, np.ndarray]:
    """A pickled tree of dicts of numpy arrays (flax variables), flattened; names joined with '/'.

    Raises: pickle.UnpicklingError, ValueError or EOFError when it holds anything else.
    """
    with path.open("rb") as stream:
        tree = _NumpyUnpickler(stream).load()
    arrays: dict[str, np.ndarray] = {}
    _flatten(tree, "", arrays)
    return arrays


def _flatten(node: Any, name: str, into: dict[str, np.ndarray], depth: int = 0) -> None:
    if isinstance(node, _Array):
        into[name] = node.to_numpy()
        return
    if not isinstance(node, dict) or depth > MAX_DEPTH:
        raise pickle.UnpicklingError(f"'{name}' holds no array but {type(node).__name__}")
    for key, child in node.items():
        if not isinstance(key, str):
            raise pickle.UnpicklingError(f"'{name}' has a key that is no string")
        _flatten(child, f"{name}/{key}" if name else key, into, depth + 1)


class _Module:
    """Stand-in for every scripted class: keeps the attributes, knows no method."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = state


class _Tensor:
    """Stand-in for torch._utils._rebuild_tensor_v2: keeps its first four arguments."""

    def __init__(self, storage: tuple, offset: int, shape: tuple, strides: tuple, *_: Any) -> None:
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides


class _Hooks(dict):
    """Stand-in for collections.OrderedDict, which torch writes for backward hooks."""


class _ScriptUnpickler(pickle.Unpickler):
    _ALLOWED: dict[str, Any] = {
        "torch._utils._rebuild_tensor_v2": _Tensor,
        "collections.OrderedDict": _Hooks,
        "torch.jit._pickle.build_intlist": list,
        "torch.jit._pickle.build_doublelist": list,
        "torch.jit._pickle.build_boollist": list,
        "torch.jit._pickle.build_tensorlist": list,
        **{f"torch.{name}": code for name, code in TORCH_STORAGES.items()},
    }

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        return _allowed(self._ALLOWED, f"{module}.{name}")

    def persistent_load(self, pid: Any) -> tuple:
        kind, code, key, _device, num_elements = pid
        if kind != "storage" or code not in NUMPY_CODES or not str(key).isalnum():
            raise pickle.UnpicklingError(f"no storage: {pid!r}")
        return code, str(key), int(num_elements)


def read_torchscript(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a TorchScript archive by their attribute path (`layers.0.weight`), read from
    its data alone: the program inside is neither compiled nor run.

    Raises: pickle.UnpicklingError, KeyError, ValueError or zipfile.BadZipFile when it is another
    kind of file.
    """
    with zipfile.ZipFile(path) as archive:
        data_name = next((n for n in archive.namelist() if n.endswith("/data.pkl")), "")
        root = data_name.removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise pickle.UnpicklingError("the archive is not little-endian")
        module = _ScriptUnpickler(io.BytesIO(archive.read(data_name))).load()
        tensors: dict[str, np.ndarray] = {}
        _collect(module, "", tensors, archive, root)
    return tensors


def _collect(
    node: Any, name: str, into: dict[str, np.ndarray], archive: zipfile.ZipFile, root: str
) -> None:
    if isinstance(node, _Tensor):
        code, key, num_elements = node.storage
        storage = np.frombuffer(archive.read(f"{root}data/{key}"), dtype="<" + code)
        into[name] = _view(storage[:num_elements], node)
    if not isinstance(node, _Module):
        return  # a flag, a number or a list of them: no weights
    if name.count(".") > MAX_DEPTH:
        raise pickle.UnpicklingError("modules nested too deep")
    for key, child in node.attributes.items():
        _collect(child, f"{name}.{key}" if name else key, into, archive, root)


def _view(storage: np.ndarray, tensor: _Tensor) -> np.ndarray:
    shape, strides, offset = tuple(tensor.shape), tuple(tensor.strides), tensor.offset
    # Out of the storage would be out of our memory.
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if min((offset, *shape, *strides)) < 0 or (math.prod(shape) and last >= len(storage)):
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    steps = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps).copy(order="C")


def _allowed(table: dict[str, Any], name: str) -> Any:
    if name not in table:
        raise pickle.UnpicklingError(f"'{name}' is not allowed")
    return table[name]
