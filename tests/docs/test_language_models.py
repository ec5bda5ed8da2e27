"""The page on language models, followed to the letter on a tiny decoder: commands and Python are run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.docs.test_tutorial import BLOCK
from tests.frontends.decoders import cached_decoder, letters, word_tokenizer
from tools.reference import DOCS


def test_every_step_works(tmp_path: Path) -> None:
    cached_decoder(tmp_path / "model.onnx", scale=0.1)
    word_tokenizer(tmp_path / "tokenizer.json")
    for seed, name in enumerate(("train.txt", "test.txt")):
        (tmp_path / name).write_text(letters(4000, seed))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    said = []
    for language, _, text in BLOCK.findall((DOCS / "language-models.md").read_text(encoding="utf-8")):
        if language in ("console", "python"):
            commands = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
            for command in [["bash", "-c", c] for c in commands] or [[sys.executable, "-c", text]]:
                ran = subprocess.run(
                    command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
                )
                assert ran.returncode == 0, f"{command[-1]}\n{ran.stdout}\n{ran.stderr}"
                said.append(ran.stdout)
    assert len(said) == 5
    assert "of the float model" in said[-2]
    assert len(said[-1].split()) == 16
