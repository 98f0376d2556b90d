"""One client can't take all: turns while waiting, shares of what runs and of what waits."""

import pytest
from workload import Bench

from seap.errors import UserError
from seap.serving.scheduling.fairness import FairQueue, Places
from seap.serving.scheduling.scheduler import ROUTED
from seap.serving.scheduling.tickets import FullError, Request, Ticket


def ticket(client: str, tokens: int = 10) -> Ticket:
    request = Request(ids=(1,), prompt="", max_tokens=tokens - 1, client=client)
    return Ticket(request, lambda event: None, None)  # type: ignore[arg-type]


def test_clients_take_turns_by_tokens() -> None:
    queue = FairQueue()
    many = [ticket("a") for _ in range(4)]
    for one in many:
        queue.append(one)
    few, large = ticket("b"), ticket("c", 35)
    queue.append(few)
    queue.append(large)
    queue.append(after := ticket("c"))
    assert [*queue] == [many[0], few, large, many[1], many[2], many[3], after]
    taken = []
    while len(queue):
        taken.append(next(iter(queue)))
        queue.take(taken[-1])
        if len(taken) == 2:
            queue.append(late := ticket("d"))  # starts now, not at what others have had
    assert taken.index(late) == 3 and taken[-1] is after


def test_a_client_that_asks_for_ever_starves_nobody() -> None:
    queue = FairQueue()
    queue.append(ticket("big", 50))
    queue.append(last := ticket("big", 50))
    for number in range(20):
        queue.append(ticket(f"new {number}"))
        first = next(iter(queue))
        queue.take(first)
        queue.append(ticket("small"))
        if first is last:
            break
    else:
        pytest.fail("the second request of a client never came to its turn")


def test_places() -> None:
    places = Places(8, 0.5, what="cups")
    places.take("a", 4)
    with pytest.raises(FullError, match="4 cups are the most for one client"):
        places.take("a", 1)
    with places.taken("b"), pytest.raises(FullError, match="full"):
        places.take("c", 4)
    places.give_back("a", 4)
    assert not places.held


def test_two_who_take_all_they_get_leave_places_for_others() -> None:
    places = Places(256, 0.75)
    for client in ("a", "b", "c"):
        with pytest.raises(FullError):
            for _ in range(256):
                places.take(client, 1)
    assert places.held == {"a": 192, "b": 48, "c": 12}
    for number in range(4):
        places.take(f"small {number}", 1)


def test_requests_of_many_texts_do_not_fill_the_queue() -> None:
    bench = Bench(max_queue=32)
    for client in ("a", "b"):
        with pytest.raises(FullError, match="what waits of yours"):
            for _ in range(32):
                bench.submit([5], "red", client=client)
    bench.submit([5], "red", client="small")


def test_one_clients_queue_leaves_room_for_others() -> None:
    bench = Bench(max_rows=1, max_queue=8)
    for _ in range(6):
        bench.submit([5], "red", client="a")
    with pytest.raises(FullError, match="most for one client"):
        bench.submit([5], "red", client="a")
    asked = bench.submit([6], "red", client="b")
    assert next(iter(bench.scheduler.waiting["red"])).request.client == "a"
    assert [*bench.scheduler.waiting["red"]].index(asked.ticket) == 1
    with bench:
        assert asked.tokens() == bench.expected([6], "red")


def several(bench: Bench, number: int, max_tokens: int, client: str = "a") -> list[Ticket]:
    request = Request(ids=(5,), prompt="", max_tokens=max_tokens, task="red", client=client)
    return bench.scheduler.submit([request] * number, [lambda event: None] * number)


def test_what_is_asked_for_together_comes_in_as_a_whole_or_not_at_all() -> None:
    bench = Bench(max_queue=8, max_queued_tokens=100)
    several(bench, 3, 9)
    for number, tokens in ((6, 1), (5, 19)):  # places, and tokens, that are there when the others are done
        with pytest.raises(FullError, match="the server is full"):
            several(bench, number, tokens)
        assert bench.scheduler.num_waiting == 3
    with pytest.raises(FullError, match="what waits of yours"):
        several(bench, 4, 1)  # 6 places are its share
    assert len(several(bench, 3, 1)) == 3 and bench.scheduler.num_waiting == 6
    assert len(several(bench, 2, 9, "b")) == 2


def test_one_who_has_nothing_else_may_ask_for_more_than_its_share() -> None:
    bench = Bench(max_queue=8, max_queued_tokens=100)
    assert len(several(bench, 8, 9)) == 8


def test_what_can_never_be_taken_is_no_matter_of_time() -> None:
    bench = Bench(max_queue=8, max_queued_tokens=100, max_tokens_in_flight=50)
    several(bench, 1, 9)
    for number, tokens, told in (
        (5, 20, "5 answers of 105 tokens in all, prompts and max_tokens; at most 100 may wait; lower max_tokens or n"),
        (9, 1, "9 answers; at most 8 may wait; lower n"),
        (1, 50, "51 tokens with max_tokens; the server holds 50"),
    ):
        with pytest.raises(UserError, match=told):
            several(bench, number, tokens)
    assert bench.scheduler.num_waiting == 1


def test_one_client_cant_hold_all_rows_nor_all_tokens() -> None:
    for limits in ({"max_rows": 4}, {"max_rows": 64, "max_tokens_in_flight": 4 * 21}):
        bench = Bench(client_share=0.75, **limits)  # type: ignore[arg-type]
        long = [bench.submit([5 + number], "red", 20, client="a") for number in range(6)]
        other = bench.submit([30], "red", 20, client="b")
        admitted = bench.scheduler._admit("red")
        assert [one.request.client for one in admitted] in (["a", "b", "a", "a"], ["a", "b", "a"])
        assert other.ticket in admitted
        del long


def test_all_get_their_answers_in_the_end() -> None:
    with Bench(max_rows=2, client_share=0.5) as bench:
        asked = [bench.submit([5 + n], ("red", "blue")[n % 2], client=f"client {n % 3}") for n in range(18)]
        for number, one in enumerate(asked):
            assert one.tokens() == bench.expected([5 + number], ("red", "blue")[number % 2])


def test_the_router_reads_a_few_prompts_at_a_time_and_by_turns() -> None:
    bench = Bench()
    for _ in range(ROUTED + 5):
        bench.submit([5], None, client="a")
    other = bench.submit([6], None, client="b")
    bench.scheduler._route_new()
    assert len(bench.scheduler.unrouted) == 6 and other.ticket not in bench.scheduler.unrouted
    with bench:
        assert other.tokens() == bench.expected([6], "dense")
