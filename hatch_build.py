"""What is published names nothing whose code is only in a clone; an editable install has it all."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Published(BuildHookInterface):
    """Leaves extras and entry points out of the metadata of wheels and source distributions."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Hatch calls it before a build; `version` is "editable" where nothing is published."""
        if version == "editable":
            return
        core = self.metadata.core
        for extra in self.config["clone-only"]:
            for extras in (core.optional_dependencies, core.optional_dependencies_complex):
                extras.pop(extra)
        core.entry_points.clear()
