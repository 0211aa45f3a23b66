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
    api_key_env: Annotated[
        str | None, typer.Option(help="NAME of the variable with the endpoint's key: the only one that may be sent.")
    ] = None,
    runs: Annotated[int | None, typer.Option(help="End after so many runs of load. Default: go on.", min=1)] = None,
) -> None:
    """Generate load for an `autotune bench` on another machine, run after run, until Ctrl-C.

    Requests go from here straight to the engine. A key is read from this machine's environment and goes to nobody but
    the engine. Who the engine is, the master says, and the connection to it is neither encrypted nor authenticated:
    use it in networks you trust.
    """
    from harness.load.driver import workers
    from harness.load.fleet import parse_address

    host, port = parse_address(master)
    out.print(f"{processes} load process{'es' if processes > 1 else ''} for the master at {host}:{port}; Ctrl-C ends")
    done = 0
    while runs is None or done < runs:
        with workers(processes, host, port, api_key_env=api_key_env) as running:
            failed = [process for process in running if process.wait() != 0]
        if failed:
            out.print(f"no run of {host}:{port} was finished; trying again")
            time.sleep(1)
            continue
        done += 1
        out.print(f"run {done} done")
