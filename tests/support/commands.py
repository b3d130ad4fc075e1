"""Runs the console command within a test."""

from unittest.mock import patch


def one_subcommand(cli, name):
    """Let a command have one of its subcommands only: to set up the parsers of the others takes longer than a short fit."""
    arguments = cli.subcommands()[name]
    return patch.object(cli, "subcommands", staticmethod(lambda: {name: arguments}))
