"""Map a teacher's channels and structures to those of a student that was planned for different ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_kd.nnunet.reading import channel_names, label_values

# The logit of certainty: no mapped probability is closer to 0 or 1 than that of this logit, which is 1e-7.
CERTAIN = 16.0
BACKGROUND = "background"
_IGNORE = "ignore"


@dataclass(frozen=True)
class ChannelMap:
    """Which of the teacher's input channels each of the student's input channels is.

    Attributes:
        channels: The number of the teacher's channel, for each of the student's channels in order.
        names: The names of all channels of the teacher.
    """

    channels: tuple[int, ...]
    names: tuple[str, ...]

    @classmethod
    def of(
        cls, given: Sequence[int] | None, teacher: Mapping[str, Any], student: Mapping[str, Any], whose: str = "teacher"
    ) -> ChannelMap:
        """Read a channel map, or match the channels by their names, or else by their order if there are equally many.

        Args:
            given: The number of the teacher's channel for each of the student's channels; ``None`` to match them.
            teacher: The teacher's ``dataset.json``.
            student: The student's ``dataset.json``.
            whose: The teacher's name, for messages.

        Raises:
            ValueError: If the map names a channel that does not exist, twice the same, or too few, or if the channels
                cannot be matched.
        """
        theirs, ours = _channels(teacher), _channels(student)
        if given is None:
            return cls(_matched_channels(theirs, ours, whose), theirs)
        if len(given) != len(ours):
            raise ValueError(
                f"the channel map must have one entry for each of the student's {len(ours)} channels "
                f"({', '.join(ours)}), got {len(given)}: {' '.join(map(str, given))}"
            )
        for number in given:
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(theirs):
                raise ValueError(
                    f"the channel map names channel {number}, but the {whose} has channels 0 to {len(theirs) - 1} "
                    f"({', '.join(theirs)})"
                )
        if len({*given}) < len(given):
            raise ValueError(f"the channel map names a channel of the {whose} twice: {' '.join(map(str, given))}")
        return cls(tuple(given), theirs)

    @property
    def is_identity(self) -> bool:
        """Whether the student has exactly the teacher's channels, in the same order."""
        return self.channels == tuple(range(len(self.names)))

    @property
    def missing(self) -> tuple[int, ...]:
        """The numbers of the teacher's channels that the student does not have."""
        return tuple(number for number in range(len(self.names)) if number not in self.channels)

    def sources(self) -> list[int]:
        """Return the number of the student's channel for each of the teacher's channels, in the teacher's order.

        Raises:
            ValueError: If the student lacks one of the teacher's channels.
        """
        if self.missing:
            lacking = ", ".join(f"{number} ({self.names[number]})" for number in self.missing)
            raise ValueError(f"the student's images lack the teacher's channel {lacking}")
        return [self.channels.index(number) for number in range(len(self.names))]


def _channels(dataset_json: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(name) for name in channel_names(dataset_json).values())


def _matched_channels(theirs: Sequence[str], ours: Sequence[str], whose: str) -> tuple[int, ...]:
    """Match channels by name; by order if there are equally many and no common name is at different places."""
    known = {name.casefold(): number for number, name in enumerate(theirs)}
    wanted = [name.casefold() for name in ours]
    unique = len(known) == len(theirs) and len({*wanted}) == len(ours)
    if unique and all(name in known for name in wanted):
        return tuple(known[name] for name in wanted)
    if len(theirs) == len(ours) and not (unique and any(known.get(one, at) != at for at, one in enumerate(wanted))):
        return tuple(range(len(ours)))
    raise ValueError(
        f"the student's channels ({', '.join(ours)}) cannot be matched with those of the {whose} ({', '.join(theirs)}) "
        f"by name: say which they are with a channel map, the number of the {whose}'s channel for each of the student's"
    )


