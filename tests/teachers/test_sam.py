import zipfile

import numpy as np
import pytest
import segment_anything
import torch

from nnunet_kd.teachers.sam import ABSENT, SamSettings, SamTeacher, as_rgb, component_places, load_sam
from tests.small_networks import tiny_sam

CPU = torch.device("cpu")


@pytest.fixture
def registry(monkeypatch):
    """Add a tiny model to SAM's registry."""
    monkeypatch.setitem(segment_anything.sam_model_registry, "tiny", tiny_sam)


def teacher_of(settings, seed=0, **options):
    torch.manual_seed(seed)
    return SamTeacher(tiny_sam().eval(), settings, CPU, **options)


def slice_of(height=20, width=30, seed=0):
    """An image and two structures, the first of two components, the second absent in part of the tests."""
    image = np.random.default_rng(seed).integers(0, 255, (3, height, width), dtype=np.uint8)
    structures = np.zeros((3, height, width), dtype=bool)
    structures[0, 2:6, 3:9] = structures[0, 12:16, 20:28] = True
    structures[1, 8:10, 1:3] = True
    return image, structures


def test_boxes_are_clipped_at_the_border():
    structure = np.zeros((10, 12), dtype=bool)
    structure[0:3, 1:4] = True
    structure[5, 6] = structure[6, 7] = True  # touch at a corner: one component
    structure[9, 11] = True
    expected = [[0, 0, 5, 4], [4, 3, 9, 8], [9, 7, 11, 9]]  # x, y of the first voxel, x, y of the last
    np.testing.assert_array_equal(component_places(structure, "box", 2), expected)
    np.testing.assert_array_equal(component_places(structure, "box", 0)[1], [6, 5, 7, 6])
    assert component_places(np.zeros((4, 4), dtype=bool), "box", 2).shape == (0, 4)


def test_points_are_inside_their_component():
    structure = np.zeros((20, 20), dtype=bool)
    structure[2:13, 2:13] = True
    structure[3:12, 5:13] = False  # a C, whose centre is empty; its upright is three voxels wide
    structure[16:19, 4:9] = True
    points = component_places(structure, "points", 0)
    assert points.shape == (2, 2)
    for x, y in points.astype(int):
        assert structure[y, x]
    assert points[0, 0] == 3 and points[1].tolist() in ([5, 17], [6, 17], [7, 17])


def test_window_and_channels():
    rng = np.random.default_rng(0)
    channel = rng.normal(size=(4, 20, 20))
    body = np.zeros((4, 20, 20), dtype=bool)
    body[1:3] = True
    channel[0] = 1e6  # outside the body, so it is ignored
    rgb = as_rgb(np.stack([channel, -channel]), body)
    low, high = np.percentile(channel[body], (0.5, 99.5))
    expected = 255 * np.clip((channel - low) / (high - low), 0, 1)
    np.testing.assert_array_equal(rgb[0], expected.round().astype(np.uint8))
    np.testing.assert_array_equal(rgb[2], rgb[0])  # the first of the two channels is repeated
    assert (as_rgb(np.full((1, 2, 3, 3), 5.0), np.zeros((2, 3, 3), dtype=bool)) == 0).all()


@pytest.mark.parametrize("prompt", ["box", "points"])
def test_logits_equal_those_of_sams_predictor(prompt):
    """The reference passes one prompt at a time to SamPredictor.predict and takes the maximum over the components."""
    settings = SamSettings("tiny", (0,), prompt, margin=1)
    teacher = teacher_of(settings)
    image, structures = slice_of()
    logits = teacher.slice_logits(image, structures)
    torch.manual_seed(0)
    predictor = segment_anything.SamPredictor(tiny_sam().eval())
    predictor.set_image(image.transpose(1, 2, 0))
    for structure, ours in zip(structures, logits, strict=True):
        masks = []
        for place in component_places(structure, prompt, 1):
            if prompt == "box":
                found, _, _ = predictor.predict(box=place, multimask_output=False, return_logits=True)
                masks.append(found[0])
            else:
                found, quality, _ = predictor.predict(place[None], np.ones(1), return_logits=True)
                masks.append(found[quality.argmax()])
        if masks:
            np.testing.assert_allclose(ours, np.max(masks, 0), rtol=1e-4, atol=1e-5)
        else:
            assert (ours == ABSENT).all()
    assert (logits[2] == ABSENT).all() and (logits[:2] != ABSENT).all()


