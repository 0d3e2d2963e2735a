import json
from copy import deepcopy

import pytest

from nnunet_kd.nnunet.networks_of_plans import NETWORKS
from nnunet_kd.nnunet.planning import reduce_widths, student_plans
from nnunet_kd.nnunet.settings import Settings, TeacherSettings, read_settings, recorded_leakage, with_leakage


def plans(network="dynamic_network_architectures.architectures.unet.PlainConvUNet"):
    def configuration(widths):
        arguments = {"n_stages": len(widths), "features_per_stage": widths}
        return {"architecture": {"network_class_name": network, "arch_kwargs": arguments}, "patch_size": [32] * 3}

    return {
        "plans_name": "nnUNetPlans",
        "configurations": {
            "2d": configuration([32, 64, 128, 256, 512]),
            "3d_fullres": configuration([32, 64, 128, 320]),
            "3d_big": {"inherits_from": "3d_fullres", "patch_size": [64] * 3},
        },
    }


def test_widths_are_divided_in_every_configuration_and_nothing_else_changes():
    before = plans()
    after = student_plans(before, 4, name="nnUNetPlans_r4")
    widths = {
        c: after["configurations"][c]["architecture"]["arch_kwargs"]["features_per_stage"] for c in ("2d", "3d_fullres")
    }
    assert widths == {"2d": [8, 16, 32, 64, 128], "3d_fullres": [8, 16, 32, 80]}
    assert after["plans_name"] == "nnUNetPlans_r4"
    assert after["nnunet_kd"]["student"] == {"source_plans": "nnUNetPlans", "reduction": 4, "min_features": 8}
    assert before == plans()
    restored = deepcopy(after)
    del restored["nnunet_kd"]
    restored["plans_name"] = "nnUNetPlans"
    for configuration, content in plans()["configurations"].items():
        if "architecture" in content:
            restored["configurations"][configuration]["architecture"] = content["architecture"]
    assert restored == plans()


@pytest.mark.parametrize("network", ["dra_unet", "kd_sam", "brainseg_dmif", "vm_unet"])
def test_other_networks_in_configurations_that_inherit(network):
    """The configurations define a network or inherit one; inherited entries need not be present."""
    arguments = {
        "n_stages": 2,
        "features_per_stage": [32, 64],
        "kernel_sizes": [[3, 3]] * 2,
        "strides": [[1, 1], [2, 2]],
    }
    arguments["conv_op"] = "torch.nn.modules.conv.Conv2d"
    name = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    own = {"architecture": {"network_class_name": name, "arch_kwargs": arguments}}
    given = {"plans_name": "nnUNetPlans", "configurations": {}}
    given["configurations"]["2d"] = {**own, "patch_size": [56, 40], "batch_size": 4}
    given["configurations"]["2d_own"] = {"inherits_from": "2d", **own}
    given["configurations"]["2d_large"] = {"inherits_from": "2d", "patch_size": [100, 64]}
    after = student_plans(given, network=network)["configurations"]
    classes = {after[c]["architecture"]["network_class_name"] for c in ("2d", "2d_own")}
    assert len(classes) == 1 and classes != {name} and "architecture" not in after["2d_large"]
    assert "patch_size" not in after["2d_own"]
    sizes = [after[c]["patch_size"] for c in ("2d", "2d_large")]
    assert sizes == ([[64, 64], [128, 64]] if network == "vm_unet" else [[56, 40], [100, 64]])
    assert after["2d"]["batch_size"] == (16 if network == "kd_sam" else 4)
    given["configurations"]["2d"]["batch_size"] = 105  # nnU-Net's value for small slices
    largest = {"kd_sam": 16, "brainseg_dmif": 4, "vm_unet": 32}.get(network, 105)
    assert student_plans(given, network=network)["configurations"]["2d"]["batch_size"] == largest


