import pytest

from nnunet_kd.nnunet.images import channel_of, images_by_case, in_order, is_left_over, link_cases, strangers


def made(folder, *names):
    for name in names:
        (folder / name).touch()
    return images_by_case(folder, ".png")


def test_file_names_are_split_into_case_and_channel():
    assert channel_of("a_b_0012.png", ".png") == ("a_b", 12)
    assert channel_of("a_b.png", ".png") == ("a_b", None)
    assert channel_of("a_0001.nii", ".png") == ("", None)
    assert channel_of("_0001.png", ".png") == ("_0001", None)  # the name must not become empty


@pytest.mark.parametrize(
    "name", ["._a_0000.png", ".DS_Store", "Thumbs.db", "THUMBS.DB", "desktop.ini", "__MACOSX", ".nfs0001", "@eaDir"]
)
def test_files_of_operating_systems_are_not_images(tmp_path, name):
    assert is_left_over(name)
    assert not made(tmp_path, name) and not strangers(tmp_path, ".png")


def test_files_that_are_not_images_are_listed(tmp_path):
    (tmp_path / "folder_0000.png").mkdir()
    names = ("a_0000.png", "a.json", "b.json", "b.png", ".hidden_0000.png", "_0000.png", "c_0000.PNG")
    assert [*made(tmp_path, *names)] == [".hidden", "a", "folder"]
    assert strangers(tmp_path, ".png") == ["_0000.png", "b.json", "b.png", "c_0000.PNG"]


def test_one_file_per_channel(tmp_path):
    cases = made(tmp_path, "b_0001.png", "b_0000.png", "a_0000.png", "a_0001.png", "notes.txt", "mask.png")
    files = in_order(cases, 2, tmp_path, ".png")
    assert {case: [path.name for path in paths] for case, paths in files.items()} == {
        "a": ["a_0000.png", "a_0001.png"],
        "b": ["b_0000.png", "b_0001.png"],
    }
    with pytest.raises(ValueError, match="case a: .*a_0001.png is channel 1, but the model reads one channel, 0000"):
        in_order(cases, 1, tmp_path, ".png")


def test_one_file_with_all_channels(tmp_path):
    files = in_order(made(tmp_path, "a_0000.png", "b_0000.png"), 3, tmp_path, ".png")
    assert {case: [path.name for path in paths] for case, paths in files.items()} == {
        "a": ["a_0000.png"],
        "b": ["b_0000.png"],
    }


@pytest.mark.parametrize("missing", ["b_0000.png", "b_0001.png", "b_0002.png"])
def test_a_missing_file_is_named(tmp_path, missing):
    names = {f"{case}_000{channel}.png" for case in "ab" for channel in range(3)} - {missing}
    with pytest.raises(ValueError, match=f"case b: there is no .*{missing}"):
        in_order(made(tmp_path, *names), 3, tmp_path, ".png")


def test_a_case_without_files(tmp_path):
    with pytest.raises(ValueError, match="case c: there is no .*c_0000.png"):
        in_order({**made(tmp_path, "a_0000.png"), "c": {}}, 3, tmp_path, ".png")
    assert in_order({}, 3, tmp_path, ".png") == {}


def test_only_the_given_cases_are_linked(tmp_path):
    """The voxel size of 3-D TIFF files is linked too, even if the name of the case looks like that of a channel."""
    source, folder = tmp_path / "source", tmp_path / "links"
    source.mkdir()
    for name in ("a_0001_0000.tif", "a_0001_0001.tif", "a_0001.json", "a.json", "b_0000.tif", "b_0001.tif"):
        (source / name).touch()
    files = in_order(images_by_case(source, ".tif"), 2, source, ".tif")
    link_cases(folder, files)
    assert _names(folder) == [name for name in _names(source) if name != "a.json"]
    (folder / "notes.txt").touch()
    link_cases(folder, {"b": files["b"]})
    assert _names(folder) == ["b_0000.tif", "b_0001.tif", "notes.txt"]
    assert (folder / "b_0000.tif").resolve() == (source / "b_0000.tif").resolve()


def test_a_broken_link_is_refused(tmp_path):
    """git-annex leaves such links for files that it has not fetched."""
    (tmp_path / "a_0000.png").symlink_to("annex.png")
    files = in_order(images_by_case(tmp_path, ".png"), 1, tmp_path, ".png")
    with pytest.raises(ValueError, match=r"case a: there is no .*annex.png, to which .*a_0000.png links"):
        link_cases(tmp_path / "links", files)
    assert not (tmp_path / "links").exists()


def _names(folder):
    return sorted(path.name for path in folder.iterdir())
