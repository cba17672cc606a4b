"""The command line: one module per command; `spa-prune MODEL` is `spa-prune prune MODEL`."""

from spa_graph.cli.app import cli, main
from spa_graph.cli.apply import apply_command
from spa_graph.cli.bench import bench_command
from spa_graph.cli.compare import compare_command
from spa_graph.cli.completion import completion_command
from spa_graph.cli.demo import demo_command
from spa_graph.cli.inspect import inspect_command
from spa_graph.cli.prune import prune_command
from spa_graph.cli.sensitivity import sensitivity_command
from spa_graph.cli.sweep import sweep_command

__all__ = ["cli", "main"]

for _command in (
    prune_command,
    apply_command,
    inspect_command,
    bench_command,
    compare_command,
    sensitivity_command,
    sweep_command,
    demo_command,
    completion_command,
):
    cli.add_command(_command)
