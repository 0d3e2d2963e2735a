"""A store of a teacher's logits: computed once, in one file per training case, and read by the data loader.

It is a folder beside the preprocessed cases, named after them and the store, that holds

- ``manifest.json``: what made the logits, and for which data,
- ``CASE.b2nd``: float16 ``(heads, z, y, x)`` on the grid of the preprocessed case, compressed and chunked with blosc2
  as nnU-Net's own data,
- ``CASE.json``: size and SHA-256 of that file and the fingerprints of the images and labels it was made from, written
  after it: a case without it is not there yet.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import blosc2
import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params

from nnunet_kd.nnunet.cases import PreprocessedCases
from nnunet_kd.nnunet.reading import read_json
from nnunet_kd.storage.integrity import file_digest
from nnunet_kd.storage.writing import replacing, write_whole

PACKAGES = ("nnunet_kd", "nnunetv2", "torch", "segment_anything", "blosc2")


@dataclass(frozen=True)
class SoftLabelStore:
    """One folder of soft labels.

    Attributes:
        folder: May be missing until :meth:`begin`.
    """

    folder: Path

    marker: ClassVar[str] = "_soft_"
    content: ClassVar[str] = "soft labels"

    @property
    def name(self) -> str:
        """Name of the store, without that of the data."""
        return self.folder.name.rpartition(self.marker)[2]

    @property
    def manifest(self) -> dict[str, Any]:
        """What made the logits, and for which data.

        Raises:
            ValueError: If it cannot be read.
        """
        path = self.folder / "manifest.json"
        try:
            content = read_json(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.folder} is no folder of {self.content}: cannot read {path.name}") from error
        return content

    def begin(self, data: Mapping[str, Any], source: Mapping[str, Any], cases: Sequence[str]) -> None:
        """Write the manifest, or check that the one that is there says the same.

        Args:
            data: Which data the labels belong to (see :func:`nnunet_kd.nnunet.cases.data_of`).
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

    def write(self, case: str, logits: np.ndarray, patch_size: Sequence[int], made_from: Mapping[str, str]) -> None:
        """Store one case, whose file is written completely or not at all.

        Args:
            case: nnU-Net's identifier.
            logits: ``(heads, z, y, x)``, any floating type.
            patch_size: nnU-Net's patch size, for the chunks.
            made_from: Fingerprint of the case (see :meth:`PreprocessedCases.fingerprint`).

        Raises:
            ValueError: For logits that are not finite. What half precision cannot hold is cut off at its largest.
        """
        if not np.isfinite(logits).all():
            raise ValueError(f"case {case}: the teacher's {self.content} are not finite")
        limit = float(np.finfo(np.float16).max)
        half = np.ascontiguousarray(np.clip(logits, -limit, limit).astype(np.float16))
        blocks, chunks = self._layout(half.shape, patch_size)
        parameters = {"codec": blosc2.Codec.ZSTD, "clevel": 5, "nthreads": 1, "filters": [blosc2.Filter.SHUFFLE]}
        path = self.path(case)
        with replacing(path) as unfinished:
            blosc2.asarray(half, urlpath=str(unfinished), mode="w", chunks=chunks, blocks=blocks, cparams=parameters)
        record = {
            "shape": list(half.shape),
            "bytes": path.stat().st_size,
            "sha256": file_digest(path),
            "made_from": dict(made_from),
        }
        write_whole(self._record(case), json.dumps(record))

    def _layout(self, shape: tuple[int, ...], patch_size: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
        """Blocks and chunks of a file, as nnU-Net's own have them."""
        blocks, chunks = comp_blosc2_params(shape, tuple(patch_size), np.dtype(np.float16).itemsize)
        return blocks, chunks

    def open(self, case: str) -> Any:
        """Logits of a case, float16 ``(heads, z, y, x)``, memory mapped: nothing is read before it is indexed.

        Raises:
            ValueError: Naming a file that is missing or damaged.
        """
        mapped = {} if os.name == "nt" else {"mmap_mode": "r"}  # as nnU-Net opens its own
        try:
            return blosc2.open(urlpath=str(self.path(case)), mode="r", dparams={"nthreads": 1}, **mapped)
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"cannot read the {self.content} {self.path(case)}: missing or damaged") from error

    def fault(self, case: str, cases: PreprocessedCases | None = None, thorough: bool = False) -> str | None:
        """What is wrong with the labels of a case; ``None``: nothing.

        Args:
            case: nnU-Net's identifier.
            cases: If given, the labels must be of the case as it is preprocessed now.
            thorough: Read the file and compare its SHA-256, not its size alone.
        """
        record, path = self._record(case), self.path(case)
        if not path.is_file():
            return "is missing"
        try:
            known = read_json(record)
            if path.stat().st_size != known["bytes"] or (thorough and file_digest(path) != known["sha256"]):
                return "is damaged"
            if cases is not None and (modified := cases.modified(case)) > record.stat().st_mtime_ns:
                changed = _out_of_date(known["made_from"], cases.fingerprint(case))
                if changed is not None:
                    return changed
                with suppress(OSError):  # so that the case is not read again; a folder of others may be read-only
                    os.utime(record, ns=(modified, modified))
        except (OSError, ValueError, KeyError, TypeError):
            return "is damaged"
        return None

    @property
    def arguments(self) -> str:
        """Of ``nnunet_kd soft-labels``, to make the labels again from the same source."""
        source = self.manifest.get("source", {})
        if source.get("kind") == "nnunet":
            words = ["--teacher"]
            words += [] if source.get("out_of_fold") else ["-f", str(source["folds"][0])]
            words += [] if source.get("mirroring") else ["--disable_tta"]
        else:
            words = ["--sam", str(source.get("model_type", "vit_b")), "--checkpoint", "FILE"]
            words += ["--channels", *map(str, source["channels"])] if "channels" in source else []
            words += [f"--{key} {source[key]}" for key in ("prompt", "margin") if key in source]
        return " ".join([*words, "--name", self.name])

    def path(self, case: str) -> Path:
        """The file that holds the values of a case."""
        return self.folder / f"{case}.b2nd"

    def _record(self, case: str) -> Path:
        return self.folder / f"{case}.json"

    def check_data(self, data: Mapping[str, Any]) -> None:
        """Whether the labels belong to these data.

        Raises:
            ValueError: Saying what differs.
        """
        made_for = self.manifest.get("data", {})
        for key, value in json.loads(json.dumps(data)).items():
            if made_for.get(key) != value:
                raise ValueError(
                    f"the {self.content} in {self.folder} are for {key} = {_short(made_for.get(key))}, this training "
                    f"has {_short(value)}: make others under another --name, or remove the folder"
                )

    def check_cases(self, cases: PreprocessedCases, wanted: Iterable[str]) -> None:
        """Whether a training on some of the cases can use the labels.

        Raises:
            ValueError: Saying which file is missing, damaged or out of date.
        """
        for case in wanted:
            fault = self.fault(case, cases)
            if fault is not None:
                raise ValueError(f"the {self.content} {self.path(case)}: the file {fault}")

    def leakage(self, fold: int | str) -> str | None:
        """A warning where the labels come from an nnU-Net that has seen validation cases of student fold ``fold``.

        What its own files say against it counts too.
        """
        source = self.manifest.get("source", {})
        notes = list(source.get("leakage", []))
        leaking = [one for one in source.get("folds", []) if one != fold]
        if leaking and fold != "all":  # fold all keeps no case back in the first place
            notes.insert(
                0,
                f"LEAKAGE: the soft labels '{self.name}' are of teachers (fold {', '.join(map(str, leaking))}) that "
                f"were trained on validation cases of student fold {fold}. The student's validation scores are "
                "optimistic and no estimate for new cases.",
            )
        return " ".join(notes) or None


