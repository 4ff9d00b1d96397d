"""Draws a posed puppet: torch, batched over frames, the same on any device.

Legend: `T` frames in all, `B` frames at once, `S` side of the picture, `P` pixels of a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from emo_cli.mouth import Teeth, drawn_teeth
from emo_cli.training.puppets.mesh import (
    INNER_LOWER_LIP,
    INNER_UPPER_LIP,
    LEFT_BROW,
    LEFT_EYE,
    OVAL,
    RIGHT_BROW,
    RIGHT_EYE,
    Array,
)
from emo_cli.training.puppets.mouth import inside_colours, sample
from emo_cli.training.puppets.pose import Pose
from emo_cli.training.puppets.raster import rasterise
from emo_cli.training.puppets.slit import InSlit, locate
from emo_cli.training.puppets.still import Still

INVERSE_STEPS = 3
LIPS_BEHIND = 0.03  # of the face's height: teeth lie this far behind the lips


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a clip looks like beyond its still.

    `light` [3] from the face towards the lamp, upright; `shading` 0..1 how much a turn changes
    the light on the face; `gain`, `lift` [3] and `gamma` of the colours; `slope` [2] of brightness
    over the picture.
    """

    teeth: Teeth
    light: tuple[float, float, float] = (0.3, -0.6, -0.74)
    shading: float = 0.25
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gamma: float = 1.0
    slope: tuple[float, float] = (0.0, 0.0)


PLAIN = Look(teeth=drawn_teeth(0))


@torch.inference_mode()
def render(
    still: Still, pose: Pose, blink: Array, look: Look = PLAIN, device: str = "cpu", batch: int = 12
) -> Tensor:
    """The puppet's frames [T, S, S, 3] uint8, on `device`; `blink` [T] 0 open .. 1 shut."""
    stage = _Stage(still, look, torch.device(device))
    frames = len(pose.mesh)
    parts = [slice(first, first + batch) for first in range(0, frames, batch)]
    return torch.cat([stage.draw(pose, blink, part) for part in parts])


