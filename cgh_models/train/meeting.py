"""Processes that begin together find each other, whatever was left by those that were killed."""

import json
import secrets
import time
from typing import Any

from ..errors import NetworkError
from .launch import tell


def meet(store: Any, rank: int, count: int, most: float) -> str:
    """A name for this start of a run, new and the same for all of its processes.

    torchrun keeps one store for all its restarts: an address in it may be that of a process which
    was killed. So each leaves a new name of its own there, and rank 0 answers with the names that
    it finds, until each has found its own among them. Keys that begin with the first name are of
    this start alone.

    Raises NetworkError if one is not there in ``most`` seconds.
    """
    own = secrets.token_hex(8)
    store.set(f"name/{rank}", own)
    end = time.monotonic() + most
    while time.monotonic() < end:
        if rank:
            names = json.loads(store.get("names"))
            if names[rank : rank + 1] == [own]:
                store.set(f"{names[0]}/found/{rank}", "")
                store.wait([f"{names[0]}/all"])
                return names[0]
        else:
            names = [own, *(store.get(f"name/{other}").decode() for other in range(1, count))]
            store.set("names", json.dumps(names))
            if store.check([f"{own}/found/{other}" for other in range(1, count)]):
                store.set(f"{own}/all", "")
                return own
        time.sleep(0.05)
    error = NetworkError(f"not all of the {count} processes of the run began within {most:.0f} s")
    if rank:
        tell(rank, count, f"error: {error}")
    raise error
