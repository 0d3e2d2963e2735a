"""Every data set of the papers: published layout in, nnU-Net's raw format out, checked by nnU-Net's own command."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from nnunet_kd.datasets.conversion import (
    Case,
    Options,
    _with_test_set,
    convert_dataset,
    official_or_grouped_splits,
)
from nnunet_kd.datasets.formats import FORMATS
from nnunet_kd.datasets.volumes import same_grid
from nnunet_kd.storage.writing import DiskFullError
from tests.commands import plan_and_preprocess
from tests.datasets import layouts
from tests.datasets.conftest import convert, read, same_files

SAMPLES = Path(__file__).parents[3] / "shared" / "data" / "raw_samples"
every_dataset = pytest.mark.parametrize("name", FORMATS)


@pytest.fixture(scope="module")
def preprocessed(converted):
    """Checked, planned and preprocessed by the functions nnUNetv2_plan_and_preprocess calls."""
    root, made = converted
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(name, str(root / name))
        for name in made:
            plan_and_preprocess(FORMATS[name].id, "2d")
    return root / "nnUNet_preprocessed"


def test_every_format_has_a_layout_a_number_and_a_name():
    assert layouts.LAYOUTS.keys() == FORMATS.keys()
    assert sorted(form.id for form in FORMATS.values()) == list(range(501, 512))


@pytest.mark.xdist_group("preprocessed")  # one command for all of them
@every_dataset
def test_stock_nnunet_verifies_and_preprocesses_it(converted, preprocessed, name):
    root, made = converted
    description = json.loads((made[name].folder / "dataset.json").read_text())
    assert description["numTraining"] == made[name].training > 0
    folder = preprocessed / made[name].folder.name
    assert len(list((folder / "nnUNetPlans_2d").glob("*.pkl"))) == made[name].training
    assert len(list((made[name].folder / "labelsTr").iterdir())) == made[name].training
    assert not list((root / "nnUNet_raw").glob(".unfinished*"))


def test_the_command_takes_one(converted, tmp_path):
    root, made = converted
    form = FORMATS["FetalHeadHC18"]
    folders = {"nnUNet_raw": root / "nnUNet_raw", "nnUNet_preprocessed": tmp_path, "nnUNet_results": tmp_path}
    command = [
        str(Path(sys.executable).with_name("nnUNetv2_plan_and_preprocess")),
        *("-d", str(form.id), "--verify_dataset_integrity", "-c", "2d", "-np", "1", "-npfp", "1"),
    ]
    settings = {**os.environ, **{name: str(path) for name, path in folders.items()}, "nnUNet_n_proc_DA": "1"}
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    cases = list((tmp_path / made[form.name].folder.name / "nnUNetPlans_2d").glob("*.pkl"))
    assert len(cases) == made[form.name].training


def brightest(path):
    """Where the landmark is, in mm."""
    array, image = read(path)
    z, y, x = np.unravel_index(int(array.argmax()), array.shape)
    return np.array(image.TransformIndexToPhysicalPoint((int(x), int(y), int(z))))


LANDMARKS = {  # result's image, source's image
    "BraTS2024GLI": ("BraTS-GLI-00006-100_0002.nii.gz", "BraTS-GLI-00006-100/BraTS-GLI-00006-100-T2W.nii.gz"),
    "BraTS2021": ("BraTS2021_00001_0003.nii.gz", "BraTS2021_00001/BraTS2021_00001_flair.nii"),
    "Synapse": ("synapse_0040_0000.nii.gz", "img/img0040.nii.gz"),
    "ISLES2022": (
        "strokecase0002_0002.nii.gz",
        "rawdata/sub-strokecase0002/ses-0001/anat/sub-strokecase0002_ses-0001_FLAIR.nii.gz",
    ),
    "FCD2023": ("sub-00003_0001.nii.gz", "sub-00003/anat/sub-00003_acq-x_FLAIR.nii.gz"),
}


@pytest.mark.parametrize("name", LANDMARKS)
def test_a_landmark_stays_where_it_was(converted, name):
    root, made = converted
    result, source = LANDMARKS[name]
    (path,) = made[name].folder.glob(f"images*/{result}")
    np.testing.assert_allclose(brightest(path), brightest(root / name / source), atol=1e-3)
    one, other = read(path)[1], read(root / name / source)[1]
    label = read(next(made[name].folder.glob(f"labels*/{result[:-12]}.nii.gz")))[1]
    for what in ("GetOrigin", "GetSpacing", "GetDirection", "GetSize"):
        np.testing.assert_allclose(getattr(one, what)(), getattr(other, what)(), atol=1e-5)
        np.testing.assert_allclose(getattr(label, what)(), getattr(one, what)(), atol=1e-5)


FILES = {  # of the channels in the papers' order
    "BraTS2021": [f"BraTS2021_00001/BraTS2021_00001_{modality}.nii" for modality in ("t1", "t1ce", "t2", "flair")],
    "BraTS2024GLI": [
        f"BraTS-GLI-00005-101/BraTS-GLI-00005-101-{modality}.nii.gz" for modality in ("t1n", "t1c", "t2w", "t2f")
    ],
    "ISLES2022": [
        f"rawdata/sub-strokecase0002/ses-0001/dwi/sub-strokecase0002_ses-0001_{role}.nii.gz" for role in ("adc", "dwi")
    ],
}
CHANNELS = {
    "BraTS2021": ["T1", "T1ce", "T2", "FLAIR"],
    "BraTS2024GLI": ["T1n", "T1c", "T2w", "T2f"],
    "ISLES2022": ["ADC", "DWI", "FLAIR"],
    "FCD2023": ["T1w", "FLAIR"],
    "TCGALGG": ["pre-contrast", "FLAIR", "post-contrast"],
    "Synapse": ["CT"],  # which decides nnU-Net's normalisation
}


@pytest.mark.parametrize("name", FILES)
def test_every_channel_is_the_one_it_is_called(converted, tmp_path, name):
    root, made = converted
    folder = made[name].folder
    if name == "ISLES2022":  # where two of the images are not resampled
        folder = convert(name, root / name, tmp_path, grid="dwi").folder
    contents = [read(root / name / file)[0] for file in FILES[name]]
    case = FILES[name][-1].split("/")[0 if name != "ISLES2022" else 1].removeprefix("sub-")
    for channel, content in enumerate(contents):
        (path,) = folder.glob(f"images*/{case}_000{channel}.nii.gz")
        np.testing.assert_allclose(read(path)[0], content)
        assert sum(np.array_equal(content, other) for other in contents) == 1


@pytest.mark.parametrize("name", CHANNELS)
def test_channels_have_their_names(converted, name):
    _, made = converted
    names = json.loads((made[name].folder / "dataset.json").read_text())["channel_names"]
    assert names == {str(number): channel for number, channel in enumerate(CHANNELS[name])}


@pytest.mark.parametrize(
    ("name", "classes", "regions"),
    [
        ("BraTS2021", {"NCR": 1, "ED": 2, "ET": 3}, {"WT": {1, 2, 3}, "TC": {1, 3}, "ET": {3}}),
        (
            "BraTS2024GLI",
            {"NETC": 1, "SNFH": 2, "ET": 3, "RC": 4},
            {"WT": {1, 2, 3}, "TC": {1, 3}, "ET": {3}, "RC": {4}},
        ),
    ],
)
def test_classes_and_regions_are_the_challenges(converted, tmp_path, name, classes, regions):
    root, made = converted
    labels = json.loads((made[name].folder / "dataset.json").read_text())["labels"]
    assert labels == {"background": 0, **classes}
    described = json.loads((convert(name, root / name, tmp_path, regions=True).folder / "dataset.json").read_text())
    foreground = {region: set(values) for region, values in described["labels"].items() if region != "background"}
    assert foreground == regions


@pytest.mark.parametrize(("name", "channel"), [("ISLES2022", 1), ("FCD2023", 0)])
def test_a_resampled_landmark_is_within_a_voxel(converted, name, channel):
    """On the FLAIR's grid."""
    root, made = converted
    result = LANDMARKS[name][0].replace("_0002", "_0001") if name == "ISLES2022" else "sub-00003_0000.nii.gz"
    (path,) = made[name].folder.glob(f"images*/{result}")
    pattern = "rawdata/sub-strokecase0002/*/dwi/*_dwi.nii.gz" if channel else "sub-00003/anat/*_T1w.nii.gz"
    (source,) = (root / name).glob(pattern)
    distance = np.abs(brightest(path) - brightest(source))
    assert (distance <= np.linalg.norm(layouts.FLAIR["spacing"])).all()
    assert read(path)[0].shape == layouts.FLAIR_SHAPE and read(path)[0].dtype == np.float32


