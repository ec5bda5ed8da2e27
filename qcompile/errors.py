"""Errors that a user reads: what is wrong, where it is, and what to do about it."""

from __future__ import annotations


class QCompileError(Exception):
    """Base of every error that is shown to a user without a traceback.

    Args:
        what: the fault in one sentence.
        where: the node, tensor, file or recipe line it was found in.
        hint: what the user can do next.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.what, self.where, self.hint = what, where, hint
        super().__init__(what + (f" [{where}]" if where else "") + (f" -> {hint}" if hint else ""))


class UsageError(QCompileError):
    """The command line or a Python argument is not of the expected form."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe file or a `--set` override does not validate."""


class ModelError(QCompileError):
    """The model file cannot be read, or holds something that cannot be compiled."""


class DataError(QCompileError):
    """Calibration or verification samples do not fit the model."""


class TargetError(QCompileError):
    """The target cannot execute what the recipe asks for."""


class PassError(QCompileError):
    """A pass broke a promise that the pipeline checks (a valid graph, an unchanged float function)."""


class OutputError(QCompileError):
    """The artifact or a report cannot be written."""


class ProofError(QCompileError):
    """The artifact was written, but a proof failed under `--strict`."""

    exit_code = 3
