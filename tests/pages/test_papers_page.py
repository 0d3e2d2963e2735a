"""docs/papers.md states the defaults that the code has."""

import ast
import importlib.util
import inspect
import json
import re
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nnunet_kd.cli import parser
from nnunet_kd.datasets.drawn_test_set import SHARE
from nnunet_kd.datasets.options import options_of
from nnunet_kd.datasets.table import DATASETS
from nnunet_kd.datasets.tcga_lgg import MEDIAN
from nnunet_kd.distillation.methods import TERMS
from nnunet_kd.evaluation.protocol import read_evaluation
from nnunet_kd.losses.focal_dice import FOCAL_SHARE
from nnunet_kd.networks.brainseg_dmif import BrainSegDMIF
from nnunet_kd.networks.dra_unet import DRAUNet
from nnunet_kd.networks.kd_sam import KDSAM
from nnunet_kd.networks.prompt_free_decoder import SCALES
from nnunet_kd.networks.vm_unet import VMUNet
from nnunet_kd.nnunet.networks_of_plans import NETWORKS, network_of_plans
from nnunet_kd.nnunet.settings import SCHEDULE, StudentSettings, TeacherSettings, TrainingSettings
from nnunet_kd.teachers.sam import WINDOW, SamSettings
from nnunet_kd.training.kd_sam.settings import KDSAMSettings
from nnunet_kd.training.schedules import CosineSchedule, PlateauSchedule, adamw

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "papers.md"
ROWS = (
    "schedule",
    "input and patch",
    "augmentation",
    "optimiser and learning rate",
    "loss weights and what they are relative to",
    "",  # what the method has of its own
    "splits",
    "metrics",
    "parameters and FLOPs",
    "networks of the comparison that are not here",
)
PARAMETERS = torch.nn.Linear(1, 1)
PLATEAU = PlateauSchedule(torch.optim.SGD(PARAMETERS.parameters(), 1.0), 1).state_dict()


def literals(path, *names):
    """Return the constants that the named classes and functions of a file assign or pass by keyword, by name."""
    found = {}
    named = [node for node in ast.walk(ast.parse(path.read_text())) if getattr(node, "name", None) in names]
    assert len(named) == len(names), names
    for node in (inner for one in named for inner in ast.walk(one)):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            name = getattr(target, "attr", getattr(target, "id", None))
        else:
            name = node.arg if isinstance(node, ast.keyword) else None
        if name is None or node.value is None:
            continue
        factories = [one.body for one in ast.walk(node.value) if isinstance(one, ast.Lambda)]
        with suppress(ValueError):  # not a constant
            found[name] = ast.literal_eval(factories[0] if factories else node.value)
    return found


def training(trainer):
    """Return the training settings of a trainer that its plans do not change; nnU-Net's are null."""
    own = literals(ROOT / "trainers" / f"{trainer}.py", trainer)
    settings = {**asdict(TrainingSettings()), **own.get("recipe", {})}
    return {key: own.get(key, value) for key, value in settings.items()}


def of_nnunet():
    folder = Path(importlib.util.find_spec("nnunetv2").origin).parent
    trainer = folder / "training" / "nnUNetTrainer" / "nnUNetTrainer.py"
    own = literals(trainer, "__init__", "configure_optimizers", "_build_loss")
    keys = ("weight_decay", "momentum", "oversample_foreground_percent", "weight_ce", "weight_dice")
    ours = ("num_epochs", "num_iterations_per_epoch", "initial_lr")
    assert all(own[key] == SCHEDULE[key] for key in ours)
    return {**{key: own[key] for key in keys}, **{f"training.{key}": SCHEDULE[key] for key in ours}}


def of_dcd():
    plans = [ROOT / "plans" / name / "nnUNetResEncUNetPlans_r4.json" for name in PLANNED.values()]
    configurations = [json.loads(path.read_text())["configurations"]["3d_fullres"] for path in plans]
    batches = {configuration["batch_size"] for configuration in configurations}
    assert len(batches) == 1 and DATASETS["BraTS2024GLI"].test_share == DATASETS["ISLES2022"].test_share
    student = asdict(StudentSettings())
    return {
        **of_method("dcd"),
        **{f"patch_size[{name}]": one["patch_size"] for name, one in zip(PLANNED, configurations, strict=True)},
        **chosen("training.", training("nnUNetTrainerDCD"), "ema_decay", "early_stopping", "final_validation"),
        **chosen("student.", student, "reduction", "min_features"),
        **chosen("teacher.", asdict(TeacherSettings()), "checkpoint"),
        **chosen("--", options("ISLES2022"), "paper-split", "grid"),
        "batch_size": batches.pop(),
        "test_share": DATASETS["ISLES2022"].test_share,
        "--tolerance": inspect.signature(read_evaluation).parameters["tolerance"].default,
    }


