"""`seap prune --ray N`: this process and N − 1 of Ray's actors do together what N processes do under torchrun.

Each has the model and its part of the text; this one is rank 0, which writes. The seats that the cluster gives say
where each computes. Needs Ray (`seap[ray]`), imported where it is used.
"""

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from seap.activations import actors
from seap.activations.ranks import Ranks, joined
from seap.errors import UserError, at_least, first_line
from seap.models.loader import quiet_transformers
from seap.pruning.commands import prune_to_folder
from seap.pruning.report import Report

SEATED = 120  # seconds within which the cluster gives its seats
TOLD = 30  # seconds within which a rank says why it stopped


class Seat:
    """An actor: a place to compute, and the rank that does."""

    def __init__(self, folder: str) -> None:
        if os.path.isdir(folder):
            os.chdir(folder)  # names of files are as where the command was given

    def gpus(self) -> list[int]:
        """Of this machine, those that are the seat's."""
        import ray

        return [int(gpu) for gpu in ray.get_gpu_ids()]

    def prune(self, environment: Mapping[str, str], name: str, out: Path, settings: Mapping[str, Any]) -> str:
        """Take part; why it failed, or nothing."""
        os.environ.update(environment)
        quiet_transformers()
        try:
            with joined(Ranks.here()):
                prune_to_folder(name, out, **settings)
        except UserError as error:
            return str(error)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""


def prune_on_ray(name: str, out: Path, num_ranks: int, *, loading: Mapping[str, Any], **settings: Any) -> Report:
    """`prune_to_folder` by so many ranks. Raises UserError also for too small a cluster, and for a rank that failed."""
    at_least("ray", num_ranks, 1)
    if Ranks.here().size > 1:
        raise UserError("--ray starts its own processes; run it without torchrun")
    actors.check_ray()
    import ray
    from ray.exceptions import RayError

    with actors.cluster():
        each = actors.resources(num_ranks, ray.nodes(), str(loading.get("device", "auto")))
        try:
            here, held = _own_seat(each)
            others = _other_seats(num_ranks, each)
        except RayError as error:
            raise UserError(f"Ray's cluster gave no seats within {SEATED} s: {first_line(error)}") from error
        given = {name_: value for name_, value in settings.items() if name_ != "ready"} | {"progress": False}
        given["loading"] = {**loading, "device": "cuda" if each["num_gpus"] else "cpu"}
        where = _meeting_place(num_ranks)
        tasks = [
            seat.prune.remote({**where, "RANK": str(rank)}, name, out, given) for rank, seat in enumerate(others, 1)
        ]
        own = {**loading, "device": here}
        try:
            with _surrounded({**where, "RANK": "0"}), joined(Ranks(0, num_ranks)):
                return prune_to_folder(name, out, loading=own, **settings)
        except UserError as error:
            raise UserError(_why(tasks) or str(error)) from error
        finally:
            del held


def _own_seat(each: Mapping[str, int]) -> tuple[str, list[Any]]:
    """The device of this process and, on GPUs, the seat that holds it as long as it is held itself."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not each["num_gpus"]:
        return "cpu", []
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    seat = ray.remote(Seat).options(max_restarts=0, scheduling_strategy=node, **each).remote(os.getcwd())
    [gpu] = ray.get(seat.gpus.remote(), timeout=SEATED)
    return f"cuda:{gpu}", [seat]


def _other_seats(num_ranks: int, each: Mapping[str, int]) -> list[Any]:
    import ray

    seat = ray.remote(Seat).options(max_restarts=0, max_task_retries=0, **each)
    seats = [seat.remote(os.getcwd()) for _ in range(num_ranks - 1)]
    ray.get([one.gpus.remote() for one in seats], timeout=SEATED)
    return seats


def _meeting_place(num_ranks: int) -> dict[str, str]:
    """Where the ranks meet: a free port of this machine."""
    import ray

    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    address = ray.util.get_node_ip_address()
    return {"MASTER_ADDR": address, "MASTER_PORT": str(port), "WORLD_SIZE": str(num_ranks)}


@contextlib.contextmanager
def _surrounded(environment: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for a while."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _why(tasks: list[Any]) -> str:
    """What a rank that stopped said, the first that did."""
    import ray
    from ray.exceptions import RayError

    done, _ = ray.wait(tasks, num_returns=len(tasks), timeout=TOLD) if tasks else ([], [])
    for rank, task in enumerate(tasks, 1):
        try:
            said = ray.get(task) if task in done else ""
        except RayError as error:
            said = f"its actor is gone ({first_line(error)}); Ray's logs say why"
        if said and "lost touch" not in said:
            return f"rank {rank} of {len(tasks) + 1} failed: {said}"
    return ""
