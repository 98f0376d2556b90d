"""What the tests of scheduler and server share: a tiny model with networks, and a client of the scheduler."""

import copy
import queue
from typing import Any

import torch
from cut import pruned, random_masks
from tiny import model
from toy import tokenizer

from seap.serving.networks.runtime import TaskRuntime
from seap.serving.options import Limits
from seap.serving.scheduling.scheduler import Scheduler
from seap.serving.scheduling.tickets import Event, Failed, Finished, Piece, Request
from seap.writing.sampling import Sampler

TASKS = ("red", "green", "blue")


class Bench:
    """A scheduler over a tiny model, and each task's pruned model to compare it to."""

    def __init__(self, name: str = "llama", *, router: Any = None, fallback: str = "dense", **limits: int) -> None:
        net = model(name)
        net.generation_config.eos_token_id = None
        masks = {task: random_masks(net, seed) for seed, task in enumerate(TASKS)}
        self.alone = {task: pruned(net, own) for task, own in masks.items()} | {"dense": copy.deepcopy(net)}
        self.tokenizer = tokenizer()
        self.tokenizer.eos_token = None
        self.runtime = TaskRuntime(net, masks)
        self.scheduler = Scheduler(self.runtime, self.tokenizer, Limits(**limits), router=router, fallback=fallback)

    def __enter__(self) -> "Bench":
        self.scheduler.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.scheduler.close()

    def submit(self, ids: list[int], task: str | None, max_tokens: int = 8, **options: Any) -> "Asked":
        return Asked(self.scheduler, ids, task, max_tokens, **options)

    def expected(self, ids: list[int], task: str, max_tokens: int = 8) -> list[int]:
        given = torch.tensor([ids])
        options: dict[str, Any] = {"attention_mask": torch.ones_like(given), "do_sample": False, "pad_token_id": 0}
        made = self.alone[task].generate(given, max_new_tokens=max_tokens, eos_token_id=None, **options)
        found: list[int] = made[0, len(ids) :].tolist()
        return found


class Asked:
    """One request's events as they come."""

    def __init__(self, scheduler: Scheduler, ids: list[int], task: str | None, max_tokens: int, **options: Any) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        usual = Sampler(temperature=options.pop("temperature", 0), seed=options.pop("seed", 0))
        sampler = options.pop("sampler", usual)
        prompt = options.pop("prompt", "")
        request = Request(ids=tuple(ids), prompt=prompt, max_tokens=max_tokens, task=task, sampler=sampler, **options)
        (self.ticket,) = scheduler.submit([request], [self.events.put])

    def all(self, timeout: float = 20) -> list[Event]:
        found: list[Event] = []
        while not (found and isinstance(found[-1], Finished | Failed)):
            found.append(self.events.get(timeout=timeout))
        return found

    def tokens(self) -> list[int]:
        return [event.token.id for event in self.all() if isinstance(event, Piece)]
