"""Convert the cases of a data set, in this process or in several."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from nnunet_kd.datasets.base import Dataset
from nnunet_kd.datasets.cases import Case, RawFolder
from nnunet_kd.storage.processes import end_with_parent
from nnunet_kd.storage.writing import is_full

Progress = Callable[[Iterable[Any], int], Iterable[Any]]  # the work and how many items it has -> the work


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        problem: Why it could not be converted; none of its files is left then. ``None``: it is there.
        remark: What the data set remarks on the case.
    """

    problem: str | None = None
    remark: str | None = None


def convert_cases(
    dataset: Dataset, cases: Sequence[Case], raw: RawFolder, skip_bad: bool, workers: int, progress: Progress
) -> dict[str, Outcome]:
    """Convert all cases into a folder.

    Args:
        dataset: The data set with its options.
        cases: Those without a problem.
        raw: The folder; the folders of images and labels are made in it.
        skip_bad: Whether to go on after a case that cannot be converted.
        workers: Number of processes. One means this process; each holds one case at a time.
        progress: Shows the progress of the work.

    Returns:
        Identifier -> outcome, in the order in which cases were finished.

    Raises:
        DiskFullError: Naming the file that could not be written.
        ValueError: For the first case that cannot be converted, unless such cases are skipped.
    """
    for name in ("imagesTr", "labelsTr", *(("imagesTs", "labelsTs") if any(case.test for case in cases) else ())):
        (raw.path / name).mkdir(parents=True)
    outcomes: dict[str, Outcome] = {}
    with closing(_work(dataset, cases, raw, workers)) as work:
        for case, outcome in progress(work, len(cases)):
            if outcome.problem is not None and not skip_bad:
                raise ValueError(f"{case.identifier}: {outcome.problem}. --skip-bad leaves such cases out")
            outcomes[case.identifier] = outcome
    return outcomes


def _work(
    dataset: Dataset, cases: Sequence[Case], raw: RawFolder, workers: int
) -> Generator[tuple[Case, Outcome], None, None]:
    """Yield every case with its outcome as soon as it is finished."""
    if workers == 1:
        for case in cases:
            yield case, _convert_case(dataset, case, raw)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        futures = {pool.submit(_convert_case, dataset, case, raw): case for case in cases}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _convert_case(dataset: Dataset, case: Case, raw: RawFolder) -> Outcome:
    """Convert one case, and remove its files if that fails. A full disk is not the case's problem."""
    try:
        return Outcome(remark=dataset.convert(case, raw))
    except (ValueError, OSError, RuntimeError) as error:  # libraries for images raise all of them
        if is_full(error, raw.path):
            raise
        own = re.compile(rf"{re.escape(case.identifier)}(_\d{{4}})?{re.escape(raw.file_ending)}")
        for path in raw.path.glob("*/*"):
            if own.fullmatch(path.name):
                path.unlink()
        return Outcome(problem=str(error))
