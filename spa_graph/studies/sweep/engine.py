"""Running a sweep's shares at once: on this machine's cores, or on a cluster that joblib knows."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

import joblib
from joblib.externals.loky import get_reusable_executor

from spa_graph.errors import OptionError

Backend = Literal["loky", "dask", "ray"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
"""joblib's own processes, or an engine that has machines."""
_PACKAGES = {"dask": "dask", "ray": "ray"}
_POLL = 0.3


def run_all(
    work: Callable[..., None],
    shares: Sequence[tuple[Any, ...]],
    *,
    jobs: int,
    backend: Backend,
    address: str | None,
    watch: Callable[[], None],
) -> None:
    """Call `work(*share)` for each share, `jobs` at once; `watch` is called meanwhile.

    Processes of this machine are gone when it returns or raises, also by an interrupt.

    Args:
        address: of the cluster's scheduler; without one, a cluster on this machine is started.

    Raises:
        OptionError: the engine isn't installed, or the cluster isn't there.
        Exception: what the first share that failed raised.
    """
    with _engine(backend, address):
        calls = [joblib.delayed(work)(*share) for share in shares]
        failures: list[BaseException] = []
        done = threading.Event()

        def go() -> None:
            if hasattr(signal, "pthread_sigmask"):
                # Ctrl-C goes to all processes of a terminal; those that are started here leave it
                # to this one, instead of telling each how far it was
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                with joblib.parallel_config(backend=backend, n_jobs=jobs):
                    joblib.Parallel()(calls)
            except BaseException as error:
                failures.append(error)
            finally:
                done.set()

        # an interrupt needn't wait for the thread; it could make a join forget it (bpo-45274)
        threading.Thread(target=go, daemon=True).start()
        try:
            while not done.wait(_POLL):
                watch()
            watch()
        except BaseException:
            if backend == "loky" and jobs > 1:
                _kill(done)
            raise
        if failures:
            raise failures[0]


def apart(jobs: int, backend: Backend) -> bool:
    """Whether other processes do the work."""
    return jobs > 1 or backend != "loky"


def _kill(done: threading.Event) -> None:
    """Kill joblib's processes; it would wait for all their work at the end of this one.

    Args:
        done: whether nobody waits for their results any more, or has to clean up after them.
    """
    while not done.is_set():  # they may not have been started yet
        get_reusable_executor(reuse=True).shutdown(wait=True, kill_workers=True)
        done.wait(_POLL)


@contextmanager
def _engine(backend: Backend, address: str | None) -> Iterator[None]:
    if backend == "loky":
        yield
        return
    with ExitStack() as stack:
        try:
            (_dask if backend == "dask" else _ray)(address, stack)
        except ImportError as error:
            package = _PACKAGES[backend]
            raise OptionError(
                f"--backend {backend} needs {error.name}: pip install 'spa-prune[{package}]'"
            ) from error
        except (OSError, ValueError) as error:
            raise OptionError(
                f"--cluster {address}: no {backend} cluster there: {error}"
            ) from error
        yield


def _dask(address: str | None, stack: ExitStack) -> None:
    from dask.distributed import Client

    client = Client(address) if address else Client(threads_per_worker=1)
    stack.callback(client.close if address else client.shutdown)


def _ray(address: str | None, stack: ExitStack) -> None:
    import ray
    from ray.util.joblib import register_ray

    ray.init(address=address, log_to_driver=False, include_dashboard=False if not address else None)
    stack.callback(ray.shutdown)
    register_ray()
