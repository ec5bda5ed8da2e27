"""Golden texts: what a test printed when somebody last looked at it and found it right.

`QCOMPILE_BLESS=1 pytest tests` writes them anew; read the difference before you commit it.
"""

from __future__ import annotations

import os
from pathlib import Path

HERE = Path(__file__).parent


def assert_golden(name: str, text: str) -> None:
    """`text` equals the file tests/golden/NAME.txt, or becomes it under QCOMPILE_BLESS."""
    path = HERE / f"{name}.txt"
    if os.environ.get("QCOMPILE_BLESS"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
        return
    assert path.exists(), f"{path} does not exist; run with QCOMPILE_BLESS=1 and read what it wrote"
    assert text == path.read_text(encoding="utf-8"), (
        f"{path} differs; if the new text is right, run with QCOMPILE_BLESS=1"
    )
