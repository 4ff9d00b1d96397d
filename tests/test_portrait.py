"""Any picture becomes a square around the face, framed as the training clips are."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from emo_cli import faces as faces_module
from emo_cli.errors import EmoError
from emo_cli.faces import Face, FaceFinder, find_faces
from emo_cli.picture import read_picture
from emo_cli.portrait import Portrait, parse_region, prepare_portrait


@pytest.fixture(scope="module")
def finder():
    with FaceFinder() as opened:
        yield opened


@pytest.fixture(scope="module")
def person(portrait: Path) -> Image.Image:
    """The example portrait, at most 512 px."""
    image = Image.open(portrait).convert("RGB")
    image.thumbnail((512, 512))
    return image


@pytest.fixture(scope="module")
def person_box(person, finder):
    (face,) = finder.find(np.asarray(person))
    return face.box


def prepared(path: Path, region: str = "box", *, size: int = 128, face=None) -> Portrait:
    return prepare_portrait(path, size=size, face=face, face_region=region)


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def gradient(mode: str = "RGB") -> Image.Image:
    """96x80, its four corners all different."""
    x, y = np.meshgrid(np.linspace(20, 235, 96), np.linspace(20, 235, 80))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).round().astype(np.uint8)).convert(mode)


def error_of(action, *arguments: object, **named: object) -> EmoError:
    with pytest.raises(EmoError) as caught:
        action(*arguments, **named)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


# --- reading pictures


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff", "ppm", "avif"])
def test_each_format_is_read_as_rgb(suffix, tmp_path):
    found = read_picture(saved(gradient(), tmp_path / f"a.{suffix}", quality=95))
    assert found.dtype == np.uint8
    assert found.shape == (80, 96, 3)
    assert np.abs(found.astype(int) - np.asarray(gradient())).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(orientation, tmp_path):
    upright = gradient()
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # EXIF's number -> what a camera did to it
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(stored, tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_picture(path), np.asarray(upright))


def test_transparent_pixels_are_grey(tmp_path):
    clear = gradient("RGBA")
    clear.putalpha(Image.fromarray(np.full((80, 96), 0, np.uint8)))
    assert (read_picture(saved(clear, tmp_path / "a.png")) == 128).all()
    clear.putalpha(255)
    found = read_picture(saved(clear, tmp_path / "b.png"))
    np.testing.assert_array_equal(found, np.asarray(gradient()))


def test_a_palette_with_a_transparent_colour_is_read(tmp_path):
    image = Image.new("P", (80, 80), 1)
    image.putpalette([255, 0, 0, 0, 200, 0])
    image.paste(0, (0, 0, 40, 80))
    found = read_picture(saved(image, tmp_path / "a.png", transparency=0))
    assert found[40, 10].tolist() == [128, 128, 128]
    assert found[40, 70].tolist() == [0, 200, 0]


@pytest.mark.parametrize("mode", ["L", "LA", "1", "CMYK"])
def test_other_colour_modes_keep_light_and_dark(mode, tmp_path):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    found = read_picture(saved(gradient().convert("L").convert(mode), path))
    assert found.shape == (80, 96, 3)
    assert found[:40].mean() + 40 < found[40:].mean()


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 100 * 100).round().astype(np.uint16).reshape(100, 100)
    for name in ("a.png", "a.tiff"):
        found = read_picture(saved(Image.fromarray(ramp), tmp_path / name))
        np.testing.assert_allclose(found[..., 0], ramp / 257, atol=0.51)


def test_sixteen_bit_colour_is_scaled(tmp_path):
    rows = np.linspace(0, 65535, 64).round().astype(">u2")
    pixels = np.broadcast_to(rows[None, :, None], (64, 64, 3)).astype(">u2")

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(name + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + name + data + crc

    head = (64).to_bytes(4, "big") * 2 + bytes([16, 2, 0, 0, 0])
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(png)
    found = read_picture(tmp_path / "a.png")
    np.testing.assert_allclose(found[0, :, 1], np.linspace(0, 255, 64), atol=1.01)


def test_a_colour_profile_is_applied_and_a_broken_one_ignored(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # A profile whose red and green primaries are exchanged.
    swapped = profile.replace(b"rXYZ", b"tXYZ").replace(b"gXYZ", b"rXYZ").replace(b"tXYZ", b"gXYZ")
    red = Image.new("RGB", (64, 64), (220, 30, 30))
    found = read_picture(saved(red, tmp_path / "a.png", icc_profile=swapped))
    np.testing.assert_allclose(found[0, 0], (30, 220, 30), atol=4)
    found = read_picture(saved(red, tmp_path / "b.png", icc_profile=b"nonsense"))
    assert found[0, 0].tolist() == [220, 30, 30]


def test_sides_from_64_to_10000_px_are_taken_and_others_refused(tmp_path):
    for size in ((64, 64), (10_000, 64)):
        assert read_picture(saved(Image.new("L", size), tmp_path / "a.png")).shape[1::-1] == size
    for size, word in (((63, 200), "too small"), ((10_001, 64), "too large")):
        path = saved(Image.new("L", size), tmp_path / "a.png")
        assert word in error_of(read_picture, path).message


@pytest.mark.parametrize("size", [(10_001, 10_001), (20_000, 20_000)])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(size, tmp_path, monkeypatch):
    path = saved(Image.new("1", size), tmp_path / "a.png")

    def refuse(image: Image.Image) -> None:
        raise AssertionError("it was unpacked")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", refuse)
    assert "too" in error_of(read_picture, path).message
    assert "10,000" in error_of(read_picture, path).hint


def test_missing_folder_and_empty_files_are_refused(tmp_path):
    (tmp_path / "empty.png").touch()
    assert "does not exist" in error_of(read_picture, tmp_path / "no.png").message
    assert "not a file" in error_of(read_picture, tmp_path).message
    assert "is empty" in error_of(read_picture, tmp_path / "empty.png").message


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff", "gif"])
def test_a_picture_cut_in_half_is_refused(suffix, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / f"a.{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    error = error_of(read_picture, path)
    assert "cannot be read" in error.message or "not a picture" in error.message


def test_files_that_are_no_picture_are_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, 9000, np.uint8).tobytes()
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n"
    for content in (b"hello", noise, eps, b"\x89PNG\r\n\x1a\n" + noise, b"\xff\xd8\xff" + noise):
        (tmp_path / "a.png").write_bytes(content)
        error_of(read_picture, tmp_path / "a.png")


def test_pictures_of_more_than_16_bits_are_refused(tmp_path):
    deep = Image.fromarray(np.zeros((80, 80), np.float32))
    assert "16 bits" in error_of(read_picture, saved(deep, tmp_path / "a.tiff")).message


# --- finding faces


def test_a_face_is_found_with_landmarks_and_an_upright_head(person, finder):
    (face,) = finder.find(np.asarray(person))
    x0, y0, x1, y1 = face.box
    assert face.landmarks.shape == (478, 3)
    np.testing.assert_allclose(face.landmarks[:, :2].min(0), (x0, y0), rtol=1e-6)
    np.testing.assert_allclose(face.landmarks[:, :2].max(0), (x1, y1), rtol=1e-6)
    np.testing.assert_allclose(face.rotation @ face.rotation.T, np.eye(3), atol=1e-5)
    assert np.linalg.det(face.rotation) == pytest.approx(1, abs=1e-5)
    assert np.trace(face.rotation) > 1 + 2 * np.cos(np.radians(35))


def test_rotation_follows_a_roll_of_the_picture(person, finder):
    (face,) = finder.find(np.asarray(person))
    (rolled,) = finder.find(np.asarray(person.rotate(-15)))  # clockwise, as y points down
    between = rolled.rotation @ face.rotation.T
    roll = np.degrees(np.arctan2(between[1, 0], between[0, 0]))
    assert roll == pytest.approx(15, abs=4)


def test_a_small_face_in_a_large_picture_is_found_by_the_tiles(person, person_box, finder):
    canvas = Image.new("RGB", (3000, 2000), (90, 110, 90))
    small = person.resize((300, round(300 * person.height / person.width)))
    canvas.paste(small, (2200, 1300))
    (face,) = finder.find(np.asarray(canvas))
    scale = 300 / person.width
    expected = np.array(person_box) * scale + (2200, 1300, 2200, 1300)
    np.testing.assert_allclose(face.box, expected, atol=0.1 * face.width)
    assert face.width < 0.13 * 3000


def test_each_of_many_small_faces_is_counted_once(person, finder):
    canvas = Image.new("RGB", (1600, 1000), (90, 110, 90))
    small = person.resize((250, 250))
    for left in (30, 430, 830, 1230):
        for top in (40, 540):
            canvas.paste(small, (left, top))
    assert len(finder.find(np.asarray(canvas))) == 8


def test_a_face_that_fills_the_picture_is_found(person, person_box, finder):
    tight = person.crop(tuple(round(edge) for edge in person_box))
    assert len(finder.find(np.asarray(tight))) == 1


def test_no_face_is_found_where_there_is_none(finder):
    noise = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
    assert finder.find(noise) == []
    assert finder.find(np.full((64, 900, 3), 128, np.uint8)) == []


def test_largest_face_comes_first(person, finder):
    canvas = Image.new("RGB", (1000, 600), (90, 110, 90))
    canvas.paste(person.resize((300, 300)), (20, 150))
    canvas.paste(person.resize((500, 500)), (450, 50))
    large, small = finder.find(np.asarray(canvas))
    assert large.box[0] > 450
    assert small.box[2] < 320


def test_a_small_face_that_is_none_from_near_is_left_out(monkeypatch):
    seen_from: list[int] = []

    def leaves(finder: FaceFinder, picture: np.ndarray, look: faces_module._Look) -> list[Face]:
        seen_from.append(look.side)
        if look.side != 500 or (look.x, look.y) != (0, 0):
            return []
        flat = np.zeros((478, 3), np.float32)
        return [Face(box=(100, 100, 180, 200), landmarks=flat, rotation=np.eye(3))]

    monkeypatch.setattr(FaceFinder, "_look", leaves)
    assert FaceFinder().find(np.zeros((1000, 1000, 3), np.uint8)) == []
    assert 300 in seen_from  # three times the box


def test_tiles_cover_the_picture_with_half_a_tile_of_overlap():
    for height, width, side in ((500, 900, 400), (400, 400, 400), (1000, 3000, 333)):
        for length, axis in ((width, "x"), (height, "y")):
            tiles = faces_module._tiles(height, width, side)
            starts = sorted({getattr(tile, axis) for tile in tiles})
            assert starts[0] == 0
            assert starts[-1] == length - side
            assert all(b - a <= side / 2 + 1 for a, b in zip(starts, starts[1:], strict=False))


STDERR_SCRIPT = """
import sys
import numpy as np
from PIL import Image
from emo_cli.faces import find_faces
sys.stderr.write("before\\n")
print(len(find_faces(np.asarray(Image.open(sys.argv[1]).convert("RGB")))))
sys.stderr.write("after\\n")
"""


def run_script(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", STDERR_SCRIPT, str(path)]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )


def test_nothing_of_mediapipes_log_reaches_the_users_screen(person, tmp_path):
    told = run_script(saved(person, tmp_path / "a.png"), EMO_DEBUG="0")
    assert told.stderr == "before\nafter\n"
    assert told.stdout == "1\n"


def test_missing_system_libraries_name_the_debian_packages(monkeypatch):
    from mediapipe.tasks.python import vision

    def refuse(options: object) -> None:
        raise OSError("libGLESv2.so.2: cannot open shared object file: No such file")

    monkeypatch.setattr(vision.FaceLandmarker, "create_from_options", refuse)
    error = error_of(find_faces, np.zeros((64, 64, 3), np.uint8))
    assert "libGLESv2.so.2" in error.message
    assert "libegl1" in error.hint
    assert "libgles2" in error.hint


def test_a_closed_stderr_does_not_matter(person, tmp_path):
    path = saved(person, tmp_path / "a.png")
    code = f"import os; os.close(2)\nimport sys; sys.argv[1:] = [{str(path)!r}]\n{STDERR_SCRIPT}"
    code = code.replace("sys.stderr.write", "len")
    told = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert told.stdout == "1\n"


# --- the crop


def test_the_crop_frames_the_face_as_the_training_clips_do(person, person_box, tmp_path):
    # Room on all sides: the person in the middle of a wide wall.
    wall = Image.new("RGB", (1500, 1100), (120, 120, 120))
    wall.paste(person, (500, 300))
    found = prepared(saved(wall, tmp_path / "a.png"), size=256)
    x0, y0, x1, y1 = found.face_box
    assert (y1 - y0) / 256 == pytest.approx(0.57, abs=0.01)
    assert (x0 + x1) / 512 == pytest.approx(0.5, abs=0.01)
    assert (y0 + y1) / 512 == pytest.approx(0.535, abs=0.01)
    assert found.picture.shape == (256, 256, 3)
    assert found.picture.dtype == np.uint8
    assert found.num_faces == 1


@pytest.mark.parametrize("size", [(512, 1400), (1400, 512), (230, 512), (512, 300)])
def test_the_crop_is_a_square_inside_the_picture_at_any_aspect_ratio(
    size, person, person_box, tmp_path
):
    x, y = (person_box[0] + person_box[2]) / 2, (person_box[1] + person_box[3]) / 2
    left = round(min(max(x - size[0] / 2, 0), max(person.width - size[0], 0)))
    top = round(min(max(y - size[1] / 2, 0), max(person.height - size[1], 0)))
    picture = person.crop((left, top, left + size[0], top + size[1]))
    found = prepared(saved(picture, tmp_path / "a.png"))
    x0, y0, x1, y1 = found.crop
    assert x1 - x0 == y1 - y0
    assert x0 >= 0
    assert y0 >= 0
    assert x1 <= size[0]
    assert y1 <= size[1]
    expected = picture.crop(found.crop).resize((128, 128), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(found.picture, np.asarray(expected))


def test_a_face_at_the_edge_moves_the_crop_not_the_picture(person, person_box, tmp_path):
    right = round(person_box[2]) + 5
    picture = person.crop((0, 0, right, person.height))
    found = prepared(saved(picture, tmp_path / "a.png"))
    assert found.crop[2] == right
    assert found.face_box[2] > 0.85 * 128


def test_exif_rotation_does_not_change_the_result(person, tmp_path):
    upright = prepared(saved(person, tmp_path / "a.png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = person.transpose(Image.Transpose.ROTATE_90)
    assert ImageOps.exif_transpose(turned) is not None
    found = prepared(saved(turned, tmp_path / "b.png", exif=exif))
    np.testing.assert_array_equal(found.picture, upright.picture)
    assert found.crop == upright.crop


def test_a_64_px_portrait_is_enlarged_and_said_so(person, tmp_path):
    found = prepared(saved(person.resize((64, 64)), tmp_path / "a.png"), size=256)
    assert found.picture.shape == (256, 256, 3)
    assert "larger picture" in " ".join(found.notes)


def test_frames_show_the_same_crop_larger_and_how_large_is_said(person, tmp_path):
    file = saved(person, tmp_path / "a.png")
    usual = prepare_portrait(file, size=64, face=None, face_region="box")
    assert usual.shown is usual.picture and not usual.notes
    found = prepare_portrait(file, size=64, face=None, face_region="box", shown_size=4096)
    assert found.crop == usual.crop and found.face_box == usual.face_box
    assert np.array_equal(found.picture, usual.picture)
    assert found.shown.shape == (4096, 4096, 3)
    assert "enlarged to 4096" in " ".join(found.notes)
    smaller = np.array(Image.fromarray(found.shown).resize((64, 64), Image.Resampling.BOX))
    assert np.abs(smaller.astype(int) - usual.picture).mean() < 2


def test_face_box_and_crop_agree_in_pixels(person, person_box, tmp_path):
    found = prepared(saved(person, tmp_path / "a.png"), size=256)
    x0, y0, x1, y1 = found.crop
    scale = (x1 - x0) / 256
    back = np.array(found.face_box) * scale + (x0, y0, x0, y0)
    np.testing.assert_allclose(back, person_box, atol=1e-3)


# --- which face, which region


@pytest.fixture(scope="module")
def couple(person, tmp_path_factory) -> Path:
    canvas = Image.new("RGB", (1000, 600), (90, 110, 90))
    canvas.paste(person.resize((300, 300)), (20, 150))
    canvas.paste(person.resize((500, 500)), (450, 50))
    return saved(canvas, tmp_path_factory.mktemp("couple") / "couple.png")


def test_of_two_faces_the_largest_is_used_and_said(couple):
    found = prepared(couple)
    assert found.num_faces == 2
    assert found.crop[0] >= 400
    assert found.notes == ("2 faces: the largest is used; --face N chooses",)


def test_face_chooses_and_is_not_talked_about(couple):
    found = prepared(couple, face=2, size=64)
    assert found.crop[2] <= 450
    assert found.notes == ()


@pytest.mark.parametrize("face", [0, 3, -1])
def test_a_face_that_is_not_there_is_refused_with_their_number(face, couple):
    error = error_of(prepared, couple, face=face)
    assert "2 faces" in error.message
    assert f"no face {face}" in error.message


def test_no_face_names_the_way_out(tmp_path):
    path = saved(gradient().resize((300, 300)), tmp_path / "a.png")
    error = error_of(prepared, path)
    assert "no face" in error.message
    assert "--face-region X0,Y0,X1,Y1" in error.hint


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """First and last+1 column and row of the region; the region must be its full rectangle."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x0, y0, x1, y1 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    assert (mask[y0:y1, x0:x1] == 1).all()
    assert mask.sum() == (y1 - y0) * (x1 - x0)
    return int(x0), int(y0), int(x1), int(y1)