def test_brats_files_are_linked_labels_are_bytes_and_visits_stay_together(converted):
    root, made = converted
    folder = made["BraTS2024GLI"].folder
    assert (made["BraTS2024GLI"].training, made["BraTS2024GLI"].test) == (5, 1)  # a fifth of six, in whole patients
    assert made["BraTS2024GLI"].notes == ["1 cases without labels were left out: BraTS-GLI-99999-000, ..."]
    source = root / "BraTS2024GLI" / "BraTS-GLI-00005-101"
    (image,) = folder.glob("images*/BraTS-GLI-00005-101_0001.nii.gz")
    assert image.samefile(source / "BraTS-GLI-00005-101-t1c.nii.gz")
    (label,) = folder.glob("labels*/BraTS-GLI-00005-101.nii.gz")
    assert read(label)[0].dtype == np.uint8 and set(np.unique(read(label)[0])) == {0, 1, 2, 3, 4}
    (other,) = folder.glob("labels*/BraTS-GLI-00005-100.nii.gz")
    assert label.parent == other.parent


def test_brats2021_label_4_becomes_3(converted):
    root, made = converted
    ours, _ = read(made["BraTS2021"].folder / "labelsTr" / "BraTS2021_00001.nii.gz")
    given, _ = read(root / "BraTS2021" / "BraTS2021_00001" / "BraTS2021_00001_seg.nii")
    np.testing.assert_array_equal(ours, np.where(given == 4, 3, given))


