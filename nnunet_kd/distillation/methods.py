"""The distillation methods that plans can name, with their default settings.

Unless noted otherwise, weights are those of the authors' code, most of which is for 2-D natural images. Methods with
one feature map there, such as IFVD, use every encoder stage here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nnunet_kd.distillation.terms import (
    LogitsTerm,
    PromptTerm,
    SelfTerm,
    SoftLabelTerm,
    StageTerm,
    Term,
    WeightedStageTerm,
)
from nnunet_kd.losses import (
    CIRKDLoss,
    CWDLoss,
    DCDLoss,
    DPRDLoss,
    DualSelfLoss,
    FitNetsLoss,
    FreeKDLoss,
    IFVDLoss,
    LogitsKDLoss,
    ReCoKDLoss,
    RKDLoss,
    SKDLoss,
)
from nnunet_kd.nnunet.settings import BLOCK, check_keys

METHOD = f"{BLOCK}.method"


@dataclass(frozen=True)
class Method:
    """A named kind of term with its settings, from which each training builds its own term.

    Attributes:
        name: The term's name in plans and in the log.
        kind: The class of the term.
        loss: The class of its loss.
        numbers: The keyword arguments of ``kind`` and ``loss`` that differ from their defaults.
    """

    name: str
    kind: type[Term]
    loss: Callable[..., Any]
    numbers: Mapping[str, Any]

    @property
    def keys(self) -> dict[str, Any]:
        """All settings that a plan can change, with their defaults."""
        loss = {name: one.default for name, one in inspect.signature(self.loss).parameters.items()}
        return {**loss, **self._of_term, **self.numbers}

    @property
    def _of_term(self) -> dict[str, Any]:
        """The settings of the term itself, with their defaults; a loss without a projection has none to freeze."""
        keywords = _keywords(self.kind)
        if not getattr(self.loss, "has_projection", True):
            del keywords["projection"]
        return keywords

    def changed(self, numbers: Mapping[str, Any], where: str = METHOD) -> Method:
        """Return the method with some settings replaced.

        Args:
            numbers: The new settings, from a plan.
            where: Their place in the plan, for messages.

        Raises:
            ValueError: For a key that belongs neither to the term nor to its loss.
        """
        check_keys(numbers, [*self._of_term, *inspect.signature(self.loss).parameters], where)
        return replace(self, numbers={**self.numbers, **numbers})

    def build(self, num_epochs: int, where: str = METHOD) -> Term:
        """Build the term of a training.

        Args:
            num_epochs: The number of epochs of the training.
            where: The place of the settings in the plan, for messages.

        Raises:
            ValueError: If a setting is out of range.
        """
        own = {key: value for key, value in self.numbers.items() if key in self._of_term}
        options = {key: value for key, value in self.numbers.items() if key not in own}
        try:
            return self.kind(self.name, self.loss(**options), num_epochs, **own)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error


def _keywords(kind: type[Term]) -> dict[str, Any]:
    """Return the keyword arguments of a kind of term with their defaults, those of all terms first."""
    constructors = [vars(one)["__init__"] for one in reversed(kind.__mro__[:-1]) if "__init__" in vars(one)]
    parameters = [one for constructor in constructors for one in inspect.signature(constructor).parameters.values()]
    return {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}


DCD = Method("dcd", StageTerm, DCDLoss, {"weight": 0.01, "ramp": (0.15, 0.8)})
LOGITS = Method("logits", LogitsTerm, LogitsKDLoss, {"weight": 0.3, "scales": "all", "convex": True})
FITNETS = Method("fitnets", StageTerm, FitNetsLoss, {"weight": 1.0})
CWD = Method("cwd", LogitsTerm, CWDLoss, {"weight": 0.03})  # the authors' 3 leaves a 3-D U-Net far behind: study.md
IFVD = Method("ifvd", StageTerm, IFVDLoss, {"weight": 200.0})
FREEKD = Method("freekd", PromptTerm, FreeKDLoss, {"weight": 1.0})
SOFT_LABELS = Method("soft_labels", SoftLabelTerm, LogitsKDLoss, {"weight": 0.5, "temperature": 3.0, "rescale": False})
RKD = Method("rkd", StageTerm, RKDLoss, {"weight": 1.0})
CIRKD = Method("cirkd", StageTerm, CIRKDLoss, {"weight": 1.0})
SKD = Method("skd", StageTerm, SKDLoss, {"weight": 0.5})
DUAL_SELF = Method("dual_self", SelfTerm, DualSelfLoss, {"weight": 0.1})  # the paper's 1 leaves a 3-D U-Net far behind
DPRD = Method("dprd", WeightedStageTerm, DPRDLoss, {"weight": 0.5, "ramp": (0.0, 0.15), "projection": "frozen"})
RECO_KD = Method("reco_kd", WeightedStageTerm, ReCoKDLoss, {"weight": 0.01, "ramp": (0.0, 0.6), "deepest": False})

ALL = (
    DCD,
    LOGITS,
    FITNETS,
    CWD,
    IFVD,
    FREEKD,
    SOFT_LABELS,
    DUAL_SELF,
    DPRD,
    RECO_KD,
    RKD,
    CIRKD,
    SKD,
)
TERMS = {method.name: method for method in ALL}


def build_terms(own: Sequence[Method] | None, method: Mapping[str, Any], num_epochs: int) -> list[Term]:
    """Build the terms of one training.

    Args:
        own: The trainer's methods; ``None`` if it distils nothing, whatever the plans say.
        method: ``nnunet_kd.method`` of the plans: settings of the trainer's first method, and a list of methods to
            ``add`` to the trainer's or, under ``terms``, to replace them. Each is an object with its ``name`` and the
            settings that differ from :data:`TERMS`.
        num_epochs: The number of epochs of the training.

    Raises:
        ValueError: If a setting is not valid; the message names its key.
    """
    if own is None:
        return []
    terms: dict[str, Term] = {}
    for where, declared in _declared(own, method):
        if declared.name in terms:
            raise ValueError(f"{where}: the training already has the term {declared.name!r}, remove one")
        terms[declared.name] = declared.build(num_epochs, where)
    shares = sum(term.weight for term in terms.values() if term.convex)
    if shares > 1:
        raise ValueError(
            f"{METHOD}: the weights of convex terms sum to {shares:g}, which leaves nnU-Net's loss below 0"
        )
    return list(terms.values())


def check_soft_labels(terms: Sequence[Term], trainer: str) -> None:
    """Refuse ``"unlabelled": "hard"`` without a term that names stored soft labels.

    Raises:
        ValueError: If no term does.
    """
    if not any(isinstance(term, SoftLabelTerm) for term in terms):
        raise ValueError(
            f'{BLOCK}.training.unlabelled: "hard" takes the segmentations of stored soft labels, which no term of '
            f"{trainer} reads: train with nnUNetTrainerSoftKD, or add the term "
            '{"name": "soft_labels", "weight": 0}'
        )


def _declared(own: Sequence[Method], method: Mapping[str, Any]) -> list[tuple[str, Method]]:
    """Return the methods of trainer and plans, each with the place that names it."""
    numbers = {key: value for key, value in method.items() if key not in ("terms", "add")}
    listed = [*_listed(method, "terms"), *_listed(method, "add")]
    if "terms" in method and numbers:
        raise ValueError(
            f"{METHOD} has both 'terms' and {next(iter(numbers))!r}: settings belong to a term of the list"
        )
    if "terms" in method and "add" in method:
        raise ValueError(f"{METHOD} has both 'terms', which replaces the trainer's terms, and 'add': list all in one")
    declared: list[tuple[str, Method]] = []
    if "terms" not in method:
        if numbers and not own:
            raise ValueError(
                f"{METHOD}: {next(iter(numbers))!r} belongs to a term: name the term under 'terms' or 'add'"
            )
        declared = [(METHOD, one.changed(numbers if one is own[0] else {})) for one in own]
    known = {**{one.name: one for one in own}, **TERMS}
    for where, entry in listed:
        rest = dict(entry)
        name = rest.pop("name", None)
        if not isinstance(name, str):
            raise ValueError(f"{where} needs a name: {', '.join(known)}")
        check_keys({name: None}, known, f"{where}.name")
        declared.append((where, known[name].changed(rest, where)))
    return declared


def _listed(method: Mapping[str, Any], key: str) -> list[tuple[str, Mapping[str, Any]]]:
    entries = method.get(key, [])
    where = f"{METHOD}.{key}"
    if not isinstance(entries, list) or (key in method and not entries):
        raise ValueError(f'{where} must be a list like [{{"name": "dcd", "weight": 0.01}}], got {entries!r}')
    for i, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            raise ValueError(f"{where}[{i}] must be an object with a name, got {entry!r}")
    return [(f"{where}[{i}]", entry) for i, entry in enumerate(entries)]