def test_the_four_named_regions_are_those_of_the_papers_figure(person, tmp_path):
    path = saved(person, tmp_path / "a.png")
    found = {name: prepared(path, name, size=256) for name in ("box", "wide", "tall", "all")}
    assert all(each.mask.dtype == np.float32 for each in found.values())
    assert all(np.array_equal(each.picture, found["box"].picture) for each in found.values())
    box, wide, tall = (extent(found[name].mask) for name in ("box", "wide", "tall"))
    face = found["box"].face_box
    assert box[0] < face[0] < face[2] < box[2]
    assert box[1] < face[1] < face[3] < box[3]
    assert wide[0] < box[0]
    assert wide[2] > box[2]
    assert (wide[1], wide[3]) == (box[1], box[3])
    assert tall[1] < box[1]
    assert tall[3] > box[3]
    assert (tall[0], tall[2]) == (box[0], box[2])
    assert found["all"].mask.all()


def test_a_drawing_is_cropped_around_the_given_region_without_detection(tmp_path, monkeypatch):
    def refuse(picture: np.ndarray) -> None:
        raise AssertionError("no detection is needed")

    monkeypatch.setattr("emo_cli.portrait.find_faces", refuse)
    path = saved(gradient().resize((900, 600)), tmp_path / "a.png")
    found = prepared(path, "400,200,500,330", size=256)
    x0, y0, x1, y1 = found.crop
    assert x1 - x0 == y1 - y0 == pytest.approx(130 / 1.1 / 0.57, abs=1)
    assert (x0 + x1) / 2 == pytest.approx(450, abs=1)
    scale = 256 / (x1 - x0)
    expected = [(400 - x0) * scale, (200 - y0) * scale, (500 - x0) * scale, (330 - y0) * scale]
    np.testing.assert_allclose(extent(found.mask), expected, atol=0.51)
    assert found.num_faces == 0


