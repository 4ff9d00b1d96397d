"""How clips are sampled, all choices made: the user's, then `--quality`'s, then the model's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from emo_cli.config import GenerateOptions, ModelConfig, Quality, Solver
from emo_cli.errors import EmoError

QUALITIES: tuple[str, ...] = get_args(Quality)
SOLVERS: tuple[str, ...] = get_args(Solver)
LAST_TIMESTEP = 999
Layout = Literal["full", "mini"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A row of the table; None: as the model has it."""

    solver: Solver | None = None
    steps: int | None = None
    guidance: float | None = None
    guidance_interval: tuple[int, int] | None = None
    guidance_rescale: float = 0.0
    cache_interval: int = 1


# `full` is made for guidance, `mini` has learnt its own (`emo train distill`). Guidance at the ends
# of the trajectory costs as much as in its middle and helps least (Kynkaanniemi et al. 2024).
MIDDLE = (200, 800)
TABLE: dict[tuple[Layout, Quality], Preset] = {
    ("full", "paper"): Preset(solver="ddim", steps=40),
    ("full", "balanced"): Preset(
        solver="dpm++", steps=20, guidance_interval=MIDDLE, guidance_rescale=0.7
    ),
    ("full", "fast"): Preset(solver="dpm++", steps=10, guidance=1.0, cache_interval=2),
    ("mini", "paper"): Preset(solver="ddim", steps=40),
    ("mini", "balanced"): Preset(solver="ddim", steps=10),
    ("mini", "fast"): Preset(solver="ddim", steps=1, guidance=1.0),
}
# Layers at the end of the way up that run even where deep features are reused. DeepCache's own
# choice for SD 1.5 is the last one alone.
CACHE_LAYERS: dict[Layout, int] = {"full": 1, "mini": 1}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What the sampler runs."""

    speed: float  # that the model is told, degrees of head rotation per frame
    solver: Solver
    steps: int
    guidance: float
    audio_guidance: float
    guidance_interval: tuple[int, int] | None  # None: every step is guided
    guidance_rescale: float
    cache_interval: int
    cache_layers: int


def resolve(options: GenerateOptions, config: ModelConfig) -> Sampling:
    """The sampling of a model under a user's options.

    Raises: EmoError for options out of range.
    """
    check_options(options)
    layout: Layout = "full" if config.autoencoder.kind == "kl" else "mini"
    row = TABLE[layout, options.quality] if options.quality else Preset()
    own = config.diffusion
    if options.quality == "fast" and own.steps < (row.steps or 0):
        row = Preset()  # a distilled model is faster by itself

    guidance = _first(options.guidance, row.guidance, own.guidance)
    return Sampling(
        speed=config.speed.told(_first(options.speed, config.speed.usual)),
        solver=options.solver or row.solver or own.solver,
        steps=options.steps or row.steps or own.steps,
        guidance=guidance,
        audio_guidance=_first(
            options.audio_guidance, options.guidance, row.guidance, own.audio_guidance
        ),
        guidance_interval=options.guidance_interval or row.guidance_interval,
        guidance_rescale=_first(options.guidance_rescale, row.guidance_rescale),
        cache_interval=options.cache_interval or row.cache_interval,
        cache_layers=CACHE_LAYERS[layout],
    )


def parse_interval(text: str | None) -> tuple[int, int] | None:
    """`LOW,HIGH` -> timesteps.

    Raises: EmoError when it is not two whole numbers in order.
    """
    if text is None:
        return None
    try:
        low, high = (int(part) for part in text.split(","))
    except ValueError as error:
        raise EmoError(
            f"'{text}' is no interval of timesteps",
            "Give two whole numbers: --guidance-interval 200,800",
            exit_code=2,
        ) from error
    return low, high


def check_options(options: GenerateOptions) -> None:
    """Raises: EmoError for the first option of sampling that is out of range."""
    if options.quality not in (None, *QUALITIES):
        raise EmoError(
            f"'{options.quality}' is no quality", f"Use {', '.join(QUALITIES)}.", exit_code=2
        )
    if options.solver not in (None, *SOLVERS):
        raise EmoError(f"'{options.solver}' is no solver", f"Use {', '.join(SOLVERS)}.",
                       exit_code=2)  # fmt: skip
    low, high = options.guidance_interval or (0, LAST_TIMESTEP)
    if not 0 <= low <= high <= LAST_TIMESTEP:
        raise EmoError(
            f"guidance cannot act from timestep {low} to {high}",
            f"Timesteps run from 0 (the picture) to {LAST_TIMESTEP} (noise): LOW,HIGH.",
            exit_code=2,
        )
    if not 0 <= (options.guidance_rescale or 0) <= 1:
        raise EmoError("guidance rescale is 0 to 1", "0 is off, 0.7 is usual.", exit_code=2)
    if options.cache_interval is not None and options.cache_interval < 1:
        raise EmoError("the cache interval is 1 or more", "1 is off, 2 or 3 is usual.",
                       exit_code=2)  # fmt: skip


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)
