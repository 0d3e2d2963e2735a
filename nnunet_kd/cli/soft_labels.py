"""``nnunet_kd soft-labels``: compute a teacher's logits or embeddings of every training case once, and store them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nnunet_kd.storage.writing import check_writable_folder

_DESCRIPTION = """\
Store a teacher's logits of every preprocessed training case, for nnUNetTrainerSAMKD. They are computed once, and
follow each case through nnU-Net's augmentation during training. There is one file per case, in a folder beside the
preprocessed data, with a manifest; a file is written completely or not at all.

  nnunet_kd soft-labels -d 501 -c 3d_fullres --sam vit_b --checkpoint sam_vit_b_01ec64.pth
      asks SAM slice by slice, across the axis of the largest voxels; a box around every connected component of the
      training labels is its prompt.
  nnunet_kd soft-labels -d 501 -c 2d --sam vit_h --checkpoint FILE --channels 0 1 3 --prompt points
      three of the input channels as red, green and blue; a point in every component instead of a box
  nnunet_kd soft-labels -d 501 -c 3d_fullres --teacher
      an nnU-Net teacher instead, the one the plans name (nnunet_kd.teacher, by default nnUNetTrainer with the same
      plans); each case by the fold that was not trained on it, whatever folds the plans name
  nnunet_kd soft-labels -d 501 -c 3d_fullres --teacher -f 0 --name fold_0
      fold 0 does all cases, for students of fold 0; -f all does them for students of fold all. Other folds have seen a
      student's validation cases: a student that learns from any of them, as from the store above, has that said with
      its results.
  nnunet_kd soft-labels -d 501 -c 2d --embeddings --sam vit_h --checkpoint sam_vit_h_4b8939.pth
      instead of logits SAM's image embeddings, for nnUNetTrainerKDSAM: of every patch nnU-Net's sliding window cuts
      from a slice, 2 MiB each before compression; no prompts. Name the store in the plans:
      "nnunet_kd": {"method": {"embeddings": "sam", ...}}
  nnunet_kd soft-labels ... -num_parts 4 -part_id 0        (and 1, 2, 3 on other machines)
  nnunet_kd soft-labels ... --continue                     after an interruption, or where a file was damaged