def test_batches_of_prompts_change_nothing():
    image, structures = slice_of()
    settings = SamSettings("tiny")
    many, one = teacher_of(settings), teacher_of(settings, prompts_at_once=1)
    np.testing.assert_allclose(
        many.slice_logits(image, structures), one.slice_logits(image, structures), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_is_sliced_along_its_axis_and_each_slice_embedded_once(axis):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 7, 9, 8))
    structures = np.zeros((2, 7, 9, 8), dtype=bool)
    where = [slice(2, 5)] * 3
    where[axis] = slice(3, 5)
    structures[(0, *where)] = True
    where[axis] = slice(4, 6)
    structures[(1, *where)] = True
    teacher = teacher_of(SamSettings("tiny", (0, 1)))
    embedded = []
    teacher._predictor.model.image_encoder.register_forward_hook(lambda *_: embedded.append(1))
    logits = teacher.logits(images, structures, np.ones((7, 9, 8), dtype=bool), axis)
    assert len(embedded) == 3  # slices 3, 4 and 5; the others have no structure and are skipped
    assert logits.shape == structures.shape and logits.dtype == np.float32
    present = [{i for i in range(logits.shape[axis + 1]) if (logits[k].take(i, axis) != ABSENT).any()} for k in (0, 1)]
    assert present == [{3, 4}, {4, 5}]
    rgb = as_rgb(images, np.ones((7, 9, 8), dtype=bool))
    expected = teacher.slice_logits(rgb.take(4, axis + 1), structures.take(4, axis + 1))
    np.testing.assert_allclose(logits.take(4, axis + 1), expected)


def test_eight_prompts_cost_less_than_two_slices():
    """The embedding dominates the cost, and there is one per slice."""
    image, _ = slice_of()
    structures = np.zeros((8, 20, 30), dtype=bool)
    for number in range(8):
        structures[number, 2 * number : 2 * number + 2, 3:9] = True
    teacher = teacher_of(SamSettings("tiny"))
    counts = {}
    for module in ("image_encoder", "prompt_encoder", "mask_decoder"):
        counts[module] = []
        getattr(teacher._predictor.model, module).register_forward_hook(lambda *_, m=module: counts[m].append(1))
    teacher.slice_logits(image, structures)
    assert {name: len(calls) for name, calls in counts.items()} == {
        "image_encoder": 1,
        "prompt_encoder": 1,
        "mask_decoder": 1,
    }


def test_loading_a_checkpoint(registry, tmp_path):
    torch.manual_seed(3)
    path = tmp_path / "sam.pth"
    torch.save(tiny_sam().state_dict(), path)
    sam = load_sam("tiny", path)
    torch.manual_seed(3)
    for ours, expected in zip(sam.parameters(), tiny_sam().parameters(), strict=True):
        assert torch.equal(ours, expected) and not ours.requires_grad
    assert not sam.training


def test_a_checkpoint_of_the_format_before_pytorch_1_6(registry, tmp_path):
    path = tmp_path / "sam.pth"
    torch.manual_seed(3)
    torch.save(tiny_sam().state_dict(), path, _use_new_zipfile_serialization=False)
    sam = load_sam("tiny", path)
    torch.manual_seed(3)
    for ours, expected in zip(sam.parameters(), tiny_sam().parameters(), strict=True):
        assert torch.equal(ours, expected)


def test_checkpoints_that_cannot_be_used(registry, tmp_path):
    path = tmp_path / "sam.pth"
    with pytest.raises(ValueError, match="segment_anything has no model 'vit_x', only .*vit_b"):
        load_sam("vit_x", path)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        load_sam("tiny", path)
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="it is damaged, or contains more than weights"):
        load_sam("tiny", path)
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="does not contain the weights of tiny"):
        load_sam("tiny", path)
    weights = tiny_sam().state_dict()
    weights["mask_decoder.mask_tokens.weight"][0, 0] = float("nan")
    torch.save(weights, path)
    with pytest.raises(ValueError, match=r"are not finite: mask_decoder\.mask_tokens\.weight"):
        load_sam("tiny", path)
    torch.save(["a", "list"], path)
    with pytest.raises(ValueError, match="does not contain the weights of tiny"):
        load_sam("tiny", path)


class Malicious:
    def __reduce__(self):
        return (exec, ("print('code ran')",))


def test_code_in_a_checkpoint_does_not_run(registry, tmp_path, capsys):
    torch.save({"a": Malicious()}, tmp_path / "sam.pth")
    with pytest.raises(ValueError, match="contains more than weights"):
        load_sam("tiny", tmp_path / "sam.pth")
    assert "code ran" not in capsys.readouterr().out


def test_a_checkpoint_that_would_fill_the_memory(registry, tmp_path):
    torch.save({"a": torch.zeros(2**20)}, tmp_path / "sam.pth")
    with (
        zipfile.ZipFile(tmp_path / "sam.pth") as stored,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in stored.namelist():
            archive.writestr(name, stored.read(name))
    with pytest.raises(ValueError, match=r"bomb\.pth: it is compressed"):
        load_sam("tiny", tmp_path / "bomb.pth")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "circle"}, "the prompt must be one of box, points, got 'circle'"),
        ({"channels": (0, 1, 2, 3)}, "one to three channels, got 4"),
        ({"margin": -1}, "at least 0, got -1"),
    ],
)
def test_settings_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        SamSettings(**settings)


def test_a_missing_channel_is_refused():
    with pytest.raises(ValueError, match="there is no channel 3: the images have 2"):
        teacher_of(SamSettings("tiny", (3,))).logits(np.zeros((2, 3, 4, 4)), np.zeros((1, 3, 4, 4), bool), None, 0)
