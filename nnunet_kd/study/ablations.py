"""The rows of the papers' ablation tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from nnunet_kd.study.runs import MethodRow, OtherNetwork, slug_of, trainer_of


@dataclass(frozen=True)
class Ablation:
    """A table of a paper.

    Attributes:
        method: The trainer, without its prefix.
        rows: What each row changes: keywords of the method's term, or of the network if ``network`` is given.
        network: The network of all rows, a key of :data:`~nnunet_kd.nnunet.networks_of_plans.NETWORKS`; ``None`` for
            that of the plans.
    """

    method: str
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    network: str | None = None


def _modules(*used: str) -> dict[str, bool]:
    """Return the keywords of BrainSegDMIF with some of its modules: DMIF, PG (prompts) and LUD (decoder)."""
    keywords = {"DMIF": "dmif", "PG": "prompt_generator", "LUD": "upsampling_decoder"}
    return {keyword: module in used for module, keyword in keywords.items()}


MODALITIES = "modalities"  # its rows depend on the data set
ABLATIONS = {
    "dcd": Ablation(  # DCD, Table 4
        "DCD",
        {
            "lll": {"bands": "lll"},
            "hhh": {"bands": "hhh"},
            "detail": {"bands": "detail"},
            "all": {"bands": "all"},
            "without-idwt": {"reconstruct": False},
            "energy": {"level_weighting": "energy"},
        },
    ),
    "dra_unet": Ablation(  # SAM-DRA-UNet, Table 2
        "NoKD",
        {
            "U-Net": {"dprm": False, "attention": False},
            "Res-SimAM": {"dprm": False, "attention": True},
            "DPRM": {"dprm": True, "attention": False},
            "DRA-UNet": {"dprm": True, "attention": True},
        },
        "dra_unet",
    ),
    "soft_labels": Ablation(  # SAM-DRA-UNet, Table 3; the different tau is not printed
        "SAMKD",
        {
            "hard": {"weight": 0},
            "soft": {"weight": 1},
            "tau-1": {"temperature": 1.0},
            "tau-10": {"temperature": 10.0},
        },
    ),
    "brainseg_dmif": Ablation(  # BrainSegDMIF, Table 3
        "BrainSegDMIF",
        {
            "DMIF": _modules("DMIF"),
            "PG": _modules("PG"),
            "LUD": _modules("LUD"),
            "DMIF-PG": _modules("DMIF", "PG"),
            "DMIF-LUD": _modules("DMIF", "LUD"),
            "PG-LUD": _modules("PG", "LUD"),
            "DMIF-PG-LUD": _modules("DMIF", "PG", "LUD"),
        },
        "brainseg_dmif",
    ),
    MODALITIES: Ablation("BrainSegDMIF", network="brainseg_dmif"),  # BrainSegDMIF, Table 2
    "dual_self": Ablation("DualSelfKD", {"projection": {"beta": 0}, "progressive": {"alpha": 0}}),  # DSVM-UNet, Table 3
}


def rows_of_ablation(name: str, channels: Sequence[str]) -> list[MethodRow]:
    """Return the rows of an ablation study in :data:`ABLATIONS`.

    Args:
        name: The name of the ablation.
        channels: The names of the data set's channels, in order. ``modalities`` has a row for every two or more of
            them.

    Raises:
        ValueError: If the name is unknown, or the data set has a single channel and ``modalities`` is asked for.
    """
    if name not in ABLATIONS:
        raise ValueError(f"there is no ablation {name!r}: choose one of {', '.join(ABLATIONS)}")
    ablation = ABLATIONS[name]
    rows = _subsets(channels) if name == MODALITIES else ablation.rows
    return [_row(name, ablation, row, keywords) for row, keywords in rows.items()]


def _row(name: str, ablation: Ablation, row: str, keywords: Mapping[str, Any]) -> MethodRow:
    if ablation.network is None:
        network, settings = OtherNetwork(), {"method": keywords}
    else:
        network, settings = OtherNetwork(name=ablation.network, arch_kwargs=keywords), {}
    return MethodRow(
        f"{ablation.method} {row}", trainer_of(ablation.method), f"_{name}-{slug_of(row)}", settings, network
    )


def _subsets(channels: Sequence[str]) -> dict[str, dict[str, list[int]]]:
    """Return a row for every two or more channels, the smallest subsets first."""
    numbers = range(len(channels))
    chosen = [subset for size in range(2, len(channels) + 1) for subset in combinations(numbers, size)]
    if not chosen:
        raise ValueError(f"the ablation {MODALITIES} needs at least two channels, and the data set has {len(channels)}")
    return {"-".join(channels[number] for number in subset): {"modalities": list(subset)} for subset in chosen}
