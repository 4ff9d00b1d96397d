"""Model folders: `config.json`, one safetensors file a part, and their `SHA256SUMS`."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from emo_cli.config import ModelConfig, read_model_config, to_json
from emo_cli.errors import EmoError
from emo_cli.files import move_into_place, sha256_of, write_atomically
from emo_cli.model.emo_model import PARTS, EmoModel, key_in_file, part_of, parts_of

SUMS = "SHA256SUMS"
EMBEDDED = Path(__file__).parent.parent / "mini"
SPEAKING_STAGES = ("image", "video", "speed")  # a model that speaks has gone through these


def model_folder(name: str | Path) -> Path:
    """`mini` (inside the package) or a path -> the folder.

    Raises: EmoError for `full`, whose weights nobody has published, and for absent folders.
    """
    if str(name) == "mini":
        return EMBEDDED
    if str(name) == "full" and not Path(name).is_dir():
        raise EmoError(
            "there are no published weights for 'full': the paper's were never released",
            "Get its parents with `emo download full`, train it with `emo train`, then pass "
            "the run's folder to --model.",
        )
    if not Path(name).is_dir():
        raise EmoError(
            f"no model at {name}", "--model takes 'mini' or a folder made by `emo train`."
        )
    return Path(name)


def load_model(
    folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> EmoModel:
    """Read a model folder, verified and strict, in evaluation mode.

    Raises: EmoError when a file is absent, has a wrong digest, a missing, extra or misshapen
    tensor, or a value that is not finite.
    """
    config = read_model_config(folder / "config.json")
    with torch.device("meta"):
        model = EmoModel(config)
    tensors: dict[str, Tensor] = {}
    for part in parts_of(config):
        tensors |= _part_of_model(model, folder, part)
    model.load_state_dict(tensors, strict=True, assign=True)
    # What hears stays in fp32: it runs once per file, and bf16 loses soft sounds.
    model.to(device=device, dtype=dtype).audio_encoder.float()
    if model.lip_reader is not None:
        model.lip_reader.float()
    model.requires_grad_(False)
    return model.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def load_parts(model: EmoModel, folder: Path) -> set[str]:
    """Put the parts that a folder has into a model, verified and strict; returns their names.

    Raises: EmoError as `load_model` does.
    """
    own = parts_of(model.config)
    found = [part for part in own if (folder / f"{part}.safetensors").exists()]
    for part in found:
        tensors = _part_of_model(model, folder, part)
        model.load_state_dict({n: t.float() for n, t in tensors.items()}, strict=False)
    return set(found)


def load_part(folder: Path, part: str, network: nn.Module) -> None:
    """Read one file of a model folder into its network, verified and strict.

    Raises: EmoError as `load_model` does.
    """
    values = read_part(folder, part)
    check_keys(network.state_dict(), values, folder / f"{part}.safetensors")
    network.load_state_dict({name: value.float() for name, value in values.items()}, strict=True)


def save_model(model: EmoModel, folder: Path, *, dtype: torch.dtype) -> None:
    """Write all parts, their digests, and last the config: a half-written folder does not load."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts_of(model.config):
        write_part(folder, part, part_tensors(model, part), dtype=dtype)
    write_config(folder, model.config)


def part_tensors(model: EmoModel, part: str) -> dict[str, Tensor]:
    """A part's tensors under the names of its file."""
    return {key_in_file(n): t for n, t in model.state_dict().items() if part_of(n) == part}


def write_part(folder: Path, part: str, tensors: dict[str, Tensor], *, dtype: torch.dtype) -> None:
    """Write one part's file and its line in `SHA256SUMS`, each under a temporary name first."""
    stored = {
        name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()
    }
    file = folder / f"{part}.safetensors"
    temporary = file.with_suffix(".tmp")
    save_file(stored, temporary)
    temporary.chmod(0o644)  # safetensors makes files that only their owner can read
    move_into_place(temporary, file)
    _write_sum(folder, file)


