"""A portrait's lips and eyes, moved as they are told."""

import numpy as np
import pytest
import torch

from emo_cli.eye_flow import LASHES
from emo_cli.face_flow import FaceMoves, move_face, speaks
from emo_cli.face_points import EYES, FACE_POINTS, eye_shape, lip_shape, usual_points
from emo_cli.faces import find_faces
from emo_cli.head_flow import moved_pictures
from emo_cli.lip_flow import BEHIND_TEETH, BITE, LOWER_SHARE, OWN_BITE, SHOWS_INSIDE, SLIT
from emo_cli.mouth import Light, light_on

SIDE = 128
# Corners, lips (parted by 2), chin, nose; each eye's corners, lids and brow; irises.
MOUTH = [(44, 90), (84, 90), (64, 89), (64, 91), (64, 118), (64, 76)]
LEFT, RIGHT = ([(24, 50), (48, 50), (36, 46), (36, 54), (36, 38)],
               [(104, 50), (80, 50), (92, 46), (92, 54), (92, 38)])  # fmt: skip
IRISES = [(36, 50), (92, 50)]
POINTS = np.pad(np.array(MOUTH + LEFT + RIGHT + IRISES, np.float32), ((0, 0), (0, 1)))
EYE_DISTANCE, GAP, WIDTH = 80, 2, 40


FULL_LIGHT = Light(torch.ones(1, 3), torch.ones(1))


def face_of(points, gap=GAP, width=WIDTH, lids=0.0, lift=0.0, gaze=(0.0, 0.0), light=FULL_LIGHT):
    """One frame's moves, in pixels."""
    return FaceMoves(
        points=torch.from_numpy(points)[None],
        lips=torch.tensor([[[gap, width]]]) / EYE_DISTANCE,
        lids=torch.full((1, 1), lids),
        brows=torch.full((1, 1), lift) / EYE_DISTANCE,
        gaze=torch.tensor([[gaze]]) / EYE_DISTANCE,
        light=light,
    )


def places(points=POINTS, **moves):
    """Where each pixel's middle comes from [S, S, 2]."""
    return move_face(grid(), face_of(points, **moves)).at[0, 0]


def apart(gap, was=GAP):
    """Pixels between the rims of lips whose points are `gap` apart and were `was`."""
    shows, was_shown = (min(1, x / (SHOWS_INSIDE * WIDTH / 2)) for x in (gap, was))
    return gap + shows * was_shown * BEHIND_TEETH * WIDTH


def grid():
    axis = torch.arange(SIDE) + 0.5
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)[None, None]


def source(found, x, y):
    """What lies at a place in pixels, weighed between the four middles around it."""
    (left, across), (top, down) = divmod(x - 0.5, 1), divmod(y - 0.5, 1)
    cell = found[int(top) : int(top) + 2, int(left) : int(left) + 2]
    rows = torch.lerp(cell[0], cell[1], down)
    return torch.lerp(rows[0], rows[1], across).tolist()


def test_a_face_that_is_told_what_it_does_stays_as_it_is():
    torch.testing.assert_close(places(), grid()[0, 0], atol=1e-4, rtol=0)


def test_lips_part_and_the_jaw_falls_with_the_lower_one():
    found = places(gap=18)
    far = apart(18) - apart(GAP)
    falls, rises = LOWER_SHARE * far, (1 - LOWER_SHARE) * far
    low, high = 90 + LOWER_SHARE * apart(18), 90 - (1 - LOWER_SHARE) * apart(18)
    assert source(found, 64, low + 1) == pytest.approx([64, low + 1 - falls], abs=0.3)
    assert source(found, 64, high - 0.5) == pytest.approx([64, high - 0.5 + rises], abs=0.3)
    assert source(found, 64, 126)[1] < 125 - falls / 3  # the chin, which is at 118
    inside = source(found, 64, 95)[1]
    assert 90 - (1 - LOWER_SHARE) * GAP <= inside <= 90 + LOWER_SHARE * GAP  # what was between them
    for x, y in ((64, 70), (64, 30), (10, 90), (120, 90), (36, 50), (92, 50)):
        assert source(found, x, y) == pytest.approx([x, y], abs=0.05)


