"""Calibration on a Ray cluster: each actor loads the model once and measures shards; their moments are added up here.

Needs Ray Data (`seap[ray]`), imported where it is used. The cluster is the one that Ray finds (RAY_ADDRESS, or one that
was started on this machine), or else a local one for the time of the run.
"""

import contextlib
import functools
import itertools
import logging
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from seap.activations import calibration
from seap.activations.distributed import share
from seap.activations.moments import Moments
from seap.activations.ranks import Ranks
from seap.activations.stats import Statistics, from_bytes, to_bytes
from seap.errors import UserError, first_line, missing_extra
from seap.models.loader import loaded, quiet_transformers
from seap.models.options import Streaming
from seap.text.corpus import Corpus
from seap.text.options import Calibration

PIECE = 1 << 26  # bytes of a record; Arrow holds less than 2 GiB of them
FAILED = "failed"

Record = Mapping[str, Any]  # shard, key, content, last: one axis's moments, in pieces


@dataclass(frozen=True)
class Work:
    """What an actor loads, and how it measures."""

    name: str
    options: Calibration
    loading: Mapping[str, Any]
    streaming: Streaming


class Measurer:
    """An actor. A shard's number comes in, its records go out."""

    def __init__(self, work: Work, shards: Sequence[Corpus]) -> None:
        self.work = work
        self.shards = shards

    @functools.cached_property
    def model(self) -> Any:
        quiet_transformers()
        room = Path(tempfile.gettempdir()) / "seap"
        self._loaded = loaded(self.work.name, room, self.work.loading, None, self.work.streaming)
        return self._loaded.__enter__()[0]

    def __call__(self, batch: Mapping[str, np.ndarray]) -> Iterator[dict[str, list[Any]]]:
        [shard] = batch["shard"].tolist()
        try:
            found = calibration.calibrate(self.model, self.shards[shard], self.work.options, progress=False)
        except UserError as error:
            yield from _records(shard, FAILED, str(error).encode())
            return
        except Exception as error:
            yield from _records(shard, FAILED, f"{type(error).__name__}: {error}".encode())
            return
        for key, moments in found.items():
            yield from _records(shard, key, to_bytes(moments))


def check_ray() -> None:
    """Raise UserError where Ray Data isn't installed."""
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise missing_extra("Ray Data", "ray", "--ray") from error


def calibrate(
    work: Work, corpora: Mapping[str, Corpus], num_actors: int, *, on_disk: bool, progress: bool
) -> Iterator[tuple[str, Statistics]]:
    """The statistics of each task, as they are finished; those of one process up to float64 rounding.

    on_disk: second moments are too large for memory. Raises UserError for a cluster that is too small, and for a shard
    that failed or whose actor is gone.
    """
    import ray
    from ray.exceptions import RayError

    parts = [(task, part) for task, corpus in corpora.items() for part in split(corpus, num_actors)]
    with cluster(), tqdm(total=len(parts), desc="calibrate", unit="shard", disable=not progress, leave=False) as bar:
        each = resources(num_actors, ray.nodes(), str(work.loading.get("device", "auto")))
        placed = replace(work, loading={**work.loading, "device": "cuda" if each["num_gpus"] else "cpu"})
        measured = _moments(_records_of_all(placed, [part for _, part in parts], num_actors, each), len(parts))
        try:
            for task, found in itertools.groupby(measured, lambda one: parts[one[0]][0]):
                total = Statistics(rows=corpora[task].rows, on_disk=on_disk, contrast=corpora[task].contrast)
                for shard, key, moments in found:
                    total[key] = _sum(total.get(key), moments)
                    bar.update(shard - bar.n)
                yield task, total
        except RayError as error:
            raise UserError(f"an actor of Ray's is gone: {first_line(error)}; Ray's logs say why") from error


def split(corpus: Corpus, num_shards: int) -> list[Corpus]:
    """A corpus's rows in so many parts, or fewer where there are too few rows. Held-out rows are those of the whole."""
    parts = [share(corpus.rows, Ranks(rank, num_shards)) for rank in range(num_shards)]
    return [replace(corpus, rows=rows) for rows in parts if rows]


def resources(num_actors: int, nodes: Sequence[Mapping[str, Any]], device: str) -> dict[str, int]:
    """What each actor takes: its share of the CPUs, and a GPU where the cluster has some and the device allows it.

    Raises UserError when they don't fit, since Ray would wait for more machines.
    """
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
    cpus = [int(machine.get("CPU", 0)) for machine in machines]
    if device != "cpu" and (gpus or device != "auto"):
        if gpus < num_actors:
            raise UserError(
                f"--ray {num_actors}: Ray's cluster has {gpus} GPUs; use --ray {max(gpus, 1)} or --device cpu"
            )
        return {"num_cpus": 1, "num_gpus": 1}
    fitting = [each for each in range(1, max(cpus) + 1) if sum(cpu // each for cpu in cpus) >= num_actors]
    if not fitting:
        raise UserError(f"--ray {num_actors}: Ray's cluster has {sum(cpus)} CPUs; use --ray {sum(cpus)} or fewer")
    return {"num_cpus": fitting[-1], "num_gpus": 0}


@contextlib.contextmanager
def cluster() -> Iterator[None]:
    """In touch with Ray; a cluster of our own ends with the block."""
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone unless the user wants it
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        ray.init(log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"can't reach a Ray cluster, or start one: {first_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _records_of_all(work: Work, shards: Sequence[Corpus], num_actors: int, each: Mapping[str, int]) -> Iterator[Record]:
    """All shards' records, one shard after the other whichever is done first, so that sums are always the same."""
    import ray
    from ray.data import ActorPoolStrategy

    count = len(shards)
    numbers = ray.data.from_items([{"shard": shard} for shard in range(count)], override_num_blocks=count)
    with warnings.catch_warnings():  # that max_restarts goes in Ray 2.64; without it dead actors are restarted for ever
        warnings.simplefilter("ignore")
        found = numbers.map_batches(
            Measurer,
            batch_size=1,
            compute=ActorPoolStrategy(size=min(num_actors, count), max_tasks_in_flight_per_actor=1),
            fn_constructor_args=(work, shards),
            max_restarts=0,
            max_task_retries=0,
            **each,
        )
    found.context.enable_progress_bars = False
    found.context.execution_options.preserve_order = True
    yield from found.iter_rows()


def _records(shard: int, key: str, content: bytes) -> Iterator[dict[str, list[Any]]]:
    starts = range(0, len(content), PIECE)
    for start in starts:
        piece = content[start : start + PIECE]
        yield {"shard": [shard], "key": [key], "content": [piece], "last": [start == starts[-1]]}


def _moments(records: Iterable[Record], num_shards: int) -> Iterator[tuple[int, str, Moments]]:
    """(shard, axis key, moments). Raises UserError for a shard that failed."""
    pieces: list[bytes] = []
    for record in records:
        pieces.append(record["content"])
        if record["last"]:
            content, pieces = b"".join(pieces), []
            if record["key"] == FAILED:
                raise UserError(f"shard {record['shard']} of {num_shards} failed: {content.decode()}")
            yield record["shard"], record["key"], from_bytes(content)


def _sum(total: Moments | None, more: Moments) -> Moments:
    if total is None:
        return more
    total.add_(more)
    return total
