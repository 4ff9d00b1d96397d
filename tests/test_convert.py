"""Published weights become safetensors without running anything that they name."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from download_makers import (
    Trap,
)
from safetensors.numpy import load_file

from emo_cli.errors import EmoError
from emo_cli.fetch.convert import convert


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 4)
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(2, 2, 3), torch.nn.BatchNorm2d(2))
        self.register_buffer("marks", torch.ones(2, dtype=torch.float16))
        self.sizes = [1, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x)


def test_torchscript_is_read_without_being_run_and_equals_torchs_own_reading(tmp_path):
    torch.jit.script(Net()).save(tmp_path / "net.pt")
    convert("torchscript", tmp_path / "net.pt", tmp_path / "net.safetensors")
    arrays = load_file(tmp_path / "net.safetensors")
    expected = torch.jit.load(tmp_path / "net.pt").state_dict()
    assert arrays.keys() == expected.keys()
    for name, value in expected.items():
        assert arrays[name].shape == tuple(value.shape)
        np.testing.assert_array_equal(arrays[name], value.numpy())


def script_archive(path: Path, content: bytes, storage: bytes = b"\0" * 16) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", content)
        archive.writestr("net/data/0", storage)


def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path):
    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            # Torch's names, without torch: what the reader sees is the text of the pickle.
            return ("storage", torch.FloatStorage, "0", "cpu", 4) if value is Storage else None

    class Tensor:
        def __reduce__(self):
            rebuild = torch._utils._rebuild_tensor_v2
            return (rebuild, (Storage, 2, (3,), (1,), False, {}))

    stream = io.BytesIO()
    Pickler(stream, 2).dump(Tensor())
    script_archive(tmp_path / "net.pt", stream.getvalue())
    with pytest.raises(EmoError, match="beyond its storage"):
        convert("torchscript", tmp_path / "net.pt", tmp_path / "net.safetensors")
    assert not (tmp_path / "net.safetensors").exists()


@pytest.mark.parametrize("kind", ["flax", "torchscript", "torch"])
def test_no_reader_calls_what_a_pickle_names(tmp_path, kind):
    trap, source = tmp_path / "sprung", tmp_path / "source"
    if kind == "torchscript":
        script_archive(source, pickle.dumps(Trap(trap), 2))
    else:
        source.write_bytes(pickle.dumps({"a": Trap(trap)}, 2))
    with pytest.raises(EmoError, match="plain tensors"):
        convert(kind, source, tmp_path / "out.safetensors")
    assert not trap.exists()
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("order", ["C", "F"])
def test_pickled_arrays_keep_values_types_and_shapes(tmp_path, order):
    tree = {
        "params": {"w": np.asarray(np.arange(6.0).reshape(2, 3), order=order)},
        "stats": {"n": np.array([1, 2], dtype="i8"), "scalar": np.array(3, dtype="f4")},
    }
    (tmp_path / "tree").write_bytes(pickle.dumps(tree))
    convert("flax", tmp_path / "tree", tmp_path / "tree.safetensors")
    arrays = load_file(tmp_path / "tree.safetensors")
    assert sorted(arrays) == ["params/w", "stats/n", "stats/scalar"]
    np.testing.assert_array_equal(arrays["params/w"], tree["params"]["w"])
    assert arrays["stats/n"].dtype == np.int64
    assert arrays["stats/scalar"].shape == ()


def test_arrays_of_objects_are_refused(tmp_path):
    (tmp_path / "tree").write_bytes(pickle.dumps({"w": np.array([{}, {}], dtype=object)}))
    with pytest.raises(EmoError, match="plain"):
        convert("flax", tmp_path / "tree", tmp_path / "tree.safetensors")