def test_lips_meet_where_they_were_parted():
    parted = POINTS.copy()
    parted[2, 1], parted[3, 1] = 84, 96
    low, high = 87 + LOWER_SHARE * apart(12, 12), 87 - (1 - LOWER_SHARE) * apart(12, 12)
    assert low > 96 and high < 84  # the points lie on the teeth's edges, the rims beyond them
    for gap in (0, 0.4):  # as near as points of shut lips are read
        found = places(gap=gap, points=parted)
        above, below = found[86, 64], found[87, 64]  # on both sides of the line where they meet
        assert above[1] == pytest.approx(high - 0.5, abs=0.3)
        assert below[1] == pytest.approx(low + 0.5, abs=0.3)


def test_lips_grow_wider_and_narrower_about_their_middle():
    wide, narrow = places(width=1.2 * WIDTH), places(width=0.8 * WIDTH)
    for x, y in ((64 + 16, 93), (64 - 14, 87)):  # on the lips; between them teeth rest
        assert source(wide, x, y)[0] == pytest.approx(64 + (x - 64) / 1.2, abs=0.5)
        assert source(narrow, x, y)[0] == pytest.approx(64 + (x - 64) / 0.8, abs=0.5)
    assert source(wide, 64, 90)[0] == pytest.approx(64, abs=0.1)
    assert source(wide, 6, 90)[0] == pytest.approx(6, abs=0.05)  # the surroundings rest


def test_lids_come_down_as_far_as_is_told():
    for shut, edge in ((1.0, 54), (0.5, 50)):
        found = places(lids=shut)
        for x in (36, 92):
            assert source(found, x, edge - 0.5)[1] < 46.3  # skin and lashes of above the eye
            assert source(found, x, edge + 1.5)[1] == pytest.approx(edge + 1.5, abs=0.2)
            assert source(found, x, 36) == pytest.approx([x, 36], abs=0.05)  # the brow stays
        assert source(found, 64, 50) == pytest.approx([64, 50], abs=0.05)


def test_irises_move_between_lids_that_rest():
    for x, y in ((4.0, 0.0), (-3.0, 1.5), (0.0, -1.5)):
        found = places(gaze=(x, y))
        for eye in (36, 92):
            at = source(found, eye + x, 50 + y)
            assert at == pytest.approx([eye, 50], abs=0.3)
            for side, bow in ((-8, 1 - (8 / 12) ** 2), (0, 1), (8, 1 - (8 / 12) ** 2)):
                for edge in (50 - 4 * bow - 0.5, 50 + 4 * bow + 0.5):  # skin and lashes
                    assert source(found, eye + side, edge) == pytest.approx(
                        [eye + side, edge], abs=0.5
                    )
            for corner in (eye - 12, eye + 12):
                assert source(found, corner, 50) == pytest.approx([corner, 50], abs=0.1)
        assert abs(found[46:54, 24:48, 1] - 50).max() <= 4.6  # no lid is drawn into an eye


def test_irises_are_hidden_by_lids_that_come_down():
    found, open_eyes = places(lids=0.5, gaze=(4.0, 0.0)), places(lids=0.5)
    assert source(found, 40, 52) == pytest.approx([36, 52], abs=0.3)
    assert source(found, 40, 48.5) == pytest.approx(source(open_eyes, 40, 48.5), abs=0.05)


def test_a_shut_lid_hides_the_whole_eye_and_only_lids_that_fall_cast_a_shadow():
    found, over = places(lids=1.0), move_face(grid(), face_of(POINTS, lids=1.0)).over
    for x in (30, 36, 42, 86, 92, 98):
        lid = 50 + 4 * (1 - ((x - (36 if x < 64 else 92)) / 12) ** 2)  # where the lower one is
        for y in (46, 48, 50):
            assert source(found, x, y)[1] < 50 - (lid - 50) + 0.5  # above the open eye
        assert source(found, x, lid)[1] < 50
        assert 0.2 < over.cover[0, 0, round(lid), x] <= LASHES
    assert not over.colour[0, 0, 40:60].any()
    assert not move_face(grid(), face_of(POINTS)).over.cover[0, 0, 30:60].any()


def test_brows_rise_and_the_eyes_below_them_rest():
    found = places(lift=3.0)
    for x in (36, 92):
        assert source(found, x, 35) == pytest.approx([x, 38], abs=0.4)  # the brow
        assert 40 < source(found, x, 38)[1] < 42  # and what was below it
        assert source(found, x, 30)[1] > 31  # the forehead gathers
        for y in (47, 50, 54, 20):
            assert source(found, x, y) == pytest.approx([x, y], abs=0.1)
    for x, y in ((64, 38), (64, 90), (4, 38)):
        assert source(found, x, y) == pytest.approx([x, y], abs=0.05)
    assert source(places(lift=-2.0), 36, 40) == pytest.approx([36, 38], abs=0.4)


