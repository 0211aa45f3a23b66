"""`autotune load-worker`: this machine generates a share of the load of a bench that runs elsewhere."""

import time
from typing import Annotated

import typer

from autotune.console import out


def load_worker(
    master: Annotated[
        str, typer.Option(metavar="HOST[:PORT]", help="Where `autotune bench --remote-workers` listens.")
    ],
    processes: Annotated[int, typer.Option(help="Load processes on this machine: one per core to spare.", min=1)] = 1,
    runs: Annotated[int | None, typer.Option(help="End after so many runs of load. Default: go on.", min=1)] = None,
) -> None:
    """Generate load for an `autotune bench` on another machine, run after run, until Ctrl-C.

    Requests go from here straight to the engine. An API key is read from this machine's environment: it never
    travels. The connection to the master is neither encrypted nor authenticated: use it in networks you trust.
    """
    from harness.load.driver import workers
    from harness.load.fleet import parse_address

    host, port = parse_address(master)
    out.print(f"{processes} load process{'es' if processes > 1 else ''} for the master at {host}:{port}; Ctrl-C ends")
    done = 0
    while runs is None or done < runs:
        with workers(processes, host, port) as running:
            failed = [process for process in running if process.wait() != 0]
        if failed:
            out.print(f"no run of {host}:{port} was finished; trying again")
            time.sleep(1)
            continue
        done += 1
        out.print(f"run {done} done")