class _Stage:
    """What the frames of one clip share, on the device."""

    def __init__(self, still: Still, look: Look, device: torch.device) -> None:
        self.still, self.look, self.device = still, look, device
        self.pixel = still.size / 256  # the unit of all softness
        picture = self.put(still.picture).permute(2, 0, 1)[None] / 255
        self.picture = _graded(picture, look)
        self.points = self.put(still.points)
        self.triangles = torch.as_tensor(still.triangles, device=device)
        self.spread = self.put(still.spread)
        axis = torch.arange(still.size, device=device) + 0.5
        self.grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"))  # [2, S, S]
        slope = torch.tensor(look.slope, device=device).view(1, 2, 1, 1)
        self.lamps = 1 + ((self.grid / still.size * 2 - 1) * slope).sum(1, keepdim=True)
        self.eyes = self._eye_windows()
        self.normals = _normals(self.put(still.upright(still.points)), self.triangles)

    def put(self, values: Array) -> Tensor:
        return torch.as_tensor(np.asarray(values), dtype=torch.float32, device=self.device)

    def draw(self, pose: Pose, blink: Array, part: slice) -> Tensor:
        mesh, shut = self.put(pose.mesh[part]), self.put(blink[part])
        source, shade = self._sources(mesh, self.put(pose.moves[part]), self._light(pose, part))
        source = source - self.put(pose.gaze[part])[..., None, None] * sample(
            self.eyes.expand(len(mesh), -1, -1, -1), source
        )
        picture = self.picture.expand(len(mesh), -1, -1, -1)
        out = sample(picture, source, "bicubic") * shade
        if shut.any():
            for (upper, lower), brow in ((RIGHT_EYE, RIGHT_BROW), (LEFT_EYE, LEFT_BROW)):
                crease = self._crease(upper, brow)
                self._draw_lid(out, mesh[:, upper, :2], mesh[:, lower, :2], crease, shut[:, None])
        self._draw_mouth(out, mesh[..., :2], pose, part)
        return ((out * self.lamps).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)

    def _sources(self, mesh: Tensor, moves: Tensor, light: Tensor) -> tuple[Tensor, Tensor]:
        """Where each pixel comes from [B, 2, S, S], and the change of its light [B, 1, S, S]."""
        size, cells = self.still.size, int(len(self.spread) ** 0.5)
        forward = (self.spread @ moves).transpose(1, 2).reshape(-1, 2, cells, cells)
        around = _inverse(forward, size)
        y, x = self._window(mesh[..., :2], above=0)
        inside = self._inside(mesh, light, y, x)
        # Neighbours are averaged: a mesh bends at its edges, skin does not.
        pooled = F.avg_pool2d(inside, 3, 1, 1, count_include_pad=False)
        value = pooled[:, :3] / pooled[:, 3:].clamp_min(1e-6)
        # The lips' rims go on for a pixel: mixed with the surroundings' offset they would smear.
        alpha = (3 * pooled[:, 3:]).clamp(0, 1)
        around[:, :, y, x] += alpha * (value[:, :2] - around[:, :, y, x])
        shade = torch.ones_like(around[:, :1])
        shade[:, :, y, x] += alpha * value[:, 2:]
        return self.grid + around, shade

    def _inside(self, mesh: Tensor, light: Tensor, y: slice, x: slice) -> Tensor:
        """In a window: offset to the source, change of light, whether the face is there, [B, 4]."""
        number, weights = rasterise(mesh, self.triangles, self.still.size)
        number, weights = number[:, y, x], weights[:, y, x]
        batch, count = mesh.shape[:2]
        corners = self.triangles[number.clamp_min(0)]  # [B, h, w, 3]
        corners = corners + torch.arange(batch, device=self.device)[:, None, None, None] * count
        carried = torch.cat([self.points[:, :2].expand(batch, -1, -1), light[..., None]], 2)
        value = carried.reshape(-1, 3).index_select(0, corners.flatten()).reshape(*corners.shape, 3)
        value = (weights[..., None, :] @ value)[..., 0, :].permute(0, 3, 1, 2)  # [B, 3, h, w]
        shown = (number >= 0)[:, None].float()
        offset = value[:, :2] - self.grid[:, y, x]
        return torch.cat([offset, value[:, 2:], torch.ones_like(shown)], 1) * shown

    def _light(self, pose: Pose, part: slice) -> Tensor:
        """Lambert's change of light by the turn, per point [B, V]; none at the oval, so no rim."""
        lamp = self.put(np.array(self.look.light))
        turned = self.put(pose.rotations[part]) @ self.put(self.still.rotation).T
        before = self.normals @ lamp
        change = ((self.normals @ turned.transpose(1, 2)) @ lamp - before) * self.look.shading
        change[:, OVAL] = 0
        return change

    def _eye_windows(self) -> Tensor:
        """[1, 1, S, S]: 1 where the still shows an iris, 0 outside the eyes."""
        at = self.grid.reshape(2, -1).T
        total = torch.zeros(len(at), device=self.device)
        for upper, lower in (RIGHT_EYE, LEFT_EYE):
            slit = locate(self.points[None, upper, :2], self.points[None, lower, :2], at)
            middle = (torch.minimum(slit.along, 1 - slit.along) / 0.28).clamp(0, 1)
            lids = ((torch.minimum(slit.over, slit.under) + 0.3) / self.pixel).clamp(0, 1)
            total += (middle * middle * (3 - 2 * middle) * lids)[0]
        return total.reshape(1, 1, self.still.size, self.still.size)

    def _window(self, rows: Tensor, above: float) -> tuple[slice, slice]:
        """The rectangle around rows [B, K, 2] of all frames, `above` pixels higher."""
        low, high = rows.reshape(-1, 2).amin(0), rows.reshape(-1, 2).amax(0)
        edges = torch.stack([low[0], low[1] - above, high[0], high[1]])
        margin = 6 * self.pixel * torch.tensor([-1.0, -1, 1, 1], device=self.device)
        x0, y0, x1, y1 = (edges + margin).round().clamp(0, self.still.size).int().tolist()
        return slice(y0, y1), slice(x0, x1)

    def _crease(self, upper: list[int], brow: list[int]) -> float:
        """How far above the lid's edge its skin is drawn from, in widths of the eye: no brow."""
        lid, brow_edge = self.points[upper[2:-2], 1].mean(), self.points[brow[5:], 1].mean()
        width = (self.points[upper[0], :2] - self.points[upper[-1], :2]).norm()
        return float(((lid - brow_edge) / width * 0.7).clamp(0.08, 0.4))

    def _draw_lid(
        self, out: Tensor, upper: Tensor, lower: Tensor, crease: float, blink: Tensor
    ) -> None:
        """Draws the upper lid's skin down over the eye; the eyeball behind it rests."""
        longest = float((upper[:, -1] - upper[:, 0]).norm(dim=-1).max())
        y, x = self._window(torch.cat([upper, lower], 1), above=0.45 * longest)
        at = self.grid[:, y, x].reshape(2, -1).T
        slit = locate(upper, lower, at)
        back, mask = _lid(slit, crease, blink, 0.45 * self.pixel)
        place = (at + back[..., None] * slit.across).transpose(1, 2)[..., None]
        skin = sample(out, place)[..., 0]
        shape = out[:, :, y, x].shape
        flat = out[:, :, y, x].reshape(*shape[:2], -1)
        out[:, :, y, x] = torch.lerp(flat, skin, mask[:, None]).reshape(shape)

    def _draw_mouth(self, out: Tensor, mesh: Tensor, pose: Pose, part: slice) -> None:
        upper, lower = mesh[:, INNER_UPPER_LIP], mesh[:, INNER_LOWER_LIP]
        y, x = self._window(torch.cat([upper, lower], 1), above=0)
        at = self.grid[:, y, x].reshape(2, -1).T
        slit = locate(upper, lower, at)
        depth = float(self.still.shut[INNER_UPPER_LIP[3:8], 2].mean())
        depth += LIPS_BEHIND * self.still.face_height
        rotation = self.put(pose.rotations[part])
        origin = self.put(pose.head[part])[:, :2] + depth * rotation[:, :2, 2]
        skull = (at - origin[:, None]) @ torch.linalg.inv(rotation[:, :2, :2]).transpose(1, 2)
        jaw = self.put(pose.jaw[part])[:, None, :2]
        colour = inside_colours(self.still, self.look.teeth, slit, skull, jaw)
        toothy = self.still.shows_teeth()
        # A mouth that shuts ends in a seam as dark as this person's lips.
        lips = self.points[[11, 12, 15, 16], :2].T[None, :, :, None]
        seam = 0.5 * sample(self.picture, lips).mean((2, 3))[..., None]
        parted = (slit.gap / (0.06 * slit.width)).clamp(0, 1)[:, None]
        colour = _graded(torch.lerp(seam / _gain(self.look, seam), colour, parted), self.look)
        if toothy:  # cover what is left of its teeth beside the seam
            grown = 1.2 * self.pixel
            slit = InSlit(
                slit.along, slit.over + grown, slit.under + grown, slit.width, slit.across
            )
        mask = slit.mask(0.45 * self.pixel)
        if not toothy:
            mask = mask * (slit.gap / (1.5 * self.pixel)).clamp(0, 1)
        shape = out[:, :, y, x].shape
        flat = out[:, :, y, x].reshape(*shape[:2], -1)
        out[:, :, y, x] = torch.lerp(flat, colour, mask[:, None]).reshape(shape)


