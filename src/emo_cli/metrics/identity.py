"""F-SIM: how much the face in each frame is the portrait's (EMO sec. 4.2).

Protocol `dlib`: the largest face of a picture is cut out as dlib does it (five landmarks by its
predictor inside the found box, turned upright, 150x150 px with a quarter of padding), its face
recognition network makes 128 numbers of it, and every frame is compared with the portrait: by the
cosine of the two (the paper's F-SIM), and by their distance, the measure that network was trained
for: two pictures of one person lie within 0.6. The portrait is the picture the video was made of;
where none is given it is the first frame that shows a face, and that frame itself is not compared.

The paper treats F-SIM as an index of the population: what is close to the real videos' value is
better, not what is high. A frozen portrait has the highest.

dlib's descriptors all point much the same way: of ten people of the London set the neutral and the
smiling picture have a cosine of 0.96 to 0.996, and two people's have 0.80 to 0.93 (180 pairs, of
which 1 lies within 0.6). Read the second digit, and the distance.

Protocol `arcface` (metric `fsim-arcface`) is the same with ArcFace's network, for users who have
its weights: they are for research only and are never fetched. Figures of two networks are not
comparable: each has its own columns.

Legend: T frames, D numbers that describe a face, S the side of a face picture in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from emo_cli.errors import EmoError
from emo_cli.faces import find_faces
from emo_cli.metrics.contract import Column, Frame, Score, VideoFeatures, VideoInfo
from emo_cli.metrics.digest import features_digest
from emo_cli.metrics.face_embedding import DlibEmbedding, FaceEmbedding
from emo_cli.picture import read_picture

SAME_PERSON = 0.6  # dlib's own threshold of the distance
BATCH = 32  # faces kept until the network runs


class IdentityExtractor:
    """Similarity and distance of each frame's face to the portrait's.

    Arrays: `similarity` and `distance` [T] float32, NaN where the frame shows no face and for the
    frame that stands in for a portrait; `reference` [], that frame's number, or -1 for a portrait.
    """

    wants_faces = True

    def __init__(self, embedding: FaceEmbedding | None = None, *, name: str = "identity") -> None:
        self.embedding = embedding or DlibEmbedding()
        self.name = name

    @property
    def digest(self) -> str:
        return features_digest("identity 1", self.embedding.digest)

    def begin(self, info: VideoInfo) -> IdentityReading:
        """Start on a video. Raises: EmoError when its portrait cannot be read or has no face."""
        portrait = None
        if info.portrait is not None:
            picture = read_picture(info.portrait)
            faces = find_faces(picture)
            if not faces:
                raise EmoError(
                    f"no face found in the portrait {info.portrait.name}",
                    "Leave it out: the video's first face is compared with instead.",
                )
            portrait = self.embedding.embed(self.embedding.cut(picture, faces[0])[None])[0]
        return IdentityReading(self.embedding, portrait)


class IdentityReading:
    """Descriptors of the frames so far."""

    def __init__(self, embedding: FaceEmbedding, portrait: np.ndarray | None) -> None:
        self._embedding = embedding
        self._portrait = portrait
        self._waiting: list[np.ndarray] = []
        self._found: list[np.ndarray] = []  # [n, D] each
        self._shows_face: list[bool] = []

    def add(self, frames: Sequence[Frame]) -> None:
        """The next frames, in order."""
        for frame in frames:
            self._shows_face.append(frame.face is not None)
            if frame.face is not None:
                self._waiting.append(self._embedding.cut(frame.picture, frame.face))
            if len(self._waiting) == BATCH:
                self._embed()

    def finish(self, sound: np.ndarray | None) -> dict[str, np.ndarray]:
        """The arrays that `IdentityExtractor` names."""
        self._embed()
        shown = np.flatnonzero(self._shows_face)
        similarity = np.full(len(self._shows_face), np.nan, np.float32)
        distance = similarity.copy()
        reference = -1
        if len(shown):
            found = np.concatenate(self._found)
            portrait = found[0] if self._portrait is None else self._portrait
            similarity[shown], distance[shown] = compare(found, portrait)
            if self._portrait is None:
                reference = int(shown[0])
                similarity[reference] = distance[reference] = np.nan
        return {
            "similarity": similarity,
            "distance": distance,
            "reference": np.array(reference, np.int64),
        }

    def _embed(self) -> None:
        if self._waiting:
            self._found.append(self._embedding.embed(np.stack(self._waiting)))
            self._waiting = []


def compare(found: np.ndarray, portrait: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and Euclidean distance of descriptors [N, D] to one [D]: two arrays [N]."""
    wide, one = found.astype(np.float64), portrait.astype(np.float64)
    cosine = wide @ one / (np.linalg.norm(wide, axis=1) * np.linalg.norm(one)).clip(1e-12)
    return cosine, np.linalg.norm(wide - one, axis=1)


