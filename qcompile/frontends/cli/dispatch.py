"""The command line's shape: `qcompile MODEL ...` is the main job, and a few words are subcommands.

When the first argument that is not an option is no subcommand, everything belongs to the main job.
Inside the group that job has the empty name, which nobody can type.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

from typer.core import TyperGroup

MAIN_JOB = "main-job"


class MainJobGroup(TyperGroup):
    """A group with one command, registered as MAIN_JOB, that needs no word of its own."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.main_job = self.commands.pop(MAIN_JOB)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {name for param in self.get_params(ctx) for name in param.opts}
        first = self._first_argument(args)
        if args and first not in self.commands and args[0].partition("=")[0] not in own:
            args = ["", *args]
        return super().parse_args(ctx, args)

    def main(self, *args: Any, **settings: Any) -> Any:
        """With --json, wrong usage ends as every other error does: with an object on stdout."""
        given = args[0] if args else settings.get("args")
        words = sys.argv[1:] if given is None else given
        if not settings.get("standalone_mode", True) or "--json" not in words:
            return super().main(*args, **settings)
        try:
            status = super().main(*args, **settings | {"standalone_mode": False})
        except Exception as error:
            if not hasattr(error, "format_message"):  # not of click, of which typer may bring its own
                raise
            from qcompile.errors import UsageError
            from qcompile.frontends.cli.outcome import show_error

            context = getattr(error, "ctx", None)
            hint = f"try '{' '.join(context.command_path.split())} --help'" if context else ""
            usage = UsageError(error.format_message(), hint=hint)
            show_error(usage, machine=True)
            status = usage.exit_code
        sys.exit(status if isinstance(status, int) else 0)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return self.main_job if cmd_name == "" else super().get_command(ctx, cmd_name)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["MODEL [OPTIONS] | COMMAND [ARGS]..."]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """One page shows the main job's options and the subcommands."""
        shown = copy.copy(self)
        shown.params = [*self.main_job.params, *self.params]
        TyperGroup.format_help(shown, ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        found = super().shell_complete(ctx, incomplete)
        return found + self.main_job.shell_complete(ctx, incomplete) if incomplete.startswith("-") else found

    def _first_argument(self, args: list[str]) -> str | None:
        """The first argument that is neither an option nor the value of one."""
        taking_value = {
            name
            for param in self.main_job.params
            if param.param_type_name == "option" and not getattr(param, "is_flag", False)
            for name in param.opts
        }
        skip = False
        for arg in args:
            if skip:
                skip = False
            elif arg == "--" or not arg.startswith("-"):
                return arg
            else:
                skip = arg in taking_value
        return None