def test_isles_on_the_grid_of_the_labels(converted, tmp_path):
    root, _ = converted
    made = convert("ISLES2022", root / "ISLES2022", tmp_path, grid="dwi")
    mask = next((root / "ISLES2022").glob("derivatives/sub-strokecase0003/*/*_msk.nii.gz"))
    (label,) = made.folder.glob("labels*/strokecase0003.nii.gz")
    np.testing.assert_array_equal(read(label)[0], read(mask)[0])
    (flair,) = made.folder.glob("images*/strokecase0003_0002.nii.gz")
    assert read(flair)[0].shape == layouts.SHAPE and (made.training, made.test) == (4, 1)


def test_isles_mask_on_the_flairs_grid_is_the_nearest_voxels(converted):
    root, made = converted
    (path,) = made["ISLES2022"].folder.glob("labels*/strokecase0002.nii.gz")
    ours, grid = read(path)
    _, mask = read(next((root / "ISLES2022").glob("derivatives/sub-strokecase0002/*/*_msk.nii.gz")))
    checked = 0
    for z, y, x in np.argwhere(ours >= 0)[::37]:
        place = grid.TransformIndexToPhysicalPoint((int(x), int(y), int(z)))
        index = mask.TransformPhysicalPointToContinuousIndex(place)
        if any(abs(i - round(i)) > 0.45 for i in index):
            continue  # halfway between two
        nearest = tuple(round(i) for i in index)
        inside = all(0 <= i < n for i, n in zip(nearest, mask.GetSize(), strict=True))
        assert ours[z, y, x] == (mask[nearest] if inside else 0)
        checked += 1
    assert checked > 50


