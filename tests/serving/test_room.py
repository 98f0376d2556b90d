"""What is in flight is bounded as it lies in memory: rows by the columns of the longest, whoever joins and leaves."""

import random
from typing import Any

import pytest
import torch
from tiny import model
from workload import TASKS, Asked, Bench

from seap.models.cache import growing_cache
from seap.serving.scheduling.room import Extent
from seap.serving.scheduling.rows import prefill


def watched(bench: Bench) -> tuple[list[int], list[tuple[int, int]]]:
    """Slots of all caches' buffers after every step, and the shapes that prompts were read in."""
    scheduler, slots, shapes = bench.scheduler, [0], []
    settle, forward = scheduler._settle, bench.runtime.model.forward

    def settled(*args: Any) -> None:
        settle(*args)
        buffers = [rows.cache.layers[-1] for rows in scheduler.running.values()]
        held = [(layer.room or (layer.keys,))[0].shape for layer in buffers]
        slots.append(sum(shape[0] * shape[2] for shape in held))

    def looked(*args: Any, **options: Any) -> Any:
        if options["attention_mask"].shape[1] == options["input_ids"].shape[1]:
            shapes.append(tuple(options["input_ids"].shape))
        return forward(*args, **options)

    scheduler._settle = settled  # type: ignore[method-assign]
    bench.runtime.model.forward = looked
    return slots, shapes


@pytest.mark.parametrize("seed", range(3))
def test_the_caches_never_have_more_slots_than_may_be_in_flight(seed: int) -> None:
    """Long prompts beside short ones, long answers beside short ones, some of whose clients hang up."""
    rng, bench = random.Random(seed), Bench(max_rows=16, steps=3, max_tokens_in_flight=240, prefill_tokens=48)
    slots, shapes = watched(bench)
    asked = []
    for number in range(40):
        ids = [rng.randrange(3, 97) for _ in range(rng.choice((1, 2, 3, 5, 60)))]
        length, task = rng.choice((1, 2, 8, 20, 60)), rng.choice(TASKS[:2])
        one = bench.submit(ids, task, length, client=f"client {number % 3}", scored=0 if number % 4 == 0 else None)
        asked.append((ids, task, length, one))
    with bench:
        for number, (ids, task, length, one) in enumerate(asked):
            if number % 9 == 8:
                bench.scheduler.cancel(one.ticket)
            else:
                assert one.tokens() == bench.expected(ids, task, length)
    assert 120 < max(slots) <= 240
    assert max(rows * width for rows, width in shapes if rows > 1) <= 48 and (1, 60) in shapes


def test_a_short_row_beside_a_long_one_counts_for_as_much() -> None:
    bench = Bench(max_tokens_in_flight=200)
    bench.submit([5] * 80, "red", 20)
    for _ in range(3):
        bench.submit([6], "red", 20)
    assert len(bench.scheduler._admit("red")) == 2 and bench.scheduler.blocked is not None
    alone = Bench(max_tokens_in_flight=200)
    for _ in range(10):
        alone.submit([6], "red", 20)
    assert len(alone.scheduler._admit("red")) == 9  # 9 rows of 21


def test_short_answers_beside_a_long_one_count_until_they_are_done() -> None:
    """30 x (2 + 8), then 1 x (2 + 200): never 30 x 202. And by hand, of places that are given up when half are free."""
    bench = Bench(max_tokens_in_flight=500)
    bench.submit([5, 6], "red", 200)
    for _ in range(30):
        bench.submit([7, 8], "red", 8)
    assert len(bench.scheduler._admit("red")) == 30  # 202 and 29 x 10 tokens
    assert Extent(places=1, width=2, lefts=(200,)).slots == 202
    mixed = Extent(places=9, width=10, buffers=12, lefts=(90, 50, 20, 20, 20, 5))
    assert [mixed.slots, mixed.columns] == [max(9 * 12, 1 * 100, 3 * 60, 5 * 30, 7 * 30, 9 * 30, 9 * 15), 270 // 9]


def test_one_client_cant_take_all_by_a_long_row() -> None:
    """Its short rows beside its long one are as wide as that: 3 of 100 are its share of 400."""
    bench = Bench(max_tokens_in_flight=400, client_share=0.75)  # type: ignore[arg-type]
    bench.submit([5] * 80, "red", 20, client="a")
    for _ in range(6):
        bench.submit([6], "red", 20, client="a")
    bench.submit([7], "red", 20, client="b")
    assert sorted(one.request.client for one in bench.scheduler._admit("red")) == ["a", "a", "a", "b"]
    assert bench.scheduler.blocked is None


def test_a_row_of_the_most_tokens_runs_alone() -> None:
    bench = Bench(max_tokens_in_flight=60)
    before, large = bench.submit([5, 6], "blue", 10), bench.submit([7] * 20, "red", 40)
    after = [bench.submit([8, 9], "red", 10) for _ in range(3)]
    with bench:
        assert large.tokens() == bench.expected([7] * 20, "red", 40)
        assert all(len(one.tokens()) == 10 for one in (before, *after))


def test_rows_make_room_for_one_that_finds_none() -> None:
    """Two of three rows leave places free and columns of padding; that is given up as soon as somebody waits for it."""
    bench = Bench(max_rows=8, steps=1, max_tokens_in_flight=160)
    bench.submit([5] * 20, "red", 4)
    asked = [bench.submit([6, 7], "red", 30) for _ in range(2)]
    scheduler = bench.scheduler
    for _ in range(6):
        scheduler._turn("red")
    rows = scheduler.running["red"]
    assert (len(rows.owners), rows.mask.shape[1]) == (3, 26)
    late = [Asked(scheduler, [8, 9], "red", 30) for _ in range(2)]
    scheduler._turn("red")
    assert scheduler.blocked is late[1].ticket and (len(rows.owners), rows.mask.shape[1]) == (3, 9)
    scheduler._turn("red")
    assert scheduler.blocked is None and scheduler.num_running == {"red": 4}
    with bench:
        assert all(one.tokens() == bench.expected([8, 9], "red", 30) for one in late)
        assert all(one.tokens() == bench.expected([6, 7], "red", 30) for one in asked)


def test_buffers_have_room_for_what_comes_and_no_more() -> None:
    cache, made = growing_cache(40), torch.ones(2, 3, 1, 4)
    sizes = []
    for _ in range(42):  # two more than were said
        cache.update(made, made, 0)
        sizes.append(cache.layers[0].columns)  # type: ignore[attr-defined]
    assert sizes == [33] * 33 + [40] * 7 + [41, 42]
    rows, _ = prefill(model("llama"), [[5, 6, 7], [8]], [0, 1], most=5)
    assert rows.columns == 5
    rows.bound_(12)
    rows.part([1]).tighten_()
    assert {layer.most for layer in rows.cache.layers} == {12}  # type: ignore[attr-defined]
