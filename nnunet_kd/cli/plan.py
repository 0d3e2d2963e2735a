"""``nnunet_kd plan``: write the plans of a student, and compare its cost with the teacher's."""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

from nnunet_kd.nnunet.networks_of_plans import NETWORKS, network_of_plans
from nnunet_kd.nnunet.planning import RECIPE
from nnunet_kd.nnunet.reading import plans_errors

_DESCRIPTION = """\
Write the plans of a student: the teacher's plans with smaller widths in every configuration. Nothing else changes, so
the student trains on the data that you have preprocessed already. The command prints the parameters, FLOPs
(convolutions and matrix products; a multiply-add counts as two) and activation memory of teacher and student.

  nnunet_kd plan -d 501 -r 4
      write nnUNetPlans_r4.json with all widths divided by 4, and train that student with
      nnUNetv2_train 501 3d_fullres 0 -tr nnUNetTrainerKD -p nnUNetPlans_r4
  nnunet_kd plan -d 501 -c 3d_fullres --widths 8 16 32 64 80 80 -o nnUNetPlans_mine
      set the widths of one configuration by hand; those of the others are divided by -r
  nnunet_kd plan -d 501 --network dra_unet
      write nnUNetPlans_dra_unet_r4.json: another network with the teacher's stages, for any trainer, including
      stock nnUNetTrainer
  nnunet_kd plan -d 501 --network mobile_unet
      write nnUNetPlans_mobile_unet_r4.json: a smaller student of MobileNet blocks with the stages and widths of -r 4,
      from random weights
  nnunet_kd plan -d 501 --network kd_sam
      write nnUNetPlans_kd_sam.json: KD-SAM in the 2d configuration, whose size -r does not change. Name SAM's weights
      in that file, "nnunet_kd": {..., "method": {"checkpoint": "sam_vit_h_4b8939.pth"}}, and train with
      nnUNetv2_train 501 2d 0 -tr nnUNetTrainerKDSAM -p nnUNetPlans_kd_sam
  nnunet_kd plan -d 501 --network vm_unet
      write nnUNetPlans_vm_unet.json: VM-UNet in the 2d configuration with the widths of its paper, a patch rounded up
      to multiples of 32, and AdamW. Add -r 4 to divide its widths.
  nnunet_kd plan -d 501 --network dra_unet --paper
      write nnUNetPlans_dra_unet_paper.json: DRA-UNet in the 2d configuration as in its paper, five stages of 64 to 1024
      channels and patches of 256 x 256. brainseg_dmif and vm_unet get the patch of theirs, and vm_unet its batch of 32
      (which takes a GPU of 24 GB). Schedule and augmentation are the papers' as far as they differ from nnU-Net's.
  nnunet_kd plan -d 501 --network monai.SwinUNETR
      write nnUNetPlans_monai_SwinUNETR.json: a network that papers compare theirs with, from random weights.
"""

OTHERWISE = "nnUNetTrainerDCD"  # for a student that cannot start from its teacher


