"""A store of a teacher's logits, which are computed once per training case and then read by the data loader.

The store is a folder beside the preprocessed cases, named after them and the store. It contains

- ``manifest.json``, the source of the logits and the data they belong to,
- ``CASE.b2nd``, the logits ``(heads, z, y, x)`` in float16 on the grid of the preprocessed case, compressed and chunked
  with blosc2 like nnU-Net's data,
- ``CASE.json``, the size and the SHA-256 of that file, the fingerprints of the preprocessed images and labels from
  which it was computed, and, if the teacher has read raw images, theirs. It is written last, so a case without it is
  incomplete.
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
from nnunet_kd.storage.originals import Known, changed_original, describe_originals
from nnunet_kd.storage.writing import replacing, write_whole

PACKAGES = ("nnunet_kd", "nnunetv2", "torch", "segment_anything", "blosc2")


@dataclass(frozen=True)
class SoftLabelStore:
    """A folder of soft labels.

    Attributes:
        folder: The folder, which need not exist before :meth:`begin`.
    """

    folder: Path

    marker: ClassVar[str] = "_soft_"
    content: ClassVar[str] = "soft labels"

    @property
    def name(self) -> str:
        """The name of the store, without the name of the data."""
        return self.folder.name.rpartition(self.marker)[2]

    @property
    def manifest(self) -> dict[str, Any]:
        """The content of ``manifest.json``: the source of the logits and the data they belong to.

        Raises:
            ValueError: If the manifest cannot be read.
        """
        path = self.folder / "manifest.json"
        try:
            content = read_json(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.folder} is not a folder of {self.content}: cannot read {path.name}") from error
        return content

    def begin(self, data: Mapping[str, Any], source: Mapping[str, Any], cases: Sequence[str]) -> None:
        """Write the manifest, or check that the existing manifest has the same content.

        Args:
            data: The description of the data that the labels belong to, from :func:`nnunet_kd.nnunet.cases.data_of`.
            source: The description of everything that determines the labels.
            cases: All cases that the store will contain, whichever process computes them.

        Raises:
            ValueError: If the existing manifest differs; the message names the first entry that differs.
        """
        wanted = json.loads(json.dumps({"data": data, "source": source, "cases": sorted(cases)}))
        if (self.folder / "manifest.json").is_file():
            there = self.manifest
            for section in ("source", "data"):
                before, now = there.get(section, {}), wanted[section]
                for key in [*now, *before]:
                    if before.get(key) != now.get(key):
                        raise ValueError(
                            f"{self.folder} was created with {key} = {_short(before.get(key))}, not "
                            f"{_short(now.get(key))}: choose another name with --name, or remove the folder"
                        )
            if there.get("cases") != wanted["cases"]:
                raise ValueError(
                    f"{self.folder} was created for other cases: choose another name with --name, or remove the folder"
                )
            return
        versions = {package: version(package) for package in PACKAGES}
        write_whole(self.folder / "manifest.json", json.dumps({**wanted, "versions": versions}, indent=1))

    def write(
        self,
        case: str,
        logits: np.ndarray,
        patch_size: Sequence[int],
        made_from: Mapping[str, str],
        originals: Known | None = None,
    ) -> None:
        """Store the logits of one case, clipped to the range of half precision.

        Args:
            case: nnU-Net's identifier of the case.
            logits: The logits ``(heads, z, y, x)``, of any floating type.
            patch_size: nnU-Net's patch size, which determines the chunks.
            made_from: The fingerprint of the case, from :meth:`PreprocessedCases.fingerprint`.
            originals: The description of the raw images that the teacher has read, if it has read any.

        Raises:
            ValueError: If a logit is not finite.
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
            **({"originals": originals} if originals else {}),
        }
        write_whole(self._record(case), json.dumps(record))

    def _layout(self, shape: tuple[int, ...], patch_size: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
        """Return the shapes of a file's blocks and chunks, which are those of nnU-Net's files."""
        blocks, chunks = comp_blosc2_params(shape, tuple(patch_size), np.dtype(np.float16).itemsize)
        return blocks, chunks

    def open(self, case: str) -> Any:
        """Open the memory-mapped logits ``(heads, z, y, x)`` of a case, which are read only when they are indexed.

        Raises:
            ValueError: If the file is missing or damaged; the message names it.
        """
        mapped = {} if os.name == "nt" else {"mmap_mode": "r"}  # as nnU-Net opens its own files
        try:
            return blosc2.open(urlpath=str(self.path(case)), mode="r", dparams={"nthreads": 1}, **mapped)
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"cannot read the {self.content} {self.path(case)}: it is missing or damaged") from error

    def fault(self, case: str, cases: PreprocessedCases | None = None, thorough: bool = False) -> str | None:
        """Describe what is wrong with the labels of a case, or return ``None``.

        Args:
            case: nnU-Net's identifier of the case.
            cases: The preprocessed cases, from which the labels must have been computed; ``None`` skips this check.
            thorough: Whether to compare the SHA-256 of the file, not only its size.
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
                with suppress(OSError):  # spares reading the case again; somebody else's folder can be read-only
                    os.utime(record, ns=(modified, modified))
        except (OSError, ValueError, KeyError, TypeError):
            return "is damaged"
        return None

    def changed_image(self, case: str, originals: Sequence[Path]) -> Path | None:
        """Return the first raw image that has changed since the labels of a case were computed from it, or ``None``.

        Stores of earlier versions do not describe raw images, whose modification times decide then.

        Args:
            case: A case whose labels are complete; see :meth:`fault`.
            originals: The raw images of the case as they are now.
        """
        record = self._record(case)
        known = read_json(record).get("originals")
        if known is None:
            made = record.stat().st_mtime_ns
            return next((one for one in originals if not one.is_file() or one.stat().st_mtime_ns > made), None)
        return changed_original(originals, known)

    @property
    def arguments(self) -> str:
        """The arguments of ``nnunet_kd soft-labels`` that compute the labels again from the same source."""
        source = self.manifest.get("source", {})
        if source.get("kind") == "nnunet":
            words = ["--teacher"]
            words += [] if source.get("out_of_fold") else ["-f", str(source["folds"][0])]
            words += [] if source.get("mirroring") else ["--disable_tta"]
        elif source.get("kind") == "raw_images":
            words = ["--model", "MODEL", "-f", *map(str, source.get("folds", source.get("folds_of_model", [])))]
            words += ["--channels", *map(str, source["channels"])]
            words += [] if source.get("mirroring") else ["--disable_tta"]
        else:
            words = ["--sam", str(source.get("model_type", "vit_b")), "--checkpoint", "FILE"]
            words += ["--channels", *map(str, source["channels"])] if "channels" in source else []
            words += [f"--{key} {source[key]}" for key in ("prompt", "margin") if key in source]
        return " ".join([*words, "--name", self.name])

    def path(self, case: str) -> Path:
        """Return the file that holds the values of a case."""
        return self.folder / f"{case}.b2nd"

    def locations(self, case: str) -> Path:
        """Return the file that says where the teacher finds each class; see :mod:`.stored_segmentations`."""
        return self.folder / f"{case}.npz"

    def digest(self, case: str) -> str:
        """Return the SHA-256 of the file of a case, as recorded when the file was written.

        Raises:
            ValueError: If the record is missing or damaged.
        """
        try:
            return str(read_json(self._record(case))["sha256"])
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"cannot read {self._record(case)}: it is missing or damaged") from error

    def _record(self, case: str) -> Path:
        return self.folder / f"{case}.json"

    def check_data(self, data: Mapping[str, Any]) -> None:
        """Refuse labels that belong to other data.

        Raises:
            ValueError: If the data differ; the message names the first difference.
        """
        made_for = self.manifest.get("data", {})
        for key, value in json.loads(json.dumps(data)).items():
            if made_for.get(key) != value:
                raise ValueError(
                    f"the {self.content} in {self.folder} are for {key} = {_short(made_for.get(key))}, but this "
                    f"training has {_short(value)}: compute others with another --name, or remove the folder"
                )

    def check_cases(self, cases: PreprocessedCases, wanted: Iterable[str]) -> None:
        """Check that a training on some of the cases can use the labels.

        Raises:
            ValueError: If a file is missing, damaged or out of date; the message names the file.
        """
        for case in wanted:
            fault = self.fault(case, cases)
            if fault is not None:
                raise ValueError(f"the {self.content} {self.path(case)}: the file {fault}")

    def leakage(self, fold: int | str) -> str | None:
        """Return a warning if the labels' teacher has seen validation cases of a student fold, otherwise ``None``.

        The warnings that the teacher's own files contain are included.
        """
        source = self.manifest.get("source", {})
        notes = list(source.get("leakage", []))
        leaking = [one for one in source.get("folds", []) if one != fold]
        if leaking and fold != "all":  # fold "all" holds out no cases
            notes.insert(
                0,
                f"LEAKAGE: the soft labels '{self.name}' are of teachers (fold {', '.join(map(str, leaking))}) that "
                f"were trained on validation cases of student fold {fold}. The student's validation scores are "
                "optimistic and no estimate for new cases.",
            )
        return " ".join(notes) or None


def _out_of_date(made_from: Any, now: Mapping[str, str]) -> str | None:
    """Describe how a case has changed since its labels were computed, or return ``None`` if it has not.

    Older stores contain only a digest of the labels, so it is unknown whether the images have changed.
    """
    if not isinstance(made_from, Mapping):
        return "is older than the preprocessed case and does not say from which images it was computed"
    changed = [part for part in now if made_from[part] != now[part]]
    return f"is older than the preprocessed case, whose {' and '.join(changed)} have changed" if changed else None


def find_store(preprocessed: Path, identifier: str, name: str | None) -> SoftLabelStore:
    """Find the store with a name, or the only store of the preprocessed data if no name is given.

    Args:
        preprocessed: The data set's folder in ``nnUNet_preprocessed``.
        identifier: The ``data_identifier`` of the configuration.
        name: The name of the store.

    Raises:
        FileNotFoundError: If there is no such store.
        ValueError: If no name is given and there are several stores.
    """
    prefix = f"{identifier}{SoftLabelStore.marker}"
    # A folder without any case, as after a failure at the first one, is not a store yet.
    stores = sorted({path.parent for path in preprocessed.glob(f"{prefix}*/*.b2nd")})
    names = [path.name[len(prefix) :] for path in stores]
    if name is None and len(stores) > 1:
        raise ValueError(
            f"there are several stores of soft labels, {', '.join(names)}: name one in the plans, "
            f'"method": {{"store": "{names[0]}"}}'
        )
    if (name is not None and name not in names) or not stores:
        raise FileNotFoundError(
            f"there are no soft labels{'' if name is None else f' {name!r}'} in {preprocessed}"
            + (f", only {', '.join(names)}" if names else "")
        )
    return SoftLabelStore(stores[0] if name is None else preprocessed / f"{prefix}{name}")


def store_folder(preprocessed: Path, identifier: str, name: str, kind: type[SoftLabelStore] = SoftLabelStore) -> Path:
    """Return the folder of a store with a given name and kind, which need not exist.

    Raises:
        ValueError: If the name contains characters that are not allowed.
    """
    if not name or any(not (letter.isalnum() or letter in "-_.") for letter in name) or kind.marker in name:
        raise ValueError(
            f"the name of {kind.content} must consist of letters, digits, '-', '_' and '.' and not contain "
            f"{kind.marker!r}, got {name!r}"
        )
    return preprocessed / f"{identifier}{kind.marker}{name}"


def make_soft_labels(
    store: SoftLabelStore,
    cases: PreprocessedCases,
    wanted: Iterable[str],
    values_of: Callable[[str], np.ndarray],
    originals_of: Callable[[str], Sequence[Path]] = lambda _: (),
) -> None:
    """Compute and store the soft labels or embeddings of some cases.

    Args:
        store: The store.
        cases: The preprocessed cases.
        wanted: The cases to compute.
        values_of: The function that computes the values of a case.
        originals_of: The function that names the raw images from which it computes them, if it reads any.
    """
    for case in wanted:
        originals = describe_originals(originals_of(case))
        store.write(case, values_of(case), cases.configuration.patch_size, cases.fingerprint(case), originals)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