def of_sam_dra_unet():
    sam, network = asdict(SamSettings()), defaults(DRAUNet)
    with torch.device("meta"):
        networks = {"DRA-UNet": DRAUNet(3, 2), "U-Net": DRAUNet(3, 2, dprm=False, attention=False)}
    return {
        **of_method("soft_labels"),
        **chosen("--", sam, "prompt", "margin"),
        **chosen("--", options("TCGALGG"), "volumes", "paper-preprocessing"),
        **chosen("arch_kwargs.", network, "dprm", "attention", "dprm_kernel_size"),
        **chosen("paper.", of_paper("dra_unet"), "features_per_stage", "patch_size", "augmentation", "lr_schedule"),
        **chosen("training.", training("nnUNetTrainerSAMKD"), "one_pass_per_epoch", "augmentation", "plateau_patience"),
        "factor": PLATEAU["factor"],
        **{f"parameters[{name}]": millions(one) for name, one in networks.items()},
        **{f"FLOPs[{name}]": giga(one, 3) for name, one in networks.items()},
        "MEDIAN": MEDIAN,
        "WINDOW": WINDOW,
        "-r": NETWORKS["dra_unet"].usual_reduction,
    }


def of_kd_sam():
    with torch.device("meta"):
        network = KDSAM(3, 2)
    return {
        **{f"method.{one.name}": one.default for one in fields(KDSAMSettings)},
        **chosen("training.", training("nnUNetTrainerKDSAM"), "num_epochs", "initial_lr", "one_pass_per_epoch"),
        **chosen("arch_kwargs.", defaults(KDSAM), "image_size"),
        "factor": PLATEAU["factor"],
        **chosen("--", options("KvasirSEG"), "test-set"),
        "batch_size": NETWORKS["kd_sam"].batch_size,
        "SHARE": SHARE,
        "parameters[KD-SAM]": millions(network),
        "parameters[encoder]": millions(network.encoder),
    }


def of_brainseg_dmif():
    settings = literals(ROOT / "nnunet_kd" / "training" / "brainseg_dmif.py", "BrainSegDMIFSettings")
    keys = ("checkpoint", "model_type", "milestones", "factor", "gamma", "alpha", "batch_dice")
    switches = ("dmif", "prompt_generator", "upsampling_decoder")
    with torch.device("meta"):
        network = BrainSegDMIF(4, 4)
    return {
        **chosen("method.", settings, *keys),
        **chosen("training.", training("nnUNetTrainerBrainSegDMIF"), "num_epochs", "initial_lr", "one_pass_per_epoch"),
        **chosen("arch_kwargs.", defaults(BrainSegDMIF), "image_size", "modalities", "global_attention", *switches),
        **chosen("--", options("FCD2023"), "t2"),
        **chosen("paper.", of_paper("brainseg_dmif"), "patch_size"),
        "largest_batch": NETWORKS["brainseg_dmif"].largest_batch,
        "FOCAL_SHARE": FOCAL_SHARE,
        "SCALES": SCALES,
        "parameters[BrainSegDMIF]": round(millions(network), 1),
        "FLOPs[BrainSegDMIF]": giga(network, 4),
    }


