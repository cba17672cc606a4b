"""`spa-prune completion`: the script that lets a shell complete options and files."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from spa_graph.cli.app import cli

SHELLS = ("bash", "zsh", "fish")


@click.command(name="completion")
@click.argument("shell", type=click.Choice(SHELLS))
def completion_command(shell: str) -> None:
    """Print the script that completes commands, options and files in SHELL.

    \b
    Examples:
      eval "$(spa-prune completion bash)"       in ~/.bashrc
      eval "$(spa-prune completion zsh)"        in ~/.zshrc
      spa-prune completion fish > ~/.config/fish/completions/spa-prune.fish
    """
    completer = get_completion_class(shell)
    assert completer is not None  # click has these three
    click.echo(completer(cli, {}, "spa-prune", "_SPA_PRUNE_COMPLETE").source())
