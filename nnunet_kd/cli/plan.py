"""``nnunet_kd plan``: write plans of a student, and show what it costs beside its teacher."""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

from nnunet_kd.nnunet.planning import NETWORKS, RECIPE
from nnunet_kd.nnunet.reading import plans_errors

_DESCRIPTION = """\
Write plans of a student: the teacher's plans with smaller widths in every configuration. Everything else stays, so
the student trains on the data that are preprocessed already. Prints parameters, FLOPs (of convolutions and matrix
products, a multiply-add is two) and activation memory of teacher and student.

  nnunet_kd plan -d 501 -r 4
      writes nnUNetPlans_r4.json; train it with
      nnUNetv2_train 501 3d_fullres 0 -tr nnUNetTrainerKD -p nnUNetPlans_r4
  nnunet_kd plan -d 501 -c 3d_fullres --widths 8 16 32 64 80 80 -o nnUNetPlans_mine
      sets the widths of one configuration by hand; the others are divided by -r
  nnunet_kd plan -d 501 --network dra_unet
      writes nnUNetPlans_dra_unet_r4.json: another network with the teacher's stages; any trainer can train it, stock
      nnUNetTrainer too
  nnunet_kd plan -d 501 --network kd_sam
      writes nnUNetPlans_kd_sam.json: KD-SAM in the 2d configuration, at its own size whatever -r says. Put SAM's
      weights into it, "nnunet_kd": {..., "method": {"checkpoint": "sam_vit_h_4b8939.pth"}}, and train it with
      nnUNetv2_train 501 2d 0 -tr nnUNetTrainerKDSAM -p nnUNetPlans_kd_sam
  nnunet_kd plan -d 501 --network vm_unet
      writes nnUNetPlans_vm_unet.json: VM-UNet in the 2d configuration at its paper's widths, the patch enlarged to
      multiples of 32, AdamW in the settings. -r 4 divides its widths.
"""

OTHERWISE = "nnUNetTrainerDCD"  # for students that cannot start from their teacher


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    command = commands.add_parser(
        "plan",
        help="write plans of a student",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("-d", metavar="ID", required=True, help="data set, as a number or a name")
    command.add_argument(
        "-p", metavar="PLANS", default="nnUNetPlans", help="the teacher's plans (default: nnUNetPlans)"
    )
    command.add_argument(
        "-r", metavar="FACTOR", type=float, help="divide every width by this (default: 4; 1 for vm_unet)"
    )
    command.add_argument("--min-features", metavar="N", type=int, default=8, help="least width of a stage (default: 8)")
    command.add_argument("--widths", metavar="N", type=int, nargs="+", help="widths of the stages of configuration -c")
    command.add_argument(
        "-c",
        metavar="CONFIG",
        help="configuration --widths is for (default: 3d_fullres, or what there is; 2d for networks of slices)",
    )
    command.add_argument("--network", choices=sorted(NETWORKS), help="a network of this package instead of nnU-Net's")
    command.add_argument("-o", metavar="NAME", help="name of the new plans (default: PLANS[_NETWORK][_rFACTOR])")
    command.add_argument("--force", action="store_true", help="replace a plans file of that name")
    command.add_argument("--trust", action="store_true", help="the plans may name networks of any package")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the plans; returns the exit status."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_kd.cli.dataset_folder import is_plans, open_experiment, preprocessed_folder
    from nnunet_kd.evaluation.cost import cost_table
    from nnunet_kd.nnunet.planning import student_name, student_plans, usual_trainer
    from nnunet_kd.storage.writing import write_whole

    folder = preprocessed_folder(arguments.d)
    source = folder / f"{arguments.p}.json"
    teacher = open_experiment(arguments.d, arguments.p, None, arguments.trust)
    plans, dataset_json = teacher.plans, teacher.dataset_json
    network = None if arguments.network is None else NETWORKS[arguments.network]
    usual_one = "2d" if network is not None and network.slices_only else "3d_fullres"
    have = plans["configurations"]
    configuration = arguments.c or (usual_one if usual_one in have else next(iter(have), usual_one))
    usual = 4 if network is None else network.usual_reduction
    reduction = usual if arguments.r is None else arguments.r
    name = arguments.o or student_name(arguments.p, arguments.network, reduction, arguments.widths)
    if not re.fullmatch(r"[\w.+-]+", name):
        raise ValueError(f"a name of plans has letters, digits, _, -, + and . only, got {name!r}")
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
        student = student_plans(plans, reduction, arguments.min_features, widths, name, arguments.network, regions)
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
    """Why the recipe cannot start a student from the teacher; ``None``: it can."""
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
