"""Weights in parts among processes (FSDP 2): what accelerate's own support of it leaves open.

Each process keeps an equal part of every tensor, of its gradient, its moments and its average. The
main process also keeps the module whole, in its CPU's memory, to measure and export the averages.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, register_fsdp_forward_method

from emo_cli.errors import EmoError
from emo_cli.model.layers import ResnetBlock
from emo_cli.model.spatial import BackboneTransformer, ReferenceTransformer
from emo_cli.model.temporal import TemporalModule
from emo_cli.training.stages import RunOptions

# What is gathered at a time, and the methods beside `forward` that then need its weights. The rest
# (first and last layers, resampling, encoders of the conditions) is gathered for a whole step.
UNITS: dict[type[nn.Module], tuple[str, ...]] = {
    ResnetBlock: (),
    ReferenceTransformer: (),
    BackboneTransformer: ("reference_keys_values", "fold_audio"),
    TemporalModule: ("prepare",),
}
LAUNCH = "Launch with scripts/launch/8_gpus_fsdp.yaml"


def is_asked_for() -> bool:
    """Whether accelerate's launcher was told to part the weights."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def check_settings(options: RunOptions) -> None:
    """Raises: EmoError for what does not go with parted weights."""
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise EmoError(
            f"accelerate is set up for FSDP {version}; here it has to be FSDP 2",
            f"{LAUNCH}, or set fsdp_version to 2.",
        )
    if options.eight_bit_adam:
        raise EmoError(
            "bitsandbytes' 8-bit Adam cannot update weights that are parted among processes",
            "Leave --eight-bit-adam out: with FSDP the moments are parted too.",
        )


def build_plugin() -> FullyShardedDataParallelPlugin:
    """The launch file's settings (reshard_after_forward), and what this loop wants of them."""
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=[],  # `prepare` knows the module
        state_dict_type="SHARDED_STATE_DICT",
        # As in one process, autocast alone lowers the precision: accelerate's policy would also
        # sum gradients in it, and give the loss its inputs in it.
        mixed_precision_policy=MixedPrecisionPolicy(),
        activation_checkpointing=False,  # --gradient-checkpointing decides
        cpu_ram_efficient_loading=False,  # every process has read the weights
    )


def use_on_cpu(accelerator: Accelerator) -> None:
    """Part the weights among CPU processes too.

    accelerate (1.15) heeds an FSDP plugin on GPUs and their like alone, and would go on with DDP;
    all that it does with one works on a CPU.
    """
    if accelerator.distributed_type is DistributedType.MULTI_CPU:
        accelerator.state.fsdp_plugin = build_plugin()
        for state in (PartialState(), accelerator.state):  # the first one's word is taken again
            state.distributed_type = DistributedType.FSDP


def module_to_part(accelerator: Accelerator, whole: nn.Module) -> nn.Module:
    """What trains in the place of `whole`, which the main process keeps, with the same values."""
    module = whole
    if accelerator.is_main_process:
        module = copy.deepcopy(whole)
        _autocast(accelerator, whole)
    return module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def prepare(
    accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Part a module's weights, and let the optimizer have this process's parts."""
    kinds = {type(m).__name__ for m in module.modules() if isinstance(m, tuple(UNITS))}
    accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = sorted(kinds)
    module, optimizer = accelerator.prepare(module, optimizer)
    # It warns of blocks that return views: nothing here changes what a block returns in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    for unit in module.modules():
        for kind, methods in UNITS.items():
            for method in methods if isinstance(unit, kind) else ():
                register_fsdp_forward_method(unit, method)
    _autocast(accelerator, module)
    return module, optimizer


@contextmanager
def measured(
    accelerator: Accelerator, whole: nn.Module, averages: dict[str, Tensor]
) -> Iterator[nn.Module]:
    """The main process's whole module with these weights, on the device while it is used."""
    assert not whole.load_state_dict(averages, strict=False).unexpected_keys
    whole.to(accelerator.device)
    try:
        yield whole
    finally:
        whole.to("cpu")


def _autocast(accelerator: Accelerator, module: nn.Module) -> None:
    """Compute in --precision, as accelerate has it for all modules but those of FSDP."""
    module.forward = accelerator.autocast()(module.forward)  # type: ignore[method-assign]
