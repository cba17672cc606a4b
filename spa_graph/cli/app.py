"""The command group, and what becomes of errors.

Exit codes: 0 done, 1 unexpected, 2 bad input or unreachable budget, 3 verification failed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click
from click.shell_completion import CompletionItem

import spa_graph
from spa_graph.errors import RewriteError, SpaError, VerificationError, warnings_told


class _Prune(click.Group):
    """A group whose default command is `prune`: `spa-prune model.onnx` needs no verb."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {"--help", "-h", "--version"}
        if args and args[0] not in self.commands and args[0] not in own:
            args = ["prune", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Commands, and a file if there is none: bash takes what comes last."""
        model = [] if incomplete.startswith("-") else [CompletionItem(incomplete, type="file")]
        return model + super().shell_complete(ctx, incomplete)

    def format_usage(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(
            "spa-prune",
            "MODEL.onnx (--flops R | --params R | --ratio R | --latency R | --memory R) [OPTIONS]",
        )
        formatter.write_usage("spa-prune", "COMMAND [ARGS]...", prefix="       ")


@click.group(cls=_Prune, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(spa_graph.__version__, prog_name="spa-prune")
def cli() -> None:
    """Make a trained ONNX network smaller and faster by removing whole channels.

    \b
    spa-prune model.onnx --flops 0.5            writes model.pruned.onnx with half the FLOPs
    spa-prune model.onnx --params 0.6 -o small.onnx --round-to 8 --plan plan.json
    spa-prune model.onnx --latency 0.5 --threads 2    half of the time, measured here
    spa-prune apply other.onnx plan.json        replays that plan
    spa-prune model.onnx --flops 0.5 --calibrate samples.npz    refits what is left
    spa-prune inspect model.onnx                what can be pruned, what can't, and why
    spa-prune sensitivity model.onnx --calibrate samples.npz    what each group is worth
    spa-prune sweep model.onnx --flops 0.9:0.3:0.1 --calibrate samples.npz    many sizes
    spa-prune bench model.onnx model.pruned.onnx    time, memory, operators
    spa-prune compare model.onnx model.pruned.onnx  what differs
    spa-prune demo                              a bundled trained network, before and after

    `spa-prune COMMAND --help` lists options and examples. `spa-prune completion bash` prints what
    lets your shell complete them.
    """


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Errors of ours are one line and an exit code; anything else is a bug, and says so."""
    try:
        yield
    except (VerificationError, RewriteError) as error:
        _fail(f"{error}; nothing was written", 3)
    except SpaError as error:
        _fail(str(error), 2)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except click.Abort as error:
        _fail(f"interrupted; {str(error) or 'nothing was written'}", 1)
    except MemoryError as error:
        _fail(f"out of memory: {error or 'MemoryError'}; smaller inputs need less", 1)
    except OSError as error:
        _fail(f"{type(error).__name__}: {error}", 1)
    except Exception as error:
        if os.environ.get("SPA_PRUNE_DEBUG"):
            raise
        _fail(
            f"unexpected {type(error).__name__}: {error}; this is a bug in spa-prune: please "
            "report it (SPA_PRUNE_DEBUG=1 shows where)",
            1,
        )


def _fail(message: str, code: int) -> None:
    click.echo("spa-prune: " + " ".join(message.split()), err=True)
    sys.exit(code)


def _tell(warning: str) -> None:
    click.echo(f"spa-prune: {warning}", err=True)


def main() -> None:
    """The console entry point."""
    for name in ("SIGTERM", "SIGHUP"):  # as Ctrl-C, so that drafts are removed
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # what is wrong is said by our errors
    with _exit_codes(), warnings_told(_tell):
        sys.exit(cli(prog_name="spa-prune", standalone_mode=False))