DLIB_COLUMNS = (
    Column(key="fsim", heading="F-SIM", digits=3, better="real"),
    Column(key="face_distance", heading="Face distance", digits=3, better="real"),
    Column(key="same_person", heading="Same person", digits=1, better="high", unit="%"),
    Column(key="no_face", heading="No face", digits=1, better="low", unit="%"),
)
ARCFACE_COLUMNS = (Column(key="fsim-arcface", heading="F-SIM (ArcFace)", digits=3, better="real"),)


class FSim:
    """F-SIM, the mean over videos of the mean over frames; dlib's distance beside its own."""

    needs_real = False

    def __init__(
        self,
        name: str = "fsim",
        extractor: str = "identity",
        columns: tuple[Column, ...] = DLIB_COLUMNS,
    ) -> None:
        self.name = name
        self.extractor = extractor
        self.columns = columns

    def score(
        self, generated: Iterable[VideoFeatures], real: Iterable[VideoFeatures] | None
    ) -> Score:
        """Means over videos: cosine, median distance, share of frames within 0.6, without a face.

        Raises: EmoError when there is no video.
        """
        per_video: dict[str, dict[str, float]] = {column.key: {} for column in self.columns}
        videos = without_portrait = empty = 0
        for video in generated:
            videos += 1
            without_portrait += video.info.portrait is None
            values = _of_video(video)
            empty += "fsim" not in values
            for column in self.columns:
                figure = column.key.partition("-")[0]  # the network's name follows
                if figure in values:
                    per_video[column.key][video.key] = values[figure]
        if not videos:
            raise EmoError("there is no video to compare faces in", "Name a folder with videos.")
        notes = []
        if without_portrait:
            notes.append(
                f"{without_portrait} of {videos} videos came without a portrait: "
                "their first frame with a face was taken"
            )
        if empty:
            notes.append(f"{empty} of {videos} videos show no face to compare")
        return Score(values=means_of(per_video), notes=tuple(notes), per_video=per_video)


def _of_video(video: VideoFeatures) -> dict[str, float]:
    similarity, distance = video.arrays["similarity"], video.arrays["distance"]
    compared = np.isfinite(similarity)
    faceless = ~compared
    if (reference := int(video.arrays["reference"])) >= 0:
        faceless[reference] = False
    values = {"no_face": 100 * float(faceless.mean()) if len(faceless) else 100.0}
    if compared.any():
        values |= {
            "fsim": float(similarity[compared].mean(dtype=np.float64)),
            "face_distance": float(np.median(distance[compared])),
            "same_person": 100 * float((distance[compared] <= SAME_PERSON).mean()),
        }
    return values


def means_of(per_video: dict[str, dict[str, float]]) -> dict[str, float | None]:
    """Each column's mean, in an order that does not depend on how videos came; None of nothing."""
    return {
        column: float(np.mean([found[key] for key in sorted(found)])) if found else None
        for column, found in per_video.items()
    }


ARCFACE = FSim("fsim-arcface", "arcface", ARCFACE_COLUMNS)
