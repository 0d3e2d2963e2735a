"""Installation unpacks a model and nothing else: no file elsewhere, no code that stock nnU-Net would run."""

import io
import json
import os
import pickle
import shutil
import zipfile

import pytest
import torch

from nnunet_kd.cli import main
from nnunet_kd.deploy.stock import export_stock, install_stock
from nnunet_kd.deploy.trained import read_trained
from nnunet_kd.storage.writing import DiskFullError
from tests.conftest import DATASET
from tests.students import results

MODEL = "Dataset001_X/nnUNetTrainer__p__2d"


def archive_of(path, *names, external=0):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = external
            archive.writestr(entry, "content")
    return path


def test_install(students, tmp_path, capsys, monkeypatch):
    path = tmp_path / "student.zip"
    folder = export_stock(read_trained(results(students), ["0"]), path)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    assert main(["install", str(path)]) == 0
    printed = capsys.readouterr().out
    assert f"installed {tmp_path / 'results' / folder}" in printed
    model = f"-d {DATASET} -c 3d_fullres -p nnUNetPlans_NoKD -tr nnUNetTrainer -f 0"
    assert f"then: nnUNetv2_predict {model} -i IN -o OUT\n" in printed
    before = (tmp_path / "results" / folder / "plans.json").stat().st_mtime_ns
    assert main(["install", str(path)]) == 1
    assert "already exists: remove it" in capsys.readouterr().err
    assert (tmp_path / "results" / folder / "plans.json").stat().st_mtime_ns == before
    assert [entry.name for entry in (tmp_path / "results").iterdir()] == [DATASET]


@pytest.mark.parametrize(
    "name", ["../evil", f"{MODEL}/../../../evil", "/etc/evil", f"{MODEL}\\..\\evil", f"{MODEL}/./../../../evil"]
)
def test_an_archive_that_would_write_outside(tmp_path, name):
    path = archive_of(tmp_path / "model.zip", f"{MODEL}/plans.json", name)
    with pytest.raises(ValueError, match="would write outside nnUNet_results"):
        install_stock(path, tmp_path / "results")
    assert not (tmp_path / "results").exists() and not (tmp_path / "evil").exists()


def test_an_archive_with_a_link(tmp_path):
    path = archive_of(tmp_path / "model.zip", f"{MODEL}/plans.json", external=0o120777 << 16)
    with pytest.raises(ValueError, match="would write outside nnUNet_results"):
        install_stock(path, tmp_path / "results")


