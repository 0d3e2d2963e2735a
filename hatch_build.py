"""Build hook: writes the start-up file by which stock nnU-Net finds the trainers (see nnunet_kd/discovery.py)."""

import os
import tempfile
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NAME = "nnunet_kd.pth"

# Python runs a line of a .pth file that begins with "import" when it starts, with `sitedir` the file's own folder.
# Plain string work, because even the search for a module to import would cost every start two milliseconds.
LINE = (
    'import os; os.environ["nnUNet_extTrainer"] = os.pathsep.join(dict.fromkeys(['
    '*filter(None, os.environ.get("nnUNet_extTrainer", "").split(os.pathsep)), {folder}]))\n'
)
INSTALLED = 'os.path.join(sitedir if "sitedir" in dir() else os.path.dirname(os.__file__), "nnunet_kd", "trainers")'


class StartUpFile(BuildHookInterface):
    """An editable install gets the checkout's own trainers/, a wheel the copy beside the file."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it writes a wheel; ``version`` is "editable" for editable installs."""
        editable = version == "editable"
        folder = ascii(os.path.join(self.root, "trainers")) if editable else INSTALLED
        self.scratch = tempfile.TemporaryDirectory()
        path = os.path.join(self.scratch.name, NAME)
        with open(path, "w", encoding="utf-8") as file:
            file.write(LINE.format(folder=folder))
        # Without a mapping of its own, an editable install would copy trainers/ and plans/ and let them go stale.
        build_data["force_include_editable" if editable else "force_include"][path] = NAME

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called when the wheel is written."""
        self.scratch.cleanup()