Intensities between the 0.5th and the 99.5th percentile of a channel (of voxels inside the body, as nnU-Net crops it)
are what SAM sees; with --embeddings, those percentiles of the patch, and photographs in their own colours.
"""


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    command = commands.add_parser(
        "soft-labels",
        help="store a teacher's logits (SAM's, or an nnU-Net's) or SAM's embeddings of every training case",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("-d", metavar="ID", required=True, help="data set, as a number or a name")
    command.add_argument("-c", metavar="CONFIG", default="3d_fullres", help="configuration (default: 3d_fullres)")
    command.add_argument("-p", metavar="PLANS", default="nnUNetPlans", help="plans (default: nnUNetPlans)")
    teacher = command.add_mutually_exclusive_group(required=True)
    teacher.add_argument("--sam", metavar="TYPE", help="SAM of this size: vit_b, vit_l, vit_h")
    teacher.add_argument("--teacher", action="store_true", help="the nnU-Net teacher the plans name")
    command.add_argument("--checkpoint", metavar="FILE", type=Path, help="weights of SAM")
    command.add_argument("--embeddings", action="store_true", help="with --sam: store its image embeddings")
    command.add_argument(
        "--channels",
        metavar="N",
        type=int,
        nargs="+",
        help="one to three input channels for SAM (default: the first three)",
    )
    command.add_argument("--prompt", metavar="KIND", help="box or points (default: box)")
    command.add_argument("--margin", metavar="N", type=int, help="voxels added to a box on each side (default: 2)")
    command.add_argument("-f", metavar="FOLD", help="with --teacher: this fold for all cases; a number or all")
    command.add_argument("--disable_tta", action="store_true", help="with --teacher: no mirrored copies")
    command.add_argument("--name", metavar="NAME", help="of the store (default: sam or nnunet)")
    command.add_argument("-num_parts", metavar="N", type=int, default=1, help="share the cases among N commands")
    command.add_argument("-part_id", metavar="K", type=int, default=0, help="which of them this is, from 0")
    command.add_argument("--continue", dest="resume", action="store_true", help="make what is not there yet")
    command.add_argument("-device", metavar="DEVICE", choices=("cpu", "cuda"), help="default: cuda where there is one")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Make the store; returns the exit status."""
    import torch
    from tqdm import tqdm

    from nnunet_kd.cli.dataset_folder import open_experiment, preprocessed_folder
    from nnunet_kd.cli.device import default_device
    from nnunet_kd.nnunet.cases import PreprocessedCases
    from nnunet_kd.storage.overwriting import check_kept
    from nnunet_kd.teachers.sam import SamSettings
    from nnunet_kd.teachers.sam_embeddings import EmbeddingStore
    from nnunet_kd.teachers.soft_labels import SoftLabelStore, make_soft_labels, store_folder
    from nnunet_kd.teachers.sources import EmbeddingSource, NnUNetSource, SamSource, Source

    _check(arguments)
    folder = preprocessed_folder(arguments.d)
    experiment = open_experiment(arguments.d, arguments.p, arguments.c, trust=True)  # no network is built from them
    cases = PreprocessedCases(folder, experiment)
    name = arguments.name or ("sam" if arguments.sam else "nnunet")
    kind = EmbeddingStore if arguments.embeddings else SoftLabelStore
    store = kind(store_folder(folder, cases.configuration.data_identifier, name, kind))
    check_writable_folder(store.folder)
    mine = cases.identifiers[arguments.part_id :: arguments.num_parts]
    data = folder / cases.configuration.data_identifier
    inputs = [folder / f"{arguments.p}.json", data, *([] if arguments.checkpoint is None else [arguments.checkpoint])]
    check_kept(inputs, map(store.path, mine), "Give another --name")
    todo = [case for case in mine if store.fault(case, cases, thorough=arguments.resume) is not None]
    if len(todo) < len(mine) and not arguments.resume:
        raise FileExistsError(
            f"{store.folder} has {len(mine) - len(todo)} of {len(mine)} cases already: add --continue to make the "
            "others, or remove it"
        )
    device = torch.device(arguments.device or default_device())
    source: Source
    if arguments.embeddings:
        source = EmbeddingSource(cases, arguments.sam, arguments.channels, arguments.checkpoint, device)
    elif arguments.sam:
        channels = tuple(arguments.channels or range(min(cases.channels, 3)))
        given = {"prompt": arguments.prompt, "margin": arguments.margin}
        settings = SamSettings(arguments.sam, channels, **{k: v for k, v in given.items() if v is not None})
        source = SamSource(cases, settings, arguments.checkpoint, device)
    else:
        fold = int(arguments.f) if arguments.f is not None and arguments.f.isdecimal() else arguments.f
        source = NnUNetSource(cases, fold, not arguments.disable_tta, device)
    store.begin(cases.data, source.description, cases.identifiers)
    progress = tqdm(source.ordered(todo), unit="case", desc=f"{store.content} '{store.name}'")
    make_soft_labels(store, cases, progress, source.values)
    made = sum(store.fault(case) is None for case in cases.identifiers)
    print(f"{made} of {len(cases.identifiers)} cases in {store.folder}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if arguments.num_parts < 1 or not 0 <= arguments.part_id < arguments.num_parts:
        raise ValueError(f"-part_id must be from 0 to {arguments.num_parts - 1}, got {arguments.part_id}")
    if arguments.sam and arguments.checkpoint is None:
        raise ValueError("--sam needs its weights: --checkpoint FILE")
    if arguments.sam and (arguments.f is not None or arguments.disable_tta):
        raise ValueError("-f and --disable_tta belong to --teacher")
    if arguments.f is not None and arguments.f != "all" and not arguments.f.isdecimal():
        raise ValueError(f"a fold is a number or all, got {arguments.f!r}")
    if arguments.embeddings and not arguments.sam:
        raise ValueError("--embeddings are SAM's: give --sam")
    if arguments.embeddings and (arguments.prompt is not None or arguments.margin is not None):
        raise ValueError("--prompt and --margin do not belong to --embeddings: no prompt is given")
    of_sam = (arguments.checkpoint, arguments.channels, arguments.prompt, arguments.margin)
    if arguments.teacher and any(value is not None for value in of_sam):
        raise ValueError("--checkpoint, --channels, --prompt and --margin belong to --sam")
