"""Adds prebuilt kernels to the wheel. Hatchling, which builds the wheel, loads this file.

A wheel with kernels is for Linux and one architecture: that of the C++ compiler. It is tagged
`linux_<architecture>` and not `manylinux`, because the kernels need torch's OpenMP runtime, and the
C library of the machine that built them or a newer one. Without a compiler, or for an architecture
that has no kernels, the wheel contains none and is for any platform. If the environment variable
`CHATRPC_REQUIRE_KERNELS` is 1, a build whose kernels do not compile fails. An editable installation
and a source distribution contain none either: the kernels are compiled at the first start.
"""

import os
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelsHook(BuildHookInterface):  # type: ignore[misc]  # hatchling is not installed
    """The build hook `custom` of pyproject.toml."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the kernels, and add them to the files of the wheel."""
        if version == "editable" or not sys.platform.startswith("linux"):
            return
        sys.path.insert(0, self.root)
        from service.engine.native import compiler, prebuilt  # noqa: PLC0415  # see above

        try:
            made = prebuilt.compile_all(Path(self.directory) / "kernels")
            machine = compiler.target_machine(compiler.find_compiler())
        except compiler.Unavailable as error:
            if os.environ.get("CHATRPC_REQUIRE_KERNELS") == "1":
                raise
            self.app.display_warning(f"the wheel contains no kernels: {error}")
            return
        if not made:
            return
        target = prebuilt.DIRECTORY.relative_to(self.root).as_posix()
        files = {str(path): f"{target}/{path.name}" for path in made}
        build_data["force_include"].update(files)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{machine}"
