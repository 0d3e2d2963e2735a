import numpy as np
import pytest

from nnunet_kd.evaluation.chart_style import BLUE, LINES, OF_STRUCTURES, VERMILLION, WIDTH, YELLOW, label
from nnunet_kd.evaluation.pictures import GAP, TILE, Case, draw_cases, worst_slice

STRUCTURES = {"lesion": (1,), "core": (2,)}


def colour(name):
    return tuple(int(name[start : start + 2], 16) for start in (1, 3, 5))


def tile(picture, row, column):
    step = TILE + GAP
    return picture.pixels[row * step : row * step + TILE, column * step : column * step + TILE, :3]


def count(pixels, name):
    return int((pixels == colour(name)).all(-1).sum())


@pytest.fixture
def case():
    """Case with one structure that is found one voxel too far along x, and a voxel of another structure."""
    reference = np.zeros((6, 20, 20), int)
    reference[2:4, 5:9, 5:9] = 1
    found = np.roll(reference, 1, axis=2)
    found[2, 5, 6] = 2
    image = np.random.default_rng(0).random(reference.shape)
    return Case(image, reference, {"model": found}, [2.0, 1.0, 1.0], {"model": "75 % Dice"})


def test_every_method_has_three_planes_of_one_scale(case):
    shown = draw_cases("title", "note.", {"a case": case}, STRUCTURES, "reference")
    first, model = shown.cases["a case"]
    assert (first.title, model.title, model.note) == ("Image and reference", "model", "75 % Dice")
    assert first.pixels.shape == model.pixels.shape == (3 * TILE + 2 * GAP, 2 * TILE + GAP, 4)
    assert shown.note.startswith("note. Each row of squares is a plane, across z, y and x")
    for axis in range(3):
        assert count(tile(first, axis, 1), OF_STRUCTURES[0]) > 0 == count(tile(first, axis, 1), OF_STRUCTURES[1])
    assert count(tile(model, 0, 0), OF_STRUCTURES[1]) > 0
    # In the plane across y, two voxels of 2 mm along z are as high as the four of 1 mm along x are wide.
    outline = np.argwhere((tile(first, 1, 1) == colour(OF_STRUCTURES[0])).all(-1))
    assert np.ptp(outline, axis=0) == pytest.approx([4 / 20 * TILE] * 2, abs=2)


def test_errors_have_the_colours_of_their_kinds(case):
    _, model = draw_cases("", "", {"case": case}, STRUCTURES, "reference").cases["case"]
    errors = tile(model, 0, 1)
    voxel = (TILE / 20) ** 2  # pixels; the part that is shown is the whole plane
    assert count(errors, VERMILLION) == count(errors, BLUE) == 4 * voxel and count(errors, YELLOW) == voxel


def test_the_frame_is_the_part_that_is_shown(case):
    first, _ = draw_cases("", "", {"case": case}, STRUCTURES, "reference").cases["case"]
    assert not (tile(first, 0, 0) == 255).all(-1).sum() > 0.2 * TILE**2
    large = Case(np.zeros((1, 96, 96)), np.pad(case.reference[2:3], ((0, 0), (38, 38), (38, 38))), {}, [1, 1, 1], {})
    (first,) = draw_cases("", "", {"case": large}, STRUCTURES, "reference").cases["case"]
    frame = np.argwhere((tile(first, 0, 0) == 255).all(-1))
    assert np.ptp(frame, axis=0) == pytest.approx([24 / 96 * TILE] * 2, abs=2)
    assert first.pixels.shape == (TILE, 2 * TILE + GAP, 4)  # one plane, because the image is 2-D


def test_a_case_without_structures_is_shown_as_a_whole():
    empty = np.zeros((1, 8, 10), int)
    shown = draw_cases("", "", {"case": Case(empty + 0.5, empty, {"m": empty}, [1, 1, 1], {})}, STRUCTURES, "reference")
    assert all(picture.pixels.shape[-1] == 4 for picture in shown.cases["case"])


def test_slice_with_most_disagreement():
    reference = np.zeros((5, 6, 7), int)
    reference[1] = 1
    wrong = reference.copy()
    wrong[3, :2] = 2
    assert worst_slice(reference, {"a": reference, "b": wrong}, 0) == 3
    assert worst_slice(reference, {"a": reference}, 0) == 1  # without errors, the slice with most foreground


@pytest.mark.parametrize("name", ["NoKD", "a" * 500, "one word after the other, without end " * 9, "", "$" * 40])
def test_a_label_fits_at_any_length(name):
    lines = label(name).split("\n")
    assert len(lines) <= LINES and all(len(line.replace("\\$", "$")) <= WIDTH for line in lines)