def test_files_that_are_not_exported_models(tmp_path):
    for names, message in ((("readme.txt",), "is not an exported model: it holds 'readme.txt'"), ((), "it is empty")):
        with pytest.raises(ValueError, match=message):
            install_stock(archive_of(tmp_path / "model.zip", *names), tmp_path / "results")
    (tmp_path / "model.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="is not a zip file, or it is damaged"):
        install_stock(tmp_path / "model.zip", tmp_path / "results")
    path = archive_of(tmp_path / "model.zip", f"{MODEL}/plans.json")
    path.write_bytes(path.read_bytes().replace(b"content", b"CONTENT"))
    with pytest.raises(ValueError, match="is damaged: Bad CRC-32"):
        install_stock(path, tmp_path / "results")
    assert not list((tmp_path / "results").iterdir())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((f"{MODEL}/plans.json", f"{MODEL}/plans.json"), "contains .*plans.json' twice"),
        ((f"{MODEL}/plans.json", f"{MODEL}/./plans.json"), "contains .*plans.json' twice"),
        ((f"{MODEL}/C:evil",), "would write outside"),
        (("C:\\\\evil",), "would write outside"),
        ((f"{MODEL}/a\nb",), "would write outside"),
        ((MODEL,), "is not an exported model: it holds"),
        (("Dataset001_X/./a__b__c/plans.json",), "is not an exported model: it holds"),
        (("Dataset001_X//a__b__c/plans.json",), "is not an exported model: it holds"),
        (("Dataset001_X/plans.json",), "is not an exported model: it holds"),
        (("",), "is not an exported model: it holds"),
        ((f"{MODEL}/a", f"{MODEL}/a/b"), "is damaged"),
        (tuple(f"{MODEL}/{i}" for i in range(10_001)), "it contains 10001 files"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_with_odd_entries(tmp_path, names, message):
    path = archive_of(tmp_path / "model.zip", *names)
    with pytest.raises(ValueError, match=message) as caught:
        install_stock(path, tmp_path / "results")
    assert "\n" not in str(caught.value) and sorted(entry.name for entry in tmp_path.rglob("*")) in (
        ["model.zip"],
        ["model.zip", "results"],
    )


def test_a_name_that_ends_early(tmp_path):
    """Python's own reader truncates it."""
    path = archive_of(tmp_path / "model.zip", f"{MODEL}/aXb")
    path.write_bytes(path.read_bytes().replace(b"aXb", b"a\0b"))
    with pytest.raises(ValueError, match="would write outside"):
        install_stock(path, tmp_path / "results")


def test_an_archive_that_becomes_a_thousand_times_larger(tmp_path):
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{MODEL}/plans.json", b"0" * 50 * 2**20)
    with pytest.raises(ValueError, match=r"its files would take 0\.0 GiB"):
        install_stock(path, tmp_path / "results")
    # The archive declares a small size; no more than that is unpacked.
    small = tmp_path / "small.zip"
    content, size = path.read_bytes(), (50 * 2**20).to_bytes(4, "little")
    assert content.count(size) == 2
    small.write_bytes(content.replace(size, (1000).to_bytes(4, "little")))
    with pytest.raises(ValueError, match="is damaged: Bad CRC-32"):
        install_stock(small, tmp_path / "results")
    assert not list((tmp_path / "results").iterdir())


def test_an_archive_larger_than_the_disk(students, tmp_path, small_disk):
    path = tmp_path / "student.zip"
    export_stock(read_trained(results(students), ["0"]), path)
    disk = small_disk(2**16)
    with pytest.raises(DiskFullError, match=r"the disk is full, .*student\.zip needs .* GiB"):
        install_stock(path, disk)
    assert not list(disk.iterdir())


def test_an_encrypted_archive(tmp_path):
    path = archive_of(tmp_path / "model.zip", f"{MODEL}/plans.json")
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + flags] |= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: File .* is encrypted"):
        install_stock(path, tmp_path / "results")


class Malice:
    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def exported(students, path, name, change):
    """Export a student and change one of its files."""
    whole = path.with_name("whole.zip")
    folder = export_stock(read_trained(results(students), ["0"]), whole)
    with zipfile.ZipFile(whole) as before, zipfile.ZipFile(path, "w") as after:
        for entry in before.namelist():
            content = before.read(entry)
            after.writestr(entry, change(content) if entry == f"{folder}/{name}" else content)
        if f"{folder}/{name}" not in before.namelist():
            after.writestr(f"{folder}/{name}", change(b""))
    whole.unlink()
    return folder


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def with_network(content, **arguments):
    plans = json.loads(content)
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] |= arguments
    return json.dumps(plans).encode()