@dataclass(frozen=True)
class Heads:
    """The outputs of a network, one per label or one per region.

    Attributes:
        names: The head of every name in ``dataset.json`` that has one, with ``background`` if the heads are labels.
        labels: The label values that each head stands for.
        are_regions: Whether the heads are regions, which overlap (sigmoid), instead of labels (softmax).
    """

    names: Mapping[str, int]
    labels: tuple[frozenset[int], ...]
    are_regions: bool

    @classmethod
    def of(cls, dataset_json: Mapping[str, Any]) -> Heads:
        """Read the heads in the order in which nnU-Net's label manager gives them to a network."""
        named = {
            str(name): frozenset(label_values(value))
            for name, value in dataset_json["labels"].items()
            if name != _IGNORE
        }
        # nnU-Net has regions if any entry lists several labels, even twice the same
        if any(isinstance(one, list | tuple) and len(one) > 1 for one in dataset_json["labels"].values()):
            structures = {name: labels for name, labels in named.items() if labels != {0}}
            return cls({name: head for head, name in enumerate(structures)}, tuple(structures.values()), True)
        values = sorted({value for labels in named.values() for value in labels})
        heads = {name: values.index(min(labels)) for name, labels in named.items()}
        return cls(heads, tuple(frozenset((value,)) for value in values), False)

    @property
    def structures(self) -> dict[str, int]:
        """The heads of all names but the background's."""
        return {name: head for name, head in self.names.items() if self.labels[head] != {0}}


@dataclass(frozen=True)
class LabelMap:
    """Which of the teacher's structures each of the student's structures consists of.

    Attributes:
        groups: The teacher's heads of which each of the student's heads consists. If the student's heads are labels,
            the first group is the background's, with the teacher's background and every label that nothing names.
        teacher: The teacher's heads.
        student: The student's heads.
    """

    groups: tuple[tuple[int, ...], ...]
    teacher: Heads
    student: Heads

    @classmethod
    def of(
        cls,
        given: Mapping[str, Sequence[str]] | None,
        teacher: Mapping[str, Any],
        student: Mapping[str, Any],
        whose: str = "teacher",
    ) -> LabelMap:
        """Read a label map, and match the student's structures that it does not mention by their names.

        Args:
            given: The names of the teacher's structures for names of the student's structures. Structures of the
                teacher that nothing names become background, as those of the entry ``"background"`` do.
            teacher: The teacher's ``dataset.json``.
            student: The student's ``dataset.json``.
            whose: The teacher's name, for messages.

        Raises:
            ValueError: If the map names a structure that does not exist, if one of the student's structures has none
                of the teacher's, or if two labels of the student share a structure.
        """
        theirs, ours = Heads.of(teacher), Heads.of(student)
        found = _named_groups(dict(given or {}), theirs, ours, whose)
        dropped = found.pop(BACKGROUND, ())
        groups: list[tuple[int, ...]] = [()] * len(ours.labels)
        for name, heads in found.items():
            groups[ours.structures[name]] = heads
        used = [head for group in groups for head in group]
        twice = [head for head in used if head in dropped or (not ours.are_regions and used.count(head) > 1)]
        if twice:
            name = next(name for name, head in theirs.names.items() if head == twice[0])
            raise ValueError(f"the label map gives {name!r} of the {whose} to two structures of the student")
        if not ours.are_regions:
            groups[0] = () if theirs.are_regions else tuple(h for h in range(len(theirs.labels)) if h not in used)
        return cls(tuple(groups), theirs, ours)

    @property
    def is_identity(self) -> bool:
        """Whether the student's heads are the teacher's."""
        same = self.teacher.are_regions == self.student.are_regions
        return same and self.groups == tuple((head,) for head in range(len(self.teacher.labels)))

    @property
    def description(self) -> dict[str, list[str]]:
        """The names of the teacher's structures for each of the student's structures."""
        theirs = self.teacher.structures
        return {
            name: [one for one, head in theirs.items() if head in self.groups[ours]]
            for name, ours in self.student.structures.items()
        }

    def __call__(self, logits: Tensor, dim: int = 0) -> Tensor:
        """Map the teacher's logits to logits of the student's structures.

        Probabilities of labels that are merged add up. A union of regions has the probability of the largest if they
        are nested, and the sum if they are disjoint. A label of the student that is one of overlapping regions is what
        later regions leave of it, because nnU-Net writes regions in this order, each over the ones before.

        Args:
            logits: The teacher's logits, with its heads along ``dim``.
            dim: The dimension of the heads.

        Returns:
            The logits in float32, with the student's heads along ``dim``: log-probabilities of labels, or logits of
            regions. They are the teacher's own if nothing needs mapping.
        """
        logits = logits.float()
        if self.is_identity:
            return logits
        if not self.teacher.are_regions:
            chances = F.log_softmax(logits, dim)
            if not self.student.are_regions:
                return torch.cat([_log_sum(chances, group, dim) for group in self.groups], dim)
            others = [[h for h in range(len(self.teacher.labels)) if h not in group] for group in self.groups]
            odds = [
                _log_sum(chances, group, dim) - _log_sum(chances, rest, dim)
                for group, rest in zip(self.groups, others, strict=True)
            ]
            return torch.cat(odds, dim).clamp(-CERTAIN, CERTAIN)
        if self.student.are_regions:
            return torch.cat([self._union(logits, group, dim) for group in self.groups], dim)
        return self._labels_of_regions(logits, dim)

    def background(self) -> Tensor:
        """Return logits of the student's heads that are certain of the background, ``(heads,)``."""
        logits = torch.full((len(self.groups),), -CERTAIN)
        if not self.student.are_regions:
            logits[0] = 0
        return logits

    def _union(self, logits: Tensor, group: Sequence[int], dim: int) -> Tensor:
        """Return the logits of a union of regions."""
        if len(group) == 1:
            return logits.narrow(dim, group[0], 1)
        parts = self._exclusive(logits, group, dim)
        return torch.stack([*parts.values()]).sum(0).logit(_CLOSEST).clamp(-CERTAIN, CERTAIN)

    def _labels_of_regions(self, logits: Tensor, dim: int) -> Tensor:
        """Return the log-probabilities of the student's labels, which exclude each other, from regions."""
        parts = self._exclusive(logits, [head for group in self.groups for head in group], dim)
        labels = [torch.stack([parts[head] for head in group]).sum(0) for group in self.groups[1:]]
        background = (1 - torch.stack(labels).sum(0)).clamp_min(0)
        chances = torch.cat([background, *labels], dim).clamp_min(_CLOSEST)
        return (chances / chances.sum(dim, keepdim=True)).log()

    def _exclusive(self, logits: Tensor, heads: Iterable[int], dim: int) -> dict[int, Tensor]:
        """Return the probability of each region less those of the later regions that overlap with it."""
        parts: dict[int, Tensor] = {}
        for head in sorted(heads, reverse=True):
            part = torch.sigmoid(logits.narrow(dim, head, 1))
            for later, taken in parts.items():
                if self.teacher.labels[later] & self.teacher.labels[head]:
                    part = part - taken
            parts[head] = part.clamp_min(0)
        return parts


