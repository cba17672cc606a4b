"""The `spa-prune` command as it is installed: Ctrl-C ends it in one line from the start.

It lies outside of the package, as importing any part of that takes a second. A KeyboardInterrupt
would be no help meanwhile: extension modules turn it into other errors.
"""

from __future__ import annotations

import os
import signal

INTERRUPTED = 1
"""The exit code, as that of an interrupt later on."""


def main() -> None:
    """The console entry point."""
    given = signal.getsignal(signal.SIGINT)
    if given is signal.default_int_handler:  # else it is ignored, as in the background of a shell
        signal.signal(signal.SIGINT, _stop)
    from spa_graph.cli import main as run

    signal.signal(signal.SIGINT, given)
    run()


def _stop(*_: object) -> None:
    os.write(2, b"spa-prune: interrupted; nothing was written\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