def test_tcga_slices_and_volumes(converted, tmp_path):
    root, made = converted
    folder = made["TCGALGG"].folder
    picture = np.asarray(Image.open(folder / "imagesTr" / "TCGA_CS_4940_19960909_10_0000.png"))
    source = root / "TCGALGG" / "kaggle_3m" / "TCGA_CS_4940_19960909" / "TCGA_CS_4940_19960909_10.tif"
    np.testing.assert_array_equal(picture, np.asarray(Image.open(source)))
    splits = json.loads((folder / "splits_final.json").read_text())
    assert len(splits) == 5 and made["TCGALGG"].splits
    for split in splits:
        patients = [{identifier.rsplit("_", 1)[0] for identifier in split[part]} for part in ("train", "val")]
        assert not patients[0] & patients[1] and len(split["train"]) + len(split["val"]) == 18
    assert sorted(one for split in splits for one in split["val"]) == sorted(splits[0]["train"] + splits[0]["val"])
    stacked = convert("TCGALGG", root / "TCGALGG", tmp_path, volumes=True)
    images, _ = read(stacked.folder / "imagesTr" / "TCGA_CS_4940_19960909_0001.nii.gz")
    assert stacked.training == 6 and images.shape == (3, 40, 36) and images[:, 0, 0].tolist() == [1, 2, 10]
    label, _ = read(stacked.folder / "labelsTr" / "TCGA_CS_4940_19960909.nii.gz")
    assert label.sum((1, 2)).tolist() == [10, 20, 100]
    source = tmp_path / "source"
    (source / "TCGA_XX_0001_20000101").mkdir(parents=True)
    with pytest.raises(ValueError, match="there are no slices in .*TCGA_XX_0001_20000101"):
        convert("TCGALGG", source, tmp_path, number=600, volumes=True)


def test_splits_of_other_cases_are_pointed_at(converted, tmp_path):
    """Slices were converted before, now volumes, whose splits nnU-Net would draw; and folds of the user's own."""
    root, _ = converted
    form, preprocessed = FORMATS["TCGALGG"], tmp_path / "preprocessed"
    path = preprocessed / "Dataset504_TCGALGG" / "splits_final.json"

    def made(raw, volumes):
        options = Options(volumes=volumes)
        return convert_dataset(
            form, root / "TCGALGG", tmp_path / raw, 504, options, workers=1, preprocessed=preprocessed
        )

    first = made("one", volumes=False)
    assert (first.placed, first.other_splits) == (path, None)
    again = made("two", volumes=False)
    assert (again.placed, again.other_splits) == (path, None)
    assert (made("three", volumes=True).placed, made("four", volumes=True).other_splits) == (None, path)
    own = json.dumps(json.loads(path.read_text())[:1])
    path.write_text(own)
    other = made("five", volumes=False)
    assert (other.placed, other.other_splits) == (None, path) and path.read_text() == own
    labels = tmp_path / "three" / "Dataset504_TCGALGG" / "labelsTr"
    names = sorted(file.name.removesuffix(".nii.gz") for file in labels.iterdir())
    path.write_text(json.dumps([{"train": names[1:], "val": names[:1]}]))
    assert made("six", volumes=True).other_splits is None


def test_splits_that_cannot_be_placed_cost_no_data_set(converted, tmp_path):
    root, _ = converted
    (tmp_path / "file").touch()
    made = convert_dataset(
        FORMATS["TCGALGG"], root / "TCGALGG", tmp_path, 504, Options(), workers=1, preprocessed=tmp_path / "file"
    )
    assert made.training == 18 and made.splits and made.placed is None
    assert (made.folder / "splits_final.json").is_file()


def test_fcd_controls_and_missing_modalities(converted, tmp_path):
    root, made = converted
    assert made["FCD2023"].notes == [
        "1 subjects without a region of interest (controls) were left out",
        "participants.tsv names no test set: all cases are for training",
    ]
    with_t2 = convert("FCD2023", root / "FCD2023", tmp_path, t2=True)
    assert read(with_t2.folder / "imagesTr" / "sub-00002_0002.nii.gz")[0].max() == 0
    assert read(with_t2.folder / "imagesTr" / "sub-00003_0002.nii.gz")[0].max() > 100
    source = tmp_path / "source"
    shutil.copytree(root / "FCD2023", source)
    (source / "sub-00001" / "anat" / "sub-00001_acq-x_T1w.nii.gz").unlink()
    with pytest.raises(ValueError, match="sub-00001: .*sub-00001 has no T1w. --skip-bad leaves such cases out"):
        convert("FCD2023", source, tmp_path, number=600)


