"""The terms a plan can name, with the numbers their trainers use.

Weights are the numbers of the authors' code, most of them for 2-D natural images, unless said otherwise. Methods that
have one feature map there, as IFVD, have it here on every stage of the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_kd.distillation.terms import ActiveTerm, LogitsTerm, PromptTerm, SelfTerm, SoftLabelTerm, StageTerm, Term
from nnunet_kd.losses import CWDLoss, DCDLoss, DualSelfLoss, FitNetsLoss, FreeKDLoss, IFVDLoss, LogitsKDLoss
from nnunet_kd.nnunet.settings import check_keys

DCD = StageTerm("dcd", DCDLoss, weight=0.01, ramp=(0.15, 0.8))
LOGITS = LogitsTerm("logits", LogitsKDLoss, weight=0.3, scales="all", convex=True)
FITNETS = StageTerm("fitnets", FitNetsLoss, weight=1.0)
CWD = LogitsTerm("cwd", CWDLoss, weight=0.03)  # the authors' 3 leaves a U-Net in 3-D far behind: benchmarks/study.md
IFVD = StageTerm("ifvd", IFVDLoss, weight=200.0)
FREEKD = PromptTerm("freekd", FreeKDLoss, weight=1.0)
SOFT_LABELS = SoftLabelTerm("soft_labels", LogitsKDLoss, weight=0.5, options={"temperature": 3.0, "rescale": False})
DUAL_SELF = SelfTerm("dual_self", DualSelfLoss, weight=0.1)  # the paper's 1 leaves a U-Net in 3-D far behind, too

TERMS: dict[str, Term] = {term.name: term for term in (DCD, LOGITS, FITNETS, CWD, IFVD, FREEKD, SOFT_LABELS, DUAL_SELF)}

METHOD = "nnunet_kd.method"


def active_terms(own: Sequence[Term] | None, method: Mapping[str, Any], num_epochs: int) -> list[ActiveTerm]:
    """Terms of one training.

    Args:
        own: The trainer's; ``None`` where it distils nothing, whatever the plans say.
        method: ``nnunet_kd.method`` of the plans: keywords of the trainer's first term, and terms to ``add`` to the
            trainer's or, as ``terms``, to use instead, each an object with its ``name`` and what differs from
            :data:`TERMS`.
        num_epochs: Of the training.

    Raises:
        ValueError: For anything that is not valid, naming the key.
    """
    if own is None:
        return []
    numbers = {key: value for key, value in method.items() if key not in ("terms", "add")}
    listed = [*_listed(method, "terms"), *_listed(method, "add")]
    if "terms" in method and numbers:
        raise ValueError(f"{METHOD} has both 'terms' and {next(iter(numbers))!r}: numbers belong to a term of the list")
    if "terms" in method and "add" in method:
        raise ValueError(f"{METHOD} has both 'terms', which replaces the trainer's terms, and 'add': list all in one")
    declared = []
    if "terms" not in method:
        if numbers and not own:
            raise ValueError(f"{METHOD}: {next(iter(numbers))!r} belongs to a term, name it under 'terms' or 'add'")
        declared = [(term.changed(numbers if term is own[0] else {}, METHOD), METHOD) for term in own]
    known = {**{term.name: term for term in own}, **TERMS}
    for where, entry in listed:
        rest = dict(entry)
        name = rest.pop("name", None)
        if not isinstance(name, str):
            raise ValueError(f"{where} needs a name: {', '.join(known)}")
        check_keys({name: None}, known, f"{where}.name")
        declared.append((known[name].changed(rest, where), where))
    for i, (term, where) in enumerate(declared):
        if term.name in [other.name for other, _ in declared[:i]]:
            raise ValueError(f"{where}: the term {term.name!r} is there already")
    terms = [term.build(num_epochs, where) for term, where in declared]
    shares = sum(term.weight for term in terms if term.convex)
    if shares > 1:
        raise ValueError(
            f"{METHOD}: the weights of convex terms sum to {shares:g}, which leaves nnU-Net's loss below 0"
        )
    return terms


def _listed(method: Mapping[str, Any], key: str) -> list[tuple[str, Mapping[str, Any]]]:
    entries = method.get(key, [])
    where = f"{METHOD}.{key}"
    if not isinstance(entries, list) or (key in method and not entries):
        raise ValueError(f'{where} must be a list like [{{"name": "dcd", "weight": 0.01}}], got {entries!r}')
    for i, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            raise ValueError(f"{where}[{i}] must be an object with a name, got {entry!r}")
    return [(f"{where}[{i}]", entry) for i, entry in enumerate(entries)]
