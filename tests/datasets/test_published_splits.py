"""Splits of papers, and test sets that are drawn because a data set was published without one."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from nnunet_kd.datasets.splits import with_test_set
from nnunet_kd.datasets.table import DATASETS
from tests.datasets import layouts
from tests.datasets.converting import convert, read
from tests.datasets.layouts import disc, write


def names(folder):
    return sorted(path.name.split(".")[0] for path in folder.iterdir())


def found(name, source, **options):
    cases, notes = DATASETS[name](**options).find(source)
    return cases, notes


def empty_files(folder, *names):
    """Make files that are found, but not read."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def test_synapse_is_split_as_by_transunet(tmp_path):
    numbers = [*range(1, 11), *range(21, 41)]  # BTCV's training cases
    empty_files(tmp_path / "img", *(f"img{number:04d}.nii.gz" for number in numbers))
    empty_files(tmp_path / "label", *(f"label{number:04d}.nii.gz" for number in numbers))
    cases, _ = found("Synapse", tmp_path, transunet_split=True)
    test = [int(case.identifier[-4:]) for case in cases if case.test]
    assert test == [1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38] and len(cases) - len(test) == 18
    assert not any(case.test for case in found("Synapse", tmp_path)[0])


def test_synapse_is_converted_with_its_test_set(converted, tmp_path):
    """The layout has cases 1, 2 and 40."""
    root, _ = converted
    made = convert("Synapse", root / "Synapse", tmp_path, transunet_split=True, organs=8)
    assert (made.training, made.test) == (1, 2)
    assert names(made.folder / "labelsTs") == ["synapse_0001", "synapse_0002"]


@pytest.mark.parametrize(
    ("name", "training", "validation", "test"), [("ISIC2017", 2000, 150, 650), ("ISIC2018", 2594, 100, 808)]
)
def test_vm_unets_share_of_the_real_numbers(name, training, validation, test):
    dataset = DATASETS[name]
    tested, everyone = dataset.test_of_vm_unet
    assert (tested, everyone) == (test, training + validation)
    assert round(test / everyone, 1) == 0.3


def test_isic_is_split_as_by_vm_unet(tmp_path):
    """The official test set is left out, and validation pictures are like those for training."""
    layouts.isic2017(tmp_path / "source")
    made = convert("ISIC2017", tmp_path / "source", tmp_path, vm_unet_split=True)
    assert (made.training, made.test) == (3, 2) and not made.splits  # 30 % of 5
    assert made.notes == ["the official test set of 2 pictures was left out"]
    assert not {"ISIC_0000005", "ISIC_0000006"} & {*names(made.folder / "labelsTs"), *names(made.folder / "labelsTr")}


def test_a_drawn_test_set_is_the_same_every_time(tmp_path):
    for number in range(20):
        empty_files(tmp_path / "images", f"p{number}.jpg")
        empty_files(tmp_path / "masks", f"p{number}.jpg")
    test = {case.identifier for case in found("KvasirSEG", tmp_path, test_set=True)[0] if case.test}
    assert len(test) == 4
    empty_files(tmp_path / "images", "another.jpg")  # one picture more hardly changes the set
    empty_files(tmp_path / "masks", "another.jpg")
    again = {case.identifier for case in found("KvasirSEG", tmp_path, test_set=True)[0] if case.test}
    assert len(again) == 4 and len(test & again) >= 3
    assert not any(case.test for case in found("KvasirSEG", tmp_path)[0])


def test_pictures_of_one_examination_stay_together(tmp_path):
    stems = [f"{number:03d}_{which}HC" for number in range(10) for which in ("", "2")]
    empty_files(tmp_path / "training_set", *(f"{stem}{end}.png" for stem in stems for end in ("", "_Annotation")))
    table = "\n".join(["filename,pixel size(mm)", *(f"{stem}.png,0.1" for stem in stems)])
    (tmp_path / "training_set_pixel_size_and_HC.csv").write_text(table)
    cases, _ = found("FetalHeadHC18", tmp_path, test_set=True)
    test = [case for case in cases if case.test]
    assert len(test) == 4 and len({case.group for case in test}) == 2
    assert not {case.group for case in test} & {case.group for case in cases if not case.test}
    assert test == [case for case in with_test_set([replace(case, test=False) for case in cases], 0.2) if case.test]


def test_busi_is_converted_with_a_test_set(converted, tmp_path):
    root, _ = converted
    made = convert("BUSI", root / "BUSI", tmp_path, test_set=True)
    assert (made.training, made.test) == (5, 1) and len(names(made.folder / "imagesTs")) == 1


def test_fcd_counts_the_subjects_without_t2(converted):
    root, _ = converted
    _, notes = found("FCD2023", root / "FCD2023", t2=True)
    assert "1 of 3 subjects have no T2w: their third channel is 0 everywhere" in notes


@pytest.mark.parametrize("volumes", [False, True])
def test_tcga_is_prepared_as_in_the_paper(tmp_path, volumes):
    """A single bright pixel is removed; slices of another size become 256 x 256, and masks keep their two values."""
    folder = tmp_path / "source" / "kaggle_3m" / "TCGA_CS_4941_19960909"
    plain = np.full((256, 256, 3), 40, np.uint8)
    plain[:, 128:] = (60, 70, 80)
    plain[30, 30] = 255
    write(plain, folder / f"{folder.name}_1.tif")
    write(255 * disc(256, 256).astype(np.uint8), folder / f"{folder.name}_1_mask.tif")
    if not volumes:
        small = np.ascontiguousarray(plain[::2, ::2])
        write(small, folder / f"{folder.name}_2.tif")
        write(255 * disc(128, 128).astype(np.uint8), folder / f"{folder.name}_2_mask.tif")
    options = {"paper_preprocessing": True, "volumes": volumes}
    made = convert("TCGALGG", tmp_path / "source", tmp_path, **options).folder
    if volumes:
        image, _ = read(made / "imagesTr" / f"{folder.name}_0000.nii.gz")
        label, _ = read(made / "labelsTr" / f"{folder.name}.nii.gz")
        assert image.shape == (1, 256, 256) and image[0, 30, 30] == 40 and label.sum() == disc(256, 256).sum()
        return
    picture = np.asarray(Image.open(made / "imagesTr" / f"{folder.name}_1_0000.png"))
    expected = plain.copy()
    expected[30, 30] = 40
    np.testing.assert_array_equal(picture, expected)  # medians keep edges
    resized = np.asarray(Image.open(made / "imagesTr" / f"{folder.name}_2_0000.png"))
    mask = np.asarray(Image.open(made / "labelsTr" / f"{folder.name}_2.png"))
    assert resized.shape == (256, 256, 3) and mask.sum() == 4 * disc(128, 128).sum() and mask.max() == 1
    shutil.rmtree(made)
    untouched = convert("TCGALGG", tmp_path / "source", tmp_path).folder
    assert np.asarray(Image.open(untouched / "imagesTr" / f"{folder.name}_1_0000.png"))[30, 30].tolist() == [255] * 3