def test_a_mirrored_face_moves_as_its_mirror_image():
    moves = {"gap": 10, "width": 36, "lids": 0.4, "lift": 2.0}
    plain = places(**moves, gaze=(3.0, 1.0))
    mirrored = POINTS.copy()
    mirrored[:, 0] = SIDE - mirrored[:, 0]
    mirrored = mirrored[[1, 0, *range(2, 6), *range(11, 16), *range(6, 11), 17, 16]]
    found = places(points=mirrored, **moves, gaze=(-3.0, 1.0)).flip(1)
    found[..., 0] = SIDE - found[..., 0]
    torch.testing.assert_close(found, plain, atol=1e-3, rtol=0)


def test_a_turned_face_moves_as_it_is_turned():
    quarter = POINTS.copy()
    quarter[:, 0], quarter[:, 1] = SIDE - POINTS[:, 1], POINTS[:, 0]
    moves = {"gap": 10, "lids": 0.4, "lift": 2.0, "gaze": (3.0, 1.0)}
    found, plain = places(points=quarter, **moves), places(**moves)
    expected = torch.stack([SIDE - plain[..., 1], plain[..., 0]], -1).rot90(-1)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_each_frame_and_each_face_has_its_own():
    lips = torch.tensor([[[0.0, 0.5], [0.2, 0.5]], [[0.1, 0.4], [0.0, 0.5]]])
    points = torch.from_numpy(np.stack([POINTS, POINTS + np.float32([4, -3, 0])]))
    lids = torch.tensor([[0.0, 1.0], [0.3, 0.0]])
    brows, gaze = 0.1 * lids, 0.1 * lips
    told = FaceMoves(points, lips, lids, brows, gaze, FULL_LIGHT)
    together = move_face(grid().expand(2, 2, -1, -1, -1), told).at
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        of_frame = (values[i : i + 1, j : j + 1] for values in told[1:-1])
        face = FaceMoves(points[i : i + 1], *of_frame, FULL_LIGHT)
        torch.testing.assert_close(together[i, j], move_face(grid(), face).at[0, 0])


SHUT, PARTED = POINTS.copy(), POINTS.copy()
SHUT[2:4, 1], PARTED[2, 1], PARTED[3, 1] = 90, 86, 98  # lips meet at 90, or 89


def laid_over(gap, points):
    """Colours [S, S, 3] of a mouth's inside and how much they cover [S, S]; gap in pixels."""
    inside = move_face(grid(), face_of(points, gap=gap)).over
    return inside.colour[0, 0], inside.cover[0, 0]


def test_all_but_what_speaks_is_marked_as_told_wherever_the_head_goes():
    told = 1 - speaks(grid(), face_of(POINTS))[0, 0]
    for x, y in (*LEFT, *RIGHT, (64, 20), (3, 64), (125, 120)):
        assert told[y, x] > 0.9
    for x, y in (*MOUTH[:5], (64, 105)):
        assert told[y, x] < 0.1
    moved = 1 - speaks(grid() + torch.tensor([3.0, -2.0]), face_of(POINTS))[0, 0]
    torch.testing.assert_close(moved[10:100, 10:100], told[8:98, 13:103], atol=1e-5, rtol=0)


def test_beyond_the_part_of_the_picture_that_is_moved_nothing_would_move(monkeypatch):
    """On a GPU, where asking for that part would make the host wait, all of it is moved."""
    moves = {"gap": 26.0, "width": 44.0, "lids": 0.6, "lift": 4.0, "gaze": (2.0, 1.0)}
    for points in (POINTS, SHUT, PARTED):
        face = face_of(points, **moves)
        part = move_face(grid(), face)
        with monkeypatch.context() as whole:
            whole.setattr("emo_cli.face_flow._around", lambda *_: (slice(None),) * 4)
            moved = move_face(grid(), face)
        assert ((part.at - grid()).abs() > 1).any()
        torch.testing.assert_close(moved.at, part.at, atol=1e-3, rtol=0)  # pixels
        for ours, whole in zip(part.over, moved.over, strict=True):
            torch.testing.assert_close(ours, whole, atol=1e-3, rtol=0)