_CLOSEST = 1e-7


def _log_sum(chances: Tensor, heads: Sequence[int], dim: int) -> Tensor:
    """Return the logarithm of the sum of the probabilities of some heads."""
    if len(heads) == 1:
        return chances.narrow(dim, heads[0], 1)
    return chances.index_select(dim, torch.tensor(heads, device=chances.device)).logsumexp(dim, keepdim=True)


def _named_groups(given: dict[str, Any], theirs: Heads, ours: Heads, whose: str) -> dict[str, tuple[int, ...]]:
    """Return the teacher's heads for every structure of the student, and for the background if the map names it."""
    wanted = [*ours.structures, *([BACKGROUND] if BACKGROUND in given else [])]
    for name in given:
        if name not in wanted:
            raise ValueError(f"the label map names {name!r}, but the student has {', '.join(ours.structures)}")
    by_name = {name.casefold(): name for name in theirs.structures}
    found = {}
    for name in wanted:
        default = [by_name[name.casefold()]] if name.casefold() in by_name else []
        listed = given.get(name, default)
        if not isinstance(listed, list | tuple) or not all(isinstance(one, str) for one in listed):
            raise ValueError(f"the label map must list names of the {whose}'s structures for {name!r}, got {listed!r}")
        for one in listed:
            if one not in theirs.structures:
                raise ValueError(f"the label map names {one!r}, but the {whose} has {', '.join(theirs.structures)}")
        if not listed and name != BACKGROUND:
            raise ValueError(
                f"the {whose} has no structure for {name!r} of the student: name some of "
                f"{', '.join(theirs.structures)} in a label map"
            )
        found[name] = tuple(sorted({theirs.structures[one] for one in listed}))
    return found
