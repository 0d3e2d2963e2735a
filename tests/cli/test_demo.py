"""``nnunet_kd demo``, with very short trainings."""

import pytest

from nnunet_kd.cli import main


def test_data_of_the_demo_are_complete_or_absent(tmp_path, monkeypatch, capsys):
    """Otherwise the next run would accept the partial data that a full disk left."""
    from nnunet_kd.datasets import synthetic

    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, "to be replaced")
    small = synthetic.make_dataset

    def disk_full(folder, **_):
        small(folder, training=1, test=1, shape=(6, 12, 12))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(synthetic, "make_dataset", disk_full)
    assert main(["demo", "--out", str(tmp_path)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert list((tmp_path / "nnUNet_raw").iterdir()) == []


@pytest.mark.slow
def test_demo_prints_its_table_and_resumes_where_it_stopped(tmp_path, capsys, monkeypatch, forked_commands):
    from nnunet_kd.cli import demo
    from nnunet_kd.datasets import synthetic

    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, "to be replaced")
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    short = {"num_epochs": 3, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}
    monkeypatch.setattr(demo, "SCHEDULES", dict.fromkeys(demo.SCHEDULES, short))
    small = synthetic.make_dataset
    monkeypatch.setattr(
        synthetic, "make_dataset", lambda folder, **_: small(folder, training=12, test=0, shape=(12, 22, 18))
    )
    assert main(["demo", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "epoch 3 of 3" in printed and "$ nnUNetv2_train 599 3d_fullres 0 -tr nnUNetTrainerDCD" in printed
    table = (tmp_path / "table.txt").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert [row[0] for row in rows][:4] == ["teacher", "NoKD", "DCD", "KD"]
    best, last = next(row for row in rows if rows[4][0] == f"{row[0]}, exported"), rows[4]
    assert best[3] == last[3] and best[5] == last[4] == "-" and min(float(best[4]), float(last[5])) > 0
    assert [float(dice) for dice in best[1:3]] == pytest.approx([float(dice) for dice in last[1:3]], abs=0.02)
    page = (tmp_path / "index.html").read_text()
    assert page.count("<img ") == 15 and f"{best[0]} is the best student here" in page and "http" not in page
    assert f"page  {tmp_path / 'index.html'}" in printed
    assert main(["demo", "--out", str(tmp_path)]) == 0
    assert "$ nnUNetv2" not in capsys.readouterr().out
    assert main(["demo", "--out", str(tmp_path), "--seed", "1"]) == 1
    assert capsys.readouterr().err == (
        f"nnunet_kd: {tmp_path} has a demo with another seed or other schedules: give another folder with --out\n"
    )
