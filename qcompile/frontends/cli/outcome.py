"""How a command ends: what it prints when it cannot go on, and the exit code.

0 done, 1 could not, 2 wrong usage, 3 compiled but a proof failed under --strict, 130 interrupted.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec

import typer

from qcompile.errors import QCompileError

if TYPE_CHECKING:
    from qcompile.compiler.report import Report

_INTERRUPTED = 130

P = ParamSpec("P")


def reported(command: Callable[P, None]) -> Callable[P, None]:
    """Show QCompileErrors and Ctrl-C without a traceback: lines on stderr, with --json an object on stdout."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        machine = bool(kwargs.get("json_output"))
        try:
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *_: _line("notice", str(message), typer.colors.YELLOW)
                command(*args, **kwargs)
        except QCompileError as error:
            show_error(error, machine)
            raise typer.Exit(error.exit_code) from None
        except MemoryError:
            lack = QCompileError("there is not enough memory", hint="close other programs, or give fewer samples")
            show_error(lack, machine)
            raise typer.Exit(lack.exit_code) from None
        except KeyboardInterrupt as stop:
            notes = getattr(stop, "__notes__", ["nothing was written."])
            _line("interrupted", " ".join(notes), typer.colors.YELLOW)
            raise typer.Exit(_INTERRUPTED) from None

    return run


def show_error(error: QCompileError, machine: bool) -> None:
    """What is wrong, where, and what to do."""
    if machine:
        found = {"error": error.what, "where": error.where, "hint": error.hint, "exit_code": error.exit_code}
        typer.echo(json.dumps(found, indent=2))
        return
    _line("error", error.what, typer.colors.RED)
    for label, text in (("where", error.where), ("do", error.hint)):
        if text:
            typer.echo(f"  {label}: {text}", err=True)


def show_report(report: Report, machine: bool) -> None:
    """The report on the terminal, the verdict first; with --json as an object."""
    if machine:
        typer.echo(report.model_dump_json(indent=2))
        return
    from rich.console import Console

    from qcompile.compiler.reporting.terminal import show

    show(report, Console())


def _line(label: str, text: str, color: str) -> None:
    typer.echo(typer.style(f"{label}:", fg=color, bold=True) + f" {text}", err=True)