def test_a_wide_given_region_lies_whole_in_the_crop(tmp_path):
    path = saved(gradient().resize((900, 600)), tmp_path / "a.png")
    found = prepared(path, "100,200,600,300")
    assert found.crop[0] <= 100
    assert found.crop[2] >= 600


def test_a_given_region_over_the_whole_picture_is_all(tmp_path):
    found = prepared(saved(gradient().resize((900, 600)), tmp_path / "a.png"), "0,0,9000,9000")
    assert found.mask.all()
    assert found.crop == (150, 0, 750, 600)


def test_a_given_region_outside_the_picture_is_refused(tmp_path):
    path = saved(gradient(), tmp_path / "a.png")
    assert "96x80" in error_of(prepared, path, "200,200,300,300").message
    assert "covers" in error_of(prepared, path, "10,10,12,60").message


@pytest.mark.parametrize(
    "text", ["", "square", "1,2,3", "1,2,3,4,5", "a,b,c,d", "10,10,5,20", "0,0,nan,9", "0,0,0,9"]
)
def test_a_malformed_region_is_wrong_usage(text):
    assert error_of(parse_region, text).exit_code == 2


def test_regions_are_read_with_blanks_and_fractions():
    assert parse_region(" 1, 2.5 ,30,40") == (1.0, 2.5, 30.0, 40.0)
    assert parse_region("Wide") == "wide"


