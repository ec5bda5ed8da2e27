"""Puts the library that QCOMPILE_OPS names into the wheel."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags


class Library(BuildHookInterface[Any]):
    """Adds one file and the platform's tag."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        named = os.environ.get("QCOMPILE_OPS", "")
        if version == "editable" or not Path(named).is_file():
            raise SystemExit(
                "QCOMPILE_OPS must name the built library: export QCOMPILE_OPS=$(qcompile ops build --cuda)"
            )
        build_data["force_include"][named] = f"qcompile_ops_cu13/{Path(named).name}"
        build_data["pure_python"] = False
        tags = list(
            platform_tags()
        )  # the newest first; a package index takes manylinux, which says what glibc it needs
        build_data["tag"] = f"py3-none-{next((t for t in tags if t.startswith('manylinux')), tags[0])}"
