from __future__ import annotations

from pathlib import Path

import pytest

from tests.operators.library import cpu_library


@pytest.fixture(scope="session")
def library() -> Path:
    """The built library of CPU kernels."""
    return cpu_library()