def test_lips_that_were_shut_part_over_teeth_and_the_dark():
    colour, cover = laid_over(18, SHUT)
    low, high = 90 + LOWER_SHARE * 18, 90 - (1 - LOWER_SHARE) * 18
    assert (cover[int(high) + 2 : int(low) - 2, 64] == 1).all()
    assert not cover[: int(high), 64].any() and not cover[int(low) + 1 :, 64].any()
    assert not cover[:, :43].any() and not cover[:, 85:].any()  # beside the corners
    assert not laid_over(0, SHUT)[1].any()
    bite = int(90 + BITE * EYE_DISTANCE)
    teeth, dark = colour[bite - 3, 60], colour[bite + 2, 60]
    assert teeth.min() > 0.3 and dark.max() < 0.25 < 0.5 * teeth.max()
    far = laid_over(40, SHUT)[0]  # the jaw has fallen further, the teeth have not
    assert far[bite - 1, 60].min() > 0.3 and far[bite + 2, 60].max() < 0.3
    tongue = far[int(90 + LOWER_SHARE * 40) - 4, 64]
    assert tongue[0] > 1.5 * tongue[1]


def test_teeth_that_a_portrait_shows_stay_where_they_are():
    bite = 98 - OWN_BITE * 12
    for gap in (4, 12, 24):
        found = places(gap=gap, points=PARTED)
        for y in (89, 91):  # seen whatever the lips do
            assert source(found, 60, y) == pytest.approx([60, y], abs=0.05)
    colour, cover = laid_over(24, PARTED)
    assert not cover[85 : int(bite) - 2, 64].any() and (cover[int(bite) + 1 : 105, 64] == 1).all()
    assert colour[int(bite) + 2, 64].max() < 0.3
    assert not laid_over(12, PARTED)[1].any() and not laid_over(4, PARTED)[1].any()


SKIN = np.array([0.9, 0.72, 0.6], np.float32)


def lit_mouth(skin, eyes=None):
    """Pictures [1, 3, S, S] of 0..1 in which lips part that were shut, on skin of one colour."""
    picture = torch.tensor(skin, dtype=torch.float32)[:, None, None].expand(3, SIDE, SIDE).clone()
    if eyes is not None:
        picture[:, 44:58] = eyes
    picture = 2 * picture[None] - 1
    light = light_on(picture, torch.from_numpy(SHUT)[None])
    face = face_of(SHUT, gap=0.25 * EYE_DISTANCE, light=light)
    return (moved_pictures(picture, torch.zeros(1, 1, 2, 16, 16), face).pictures[0] + 1) / 2


def test_lips_that_close_over_teeth_leave_a_dark_line_and_not_a_bright_one():
    colour, cover = laid_over(0, PARTED)
    line = 86 + (1 - LOWER_SHARE) * 12
    assert 0.5 * SLIT < cover[round(line), 64] <= SLIT  # half a pixel off
    assert not cover[round(line) - 4].any() and not cover[round(line) + 4].any()
    assert (colour[round(line), 50:78] < 0.02).all()
    assert not laid_over(0, SHUT)[1].any()  # that has its own
    between = laid_over(1.5, PARTED)[1][round(line), 64]
    assert 0 < between < cover[round(line), 64]


def test_a_mouth_is_as_light_as_its_face():
    (colour, cover), at = laid_over(0.25 * EYE_DISTANCE, SHUT), (88, 60)
    assert cover[at] == 1
    full = lit_mouth(SKIN)[0]
    bright = full[:, *at]
    assert bright.mean().item() == pytest.approx(colour[at].mean().item(), rel=0.1)
    assert 1 < (bright[0] / bright[2]) / (colour[at][0] / colour[at][2]) < 1.3  # as warm as skin
    beside = torch.tensor(SKIN)[:, None].expand(3, SIDE)  # where nothing is laid over
    torch.testing.assert_close(full[:, :, 40], beside, atol=1e-6, rtol=0)
    in_shade = lit_mouth(0.5 * SKIN)[0][:, *at]
    assert (in_shade / bright).numpy() == pytest.approx(np.full(3, 0.5), abs=0.06)
    whites = lit_mouth(0.5 * SKIN, eyes=0.7)[0][:, *at]  # dark skin in full light
    assert (whites / bright).numpy() == pytest.approx(np.full(3, 1.0), abs=0.08)