def add_parser(commands: Any) -> None:
    """Add the command ``plan`` and its arguments."""
    command = commands.add_parser(
        "plan",
        help="write the plans of a student",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("-d", metavar="ID", required=True, help="number or name of the data set")
    command.add_argument(
        "-p", metavar="PLANS", default="nnUNetPlans", help="name of the teacher's plans (default: nnUNetPlans)"
    )
    command.add_argument(
        "-r", metavar="FACTOR", type=float, help="divide every width by this factor (default: 4; 1 for vm_unet)"
    )
    command.add_argument(
        "--min-features", metavar="N", type=int, default=8, help="smallest width of a stage (default: 8)"
    )
    command.add_argument(
        "--widths",
        metavar="N",
        type=int,
        nargs="+",
        help="widths of the stages in the configuration -c (default: divide by -r)",
    )
    command.add_argument(
        "-c",
        metavar="CONFIG",
        help="configuration of --widths (default: 3d_fullres if planned; 2d for networks of slices)",
    )
    command.add_argument(
        "--network", choices=sorted(NETWORKS), help="use a network of this package (default: nnU-Net's)"
    )
    command.add_argument(
        "--paper",
        action="store_true",
        help="give the network the stages, patch, batch and training settings of its paper, in the 2d configuration",
    )
    command.add_argument(
        "-o", metavar="NAME", help="name of the new plans (default: PLANS[_NETWORK[_paper]][_rFACTOR])"
    )
    command.add_argument("--force", action="store_true", help="replace existing plans of that name")
    command.add_argument("--trust", action="store_true", help="allow the plans to name networks of any package")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the plans of a student; return the exit status."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_kd.cli.dataset_folder import is_plans, open_experiment, preprocessed_folder
    from nnunet_kd.evaluation.cost import cost_table
    from nnunet_kd.nnunet.planning import student_name, student_plans, usual_trainer
    from nnunet_kd.storage.writing import write_whole

    folder = preprocessed_folder(arguments.d)
    source = folder / f"{arguments.p}.json"
    teacher = open_experiment(arguments.d, arguments.p, None, arguments.trust)
    plans, dataset_json = teacher.plans, teacher.dataset_json
    network = None if arguments.network is None else network_of_plans(arguments.network, arguments.paper)
    usual_one = "2d" if network is not None and network.slices_only else "3d_fullres"
    have = plans["configurations"]
    configuration = arguments.c or (usual_one if usual_one in have else next(iter(have), usual_one))
    usual = 4 if network is None else network.usual_reduction
    reduction = usual if arguments.r is None else arguments.r
    name = arguments.o or student_name(arguments.p, arguments.network, reduction, arguments.widths, arguments.paper)
    if not re.fullmatch(r"[\w.+-]+", name):
        raise ValueError(f"the name of plans can have letters, digits, _, -, + and . only, got {name!r}")
    target = folder / f"{name}.json"
    if target == source or (target.exists() and target.samefile(source)):
        raise ValueError(f"the student's plans need a name of their own, not {name}")
    if target.exists():
        if not is_plans(target):
            raise FileExistsError(f"{target} exists and holds no plans: choose another name with -o")
        if not arguments.force:
            raise FileExistsError(f"{target} exists: choose another name with -o, or replace it with --force")
    widths = {configuration: arguments.widths} if arguments.widths else None
    try:
        regions = PlansManager(plans).get_label_manager(dataset_json).has_regions
        student = student_plans(
            plans,
            reduction,
            arguments.min_features,
            widths,
            name,
            arguments.network,
            regions,
            paper=arguments.paper,
        )
        table = cost_table(plans, student, dataset_json)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError):
        with plans_errors(source):
            raise
    if configuration not in student["configurations"]:
        there = ", ".join(student["configurations"])
        raise ValueError(f"the student's plans have no configuration {configuration}: choose one of {there} with -c")
    write_whole(target, json.dumps(student, indent=4))
    print(table)
    print(f"\nwrote {target}")
    trainer = usual_trainer(student, configuration)
    obstacle = _obstacle(plans, student, configuration, dataset_json) if trainer == RECIPE else None
    if network is not None and network.first is not None:
        print(f"first: {network.first}")
    if obstacle is None:
        print(f"train it: nnUNetv2_train {arguments.d} {configuration} 0 -tr {trainer} -p {name}")
    else:
        print(f"{RECIPE} cannot start it from its teacher: {obstacle}")
        print(f"train it: nnUNetv2_train {arguments.d} {configuration} 0 -tr {OTHERWISE} -p {name}")
    return 0


def _obstacle(
    plans: dict[str, Any], student: dict[str, Any], configuration: str, dataset_json: dict[str, Any]
) -> str | None:
    """Return why the recipe cannot start a student from its teacher, or ``None`` if it can."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_kd.nnunet.experiment import Experiment, build_network
    from nnunet_kd.pruning.selection import selected_weights

    with torch.device("meta"):
        large, small = (
            build_network(nnUNetTrainer, Experiment(one, configuration, dataset_json)) for one in (plans, student)
        )
    try:
        selected_weights(large, small)
    except ValueError as error:
        return str(error)
    return None
