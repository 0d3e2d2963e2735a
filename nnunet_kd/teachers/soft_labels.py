"""A store of a teacher's logits: computed once, one file a training case, read by the data loader.

It is a folder beside the preprocessed cases, named after them and the store, that holds

- ``manifest.json``: what made the logits, and for which data,
- ``CASE.b2nd``: float16 ``(heads, z, y, x)`` on the grid of the preprocessed case, compressed and chunked with blosc2
  as nnU-Net's own data,
- ``CASE.json``: size and SHA-256 of that file, written after it: a case without it is not there yet.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params

from nnunet_kd.writing import replacing, write_whole

PACKAGES = ("nnunet_kd", "nnunetv2", "torch", "segment_anything", "blosc2")


@dataclass(frozen=True)
class SoftLabelStore:
    """One folder of soft labels.

    Attributes:
        folder: May be missing until :meth:`begin`.
    """

    folder: Path

    @property
    def name(self) -> str:
        """Without the data's."""
        return self.folder.name.rpartition("_soft_")[2]

    @property
    def manifest(self) -> dict[str, Any]:
        """What made the logits, and for which data.

        Raises:
            ValueError: Where it cannot be read.
        """
        path = self.folder / "manifest.json"
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.folder} is no folder of soft labels: cannot read {path.name}") from error
        return content

    def begin(self, data: Mapping[str, Any], source: Mapping[str, Any], cases: Sequence[str]) -> None:
        """Write the manifest, or check that the one that is there says the same.

        Args:
            data: Which data the labels belong to (see :func:`data_of`).
            source: Everything that decides what the labels are.
            cases: All cases the store will have, whoever makes them.

        Raises:
            ValueError: Naming the first entry that differs.
        """
        wanted = json.loads(json.dumps({"data": data, "source": source, "cases": sorted(cases)}))
        if (self.folder / "manifest.json").is_file():
            there = self.manifest
            for section in ("source", "data"):
                before, now = there.get(section, {}), wanted[section]
                for key in [*now, *before]:
                    if before.get(key) != now.get(key):
                        raise ValueError(
                            f"{self.folder} was begun with {key} = {_short(before.get(key))}, not "
                            f"{_short(now.get(key))}: give --name another name, or remove the folder"
                        )
            if there.get("cases") != wanted["cases"]:
                raise ValueError(f"{self.folder} was begun for other cases: remove it, or give --name another name")
            return
        versions = {package: version(package) for package in PACKAGES}
        write_whole(self.folder / "manifest.json", json.dumps({**wanted, "versions": versions}, indent=1))

    def write(self, case: str, logits: np.ndarray, patch_size: Sequence[int]) -> None:
        """Store one case: its file is whole or not there.

        Args:
            case: nnU-Net's identifier.
            logits: ``(heads, z, y, x)``, any floating type.
            patch_size: nnU-Net's, for the chunks.

        Raises:
            ValueError: For logits that are not finite in half precision.
        """
        limit = float(np.finfo(np.float16).max)
        half = np.ascontiguousarray(np.clip(logits, -limit, limit).astype(np.float16))
        if not np.isfinite(half).all():
            raise ValueError(f"case {case}: the teacher's logits are not finite")
        blocks, chunks = comp_blosc2_params(half.shape, tuple(patch_size), half.itemsize)
        parameters = {"codec": blosc2.Codec.ZSTD, "clevel": 5, "nthreads": 1, "filters": [blosc2.Filter.SHUFFLE]}
        path = self.path(case)
        with replacing(path) as unfinished:
            blosc2.asarray(half, urlpath=str(unfinished), mode="w", chunks=chunks, blocks=blocks, cparams=parameters)
        record = {"shape": list(half.shape), "bytes": path.stat().st_size, "sha256": file_digest(path)}
        write_whole(self._record(case), json.dumps(record))

    def open(self, case: str) -> Any:
        """Logits of a case, float16 ``(heads, z, y, x)``, memory mapped: nothing is read before it is indexed.

        Raises:
            ValueError: Naming a file that is missing or damaged.
        """
        mapped = {} if os.name == "nt" else {"mmap_mode": "r"}  # as nnU-Net opens its own
        try:
            return blosc2.open(urlpath=str(self.path(case)), mode="r", dparams={"nthreads": 1}, **mapped)
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"cannot read the soft labels {self.path(case)}: missing or damaged") from error

    def is_whole(self, case: str) -> bool:
        """Whether the file of a case has the size it was written with."""
        record, path = self._record(case), self.path(case)
        if not record.is_file() or not path.is_file():
            return False
        try:
            return bool(path.stat().st_size == json.loads(record.read_text())["bytes"])
        except (ValueError, KeyError, TypeError):
            return False

    def path(self, case: str) -> Path:
        """File of a case."""
        return self.folder / f"{case}.b2nd"

    def _record(self, case: str) -> Path:
        return self.folder / f"{case}.json"

    def check(self, data: Mapping[str, Any], cases: Iterable[str]) -> None:
        """Whether a training on these data and cases can use the store.

        Raises:
            ValueError: Saying what differs, or which file is missing or damaged.
        """
        manifest = self.manifest
        for key, value in json.loads(json.dumps(data)).items():
            if manifest.get("data", {}).get(key) != value:
                raise ValueError(
                    f"the soft labels in {self.folder} are for {key} = {_short(manifest.get('data', {}).get(key))}, "
                    f"this training has {_short(value)}"
                )
        for case in cases:
            if not self.is_whole(case):
                state = "is damaged" if self.path(case).is_file() else "is missing"
                raise ValueError(f"the soft labels {self.path(case)}: the file {state}")

    def leakage(self, fold: int | str) -> str | None:
        """A warning where the labels come from an nnU-Net that has seen validation cases of student fold ``fold``."""
        folds = self.manifest.get("source", {}).get("folds")
        if folds is None or fold == "all":
            return None
        leaking = [one for one in folds if one != fold]
        if not leaking:
            return None
        return (
            f"LEAKAGE: the soft labels '{self.name}' are of teachers (fold {', '.join(map(str, leaking))}) that were "
            f"trained on validation cases of student fold {fold}. The student's validation scores are optimistic and "
            "no estimate for new cases."
        )