def test_a_mouth_in_a_grey_picture_is_grey():
    coloured, grey = (lit_mouth(skin)[0][:, 88:106, 60] for skin in (SKIN, np.full(3, SKIN.mean())))
    assert (coloured.amax(0) - coloured.amin(0)).max() > 0.1
    assert (grey.amax(0) - grey.amin(0)).max() < 1e-3
    assert grey.mean().item() == pytest.approx(coloured.mean().item(), abs=0.03)


def test_pictures_are_moved_by_the_head_and_then_by_the_face():
    """A head that has gone down: its lips part where they now are."""
    picture = torch.zeros(1, 3, SIDE, SIDE)
    picture[..., 96:, :] = 1  # white from below the lower lip
    flow = torch.zeros(1, 1, 2, 16, 16)
    flow[:, :, 1] = -1  # from 8 pixels further up
    face = face_of(POINTS, gap=10.0)
    column = moved_pictures(picture, flow, face).pictures[0, 0, 0, :, 64]
    still = moved_pictures(picture, 0 * flow, face).pictures[0, 0, 0, :, 64]
    torch.testing.assert_close(column[8:], still[:-8], atol=1e-4, rtol=0)
    assert (still[96:98] < 0.5).all()  # where the picture was white: the lip has gone down


def test_the_shape_of_lips_is_measured_in_distances_of_the_eyes():
    landmarks = np.zeros((3, 478, 3))
    landmarks[:, FACE_POINTS] = POINTS
    landmarks[1, 14, 1] += 6
    landmarks[2, 61, 0] -= 8
    points = landmarks[:, FACE_POINTS]
    shape = lip_shape(points)
    assert shape.shape == (3, 2)
    assert shape * EYE_DISTANCE == pytest.approx(np.array([[2, 40], [8, 40], [2, 48]]))
    assert lip_shape(3 * points) == pytest.approx(shape)  # whatever the face's size
    assert lip_shape(POINTS) == pytest.approx(shape[0])


def test_brows_and_gaze_are_measured_along_the_face_in_distances_of_the_eyes():
    points = np.stack([POINTS] * 4).astype(float)
    points[1, [10, 15], 1] -= 4  # brows
    points[2, 16:] += [3, 0, 0]  # irises
    points[3, 16:] += [0, -2, 0]
    shape = eye_shape(points)
    assert shape.shape == (4, 3) and shape[0, 1:] == pytest.approx([0, 0])
    moved = (shape - shape[0])[1:] * EYE_DISTANCE
    assert moved == pytest.approx(np.array([[4, 0, 0], [0, 3, 0], [0, 0, -2]]), abs=1e-4)
    quarter = np.stack([SIDE - points[..., 1], points[..., 0], points[..., 2]], -1)
    assert eye_shape(2 * quarter) == pytest.approx(shape, abs=1e-5)


def test_a_face_of_which_only_the_box_is_known_is_a_usual_one(shared_data):
    picture = sorted((shared_data / "portraits" / "canada").glob("*neutral*"))[0]
    from emo_cli.picture import read_picture

    face = find_faces(read_picture(picture))[0]
    found, usual = face.landmarks[FACE_POINTS, :2], usual_points(face.box)
    assert usual.shape == (18, 3) and not usual[:, 2].any()
    assert np.abs(found - usual[:, :2]).max() < 0.08 * face.height
    assert len(EYES[0]) == len(EYES[1]) == 5


def test_a_face_moves_in_a_larger_picture_as_in_a_smaller_one():
    face = face_of(SHUT, gap=20.0, lids=0.5, lift=3.0, gaze=(2.0, 0.0))
    axis = torch.arange(2 * SIDE) + 0.5
    finer = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)[None, None]
    small, large = move_face(grid(), face), move_face(finer, face.in_picture(2))
    middle = torch.nn.functional.avg_pool2d(large.at[0].movedim(-1, 1), 2)[0].movedim(0, -1) / 2
    near = (middle - small.at[0, 0]).abs().amax(-1)
    assert (near < 0.05).float().mean() > 0.97 and (near < 1).float().mean() > 0.995  # not at edges
    cover = torch.nn.functional.avg_pool2d(large.over.cover[0], 2)[0]
    assert (cover - small.over.cover[0, 0]).abs().mean() < 2e-3