@pytest.mark.parametrize(("network", "batch"), [("dra_unet", 11), ("brainseg_dmif", 4), ("vm_unet", 32)])
def test_networks_as_in_their_papers(network, batch):
    arguments = {"n_stages": 2, "features_per_stage": [32, 64], "kernel_sizes": [[1, 3]] * 2}
    arguments |= {"strides": [[1, 1], [1, 2]], "conv_op": "torch.nn.modules.conv.Conv2d"}
    name = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    content = {"architecture": {"network_class_name": name, "arch_kwargs": arguments}, "batch_size": 105}
    given = {"plans_name": "nnUNetPlans", "configurations": {"2d": {**content, "patch_size": [40, 56]}}}
    given["configurations"]["3d_fullres"] = plans()["configurations"]["3d_fullres"]
    given["configurations"]["2d_large"] = {"inherits_from": "2d", "patch_size": [320, 320]}
    after = student_plans(given, 1, network=network, paper=True)
    configurations = after["configurations"]
    assert [*configurations] == ["2d", "2d_large"]
    assert all(one["patch_size"] == [256, 256] for one in configurations.values())
    assert configurations["2d"]["batch_size"] == batch
    if network == "dra_unet":
        theirs = configurations["2d"]["architecture"]["arch_kwargs"]
        assert theirs["features_per_stage"] == [64, 128, 256, 512, 1024]
        assert theirs["kernel_sizes"] == [[3, 3]] * 5 and theirs["strides"] == [[1, 1], *[[2, 2]] * 4]
        given["configurations"]["2d"]["batch_size"] = 3
        small = student_plans(given, 4, network=network, paper=True)["configurations"]["2d"]
        assert small["architecture"]["arch_kwargs"]["features_per_stage"] == [16, 32, 64, 128, 256]
        assert small["batch_size"] == 3
    training = {"optimizer": "adamw", "initial_lr": 0.001, "num_epochs": 300, "deep_supervision": False}
    training |= {"lr_schedule": "cosine", "augmentation": "flips_and_rotations"}
    if network == "vm_unet":
        assert after["nnunet_kd"]["training"] == training
        given["nnunet_kd"] = {"training": {"num_epochs": 7}}  # what the plans say already is kept
        assert student_plans(given, network=network, paper=True)["nnunet_kd"]["training"]["num_epochs"] == 7


def test_batches_of_vm_unet_shrink_as_the_patch_grows():
    batch_of = NETWORKS["vm_unet"].batch_of
    assert [batch_of(*given) for given in ((105, (64, 64)), (49, (256, 256)), (12, (512, 512)))] == [32, 12, 3]
    assert batch_of(2, (2048, 2048)) == 2 and batch_of(49, None) == 32
    assert NETWORKS["dra_unet"].batch_of(12, (512, 512)) == 12


def test_the_smallest_width():
    assert reduce_widths([32, 64, 320], 16) == [8, 8, 20]
    assert reduce_widths([4, 6, 64], 4) == [4, 6, 16]  # never wider than the teacher
    assert reduce_widths([32, 33], 3, min_features=1) == [10, 11]
    assert reduce_widths([32], 2.5, min_features=1) == [12]
    assert reduce_widths([32, 64, 128, 320], 1.6) == [20, 40, 80, 200]  # floating point would give one less


def test_widths_can_be_given():
    after = student_plans(plans(), 2, widths={"3d_fullres": [4, 5, 6, 7]})
    assert after["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] == [4, 5, 6, 7]
    assert after["configurations"]["2d"]["architecture"]["arch_kwargs"]["features_per_stage"][0] == 16


def test_one_width_for_all_stages_is_expanded():
    before = plans()
    before["configurations"]["2d"]["architecture"]["arch_kwargs"]["features_per_stage"] = 32
    after = student_plans(before, 4)
    assert after["configurations"]["2d"]["architecture"]["arch_kwargs"]["features_per_stage"] == [8] * 5


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"3d_fullres": [8, 16]}, "configuration 3d_fullres has 4 stages, got 2 widths"),
        ({"3d_fullres": [8, 16, 0, 8]}, "cannot have 0 channels"),
        ({"3d_fullres": [8, 16, 2.5, 8]}, "cannot have 2.5 channels"),
        ({"3d_fulres": [8, 16, 8, 8]}, "unknown key '3d_fulres' .*did you mean '3d_fullres'"),
        ({"3d_big": [8, 16, 8, 8]}, "configuration 3d_big inherits its network from 3d_fullres"),
    ],
)
def test_bad_widths(widths, message):
    with pytest.raises(ValueError, match=message):
        student_plans(plans(), widths=widths)


def test_configurations_that_are_not_trained_can_have_any_network():
    before = plans()
    other = {"network_class_name": "some.Transformer", "arch_kwargs": {}, "_kw_requires_import": []}
    before["configurations"]["3d_other"] = {"inherits_from": "3d_fullres", "architecture": other}
    after = student_plans(before, 4, trained="3d_big")["configurations"]
    assert after["3d_other"]["architecture"] == other
    assert after["3d_fullres"] == student_plans(plans(), 4)["configurations"]["3d_fullres"]
    with pytest.raises(ValueError, match="configuration 3d_other uses some.Transformer"):
        student_plans(before, 4, trained="3d_other")
    with pytest.raises(ValueError, match="configuration 3d_other uses some.Transformer"):
        student_plans(before, 4)


def test_unknown_network_and_old_plans():
    with pytest.raises(ValueError, match="uses some.Transformer, whose widths cannot be reduced"):
        student_plans(plans("some.Transformer"))
    old = plans()
    old["configurations"]["2d"] = {"UNet_base_num_features": 32}
    with pytest.raises(ValueError, match="no 'architecture': plan the data set again with nnUNetv2_plan_experiment"):
        student_plans(old)
    with pytest.raises(ValueError, match=r"student.reduction must be at least 1, got 0.5"):
        student_plans(plans(), 0.5)


def test_without_a_block_all_settings_are_defaults():
    assert read_settings({}) == Settings()
    assert Settings().teachers[0].folds == "same"
    assert Settings().training.seed == 1234


