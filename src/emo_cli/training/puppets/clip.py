"""One puppet clip, from a plan to frames and exact labels.

A plan is a pure function of (seed, index); a clip is one of its plan and the files it names.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emo_cli.face_motion import rotation_between_frames
from emo_cli.faces import FaceFinder
from emo_cli.mouth import drawn_teeth
from emo_cli.training.draws import derive_seed
from emo_cli.training.puppets.driver import Driver
from emo_cli.training.puppets.mesh import (
    CHIN,
    DEPTH,
    FOREHEAD,
    Array,
    distance,
)
from emo_cli.training.puppets.motion import make_motion
from emo_cli.training.puppets.mouth import own_teeth
from emo_cli.training.puppets.pose import Pose, make_pose
from emo_cli.training.puppets.render import Look, render
from emo_cli.training.puppets.still import Framing, Still, make_still, turned_by
from emo_cli.training.samples import Labels

# Degrees a frame, and the share of the clips: people who talk quietly, as most do.
SPEEDS = ((0.02, 0.3), (0.3, 0.7), (0.7, 2.0))
SPEED_SHARES = (0.6, 0.3, 0.1)
GAIN = (0.7, 1.3)
TURNED_TOO_FAR = 30.0  # degrees: such a still has no other side of the face to show
FACE_CM = 17.6  # forehead to chin of MediaPipe's canonical face
FIELD = 2 * np.tan(np.deg2rad(63) / 2)  # of MediaPipe's camera: picture side over distance


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is drawn for one clip; `speed` in degrees a frame, `gain` of the speech's motion."""

    seed: int
    speed: float
    gain: float
    mirror: bool
    zoom: float
    shift: tuple[float, float]
    colours: tuple[float, float, float]
    gamma: float
    slope: tuple[float, float]
    light: tuple[float, float, float]
    shading: float


@dataclass(frozen=True, kw_only=True)
class PuppetClip:
    """frames [T, S, S, 3] uint8 RGB, exact labels, blink [T], and what to say of its making."""

    frames: NDArray[np.uint8]
    labels: Labels
    blink: Array
    source: dict[str, Any]


def make_plan(seed: int, index: int, speed: float | None = None) -> Plan:
    """The plan of a clip; `speed` is drawn where it is not given."""
    rng = np.random.default_rng(derive_seed(seed, "puppet", index))
    drawn = rng.uniform(*SPEEDS[rng.choice(len(SPEEDS), p=SPEED_SHARES)])
    light = rng.normal(size=3) * [0.6, 0.3, 0.0] + [0.0, -0.5, -0.8]
    light /= np.linalg.norm(light)
    return Plan(
        seed=derive_seed(seed, "motion", index),
        speed=float(drawn) if speed is None else speed,
        gain=float(np.exp(rng.uniform(*np.log(GAIN)))),
        mirror=bool(rng.random() < 0.5),
        zoom=float(rng.uniform(0.93, 1.08)),
        shift=_floats(rng.uniform(-0.025, 0.025, 2)),
        colours=_floats(rng.uniform(0.93, 1.07, 3) * rng.uniform(0.88, 1.08)),
        gamma=float(np.exp(rng.uniform(-0.18, 0.18))),
        slope=_floats(rng.normal(size=2) * 0.06),
        light=_floats(light),
        shading=float(rng.uniform(0.1, 0.35)),
    )


def still_of_picture(
    picture: NDArray[np.uint8], plan: Plan, finder: FaceFinder, size: int
) -> Still | None:
    """The still of a plan from a picture [H, W, 3]; None where no face looks at the camera."""
    if plan.mirror:
        picture = np.ascontiguousarray(picture[:, ::-1])
    still = make_still(picture, finder, size, Framing(zoom=plan.zoom, shift=plan.shift))
    if still is None or turned_by(still.rotation) > TURNED_TOO_FAR:
        return None
    return still


def make_clip(
    still: Still,
    driver: Driver,
    plan: Plan,
    pauses: NDArray[np.bool_] | None = None,
    device: str = "cpu",
) -> PuppetClip:
    """The still speaks the driver's words, T frames of them; it blinks in `pauses` too."""
    # A still that is turned already has less far to go.
    reach = max(0.35, 1 - turned_by(still.rotation) / 40)
    motion = make_motion(driver.num_frames, plan.speed, plan.seed, reach, pauses)
    pose = make_pose(still, driver.moves * plan.gain, motion)
    frames = render(still, pose, motion.blink, _look(still, plan), device)
    labels = exact_labels(still, pose)
    return PuppetClip(
        frames=frames.cpu().numpy(),
        labels=labels,
        blink=motion.blink,
        source={"puppet": asdict(plan), "mean_speed": float(labels.rotation[1:].mean())},
    )


def exact_labels(still: Still, pose: Pose) -> Labels:
    """What is true of each frame, in the form that a tracked clip's labels have."""
    frames = len(pose.mesh)
    poses = np.tile(np.eye(4, dtype=np.float32), (frames, 1, 1))
    poses[:, :3, :3] = pose.rotations
    poses[:, :3, 3] = _places(still, pose)
    return Labels(
        boxes=pose.boxes,
        poses=poses,
        rotation=rotation_between_frames(pose.rotations),
        landmarks=pose.landmarks / np.array([1, 1, DEPTH], np.float32),
        opening=pose.opening,
    )


def _places(still: Still, pose: Pose) -> Array:
    """[T, 3] of the head before MediaPipe's camera, centimetres, about as it would say."""
    cm = FACE_CM / distance(still.shut, (FOREHEAD, CHIN))
    away = cm * still.size / FIELD
    beside = (pose.head[:, :2] - still.size / 2) * cm
    return np.column_stack([beside, np.full(len(beside), away)]).astype(np.float32)


def _look(still: Still, plan: Plan) -> Look:
    teeth = drawn_teeth(plan.seed)
    return Look(
        teeth=own_teeth(still, teeth) if still.shows_teeth() else teeth,
        light=plan.light,
        shading=plan.shading,
        gain=plan.colours,
        gamma=plan.gamma,
        slope=plan.slope,
    )


def _floats(values: Array) -> Any:
    return tuple(float(value) for value in values)
