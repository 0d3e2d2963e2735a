"""What becomes of cases that cannot be converted, and of conversions in several processes."""

from nnunet_kd.datasets.busi import BUSI
from nnunet_kd.datasets.cases import Case
from nnunet_kd.datasets.conversion import convert_dataset
from nnunet_kd.datasets.kvasir_seg import KvasirSEG
from tests.datasets.converting import same_files


class ThreePolyps(KvasirSEG):
    """The second of three cases cannot be converted, and says so too late."""

    def find(self, source):
        return [Case("polyp_1"), Case("polyp"), Case("a")], []

    def convert(self, case, raw):
        raw.image(case).write_text("")
        if case.identifier == "polyp":
            raise ValueError("bad")


def test_what_a_bad_case_leaves_is_removed_and_its_namesakes_stay(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    made = convert_dataset(ThreePolyps(), source, tmp_path / "raw", skip_bad=True, workers=1)
    assert made.skipped == ["polyp: bad"] and made.training == 2
    assert sorted(path.name for path in (made.folder / "imagesTr").iterdir()) == ["a_0000.png", "polyp_1_0000.png"]


def test_several_processes_make_the_same_files(converted, tmp_path):
    root, made = converted
    again = convert_dataset(BUSI(), root / "BUSI", tmp_path, workers=2)
    same_files(made["BUSI"].folder, again.folder)


def test_options_reach_the_other_processes(converted, tmp_path):
    root, _ = converted
    one, two = (
        convert_dataset(BUSI(classes=True), root / "BUSI", tmp_path / str(workers), workers=workers)
        for workers in (1, 2)
    )
    same_files(one.folder, two.folder)
