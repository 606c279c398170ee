"""The command line: one module a command, which imports what it needs when it runs.

Belongs here: arguments and printing. Does not belong here: anything another part could call.
"""

from __future__ import annotations

import sys
from importlib import import_module

import click

from profilehouse.errors import ProfilehouseError

COMMANDS = {
    "alerts": "alerts",
    "backup": "backup",
    "collect": "collect",
    "contracts": "contracts",
    "dead-letters": "dead_letters",
    "new": "new",
    "profile": "profile",
    "quarantine": "quarantine",
    "restore": "restore",
    "send": "send",
    "stream": "stream",
    "validate": "validate",
}
"""Each command's module in this package; the command has the module's name."""


class _Commands(click.Group):
    """Imports a command when it is asked for, so that --help is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002
        cmd_name: str,
    ) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(import_module(f"profilehouse.cli.{module}"), module)
        return command


@click.group(cls=_Commands)
def cli() -> None:
    """A data platform for content personalization."""


def main() -> None:
    """Run the command line; what the user can mend is one line on standard error and exit 1."""
    try:
        cli(prog_name="profilehouse")
    except ProfilehouseError as error:
        click.echo(f"profilehouse: {error}", err=True)
        sys.exit(1)
