"""Build hook: an editable install gets the start-up file, and trainers and plans from the checkout itself."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class EditableHook(BuildHookInterface):
    """Without it, an editable install would copy trainers/ and plans/ into site-packages and let them go stale."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it writes a wheel; ``version`` is "editable" for editable installs."""
        if version == "editable":
            build_data["force_include_editable"] = {"nnunet_kd.pth": "nnunet_kd.pth"}