def test_the_block_is_read():
    settings = read_settings(
        {
            "nnunet_kd": {
                "student": {"source_plans": "nnUNetPlans", "reduction": 8},
                "teacher": {"folds": [1], "checkpoint": "checkpoint_best.pth"},
                "training": {"num_epochs": 5, "initial_lr": 1, "seed": None},
                "method": {"weight": 0.05},
            }
        }
    )
    assert settings.student.reduction == 8 and settings.student.min_features == 8
    assert settings.teachers == (TeacherSettings(folds=[1], checkpoint="checkpoint_best.pth"),)
    assert settings.training.num_epochs == 5 and settings.training.seed is None
    assert settings.method == {"weight": 0.05}


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ([], "nnunet_kd in the plans must be an object"),
        ({"trainer": {}}, "unknown key 'trainer' in nnunet_kd: did you mean 't"),
        ({"teacher": "nnUNetTrainer"}, "nnunet_kd.teacher must be an object, got 'nnUNetTrainer'"),
        ({"teacher": {"fold": 0}}, "unknown key 'fold' in nnunet_kd.teacher: did you mean 'fold"),
        ({"training": {"epochs": 3}}, "unknown key 'epochs' in nnunet_kd.training: did you mean 'num_epochs'"),
        ({"training": {"zzz": 3}}, "unknown key 'zzz' in nnunet_kd.training: valid are 'num_epochs', "),
        ({"training": {"num_epochs": "3"}}, "nnunet_kd.training.num_epochs must be a whole number or null, got '3'"),
        ({"training": {"num_epochs": True}}, "must be a whole number or null, got True"),
        ({"training": {"num_epochs": 0}}, "nnunet_kd.training.num_epochs must be at least 1, got 0"),
        ({"training": {"initial_lr": -1}}, "initial_lr must be above 0, got -1"),
        ({"training": {"initial_lr": float("nan")}}, "initial_lr must be .*number.*got nan"),
        ({"training": {"ema_decay": 1.0}}, "ema_decay must be between 0 and 1, got 1.0"),
        ({"training": {"seed": -1}}, "seed must be from 0"),
        ({"teacher": {"folds": "0"}}, 'teacher.folds must be "same", "all" or'),
        ({"teacher": {"folds": []}}, 'teacher.folds must be "same", "all" or'),
        ({"teacher": {"folds": [0.5]}}, "teacher.folds must be text or a list of whole numbers, got"),
        ({"student": {"min_features": 0}}, "student.min_features must be at least 1, got 0"),
    ],
)
def test_bad_blocks_name_the_key(block, message):
    with pytest.raises(ValueError, match=message):
        read_settings({"nnunet_kd": block})


def test_student_plans_can_be_written_as_json():
    after = student_plans(plans(), 4)
    assert json.loads(json.dumps(after)) == after
    assert read_settings(after).student.reduction == 4


def test_several_teachers():
    block = {"teacher": [{"trainer": "A"}, {"folds": [1, 2]}]}
    settings = read_settings({"nnunet_kd": block})
    assert settings.teachers == (TeacherSettings(trainer="A"), TeacherSettings(folds=[1, 2]))
    assert read_settings({"nnunet_kd": {"teacher": {"trainer": "A"}}}).teachers == (TeacherSettings(trainer="A"),)
    assert read_settings({}).teachers == (TeacherSettings(),)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ([], "nnunet_kd.teacher is an empty list"),
        ([{}, 3], "nnunet_kd.teacher must be an object, got 3"),
        ([{}, {"fold": 1}], r"unknown key 'fold' in nnunet_kd.teacher\[1\]: did you mean 'folds'"),
        ([{"folds": "some"}], "nnunet_kd.teacher.folds must be"),
    ],
)
def test_errors_of_several_teachers(teacher, message):
    with pytest.raises(ValueError, match=message):
        read_settings({"nnunet_kd": {"teacher": teacher}})


@pytest.mark.parametrize("teacher", [None, {"trainer": "A"}, [{"trainer": "A"}, {"folds": [1]}]], ids=str)
def test_leakage_is_recorded_and_read_back(teacher):
    plans = {} if teacher is None else {"nnunet_kd": {"teacher": teacher}}
    noted = with_leakage(plans, {"0": "LEAKAGE: all of it"})
    assert recorded_leakage(noted) == {"0": "LEAKAGE: all of it"} and recorded_leakage(plans) == {}
    assert recorded_leakage(with_leakage(noted, {"1": "x"})) == {"1": "x"}
    assert read_settings(with_leakage(noted, {})) == read_settings(plans)


def test_a_folder_excludes_trainer_and_plans():
    with pytest.raises(ValueError, match="nnunet_kd.teacher.folder must be given without trainer and plans"):
        read_settings({"nnunet_kd": {"teacher": {"folder": "here", "plans": "nnUNetPlans"}}})