def copy_part(source: Path, folder: Path, part: str) -> None:
    """Take over another folder's file, byte for byte: what was prepared with it still fits."""
    file = folder / f"{part}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    shutil.copyfile(source / file.name, temporary)
    move_into_place(temporary, file)
    _write_sum(folder, file)


def _write_sum(folder: Path, file: Path) -> None:
    sums = read_sums(folder) if (folder / SUMS).exists() else {}
    sums[file.name] = sha256_of(file)
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    write_atomically(folder / SUMS, text)


def write_config(folder: Path, config: ModelConfig) -> None:
    """Write `config.json` in one step."""
    write_atomically(folder / "config.json", to_json(config))


def model_digest(folder: Path) -> str:
    """sha256 over the config and the digests of all parts: names a model in reports."""
    digest = hashlib.sha256()
    for name in ("config.json", SUMS):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def read_sums(folder: Path) -> dict[str, str]:
    """File name -> sha256, from `SHA256SUMS` in the format of the command sha256sum."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EmoError(f"cannot read {folder / SUMS}", "Get the model folder again.") from error
    pairs = (line.split(maxsplit=1) for line in lines if line.strip())
    return {name: digest for digest, name in pairs}


def check_keys(expected: dict[str, Tensor], found: dict[str, Tensor], source: Path | str) -> None:
    """Every tensor is there once, with the right shape.

    Raises: EmoError that names the first tensor that is missing, unknown or misshapen.
    """
    problems = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    problems += [f"{name} is not known" for name in sorted(found.keys() - expected.keys())]
    problems += [
        f"{name} has shape {list(found[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise EmoError(
            f"{source} does not fit: {problems[0]}{more}", "Is it the right file for this model?"
        )


def check_finite(tensors: dict[str, Tensor], source: Path | str) -> None:
    """Raises: EmoError that names the first tensor with NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise EmoError(
                f"{source}: {name} holds NaN or infinity",
                "The training run that made it diverged: take an earlier checkpoint.",
            )


def _part_of_model(model: EmoModel, folder: Path, part: str) -> dict[str, Tensor]:
    """A part's tensors under the model's own names."""
    state = {key_in_file(n): (n, t) for n, t in model.state_dict().items() if part_of(n) == part}
    values, file = read_part(folder, part), folder / f"{part}.safetensors"
    check_keys({key: tensor for key, (_, tensor) in state.items()}, values, file)
    return {state[key][0]: value for key, value in values.items()}


def read_part(folder: Path, part: str) -> dict[str, Tensor]:
    """A part's tensors as its file has them, verified.

    Raises: EmoError when it is missing, damaged, or holds NaN.
    """
    file, (what, stage) = folder / f"{part}.safetensors", PARTS[part]
    if not file.exists():
        raise EmoError(
            f"the model in {file.parent} lacks {what} ({file.name})",
            f"It is made by `emo train {stage}`.",
        )
    if sha256_of(file) != read_sums(folder).get(file.name):
        raise EmoError(
            f"{file} has a wrong digest: it is damaged or was changed",
            "Get the model folder again, or run its `emo train` command again.",
        )
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise EmoError(f"cannot read {file}: {error}", "Get the model folder again.") from error
    check_finite(tensors, file)
    return tensors


def parameters_of(module: nn.Module) -> int:
    """How many numbers a module holds."""
    return sum(parameter.numel() for parameter in module.parameters())


def training_note(config: ModelConfig, allow_untrained: bool) -> str:
    """One line about an unfinished model, or nothing.

    Raises: EmoError when stages are missing: their output would look finished and be noise.
    """
    if config.untrained:
        return (
            f"the model '{config.name}' is not fully trained yet: expect a rough picture "
            f"(done: {', '.join(config.trained_stages) or 'nothing'})"
        )
    missing = [stage for stage in SPEAKING_STAGES if stage not in config.trained_stages]
    if missing and not allow_untrained:
        raise EmoError(
            f"the model '{config.name}' has not gone through the stage '{missing[0]}'",
            f"Train it: emo train {missing[0]} --init MODEL --data DATASET --out RUN",
        )
    return ""