def data_of(plans_manager: Any, configuration: str, dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """What of an experiment soft labels depend on: its data and its labels."""
    settings = plans_manager.get_configuration(configuration)
    labels = plans_manager.get_label_manager(dataset_json)
    return {
        "dataset": plans_manager.dataset_name,
        "preprocessed": settings.data_identifier,
        "spacing": [float(width) for width in settings.spacing],
        "labels": dataset_json["labels"],
        "regions": [list(np.atleast_1d(region).tolist()) for region in labels.foreground_regions]
        if labels.has_regions
        else None,
        "heads": labels.num_segmentation_heads,
    }


def find_store(preprocessed: Path, identifier: str, name: str | None) -> SoftLabelStore:
    """The store of preprocessed data by its name; without one, the only one there is.

    Args:
        preprocessed: The data set's folder in ``nnUNet_preprocessed``.
        identifier: ``data_identifier`` of the configuration.
        name: Of the store.

    Raises:
        FileNotFoundError: Where there is none, with the command that makes one.
        ValueError: Where there are several and no name.
    """
    prefix = f"{identifier}_soft_"
    stores = sorted(path for path in preprocessed.glob(f"{prefix}*") if (path / "manifest.json").is_file())
    names = [path.name[len(prefix) :] for path in stores]
    if name is None and len(stores) > 1:
        raise ValueError(
            f"there are several soft labels, {', '.join(names)}: name one in the plans, "
            f'"method": {{"store": "{names[0]}"}}'
        )
    if (name is not None and name not in names) or not stores:
        raise FileNotFoundError(
            f"there are no soft labels{'' if name is None else f' {name!r}'} in {preprocessed}"
            + (f", only {', '.join(names)}" if names else "")
        )
    return SoftLabelStore(stores[0] if name is None else preprocessed / f"{prefix}{name}")


def store_folder(preprocessed: Path, identifier: str, name: str) -> Path:
    """Where a store of that name belongs.

    Raises:
        ValueError: For a name that is no part of a file name.
    """
    if not name or any(not (letter.isalnum() or letter in "-_.") for letter in name) or "_soft_" in name:
        raise ValueError(f"a name of soft labels has letters, digits, '-', '_' and '.' only, got {name!r}")
    return preprocessed / f"{identifier}_soft_{name}"


def make_soft_labels(
    store: SoftLabelStore,
    cases: Sequence[str],
    logits_of: Callable[[str], np.ndarray],
    patch_size: Sequence[int],
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> None:
    """Compute and store the cases that are not there yet."""
    for case in progress([case for case in cases if not store.is_whole(case)]):
        store.write(case, logits_of(case), patch_size)


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