@pytest.mark.parametrize(("encoding", "test"), [("utf-8", "test"), ("utf-8-sig", "Test ")])
def test_fcd_keeps_the_test_set_of_its_table(tmp_path, encoding, test):
    layouts.fcd2023(tmp_path / "source")
    rows = ["participant_id\tgroup\tsplit", "sub-00001\tfcd\ttrain", f"sub-00002\tfcd\t{test}", "sub-00004\thc\ttest"]
    (tmp_path / "source" / "participants.tsv").write_text("\n".join(rows), encoding=encoding)
    made = convert("FCD2023", tmp_path / "source", tmp_path)
    assert (made.training, made.test) == (2, 1) and len(made.notes) == 1
    assert [path.name for path in (made.folder / "labelsTs").iterdir()] == ["sub-00002.nii.gz"]


@pytest.mark.parametrize(("name", "options"), [("ISLES2022", {}), ("FCD2023", {}), ("TCGALGG", {"volumes": True})])
def test_an_image_that_is_written_in_part_is_a_full_disk(tmp_path, monkeypatch, name, options):
    """SimpleITK does not say so."""
    layouts.LAYOUTS[name](tmp_path / "source")
    write = sitk.WriteImage

    def half(image, path, *words, **more):
        write(image, path, *words, **more)
        os.truncate(path, os.path.getsize(path) // 2)

    monkeypatch.setattr(sitk, "WriteImage", half)
    with pytest.raises(DiskFullError, match="_0000.nii.gz"):
        convert(name, tmp_path / "source", tmp_path, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_grey_of_jpeg_masks_is_cut_in_the_middle(converted):
    _, made = converted
    mask = np.asarray(Image.open(made["KvasirSEG"].folder / "labelsTr" / "cju1.png"))
    assert set(np.unique(mask)) == {0, 1}
    assert (mask.astype(bool) == layouts._disc(44, 52)).mean() > 0.97


def test_isic_official_parts(converted):
    _, made = converted
    assert (made["ISIC2017"].training, made["ISIC2017"].test) == (5, 2)
    splits = json.loads((made["ISIC2017"].folder / "splits_final.json").read_text())
    assert splits == [
        {"train": ["ISIC_0000000", "ISIC_0000001", "ISIC_0000002"], "val": ["ISIC_0000003", "ISIC_0000004"]}
    ]
    assert made["ISIC2018"].notes == ["ISIC2018_Task1-2_Test_Input has no masks beside it and was left out"]
    assert not made["ISIC2018"].splits


def test_isic_without_its_training_set_is_refused(tmp_path):
    layouts.isic2017(tmp_path / "source")
    for path in (tmp_path / "source").glob("ISIC-2017_Training_*"):
        shutil.rmtree(path)
    with pytest.raises(ValueError, match="source has no training case"):
        convert("ISIC2017", tmp_path / "source", tmp_path)


def test_isic_of_another_year_is_left_alone(tmp_path):
    layouts.isic2017(tmp_path)
    with pytest.raises(FileNotFoundError, match="has no case of ISIC2018"):
        convert("ISIC2018", tmp_path, tmp_path / "raw")
    layouts.isic2018(tmp_path)
    assert (convert("ISIC2018", tmp_path, tmp_path / "raw").training) == 3
    made = convert("ISIC2017", tmp_path, tmp_path / "raw")
    assert (made.training, made.test) == (5, 2)


def test_isles_says_which_lesions_its_grid_loses(tmp_path):
    """Two DWI voxels between the centres of the FLAIR's slices."""
    layouts.isles2022(tmp_path)
    shape = (12, 12, 12)
    mask = np.zeros(shape, np.uint16)
    mask[5:9, 5:9, 5:9] = mask[1, 2, 2] = 1
    flair = np.ones((2, 12, 12), np.float32)  # slices at 6 and 12 mm
    name = "sub-strokecase0002"
    for role in ("adc", "dwi"):
        path = next(tmp_path.glob(f"rawdata/{name}/ses-0001/dwi/*_{role}.nii.gz"))
        layouts.write(sitk.GetImageFromArray(np.ones(shape)), path)
    layouts.write(sitk.GetImageFromArray(mask), next(tmp_path.glob(f"derivatives/{name}/ses-0001/*_msk.nii.gz")))
    coarse = sitk.GetImageFromArray(flair)
    coarse.SetSpacing((1, 1, 6))
    coarse.SetOrigin((0, 0, 6))
    layouts.write(coarse, next(tmp_path.glob(f"rawdata/{name}/ses-0001/anat/*_FLAIR.nii.gz")))
    notes = convert("ISLES2022", tmp_path, tmp_path / "raw").notes
    assert "strokecase0002: 1 of 2 lesions have no voxel on the FLAIR's grid" in notes
    assert convert("ISLES2022", tmp_path, tmp_path / "raw", number=602, grid="dwi").notes == []


def test_what_a_bad_case_leaves_is_removed_and_its_namesakes_stay(tmp_path, monkeypatch):
    def convert_one(case, target, options):
        target.image(case).write_text("")
        if case.identifier == "polyp":
            raise ValueError("bad")

    source = tmp_path / "source"
    source.mkdir()
    form = replace(
        FORMATS["KvasirSEG"], convert=convert_one, find=lambda *_: ([Case("polyp_1"), Case("polyp"), Case("a")], [])
    )
    monkeypatch.setitem(FORMATS, "KvasirSEG", form)
    made = convert_dataset(form, source, tmp_path / "raw", 506, Options(), skip_bad=True, workers=1)
    assert sorted(path.name for path in (made.folder / "imagesTr").iterdir()) == ["a_0000.png", "polyp_1_0000.png"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("filename,size\n000_HC.png,nan\n", r"size_and_HC.csv, line 2: 'nan' is no pixel size"),
        ("filename,size\n000_HC.png,0\n", r"size_and_HC.csv, line 2: '0' is no pixel size"),
        ("filename,size\n000_HC.png,0.1\u00b5\n", r"size_and_HC.csv is no table in UTF-8"),
    ],
)
def test_pixel_sizes_are_checked(tmp_path, table, message):
    layouts.hc18(tmp_path)
    (tmp_path / "training_set_pixel_size_and_HC.csv").write_text(table, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        convert("FetalHeadHC18", tmp_path, tmp_path / "raw")


def test_pixel_sizes_are_those_of_the_training_set(tmp_path):
    """The test set's pictures have the same names, and their table may lie beside it."""
    layouts.hc18(tmp_path)
    table = tmp_path / "training_set_pixel_size_and_HC.csv"
    (tmp_path / "test_set_pixel_size.csv").write_text("filename,pixel size(mm)\n000_HC.png,9.9\n")
    table = table.rename(table.with_name("Training_set_pixel_size_and_HC.csv"))
    made = convert("FetalHeadHC18", tmp_path, tmp_path / "raw")
    _, image = read(made.folder / "imagesTr" / "000_HC_0000.nii.gz")
    np.testing.assert_allclose(image.GetSpacing(), [0.15] * 2, rtol=1e-5)
    table.unlink()
    with pytest.raises(ValueError, match="no table with the pixel size of 000_HC.png"):
        convert("FetalHeadHC18", tmp_path, tmp_path / "raw", number=600)


def test_outlines_of_heads_are_filled_and_have_their_size(converted):
    _, made = converted
    for number in range(3):
        label, image = read(made["FetalHeadHC18"].folder / "labelsTr" / f"00{number}_HC.nii.gz")
        y, x = np.mgrid[:60, :80]
        inside = np.hypot((y - 30) / 20, (x - (40 if number < 2 else 6)) / 30) < 1.05  # the line's outer edge
        assert (label.astype(bool) == inside).mean() > 0.99
        np.testing.assert_allclose(image.GetSpacing(), [0.15 + 0.1 * number] * 2, rtol=1e-5)


def test_pictures_of_one_examination_stay_together(tmp_path):
    rows = ["filename,pixel size(mm),head circumference (mm)"]
    for examination in range(7):
        for picture in ("HC", "2HC", "3HC")[: examination % 3 + 1]:
            name = f"{examination:03d}_{picture}"
            for path in (f"{name}.png", f"{name}_Annotation.png"):
                layouts.write(np.zeros((9, 9), np.uint8), tmp_path / "training_set" / path)
            rows.append(f"{name}.png,0.15,44.3")
    (tmp_path / "training_set_pixel_size_and_HC.csv").write_text("\n".join(rows))
    cases, _ = FORMATS["FetalHeadHC18"].find(tmp_path, Options())
    assert len(cases) == 13
    for split in official_or_grouped_splits(cases):
        assert split["val"] and not {one[:3] for one in split["train"]} & {one[:3] for one in split["val"]}


@pytest.mark.parametrize("release", ["2023", "challenge"])
def test_isles_in_its_other_layouts(converted, tmp_path, release):
    """Subjects beside the derivatives, with and without folders for the modalities."""
    root, made = converted
    source = tmp_path / "source"
    shutil.copytree(root / "ISLES2022", source)
    for subject in source.glob("rawdata/sub-*"):
        subject.rename(source / subject.name)
    shutil.rmtree(source / "rawdata")
    if release == "challenge":
        for path in list(source.glob("sub-*/ses-*/*/*.nii.gz")):
            path.rename(path.parents[1] / path.name)
    again = convert("ISLES2022", source, tmp_path / "raw")
    same_files(made["ISLES2022"].folder, again.folder)


def test_brats_in_parts_that_are_linked_together(converted, tmp_path):
    root, made = converted
    parts = tmp_path / "parts"
    shutil.copytree(root / "BraTS2024GLI", parts / "first")
    second = parts / "second"
    second.mkdir()
    moved = max(path for path in (parts / "first").iterdir() if path.is_dir() and "99999" not in path.name)
    moved.rename(second / moved.name)
    (second / "circle").symlink_to(parts)
    source = tmp_path / "source"
    source.mkdir()
    for name in ("first", "second"):
        (source / name).symlink_to(parts / name)
    again = convert("BraTS2024GLI", source, tmp_path / "raw")
    same_files(made["BraTS2024GLI"].folder, again.folder)


def test_masks_of_one_picture_are_joined_and_classes_are_an_option(converted, tmp_path):
    root, made = converted
    joined = np.asarray(Image.open(made["BUSI"].folder / "labelsTr" / "benign_0002.png"))
    assert joined[:5, :5].all() and joined[layouts._disc(44, 52)].all() and joined.max() == 1
    classes = convert("BUSI", root / "BUSI", tmp_path, classes=True)
    values = {}
    for kind in ("benign", "malignant", "normal"):
        label = np.asarray(Image.open(classes.folder / "labelsTr" / f"{kind}_0001.png"))
        values[kind] = set(np.unique(label).tolist())
    assert values == {"benign": {0, 1}, "malignant": {0, 2}, "normal": {0}}


def test_organs_have_the_challenges_numbers(converted):
    _, made = converted
    labels = json.loads((made["Synapse"].folder / "dataset.json").read_text())["labels"]
    assert labels == {
        "background": 0,
        "spleen": 1,
        "right kidney": 2,
        "left kidney": 3,
        "gallbladder": 4,
        "oesophagus": 5,
        "liver": 6,
        "stomach": 7,
        "aorta": 8,
        "inferior vena cava": 9,
        "portal and splenic veins": 10,
        "pancreas": 11,
        "right adrenal gland": 12,
        "left adrenal gland": 13,
    }


def test_eight_organs(converted, tmp_path):
    root, made = converted
    eight = convert("Synapse", root / "Synapse", tmp_path, organs=8)
    names = json.loads((eight.folder / "dataset.json").read_text())["labels"]
    published = json.loads((made["Synapse"].folder / "dataset.json").read_text())["labels"]
    all_organs, _ = read(made["Synapse"].folder / "labelsTr" / "synapse_0002.nii.gz")
    ours, _ = read(eight.folder / "labelsTr" / "synapse_0002.nii.gz")
    assert len(names) == 9 and len(published) == 14
    for organ, number in names.items():
        if number:
            np.testing.assert_array_equal(ours == number, all_organs == published[organ])
    assert (ours > 0).sum() < (all_organs > 0).sum()


@pytest.mark.parametrize("name", ["BraTS2024GLI", "BraTS2021"])
def test_regions(converted, tmp_path, name):
    """What nnU-Net reads out of them is the challenge's regions."""
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    root, _ = converted
    made = convert(name, root / name, tmp_path, regions=True)
    description = json.loads((made.folder / "dataset.json").read_text())
    manager = LabelManager(description["labels"], description["regions_class_order"])
    assert manager.has_regions
    label, _ = read(next((made.folder / "labelsTr").iterdir()))
    masks = np.stack([np.isin(label, region) for region in manager.foreground_regions])
    again = manager.convert_probabilities_to_segmentation(masks.astype(np.float32))
    np.testing.assert_array_equal(again, label)


def test_splits_keep_groups_and_official_parts():
    cases = [Case(f"{patient}_{visit}", group=str(patient)) for patient in range(7) for visit in range(patient % 3 + 1)]
    splits = official_or_grouped_splits(cases)
    assert splits == official_or_grouped_splits(list(reversed(cases)))
    for split in splits:
        assert not {one.split("_")[0] for one in split["train"]} & {one.split("_")[0] for one in split["val"]}
    assert official_or_grouped_splits([Case(str(number)) for number in range(9)]) is None
    two = official_or_grouped_splits(cases[:3])  # fewer patients than folds
    assert sorted(split["val"] for split in two) == [["0_0"], ["1_0", "1_1"]]
    assert official_or_grouped_splits(cases[1:3]) is None  # one patient


def test_a_case_less_moves_no_other_out_of_the_test_set():
    cases = [Case(f"sub-{number:03d}") for number in range(100)]
    held_out = {case.identifier for case in _with_test_set(cases, 0.2) if case.test}
    assert len(held_out) == 20
    for gone in (0, 50):
        again = {case.identifier for case in _with_test_set([*cases[:gone], *cases[gone + 1 :]], 0.2) if case.test}
        assert len(held_out ^ again) <= 2


def test_grids_with_exchanged_axes_are_others():
    one = sitk.Image(4, 4, 4, sitk.sitkUInt8)
    for order in ((1, 0, 2), (0, 2, 1), (2, 1, 0)):
        other = sitk.Image(one)
        other.SetDirection(np.eye(3)[list(order)].ravel().tolist())
        assert not same_grid(one, other)
    assert same_grid(one, sitk.Image(one))


def test_every_converter_runs_on_real_files_where_there_are_some(tmp_path):
    """The published layouts' own files, as far as they lie beside the project."""
    names = [name for name in FORMATS if (SAMPLES / name).is_dir()]
    if not names:
        pytest.skip("no real files beside the project")
    expected = {"BraTS2024GLI": 1, "ISLES2022": 1, "ISIC2018": 200, "FetalHeadHC18": 40, "BUSI": 36}
    for name in names:
        made = convert(name, SAMPLES / name, tmp_path)
        assert made.training == expected[name] and not made.skipped
        for path in list((made.folder / "labelsTr").iterdir())[:5]:
            label = np.asarray(Image.open(path)) if path.suffix == ".png" else read(path)[0]
            known = json.loads((made.folder / "dataset.json").read_text())["labels"].values()
            assert set(np.unique(label).tolist()) <= set(known)