def test_face_and_a_given_region_exclude_each_other(couple):
    assert error_of(prepared, couple, "0,0,100,100", face=1).exit_code == 2


def test_reading_never_touches_the_file(couple):
    before = couple.read_bytes()
    prepared(couple)
    assert couple.read_bytes() == before


def test_importing_portrait_loads_neither_torch_nor_mediapipe():
    code = "import sys, emo_cli.portrait; print({'torch', 'mediapipe', 'av'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.stdout == "set()\n"


def test_every_portrait_of_shared_data_has_one_face(shared_data, finder):
    paths = sorted((shared_data / "portraits").rglob("*.jpg"))
    assert len(paths) > 300
    for path in paths[::8]:
        assert len(finder.find(read_picture(path))) == 1, path.name


def test_crops_of_shared_data_portraits_look_like_grid_frames(shared_data, monkeypatch, finder):
    monkeypatch.setattr("emo_cli.portrait.find_faces", finder.find)
    heights = []
    for path in sorted((shared_data / "portraits").rglob("*.jpg"))[::16]:
        box = prepared(path, size=256).face_box
        heights.append((box[3] - box[1]) / 256)
    assert np.median(heights) == pytest.approx(0.57, abs=0.02)


def test_profile_bytes_are_a_profile():
    # Guards the swap above: without these tags it would swap nothing.
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert b"rXYZ" in profile
    assert ImageCms.ImageCmsProfile(io.BytesIO(profile)) is not None
