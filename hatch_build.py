"""Build hook that writes the start-up file through which nnU-Net finds the trainers (see nnunet_kd/discovery.py)."""

import os
import tempfile
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NAME = "nnunet_kd.pth"

# When Python starts, it runs every line of a .pth file that begins with "import"; `sitedir` is the file's own folder.
# The line only handles strings, because even the search for a module to import would cost two milliseconds per start.
LINE = (
    'import os; os.environ["nnUNet_extTrainer"] = os.pathsep.join(dict.fromkeys(['
    '*filter(None, os.environ.get("nnUNet_extTrainer", "").split(os.pathsep)), {folder}]))\n'
)
INSTALLED = 'os.path.join(sitedir if "sitedir" in dir() else os.path.dirname(os.__file__), "nnunet_kd", "trainers")'


class StartUpFile(BuildHookInterface):
    """Point nnU-Net to the checkout's trainers/ in an editable install, and to the copy in the package in a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the start-up file to a wheel that hatchling is about to write.

        Args:
            version: ``"editable"`` for an editable install.
            build_data: What hatchling puts into the wheel.
        """
        editable = version == "editable"
        folder = ascii(os.path.join(self.root, "trainers")) if editable else INSTALLED
        self.scratch = tempfile.TemporaryDirectory()
        path = os.path.join(self.scratch.name, NAME)
        with open(path, "w", encoding="utf-8") as file:
            file.write(LINE.format(folder=folder))
        # Without a mapping of its own, an editable install would hold copies of trainers/ and plans/ that go stale.
        build_data["force_include_editable" if editable else "force_include"][path] = NAME

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the temporary file once the wheel is written."""
        self.scratch.cleanup()
