"""Other quantizers of ONNX models, each in a virtual environment of its own, since their pins contradict each other.

A peer is run as its documentation says, on the same samples. Its script (`with_NAME.py`) runs in its environment and
knows nothing of qcompile.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.zoo.cache import cache

LIMIT = 1800
"""Seconds that a peer may take for one model."""


@dataclass(frozen=True)
class Peer:
    """One version of another quantizer.

    Attributes:
        requirements: what its environment holds, as pip takes it.
        alone: packages installed without what they ask for, because that is gigabytes of CUDA which a CPU does not use.
        presets: its variants, by the name in the tables; each is what the script gets as its last argument.
    """

    name: str
    requirements: tuple[str, ...]
    presets: dict[str, str]
    alone: tuple[str, ...] = ()

    @property
    def script(self) -> Path:
        return Path(__file__).with_name(f"with_{self.name}.py")

    def environment(self) -> Path:
        """The Python of its environment, made at the first call.

        Raises:
            RuntimeError: pip could not install it.
        """
        folder = cache() / "peers" / self.name / "environment"
        python, stamp = folder / "bin" / "python", folder / "requirements.json"
        wanted = json.dumps([self.requirements, self.alone])
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
            return python
        venv.create(folder, clear=True, with_pip=True)
        for options, packages in ((), self.requirements), (("--no-deps",), self.alone):
            if packages:
                _run([str(python), "-m", "pip", "install", "--quiet", *options, *packages], 3600)
        stamp.write_text(wanted, encoding="utf-8")
        return python

    def versions(self) -> dict[str, str]:
        """What pip installed of the packages that matter."""
        command = [str(self.environment()), "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"]
        installed = json.loads(_run(command, 60))
        matter = {"nncf", "nvidia-modelopt", "onnxsim", "onnx", "onnxruntime", "torch"}
        return {p["name"]: p["version"] for p in installed if p["name"] in matter}

    def quantize(self, preset: str, model: Path, samples: Path, out: Path) -> float:
        """Make `out` from `model` with the `.npz` files in the folder `samples`; seconds, imports apart.

        `model` must be a copy: ModelOpt writes into the file it is given.

        Raises:
            RuntimeError: the last line of what went wrong.
        """
        command = [str(self.environment()), str(self.script), str(model), str(samples), str(out), preset]
        seconds = float(_run(command, LIMIT).splitlines()[-1])
        if not out.is_file():
            raise RuntimeError("it ended without an error and without a file")
        return seconds


PEERS: dict[str, Peer] = {
    p.name: p
    for p in (
        Peer(
            "nncf",
            ("nncf==3.4.0", "onnx==1.23.2", "onnxruntime==1.31.1"),
            {"NNCF": "default", "NNCF transformer": "transformer"},
        ),
        Peer(
            "modelopt",
            (
                *("torch==2.13.0", "onnx~=1.21.0", "onnxruntime~=1.24.2", "onnx-graphsurgeon", "onnxscript"),
                *("onnxconverter-common~=1.16.0", "onnxslim", "polygraphy", "ml_dtypes", "numpy", "scipy", "lief"),
                *("cppimport", "ninja", "nvidia-ml-py", "omegaconf", "packaging", "pulp<4", "pydantic", "PyYAML"),
                *("regex", "rich", "safetensors", "setuptools", "tqdm"),
            ),
            {"ModelOpt": "int8"},
            alone=("nvidia-modelopt==0.47.0",),
        ),
        Peer("onnxsim", ("onnxsim==0.8.1", "onnx==1.23.2", "onnxruntime==1.31.1"), {"onnxsim": "static"}),
    )
}


def _run(command: Sequence[str], limit: int) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"not done after {limit} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()
        reason = said[-1] if done.returncode > 0 else f"killed by signal {-done.returncode}"
        print("\n".join(said[-30:]), file=sys.stderr)
        raise RuntimeError(reason)
    return done.stdout
