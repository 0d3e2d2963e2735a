"""Cases without a reference in a training: what they learn from, and what they are validated against.

Whether a case has a reference is decided once, when the training begins, from the whole preprocessed case. Where a
labelled case ignores voxels, the soft labels ignore them too; for a case without a reference they count everywhere.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from nnunet_kd.distillation.targets import LabelCodes
from nnunet_kd.nnunet.unlabelled import OUTSIDE, normalised_with_outside, without_reference
from nnunet_kd.teachers.soft_labels import SoftLabelStore
from nnunet_kd.teachers.stored_segmentations import StoredSegmentation, TeacherLocations
from nnunet_kd.training.soft_labels import stored_logits

EVERY = 30.0  # seconds between two progress messages


class DatasetWithTeacherReference:
    """nnU-Net's data set, in which the teacher stands in for references that do not exist.

    Args:
        dataset: nnU-Net's data set.
        cases: The cases without a reference.
        store: Their soft labels.
        locations: Where the teacher finds each class, for the oversampling of foreground.
        labels: nnU-Net's label manager.
        hard: Whether the teacher's segmentation replaces that of the case, which otherwise stays ignored everywhere.
    """

    def __init__(
        self,
        dataset: Any,
        cases: Collection[str],
        store: SoftLabelStore,
        locations: TeacherLocations,
        labels: Any,
        hard: bool,
    ) -> None:
        self._dataset = dataset
        self._cases = frozenset(cases)
        self._store = store
        self._locations = locations
        self._labels = labels
        self._hard = hard
        self.identifiers: list[str] = dataset.identifiers

    def __getitem__(self, identifier: str) -> Any:
        return self.load_case(identifier)

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, Any]:
        """Return image, segmentation, segmentation of the previous stage and properties, as nnU-Net does.

        Raises:
            ValueError: If the soft labels are damaged or have another shape than the image.
        """
        image, segmentation, previous, properties = self._dataset.load_case(identifier)
        if identifier in self._cases:
            # Nothing is annotated, so nnU-Net crops anywhere, as in a data set without an ignore label, and warns.
            warnings.filterwarnings("ignore", "Warning! No annotated pixels in image!")
            nowhere: dict[Any, Any] = {(OUTSIDE, *self._labels.all_labels): []}
            properties = {**properties, "class_locations": {**self._locations.read(identifier), **nowhere}}
            if self._hard:
                logits = stored_logits(self._store, identifier, image.shape)
                segmentation = StoredSegmentation(logits, self._labels)
        return image, segmentation, previous, properties


class UnlabelledCases:
    """The cases of one training without a reference.

    Args:
        train: nnU-Net's data set of the training cases.
        validation: nnU-Net's data set of the validation cases.
        labels: nnU-Net's label manager.
        configuration: nnU-Net's configuration manager.
        store: The soft labels that a term reads; ``None`` if no term does.
        hard: Whether unlabelled cases learn from the teacher's segmentation in addition to the term.

    Attributes:
        training: The training cases without a reference.
        validation: The validation cases without a reference.
        in_agreement: Whether the validation during training measures agreement with the teacher, because no validation
            case has a reference.

    Raises:
        ValueError: If it has to and a validation case has no soft labels.
    """

    def __init__(
        self, train: Any, validation: Any, labels: Any, configuration: Any, store: SoftLabelStore | None, hard: bool
    ) -> None:
        self._labels = labels
        self._store = store
        self._hard = hard
        self._counts = len(train.identifiers), len(validation.identifiers)
        self.training = without_reference(train, labels)
        self.validation = without_reference(validation, labels)
        self._soft = frozenset(() if hard or store is None else self.training)
        self._with_outside = normalised_with_outside(train, labels, self.training, configuration)
        none_labelled = bool(self.validation) and len(self.validation) == len(validation.identifiers)
        self.in_agreement = none_labelled and store is not None
        self._locations = None if store is None else TeacherLocations(store, labels)
        if self.in_agreement and store is not None:
            for case in self.validation:
                if (fault := store.fault(case)) is not None:
                    raise ValueError(
                        f"no validation case has a reference, so the training is validated against the soft labels, "
                        f"but {store.path(case)} {fault}: make it with nnunet_kd soft-labels ... --continue"
                    )

    def locate(self, say: Callable[[str], None]) -> None:
        """Find where the teacher sees each class in the unlabelled cases, unless it is known from an earlier training.

        Args:
            say: The function that writes a line to the log.
        """
        if self._locations is None:
            return
        cases = [*self.training, *(self.validation if self.in_agreement else ())]
        begun = said = time.monotonic()
        made = 0
        for number, case in enumerate(cases, 1):
            made += self._locations.make(case)
            if time.monotonic() - said > EVERY:
                said = time.monotonic()
                left = (said - begun) / number * (len(cases) - number)
                say(f"unlabelled cases: classes found in {number} of {len(cases)}, about {left:.0f} s are left")
        if made:
            say(f"unlabelled cases: the teacher's classes were found in {made} cases, for oversampling foreground")

    def stand_in(self, train: Any, validation: Any) -> tuple[Any, Any]:
        """Return the data sets with the teacher where there is no reference, and with labelled validation cases alone.

        Args:
            train: nnU-Net's data set of the training cases.
            validation: nnU-Net's data set of the validation cases, whose list of cases is shortened in place.
        """
        store, locations = self._store, self._locations
        if self.training and store is not None and locations is not None:
            train = DatasetWithTeacherReference(train, self.training, store, locations, self._labels, self._hard)
        if self.in_agreement and store is not None and locations is not None:
            teacher = DatasetWithTeacherReference(validation, self.validation, store, locations, self._labels, True)
            return train, teacher
        if len(self.validation) < len(validation.identifiers):
            unknown = {*self.validation}
            validation.identifiers = [case for case in validation.identifiers if case not in unknown]
        return train, validation

    def in_step(self, keys: Sequence[str], target: Any, labels: LabelCodes) -> tuple[Any, Tensor | None]:
        """Find the cases of a batch that learn from soft labels alone, and ignore all of their target.

        Args:
            keys: The names of the batch's cases.
            target: nnU-Net's target, a list with one per scale under deep supervision.
            labels: The reader of the target.

        Returns:
            The target, and which cases learn from soft labels alone, boolean ``(B,)`` or ``None`` if none do.
        """
        scales = target if isinstance(target, list) else [target]
        cases = self._in_batch(keys, scales[0].device)
        if cases is None:
            return target, None
        ignored = [labels.ignored(scale, cases) for scale in scales]
        return ignored if isinstance(target, list) else ignored[0], cases

    def taught(self, keys: Sequence[str], target: Tensor, logits: Tensor, labels: LabelCodes) -> Tensor:
        """Return the target of one scale with the teacher's labels for the cases of :meth:`in_step`."""
        cases = self._in_batch(keys, target.device)
        return target if cases is None else labels.taught(target, cases, logits)

    def _in_batch(self, keys: Sequence[str], device: torch.device) -> Tensor | None:
        """Return which cases of a batch learn from soft labels alone, boolean ``(B,)``; ``None`` if none do."""
        found = [key in self._soft for key in keys]
        return torch.tensor(found, device=device) if any(found) else None

    def lines(self) -> list[str]:
        """Return what the log says about unlabelled cases; nothing if every case has a reference."""
        said = []
        trained, validated = self._counts
        if self.training:
            beginning = f"{len(self.training)} of {trained} training cases have no reference"
            if self._store is None:
                said.append(f"WARNING: {beginning}, and this trainer reads no soft labels: it learns nothing from them")
            elif self._hard:
                said.append(f"{beginning}: the segmentation of the soft labels '{self._store.name}' is theirs")
            else:
                said.append(f"{beginning}: they learn from the soft labels '{self._store.name}' alone")
        if self._with_outside:
            said.append(
                f"WARNING: {len(self._with_outside)} cases without a reference have the ignore label outside the body "
                "too, so nnU-Net has normalised them over the whole image and will predict otherwise: give them label "
                "0 where all channels are 0, and preprocess again"
            )
        if not self.validation:
            return said
        if self.in_agreement and self._store is not None:
            said.append(
                f"none of the {validated} validation cases has a reference: the pseudo Dice is agreement with the "
                f"teacher's segmentation of the soft labels '{self._store.name}', not accuracy"
            )
        elif len(self.validation) < validated:
            said.append(
                f"the pseudo Dice is of the {validated - len(self.validation)} validation cases with a reference; the "
                f"{len(self.validation)} without are left out"
            )
        else:
            said.append(f"none of the {validated} validation cases has a reference: the pseudo Dice means nothing")
        return said


