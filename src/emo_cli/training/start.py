"""What a run needs before its first step: devices, its share of the batch, what trains."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import os
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from torch import nn

from emo_cli.errors import EmoError
from emo_cli.training import fsdp
from emo_cli.training.draws import Share
from emo_cli.training.stages import RunOptions, Stage

# What accelerate's launcher sets for methods that train in an engine of their own.
REFUSED = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}


def find_processes(options: RunOptions, *, may_part: bool = False) -> PartialState:
    """This process among those of `accelerate launch`.

    may_part: whether the stage can train with its weights parted among processes (FSDP).

    Raises: EmoError when they are launched for a method that cannot be used, or do not find each
    other: all would write the same run.
    """
    for variable, name in REFUSED.items():
        if os.environ.get(variable, "false").lower() == "true":
            raise EmoError(
                f"accelerate is set up for {name}, which is not supported",
                f"{fsdp.LAUNCH} (FSDP) to part the weights, or 8_gpus.yaml to keep them whole.",
            )
    if fsdp.is_asked_for():
        if not may_part:
            raise EmoError(
                "accelerate is set up for FSDP; here every process holds the whole model (DDP)",
                "Launch with scripts/launch/8_gpus.yaml, or set the method to MULTI_GPU.",
            )
        fsdp.check_settings(options)
    state = PartialState(cpu=options.device == "cpu")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > state.num_processes:
        raise EmoError(
            f"{launched} processes were launched, which did not find each other on their devices",
            "Without several GPUs add --device cpu.",
        )
    return state


def start_accelerator(options: RunOptions) -> Accelerator:
    """accelerate's view of the devices; under `accelerate launch` it finds its peers."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(options.device, True):
        raise EmoError(
            f"--device {options.device}: there is none on this machine",
            "Leave --device out to use what there is.",
        )
    parted = fsdp.is_asked_for()
    accelerator = Accelerator(
        mixed_precision=options.precision,
        gradient_accumulation_steps=options.micro_batches,
        cpu=options.device == "cpu",
        fsdp_plugin=fsdp.build_plugin() if parted else None,
    )
    if parted:
        fsdp.use_on_cpu(accelerator)
    return accelerator


def prepare(
    accelerator: Accelerator, whole: nn.Module, stage: Stage, options: RunOptions
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """What trains, as accelerate wraps it, and its optimizer."""
    freeze_others(whole, stage.trains, stage.freezes)
    if not accelerator.is_fsdp2:
        return accelerator.prepare(whole, build_optimizer(whole, stage, options))
    module = fsdp.module_to_part(accelerator, whole)
    return fsdp.prepare(accelerator, module, build_optimizer(module, stage, options))


def share_of_batch(stage: Stage, options: RunOptions, accelerator: Accelerator) -> Share:
    """What this process computes of every batch."""
    parts = accelerator.num_processes * options.micro_batches
    if stage.batch % parts:
        raise EmoError(
            f"a batch of {stage.batch} does not divide into {accelerator.num_processes} "
            f"process(es) x {options.micro_batches} micro-batch(es)",
            "Choose --batch as a multiple of their product.",
        )
    return Share(
        process=accelerator.process_index,
        num_processes=accelerator.num_processes,
        micro_batches=options.micro_batches,
    )


def binding_options(
    stage: Stage, options: RunOptions, fingerprint: dict[str, Any]
) -> dict[str, Any]:
    """All that must be equal for a run to be resumed; devices and workers may differ."""
    row = {n: v for n, v in dataclasses.asdict(stage).items() if not n.endswith("_every")}
    run = {"seed": options.seed, "precision": options.precision}
    return row | run | {"eight_bit_adam": options.eight_bit_adam} | fingerprint


def freeze_others(
    module: nn.Module, patterns: tuple[str, ...], freezes: tuple[str, ...] = ()
) -> None:
    """Let the parameters train whose names match a pattern and none of `freezes`; no other."""
    names = [name for name, _ in module.named_parameters()]
    for pattern in (*patterns, *freezes):
        assert fnmatch.filter(names, pattern), f"no parameter matches {pattern}"
    for name, parameter in module.named_parameters():
        trains = any(fnmatch.fnmatchcase(name, p) for p in patterns)
        frozen = any(fnmatch.fnmatchcase(name, p) for p in freezes)
        parameter.requires_grad_(trains and not frozen)


def build_optimizer(module: nn.Module, stage: Stage, options: RunOptions) -> torch.optim.Optimizer:
    """AdamW over what trains; with 8-bit states where bitsandbytes is installed and asked for."""
    trained = [p for p in module.parameters() if p.requires_grad]
    kind: Any = functools.partial(torch.optim.AdamW, fused=True)
    if options.eight_bit_adam:
        try:
            import bitsandbytes
        except ImportError as error:
            raise EmoError(
                "8-bit Adam needs bitsandbytes, which is not installed",
                "pip install bitsandbytes, or leave --eight-bit-adam out.",
            ) from error
        kind = bitsandbytes.optim.AdamW8bit
    return kind(trained, lr=stage.lr, betas=stage.betas, weight_decay=stage.weight_decay)