def _out_of_date(made_from: Any, now: Mapping[str, str]) -> str | None:
    """What has changed of a case that was preprocessed again; ``None``: nothing.

    Older stores have a digest of the labels alone: whether the images are the same cannot be known.
    """
    if not isinstance(made_from, Mapping):
        return "is older than the preprocessed case and does not say of which images it was made"
    changed = [part for part in now if made_from[part] != now[part]]
    return f"is older than the preprocessed case, whose {' and '.join(changed)} have changed" if changed else None


def find_store(preprocessed: Path, identifier: str, name: str | None) -> SoftLabelStore:
    """Find the store of preprocessed data by its name; without one, the only one there is.

    Args:
        preprocessed: The data set's folder in ``nnUNet_preprocessed``.
        identifier: ``data_identifier`` of the configuration.
        name: Of the store.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If there are several and no name.
    """
    prefix = f"{identifier}{SoftLabelStore.marker}"
    # A folder whose first case failed is none yet.
    stores = sorted({path.parent for path in preprocessed.glob(f"{prefix}*/*.b2nd")})
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


def store_folder(preprocessed: Path, identifier: str, name: str, kind: type[SoftLabelStore] = SoftLabelStore) -> Path:
    """Return the folder where a store of that name and kind belongs.

    Raises:
        ValueError: For a name that is no part of a file name.
    """
    if not name or any(not (letter.isalnum() or letter in "-_.") for letter in name) or kind.marker in name:
        raise ValueError(f"a name of {kind.content} has letters, digits, '-', '_' and '.' only, got {name!r}")
    return preprocessed / f"{identifier}{kind.marker}{name}"


def make_soft_labels(
    store: SoftLabelStore,
    cases: PreprocessedCases,
    wanted: Iterable[str],
    values_of: Callable[[str], np.ndarray],
) -> None:
    """Compute and store the labels, or embeddings, of some cases."""
    for case in wanted:
        store.write(case, values_of(case), cases.configuration.patch_size, cases.fingerprint(case))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