def _lid(
    slit: InSlit, crease_share: float, blink: Tensor, softness: float
) -> tuple[Tensor, Tensor]:
    """How far across the slit each pixel fetches its skin, and where the lid covers, [B, P].

    The skin between the crease and the lashes is drawn out, a rim with the lashes keeps its shape.
    """
    crease = crease_share * slit.width
    rim = (0.10 * slit.width).minimum(0.5 * crease)
    down = 1.04 * slit.gap * blink  # the edge of the lid, below where it rests
    lashes = 0.055 * slit.width * (2 * blink).clamp(0, 1)
    shrunk = (crease - rim) / (down + crease - rim).clamp_min(1e-3)
    drawn = (slit.over + crease) * shrunk - crease
    source = torch.where(slit.over < down - rim, drawn, slit.over - down)
    back = torch.where(slit.over > -crease, source - slit.over, 0.0)
    mask = torch.sigmoid((down + lashes - slit.over) / softness)
    return back, mask * ((slit.along > 0) & (slit.along < 1)) * (blink > 0)


def _inverse(forward: Tensor, size: int) -> Tensor:
    """Moves [B, 2, G, G] of the still's places -> from each pixel to its source [B, 2, S, S]."""
    cells = forward.shape[-1]
    axis = (torch.arange(cells, device=forward.device) + 0.5) * size / cells
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"))
    back = -forward
    for _ in range(INVERSE_STEPS):
        at = ((grid + back) / size * 2 - 1).permute(0, 2, 3, 1)
        back = -F.grid_sample(forward, at, padding_mode="border", align_corners=False)
    return F.interpolate(back, (size, size), mode="bilinear", align_corners=False)


def _normals(points: Tensor, triangles: Tensor) -> Tensor:
    """Unit normals of the points [V, 3], towards the camera; 0 for points of no triangle."""
    a, b, c = points[triangles].unbind(1)
    faces = torch.linalg.cross(b - a, c - a)
    faces = torch.where(faces[:, 2:] > 0, -faces, faces)  # all of them face the camera
    total = torch.zeros_like(points)
    for corner in range(3):
        total.index_add_(0, triangles[:, corner], faces)
    return F.normalize(total, dim=-1)


def _gain(look: Look, like: Tensor) -> Tensor:
    return torch.tensor(look.gain, dtype=like.dtype, device=like.device)[None, :, None]


def _graded(colour: Tensor, look: Look) -> Tensor:
    """Colours [B, 3, ...] in 0..1 with the look's gamma and gain."""
    gain = _gain(look, colour).reshape(1, 3, *[1] * (colour.ndim - 2))
    return colour.clamp(0, 1) ** look.gamma * gain
