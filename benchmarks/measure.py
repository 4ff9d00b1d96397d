"""What every benchmark measures alike: times in turn, counted FLOPs, the machine's own rates."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

REPEATS = 5


class Timing(NamedTuple):
    """Medians. Beside other work on the machine only the process's own seconds mean something."""

    wall_s: float
    cpu_s: float


def timings(
    calls: dict[str, Callable[[], Any]], device: torch.device, repeats: int = REPEATS
) -> dict[str, Timing]:
    """Times of calls that take turns, after one of each to warm up."""
    taken: dict[str, list[Timing]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            synchronize(device)
            if repeat:
                taken[name].append(Timing(time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: Timing(*(statistics.median(column) for column in zip(*rows, strict=True)))
        for name, rows in taken.items()
    }


def seconds(call: Callable[[], Any], device: torch.device, repeats: int = REPEATS) -> float:
    """Median wall time of one call."""
    return timings({"": call}, device, repeats)[""].wall_s


def flops(call: Callable[[], Any], device: torch.device) -> int:
    """Floating point operations of a call: a multiply and an add are two."""
    # The counter does not see the CPU's fused attention: there it is written out.
    visible = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    with FlopCounterMode(display=False) as counter, visible:
        call()
    return counter.get_total_flops()


def machine_rates(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """GFLOP/s of a square matrix product and of a 3x3 convolution in channels_last."""
    size = 2048 if device.type == "cpu" else 8192
    maps = (12, 128, 32, 32) if device.type == "cpu" else (24, 640, 64, 64)
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    x = torch.randn(*maps, device=device, dtype=dtype)
    conv = torch.nn.Conv2d(maps[1], maps[1], 3, padding=1, device=device, dtype=dtype)
    x, conv = (v.to(memory_format=torch.channels_last) for v in (x, conv))
    with torch.inference_mode():
        work = {"matmul": 2 * size**3, "convolution": flops(lambda: conv(x), device)}
        times = timings({"matmul": lambda: a @ b, "convolution": lambda: conv(x)}, device)
    return {name: count / times[name].wall_s / 1e9 for name, count in work.items()}


def peak_memory_mib(device: torch.device) -> float:
    """Highest use since the start, or since `reset_peak_memory`, of the device or the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reset_peak_memory(device: torch.device) -> None:
    """Begin anew; a process's own peak cannot be reset."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
