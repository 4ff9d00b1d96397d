"""Which device and which numbers a model runs with, and how its parts share a small device."""

from __future__ import annotations

import contextlib
import ctypes
import platform
from collections.abc import Callable, Iterator

import torch
from torch import nn

from emo_cli.errors import EmoError

# glibc's mallopt: give memory back to the system above this, map larger requests one by one.
M_TRIM_THRESHOLD, TRIM_BYTES = -1, 1 << 30
M_MMAP_THRESHOLD, MMAP_BYTES = -3, 32 << 20  # the most that it takes
# How torch says that a CPU multiplies bf16 itself; it has no public name for it.
CPU_BF16 = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` takes CUDA, then MPS, then the CPU.

    Raises: EmoError for a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" and torch.backends.mps.is_available():
            name = "mps"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EmoError(f"'{name}' is no device", "--device takes auto, cpu, cuda, cuda:N or mps.",
                       exit_code=2) from error  # fmt: skip
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise EmoError(
            f"there is no {name} on this machine",
            "Use --device cpu, or install a torch build for your GPU.",
        )
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format; `auto`: bf16 on CUDA and on a CPU that multiplies it faster than fp32."""
    if name == "auto":
        multiplies = any(getattr(torch.cpu, has, bool)() for has in CPU_BF16)
        fast = device.type == "cuda" or (device.type == "cpu" and multiplies)
        return torch.bfloat16 if fast else torch.float32
    if name not in DTYPES:
        raise EmoError(f"'{name}' is no dtype", "--dtype takes auto, fp32, bf16 or fp16.",
                       exit_code=2)  # fmt: skip
    return DTYPES[name]


def keep_freed_memory() -> bool:
    """Have glibc keep what this process frees; returns whether it could be asked.

    Networks on a CPU allocate the same few megabytes over and over. Given back to the system each
    time, they come as fresh pages, whose first touch costs a fifth of a denoising step.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_TRIM_THRESHOLD, TRIM_BYTES) and mallopt(M_MMAP_THRESHOLD, MMAP_BYTES))


@contextlib.contextmanager
def out_of_memory_hint() -> Iterator[None]:
    """Turns a full device memory into an EmoError that says what to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EmoError(
            "the device is out of memory",
            "Close other programs on it, use --low-vram, --dtype bf16, --guidance 1, "
            "or --device cpu.",
        ) from error


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A host tensor on the device. Out of pinned memory: the host does not wait for the work that
    a GPU was given before."""
    if device.type != "cuda" or not tensor.is_cpu:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def download(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Starts to copy to the host; the call waits for that, not for what a GPU is given later."""
    if tensor.device.type != "cuda":
        return tensor.cpu
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    done = torch.cuda.current_stream(tensor.device).record_event()

    def wait() -> torch.Tensor:
        done.synchronize()
        return host

    return wait


class Offload:
    """Keeps weights in host memory and has those of one part on the device while it works.

    Weights do not change at inference, so nothing is copied back. On CUDA the host's copies are
    pinned: a part of 1.7 GB arrives in some 40 ms.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @contextlib.contextmanager
    def at_work(self, part: nn.Module) -> Iterator[None]:
        """The part's weights are on the device inside `with`, and only there."""
        tensors = [*part.parameters(), *part.buffers()]
        # Tensors made in inference mode cannot become a parameter's data.
        with torch.inference_mode(False), torch.no_grad():
            for tensor in tensors:
                tensor.data = _pinned(tensor.data) if self.device.type == "cuda" else tensor.data
        home = [tensor.data for tensor in tensors]
        try:
            with torch.inference_mode(False), torch.no_grad():
                for tensor in tensors:
                    tensor.data = tensor.data.to(self.device, non_blocking=True, copy=True)
            yield
        finally:
            with torch.inference_mode(False), torch.no_grad():
                for tensor, data in zip(tensors, home, strict=True):
                    tensor.data = data


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_pinned() else tensor.pin_memory()


def peak_device_mib(device: torch.device) -> float | None:
    """The most memory that tensors have taken on a CUDA device; None elsewhere."""
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)


def part_seen(seen: torch.Tensor, reach: int, times: int = 1) -> tuple[slice, slice]:
    """Rows and columns that hold all places [H, W] that are seen, and `reach` more on each side.

    times: of a map so many times as fine. The host waits for it: not for tensors on a GPU, which is
    through with the whole map sooner.
    """
    sides = []
    for lines in (seen.any(1), seen.any(0)):
        found = lines.nonzero()
        first, last = (int(found[0]), int(found[-1])) if len(found) else (0, 0)
        sides.append(slice(times * max(0, first - reach), times * (last + 1 + reach)))
    return sides[0], sides[1]