def of_dsvm_unet():
    plans = NETWORKS["vm_unet"]
    optimizer, schedule = adamw(PARAMETERS, 1.0, 2)
    evaluate = ["evaluate", "-pred", "DIR", "-djfile", "dataset.json", "-o", "OUT"]
    with torch.device("meta"):
        network = VMUNet(3, 1)
    assert isinstance(schedule, CosineSchedule)
    return {
        **of_method("dual_self"),
        **chosen(
            "training.",
            {**training("nnUNetTrainerDualSelfKD"), **plans.training},
            "deep_supervision",
            "one_pass_per_epoch",
            "initial_weights",
            "cosine_epochs",
        ),
        **{f"training.{key}": value for key, value in plans.training.items()},
        **chosen("arch_kwargs.", {**defaults(VMUNet), **plans.keywords}, "features_per_stage", "depths", "drop_path"),
        **chosen("", optimizer.defaults, "weight_decay"),
        **chosen("--", {**options("ISIC2017"), **options("Synapse")}, "vm-unet-split", "organs", "transunet-split"),
        **chosen(
            "", literals(ROOT / "trainers" / "nnUNetTrainerDualSelfKD.py", "nnUNetTrainerDualSelfKD"), "reduction"
        ),
        **chosen("paper.", of_paper("vm_unet"), "num_epochs", "batch_size", "patch_size", "deep_supervision"),
        **chosen("paper.", of_paper("vm_unet"), "lr_schedule", "augmentation"),
        "least": schedule.rate(1.0, 1),
        "largest_batch": plans.largest_batch,
        "batch_size[256 x 256]": plans.batch_of(32, (256, 256)),
        "multiple": plans.multiple,
        "--scoring": parser().parse_args(evaluate).scoring,
        "parameters[VM-UNet]": millions(network),
    }


PLANNED = {"BraTS 2024": "Dataset501_BraTS2024GLI", "ISLES 2022": "Dataset502_ISLES2022"}
SECTIONS = {
    "nnU-Net": of_nnunet,
    "DCD": of_dcd,
    "SAM-DRA-UNet": of_sam_dra_unet,
    "KD-SAM": of_kd_sam,
    "BrainSegDMIF": of_brainseg_dmif,
    "DSVM-UNet": of_dsvm_unet,
}


def of_paper(network):
    """Return what ``nnunet_kd plan --paper`` writes: the network's keywords, its patch and batch, and the training."""
    paper = network_of_plans(network, paper=True)
    return {**paper.keywords, **paper.training, "patch_size": paper.patch_size, "batch_size": paper.batch_size}


def of_method(name):
    return {f"method.{key}": value for key, value in TERMS[name].keys.items()}


def chosen(prefix, values, *keys):
    return {f"{prefix}{key}": values[key] for key in keys}


def options(dataset):
    return {option.name.replace("_", "-"): option.default for option in options_of(DATASETS[dataset])}


def defaults(network):
    return {name: one.default for name, one in inspect.signature(network).parameters.items()}


def millions(network):
    return round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 2)


def giga(network, channels):
    """Return the FLOPs of one slice of 256 x 256 as the page gives them."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.requires_grad_(False)(torch.empty(1, channels, 256, 256, device="meta"))
    return round(counter.get_total_flops() / 1e9)


def table(title):
    """Return the rows of a section's table: label -> its other cells."""
    text = re.split(rf"^## {re.escape(title)}$", PAGE.read_text(), flags=re.MULTILINE)[1].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {label: rest for label, *rest in cells}


@pytest.mark.parametrize("title", SECTIONS)
def test_defaults_are_those_of_the_code(title):
    here = " ".join(cells[-1] for cells in table(title).values())
    stated = [(key, json.loads(value)) for key, value in re.findall(r"`([^`=]+) = ([^`]+)`", here)]
    stated += [(key, False) for key in re.findall(r"`(--[\w-]+)` \(off by default\)", here)]
    assert len(dict(stated)) == len(stated), "a default is stated twice"
    assert dict(stated) == json.loads(json.dumps(SECTIONS[title]()))


def test_every_paper_has_all_rows():
    titles = re.findall(r"^## (.*)$", PAGE.read_text(), flags=re.MULTILINE)
    assert titles == [*SECTIONS]
    for title in titles[1:]:
        rows = table(title)
        assert len(rows) == len(ROWS) and all(len(cells) == 2 and all(cells) for cells in rows.values())
        assert all(wanted in ("", label) for label, wanted in zip(rows, ROWS, strict=True))


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)(?:#([^)]+))?\)", PAGE.read_text())
    assert links
    for path, anchor in links:
        target = PAGE.parent / path
        text = target.read_text() if target.is_file() else ""
        headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
        anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert target.exists() and (not anchor or anchor in anchors), (path, anchor)
