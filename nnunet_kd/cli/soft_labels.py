"""``nnunet_kd soft-labels``: compute a teacher's logits or embeddings of every training case once and store them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_kd.cli.launching import add_launcher, check_launcher, device_of, launch
from nnunet_kd.storage.writing import check_writable_folder

if TYPE_CHECKING:
    import torch

    from nnunet_kd.nnunet.cases import PreprocessedCases
    from nnunet_kd.teachers.soft_labels import SoftLabelStore
    from nnunet_kd.teachers.sources import Source

_DESCRIPTION = """\
Compute a teacher's logits of every preprocessed training case once and store them, for trainers that read soft labels,
such as nnUNetTrainerSAMKD. During training, nnU-Net augments them together with the case. The store is a folder beside
the preprocessed data, with one file per case and a manifest; every file is complete or absent.

  nnunet_kd soft-labels -d 501 -c 3d_fullres --sam vit_b --checkpoint sam_vit_b_01ec64.pth
      SAM segments every volume slice by slice, along the axis with the largest voxel spacing. Its prompts are boxes
      around the connected components of the training labels.
  nnunet_kd soft-labels -d 501 -c 2d --sam vit_h --checkpoint FILE --channels 0 1 3 --prompt points
      Three input channels serve as red, green and blue, and each component is prompted by a point instead of a box.
  nnunet_kd soft-labels -d 501 -c 3d_fullres --teacher
      An nnU-Net teacher predicts instead: the one that the plans name as nnunet_kd.teacher, by default nnUNetTrainer
      with the same plans. Each case is predicted by the fold that was not trained on it, whatever folds the plans name.
  nnunet_kd soft-labels -d 501 -c 3d_fullres --teacher -f 0 --name fold_0
      Fold 0 predicts all cases, for students of fold 0; -f all does the same for students of fold all. Any other fold
      has seen validation cases of these students. A student that learns from such a fold, as from the store of the
      previous example, has this leakage recorded with its results.
  nnunet_kd soft-labels -d 501 -c 3d_fullres --model teacher.zip
      Any nnU-Net model predicts the raw images in its own way: its spacing, normalisation, axis order, channels and
      labels may differ from those of the data set. A zip file of nnUNetv2_export_model_to_zip, a results folder or its
      name in nnUNet_results will do. Its folds' logits are averaged, as nnU-Net does (choose folds: -f 0 2), then
      interpolated once on the grid of the preprocessed case. What the model has not seen of an image is background.
      Code in the model's files is not run unless you give --trust.
  nnunet_kd soft-labels -d 501 -c 3d_fullres --model FOLDER --channels 1 3 -i IMAGES
      The images of the data set are channels 1 and 3 of the model (without --channels, names decide). IMAGES holds the
      cases with all channels of the model, CASE_0000.nii.gz and so on; needed only if the data set lacks some.
  nnunet_kd soft-labels -d 501 -c 3d_fullres --model FOLDER --label-map labels.json
      labels.json says of which structures of the model each structure of the data set consists:
      {"kidneys": ["kidney_left", "kidney_right"], "tumour": ["tumour"]}. Those that it does not mention go by their
      names, and structures of the model that nothing names become background. Either side may have regions.
  nnunet_kd soft-labels -d 501 -c 2d --embeddings --sam vit_h --checkpoint sam_vit_h_4b8939.pth
      SAM's image embeddings are stored instead of logits, for nnUNetTrainerKDSAM: one for every patch that nnU-Net's
      sliding window cuts from a slice, each 2 MiB before compression. There are no prompts. Name the store in the
      plans: "nnunet_kd": {"method": {"embeddings": "sam", ...}}
  nnunet_kd soft-labels ... -num_parts 4 -part_id 0
      Compute the first of four parts; run -part_id 1, 2 and 3 on other machines.
  nnunet_kd soft-labels ... --launcher local --devices 0 1 2 3
      Compute four parts at once, each on a GPU of this machine; --launcher slurm -num_parts 4 sends four Slurm jobs.
  nnunet_kd soft-labels ... --continue
      Compute what is missing or damaged, for example after an interruption.
  nnunet_kd soft-labels -d 501 -c 3d_fullres --score --name sam
      Compute nothing: print a table with the Dice of the stored segmentations against the labels, by case and
      structure. A teacher below the student that you could train without it is not worth learning from. The Dice of SAM
      flatters it, because its prompts come from the labels. Without --name, the only store is scored.


      Compute what is missing or damaged, for example after an interruption, and with --model what was computed from an
      image that has changed since.