SPOILT = {
    "a checkpoint with code": (
        "fold_0/checkpoint_final.pth",
        lambda content, mark: saved({**torch.load(io.BytesIO(content), weights_only=False), "x": Malice(mark)}),
        "contains more than weights and numbers",
    ),
    "another checkpoint with code": (
        "fold_1/checkpoint_best.pth",
        lambda _, mark: saved({"x": Malice(mark)}),
        "contains more than weights and numbers",
    ),
    "a checkpoint of another configuration": (
        "fold_0/checkpoint_final.pth",
        lambda content, _: saved(
            {**torch.load(io.BytesIO(content), weights_only=False), "init_args": {"configuration": "2d"}}
        ),
        "belongs to configuration '2d', not to 3d_fullres",
    ),
    "plans with code": (
        "plans.json",
        lambda content, mark: with_network(content, nonlin="os.mkdir", nonlin_kwargs={"path": str(mark)}),
        "builds its network with 'os.mkdir'",
    ),
    "a network without measure": (
        "plans.json",
        lambda content, _: with_network(content, n_stages=10**9),
        "features_per_stage must have 1000000000 entries, as n_stages is 1000000000",
    ),
    "a network larger than its weights": (
        "plans.json",
        lambda content, _: with_network(content, features_per_stage=[10**6] * 3),
        r"do not belong to the plans\.json",
    ),
    "postprocessing with code": (
        "postprocessing.pkl",
        lambda _, mark: pickle.dumps(Malice(mark)),
        "holds more than nnU-Net's postprocessing",
    ),
    "postprocessing of something else": (
        "crossval/postprocessing.pkl",
        lambda _, __: pickle.dumps(([shutil.rmtree], [{}])),
        "holds more than nnU-Net's postprocessing",
    ),
    "nothing of a pickle": ("postprocessing.pkl", lambda _, __: b"nothing", "holds more than nnU-Net's postprocessing"),
    "no plans": ("plans.json", lambda _, __: b"[]", "is not a JSON object"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_stock_nnunet_would_run_is_not_installed(students, tmp_path, name):
    file, change, message = SPOILT[name]
    path, mark = tmp_path / "model.zip", tmp_path / "mark"
    folder = exported(students, path, file, lambda content: change(content, mark))
    with pytest.raises(ValueError, match=message) as caught:
        install_stock(path, tmp_path / "results")
    assert f"{path}/{folder}/" in str(caught.value) and "\n" not in str(caught.value)
    assert not mark.exists() and not list((tmp_path / "results").iterdir())
    assert install_stock(path, tmp_path / "results", trust=True) == [folder]
    assert not mark.exists()  # installation itself does not run the code


def test_nnunets_own_postprocessing_is_installed(students, tmp_path):
    from nnunetv2.postprocessing.remove_connected_components import (
        remove_all_but_largest_component_from_segmentation as largest,
    )

    for protocol in (0, 2, 5):
        content = pickle.dumps(
            ([largest, largest], [{"labels_or_regions": 1}, {"labels_or_regions": (1, 2)}]), protocol
        )
        path = tmp_path / f"{protocol}.zip"
        exported(students, path, "postprocessing.pkl", lambda _, content=content: content)
        install_stock(path, tmp_path / f"results_{protocol}")


def test_a_model_of_an_unknown_trainer_is_installed(students, tmp_path):
    def renamed(content):
        return saved({**torch.load(io.BytesIO(content), weights_only=False), "trainer_name": "nnUNetTrainerElsewhere"})

    folder = exported(students, tmp_path / "model.zip", "fold_0/checkpoint_final.pth", renamed)
    assert install_stock(tmp_path / "model.zip", tmp_path / "results") == [folder]


def test_what_nnunet_exports_beside_models(students, tmp_path):
    """Ensembles of ``nnUNetv2_find_best_configuration`` are installed; existing ones are kept."""
    path, folder = tmp_path / "model.zip", tmp_path / "results"
    model = export_stock(read_trained(results(students), ["0"]), path)
    ensemble = f"{DATASET}/ensembles/ensemble___a__b__2d___a__b__3d_fullres___0"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{ensemble}/summary.json", "{}")
        archive.writestr(f"{ensemble}/postprocessing.pkl", pickle.dumps(([], [])))
        archive.writestr(f"{DATASET}/inference_information.json", "{}")
    (folder / DATASET).mkdir(parents=True)
    (folder / DATASET / "inference_information.json").write_text("[]")
    assert install_stock(path, folder) == [model]
    assert sorted(entry.name for entry in (folder / ensemble).iterdir()) == ["postprocessing.pkl", "summary.json"]
    assert (folder / DATASET / "inference_information.json").read_text() == "[]"

    evil = tmp_path / "evil.zip"
    export_stock(read_trained(results(students), ["0"]), evil, "other")
    with zipfile.ZipFile(evil, "a") as archive:
        archive.writestr(f"{ensemble}/postprocessing.pkl", pickle.dumps(Malice(tmp_path / "mark")))
    with pytest.raises(ValueError, match="holds more than nnU-Net's postprocessing"):
        install_stock(evil, folder)
    assert not (tmp_path / "mark").exists()