def find_unlabelled(trainer: Any, train: Any, validation: Any, store: SoftLabelStore | None) -> UnlabelledCases:
    """Find the cases of a training without a reference, and where their teacher sees each class.

    Args:
        trainer: The trainer, whose first process writes what the others read.
        train: nnU-Net's data set of the training cases.
        validation: nnU-Net's data set of the validation cases.
        store: The soft labels that a term reads; ``None`` if no term does.
    """
    hard = trainer.preparation.settings.training.unlabelled == "hard"
    labels, configuration = trainer.label_manager, trainer.configuration_manager
    found = UnlabelledCases(train, validation, labels, configuration, store, hard)
    with first_process_first(trainer.local_rank, trainer.is_ddp):
        found.locate(trainer.print_to_log_file)
    return found


@contextmanager
def first_process_first(rank: int, distributed: bool) -> Iterator[None]:
    """Let the first process run the block alone, so that the others find what it has made."""
    if distributed and rank:
        torch.distributed.barrier()
    yield
    if distributed and not rank:
        torch.distributed.barrier()


def about_final_validation(trainer: Any) -> list[str]:
    """Return the line that says what nnU-Net's summary of the final validation means, or no line if nothing is special.

    nnU-Net predicts cases without a reference as well. Their Dice is NaN, which its means leave out.

    Args:
        trainer: The trainer after the final validation.
    """
    identifiers = list(trainer.do_split()[1])
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, identifiers)
    unlabelled, cases = len(without_reference(dataset, trainer.label_manager)), len(identifiers)
    if not unlabelled:
        return []
    if unlabelled == cases:
        return [
            f"none of the {cases} validation cases has a reference: the Dice in summary.json is nan, and nothing is "
            "known about the accuracy of this model"
        ]
    return [
        f"{unlabelled} of {cases} validation cases have no reference: their Dice in summary.json is nan, and the mean "
        f"Dice is of the other {cases - unlabelled} alone (the mean numbers of voxels count them as 0)"
    ]