SAM sees the intensities between the 0.5th and the 99.5th percentile of each channel, over the voxels inside the body as
nnU-Net crops it. With --embeddings, the percentiles are those of the patch, and photographs keep their own colours.
"""


def add_parser(commands: Any) -> None:
    """Add the command ``soft-labels`` and its arguments."""
    command = commands.add_parser(
        "soft-labels",
        help="store logits of any nnU-Net or of SAM, or embeddings of SAM, for every training case",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("-d", metavar="ID", required=True, help="number or name of the data set")
    command.add_argument(
        "-c", metavar="CONFIG", default="3d_fullres", help="nnU-Net configuration (default: 3d_fullres)"
    )
    command.add_argument("-p", metavar="PLANS", default="nnUNetPlans", help="name of the plans (default: nnUNetPlans)")
    teacher = command.add_mutually_exclusive_group(required=True)
    teacher.add_argument("--sam", metavar="TYPE", help="use SAM of this size: vit_b, vit_l or vit_h")
    teacher.add_argument("--teacher", action="store_true", help="use the nnU-Net teacher that the plans name")
    teacher.add_argument(
        "--model", metavar="MODEL", help="use this nnU-Net: a zip file, a results folder or its name in nnUNet_results"
    )
    teacher.add_argument(
        "--score", action="store_true", help="print the Dice of what is stored against the labels, and compute nothing"
    )
    command.add_argument("--checkpoint", metavar="FILE", type=Path, help="with --sam, required: its weights")
    command.add_argument(
        "--embeddings", action="store_true", help="with --sam: store image embeddings instead of logits"
    )
    command.add_argument(
        "--channels",
        metavar="N",
        type=int,
        nargs="+",
        help="with --sam: the one to three input channels that it sees (default: the first three); with --model: the "
        "channel of the model that each input channel is (default: the one of the same name, else the same number)",
    )
    command.add_argument(
        "--label-map", metavar="FILE", type=Path, help="with --model: JSON file that names the model's structures"
    )
    command.add_argument(
        "-i", metavar="DIR", type=Path, help="with --model: images with all of its channels (default: the raw images)"
    )
    command.add_argument(
        "--model-config",
        metavar="CONFIG",
        help="with --model: configuration to use of a zip file with several (default: that of -c)",
    )
    command.add_argument(
        "-chk",
        metavar="FILE",
        default="checkpoint_final.pth",
        help="with --model: name of the checkpoints (default: checkpoint_final.pth)",
    )
    command.add_argument(
        "--trust",
        action="store_true",
        help="with --model: allow any code in its files to run: classes in checkpoints, networks that its plans name",
    )
    command.add_argument("--prompt", metavar="KIND", help="with --sam: box or points (default: box)")
    command.add_argument(
        "--normalisation",
        choices=("sam", "medsam"),
        help="with --sam: how the weights expect their images; medsam stretches them to a square and scales them to "
        "0..1, as MedSAM's published inference does (default: sam)",
    )
    command.add_argument(
        "--margin", metavar="N", type=int, help="with --sam: voxels added to each side of a box (default: 2)"
    )
    command.add_argument(
        "-f",
        metavar="FOLD",
        nargs="+",
        help="with --teacher: number of the fold for all cases, or all (default: a fold that has not seen the case); "
        "with --model: numbers of the folds to average, or all (default: every fold that it has)",
    )
    command.add_argument(
        "--disable_tta",
        action="store_true",
        help="with --teacher or --model: predict without mirroring (faster, slightly less accurate)",
    )
    command.add_argument(
        "--name", metavar="NAME", help="name of the store (default: sam, nnunet or model; with --score the only store)"
    )
    command.add_argument(
        "-num_parts", metavar="N", type=int, default=1, help="split the cases into N parts (default: 1)"
    )
    command.add_argument("-part_id", metavar="K", type=int, default=0, help="part to compute, from 0 (default: 0)")
    command.add_argument(
        "--continue", dest="resume", action="store_true", help="compute what is missing, damaged or out of date"
    )
    command.add_argument(
        "-device", metavar="DEVICE", choices=("cpu", "cuda"), help="cpu or cuda (default: cuda if available)"
    )
    add_launcher(command, "the parts")
    command.set_defaults(run=run, goes_on="; add --continue to go on")


def run(arguments: argparse.Namespace) -> int:
    """Compute and store the soft labels; return the exit status."""
    import torch
    from tqdm import tqdm

    from nnunet_kd.cli.dataset_folder import open_experiment, preprocessed_folder
    from nnunet_kd.cli.device import default_device
    from nnunet_kd.nnunet.cases import PreprocessedCases
    from nnunet_kd.storage.overwriting import check_kept
    from nnunet_kd.teachers.sam_embeddings import EmbeddingStore
    from nnunet_kd.teachers.soft_labels import SoftLabelStore, make_soft_labels, store_folder

    _check(arguments)
    check_launcher(arguments)
    folder = preprocessed_folder(arguments.d)
    experiment = open_experiment(arguments.d, arguments.p, arguments.c, trust=True)  # no network is built from them
    cases = PreprocessedCases(folder, experiment)
    if arguments.score:
        return _score(arguments, cases)
    name = arguments.name or ("sam" if arguments.sam else "nnunet" if arguments.teacher else "model")
    kind = EmbeddingStore if arguments.embeddings else SoftLabelStore
    store = kind(store_folder(folder, cases.configuration.data_identifier, name, kind))
    check_writable_folder(store.folder)
    launched = arguments.launcher in ("local", "slurm")
    mine = cases.identifiers if launched else cases.identifiers[arguments.part_id :: arguments.num_parts]
    data = folder / cases.configuration.data_identifier
    inputs = [folder / f"{arguments.p}.json", data, *filter(None, (arguments.checkpoint, arguments.i))]
    check_kept(inputs, map(store.path, mine), "Give another --name")
    todo = [case for case in mine if store.fault(case, cases, thorough=arguments.resume) is not None]
    if len(todo) < len(mine) and not arguments.resume:
        raise FileExistsError(
            f"{store.folder} has {len(mine) - len(todo)} of {len(mine)} cases already: compute the others with "
            "--continue, or remove the folder"
        )
    if launched:
        words = ("nnunet_kd", *arguments.words, "-device", device_of(arguments))
        return launch(arguments, store.folder, words, "--continue")
    source = _source(arguments, cases, store, torch.device(arguments.device or default_device()))
    store.begin(cases.data, source.description, cases.identifiers)
    todo += _changed(store, source, [case for case in mine if case not in todo])
    progress = tqdm(source.ordered(todo), unit="case", desc=f"{store.content} '{store.name}'")
    make_soft_labels(store, cases, progress, source.values, source.originals)
    made = sum(store.fault(case) is None for case in cases.identifiers)
    print(f"{made} of {len(cases.identifiers)} cases in {store.folder}")
    return 0


def _score(arguments: argparse.Namespace, cases: PreprocessedCases) -> int:
    """Print the Dice of the stored segmentations; return the exit status."""
    from tqdm import tqdm

    from nnunet_kd.teachers.soft_labels import find_store
    from nnunet_kd.teachers.stored_scores import NOTE, labelled_cases, score_case, score_table

    try:
        store = find_store(cases.folder, cases.configuration.data_identifier, arguments.name)
    except ValueError as error:  # there are several, and the message says how plans would name one
        raise ValueError(f"{str(error).partition(': name one')[0]}: name one with --name") from None
    store.check_data(cases.data)
    stored = [case for case in cases.identifiers if store.path(case).is_file()]
    wanted = labelled_cases(cases, stored)
    if not wanted:
        raise ValueError(f"no case in {store.folder} has a reference: there is nothing to score")
    rows = [row for case in tqdm(wanted, unit="case", desc="scoring") for row in score_case(store, cases, case)]
    left = len(cases.identifiers) - len(wanted)
    others = f" {left} cases without stored soft labels or without a reference are left out." if left else ""
    print(f"{NOTE}{others}\n\n{score_table(rows).markdown()}")
    return 0


def _changed(store: SoftLabelStore, source: Source, cases: list[str]) -> list[str]:
    """Return those of some complete cases whose raw images have changed since, and say which have."""
    changed = []
    for case in cases:
        path = store.changed_image(case, source.originals(case))
        if path is not None:
            print(f"{path} has changed since the {store.content} of case {case} were computed: computing them again")
            changed.append(case)
    return changed


def _source(
    arguments: argparse.Namespace, cases: PreprocessedCases, store: SoftLabelStore, device: torch.device
) -> Source:
    """Return the source that the arguments choose."""
    from nnunet_kd.teachers.sam import SamSettings
    from nnunet_kd.teachers.sources import EmbeddingSource, NnUNetSource, SamSource

    if arguments.model is not None:
        return _model_source(arguments, cases, store, device)
    if arguments.embeddings:
        normalisation = arguments.normalisation or "sam"
        return EmbeddingSource(cases, arguments.sam, arguments.channels, arguments.checkpoint, device, normalisation)
    if arguments.sam:
        channels = tuple(arguments.channels or range(min(cases.channels, 3)))
        given = {name: getattr(arguments, name) for name in ("prompt", "margin", "normalisation")}
        settings = SamSettings(arguments.sam, channels, **{k: v for k, v in given.items() if v is not None})
        return SamSource(cases, settings, arguments.checkpoint, device)
    fold = None if arguments.f is None else arguments.f[0]
    return NnUNetSource(
        cases, int(fold) if fold is not None and fold.isdecimal() else fold, not arguments.disable_tta, device
    )


def _model_source(
    arguments: argparse.Namespace, cases: PreprocessedCases, store: SoftLabelStore, device: torch.device
) -> Source:
    """Open the model, and return a source that has read all that it needs of it."""
    from nnunetv2.paths import nnUNet_raw

    from nnunet_kd.cli.dataset_folder import required
    from nnunet_kd.nnunet.reading import read_json
    from nnunet_kd.teachers.mapping import ChannelMap, LabelMap
    from nnunet_kd.teachers.models import opened_model
    from nnunet_kd.teachers.raw_images import RawImageSource

    given = None if arguments.label_map is None else read_json(arguments.label_map)
    raw = required(nnUNet_raw) / cases.folder.name
    configuration = arguments.model_config or arguments.c
    with opened_model(
        arguments.model, store.folder, arguments.f, configuration, arguments.chk, arguments.trust
    ) as model:
        theirs, ours = model.experiment.dataset_json, cases.experiment.dataset_json
        channels = ChannelMap.of(arguments.channels, theirs, ours, "model")
        try:
            labels = LabelMap.of(given, theirs, ours, "model")
        except ValueError as error:
            where = "" if arguments.label_map is None else f"{arguments.label_map}: "
            raise ValueError(f"{where}{error}") from None
        return RawImageSource(cases, raw, model, channels, labels, arguments.i, not arguments.disable_tta, device)


def _check(arguments: argparse.Namespace) -> None:
    if arguments.score:
        _check_score(arguments)
    if arguments.num_parts < 1 or not 0 <= arguments.part_id < arguments.num_parts:
        raise ValueError(f"-part_id must be from 0 to {arguments.num_parts - 1}, got {arguments.part_id}")
    if arguments.sam and arguments.checkpoint is None:
        raise ValueError("--sam needs its weights: --checkpoint FILE")
    if arguments.sam and (arguments.f is not None or arguments.disable_tta):
        raise ValueError("-f and --disable_tta belong to --teacher and --model")
    for fold in arguments.f or ():
        if fold != "all" and not fold.isdecimal():
            raise ValueError(f"a fold is a number or all, got {fold!r}")
    if len(arguments.f or ()) > 1 and (arguments.teacher or "all" in arguments.f):
        raise ValueError(f"-f takes several numbers with --model only, got {' '.join(arguments.f)}")
    if arguments.embeddings and not arguments.sam:
        raise ValueError("only SAM has --embeddings: give --sam")
    if arguments.embeddings and (arguments.prompt is not None or arguments.margin is not None):
        raise ValueError("--prompt and --margin do not belong to --embeddings, which need no prompt")
    of_sam = (arguments.checkpoint, arguments.prompt, arguments.margin, arguments.normalisation)
    if arguments.teacher and any(value is not None for value in (*of_sam, arguments.channels)):
        raise ValueError("--checkpoint, --channels, --prompt, --margin and --normalisation belong to --sam")
    if arguments.model is not None and any(value is not None for value in of_sam):
        raise ValueError("--checkpoint, --prompt, --margin and --normalisation belong to --sam")
    of_model = (arguments.label_map, arguments.i, arguments.model_config)
    if arguments.model is None and (arguments.trust or any(value is not None for value in of_model)):
        raise ValueError("--label-map, -i, --model-config and --trust belong to --model")


def _check_score(arguments: argparse.Namespace) -> None:
    """Refuse arguments that would compute soft labels."""
    given = {
        "--checkpoint": arguments.checkpoint,
        "--channels": arguments.channels,
        "--label-map": arguments.label_map,
        "-i": arguments.i,
        "--prompt": arguments.prompt,
        "--margin": arguments.margin,
        "--normalisation": arguments.normalisation,
        "-f": arguments.f,
        "--disable_tta": arguments.disable_tta or None,
        "--embeddings": arguments.embeddings or None,
        "--continue": arguments.resume or None,
        "--launcher": arguments.launcher,
        "-num_parts": arguments.num_parts if arguments.num_parts != 1 else None,
    }
    foreign = [name for name, value in given.items() if value is not None]
    if foreign:
        raise ValueError(f"--score takes only -d, -c, -p and --name: leave out {', '.join(foreign)}")
