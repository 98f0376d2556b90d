"""The scheduler: what it says is what each task's pruned model says alone, whoever else is served; and it is fair."""

import random
import threading
import time
from typing import Any

import pytest
import torch
from tiny import ALL, KEEP_STATES, model
from toy import tokenizer
from workload import TASKS, Bench

from seap.errors import UserError
from seap.serving.scheduling.rows import decode, prefill
from seap.serving.scheduling.tickets import Failed, Finished, FullError, Piece, Started, StoppedError
from seap.writing.sampling import Sampler, Writer


@pytest.mark.parametrize("name", sorted(ALL.keys() - KEEP_STATES))
def test_rows_join_and_leave_and_say_what_they_say_alone(name: str) -> None:
    net, prompts = model(name), [[5, 6, 7, 8, 9, 10, 11, 12, 13], [20, 21], [30, 31, 32, 33], [*range(40, 61)]]
    said: dict[int, list[int]] = {0: [], 1: [], 2: [], 3: []}

    def take(rows: Any, logits: torch.Tensor) -> None:
        rows.last = logits.argmax(-1)
        for place, owner in rows.live.items():
            said[owner].append(int(rows.last[place]))

    rows, logits = prefill(net, prompts[:2], [0, 1])
    take(rows, logits)
    take(rows, decode(net, rows))
    new, logits = prefill(net, prompts[2:3], [2])
    take(new, logits)
    rows.join_(new)
    for _ in range(3):
        take(rows, decode(net, rows))
    rows.leave_([0])
    assert rows.mask.shape == (3, len(prompts[0]) + 4) and len(rows) == 2
    take(rows, decode(net, rows))
    again, logits = prefill(net, prompts[3:], [3])  # takes the free place, and is longer than all that is there
    take(again, logits)
    rows.join_(again)
    assert rows.mask.shape == (3, len(prompts[3])) and rows.owners == [3, 1, 2]
    take(rows, decode(net, rows))
    rows.leave_([0, 2])
    assert rows.owners == [1] and rows.mask.shape == (1, len(prompts[1]) + 6)
    take(rows, decode(net, rows))
    assert [len(own) for own in said.values()] == [5, 8, 6, 2]
    for owner, prompt in enumerate(prompts):
        given = torch.tensor([prompt])
        options: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        made = net.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=8, **options)
        assert said[owner] == made[0, len(prompt) :].tolist()[: len(said[owner])]


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "phi3", "gpt2"])
def test_nobody_gets_another_ones_answer(name: str) -> None:
    """Requests of every task and length from several threads at once, each checked against its task's model alone."""
    rng, wrong = random.Random(0), []
    asked = []
    for _ in range(24):
        ids = [rng.randrange(3, 97) for _ in range(rng.randint(1, 12))]
        asked.append((ids, rng.choice(("dense", *TASKS)), rng.randint(1, 10)))
    with Bench(name, max_rows=3, steps=2) as bench:
        expected = [bench.expected(*one) for one in asked]

        def work(part: int) -> None:
            for place in range(part, len(asked), 4):
                if bench.submit(*asked[place]).tokens() != expected[place]:
                    wrong.append(place)

        threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong and not bench.scheduler.running and not bench.scheduler.num_waiting


def test_a_rare_task_is_not_starved() -> None:
    """Forty long requests of one task wait; one of another is done before a quarter of them."""
    order: list[str] = []
    bench = Bench(max_rows=2, steps=2)
    common = [bench.submit([5, 6, 7], "red", 20) for _ in range(40)]
    rare = bench.submit([8, 9], "blue", 20)

    def watch(name: str, asked: Any) -> None:
        asked.all()
        order.append(name)

    threads = [threading.Thread(target=watch, args=("red", one)) for one in common]
    threads.append(threading.Thread(target=watch, args=("blue", rare)))
    for thread in threads:
        thread.start()
    with bench:
        for thread in threads:
            thread.join()
    assert order.index("blue") < 10


def test_a_large_request_is_not_passed_for_ever() -> None:
    """The tokens in flight bound what runs; the one that finds no room is the next to get some."""
    bench = Bench(max_rows=4, steps=1, max_tokens_in_flight=40)
    small = [bench.submit([5, 6], "red", 8) for _ in range(6)]
    large = bench.submit([7] * 10, "red", 28)
    later = [bench.submit([5, 6], "blue", 8) for _ in range(12)]
    most = 0

    def watch() -> None:
        nonlocal most
        while bench.scheduler.num_waiting or bench.scheduler.running:
            rows = [*bench.scheduler.running.values()]
            most = max(most, sum(owner.request.tokens for own in rows for owner in own.live.values()))
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with bench:
        done = large.all()
        assert isinstance(done[-1], Finished) and sum(one.events.qsize() > 9 for one in later) < 12
        assert all(len(one.tokens()) == 8 for one in (*small, *later))
    watcher.join()
    assert 0 < most <= 40
    with pytest.raises(UserError, match="the server holds 40"):
        bench.submit([5] * 20, "red", 21)


def test_the_queue_is_bounded() -> None:
    bench = Bench(max_queue=2)
    for _ in range(2):
        bench.submit([5], "red")
    with pytest.raises(FullError) as refused:
        bench.submit([5], "blue")
    assert 1 <= refused.value.retry_after <= 60
    tokens = Bench(max_queued_tokens=30)
    tokens.submit([5], "red", 20)
    with pytest.raises(FullError):
        tokens.submit([5], "red", 20)


def test_who_hangs_up_frees_the_place() -> None:
    bench = Bench(max_rows=1, max_queue=2)
    first, second = bench.submit([5, 6], "red", 40), bench.submit([5, 7], "red", 4)
    bench.scheduler.cancel(second.ticket)
    assert bench.scheduler.num_waiting == 1
    with bench:
        assert isinstance(first.events.get(timeout=9), Started) and isinstance(first.events.get(timeout=9), Piece)
        bench.scheduler.cancel(first.ticket)
        assert bench.submit([8], "red", 3).tokens() == bench.expected([8], "red", 3)
        assert first.ticket.num_tokens < 40
    assert second.ticket.num_tokens == 0


def test_closing_finishes_what_was_accepted() -> None:
    bench = Bench(max_rows=2)
    asked = [bench.submit([5 + place], task, 12) for place, task in enumerate(TASKS * 2)]
    with bench:
        pass
    assert all(len(one.tokens()) == 12 for one in asked)
    with pytest.raises(StoppedError, match="is stopping"):
        bench.submit([5], "red")


def test_a_scheduler_that_failed_takes_nothing_more_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()

    def broken() -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(bench.scheduler, "_run_until_closed", broken)
    with bench:
        bench.scheduler._thread.join(9)
        with pytest.raises(StoppedError, match="has failed; the server must be started again"):
            bench.submit([5], "red")
        assert not bench.scheduler.alive


def test_a_failure_is_told_and_the_next_one_runs() -> None:
    bench = Bench()
    broken = True

    def fail(*_: Any) -> None:
        if broken:
            raise RuntimeError("out of luck")

    bench.runtime.model.register_forward_pre_hook(fail)
    with bench:
        assert isinstance(bench.submit([5], "red").all()[-1], Failed)
        broken = False
        assert bench.submit([5], "red").tokens() == bench.expected([5], "red")


def test_a_seed_decides_what_is_drawn_whoever_else_runs() -> None:
    with Bench() as bench:
        alone = bench.submit([5, 6], "red", 12, temperature=1.0, seed=7).tokens()
        others = [bench.submit([8] * 5, "red", 12, temperature=1.0, seed=seed) for seed in range(5)]
        again = bench.submit([5, 6], "red", 12, temperature=1.0, seed=7)
        assert again.tokens() == alone and alone != bench.expected([5, 6], "red", 12)
        assert len({tuple(one.tokens()) for one in others}) > 1


def test_sampling_by_hand() -> None:
    """p = (0.5, 0.3, 0.2): top_p 0.5 leaves the first alone, 0.6 the first two (0.5 < 0.6 before the second)."""
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    draws = [Sampler(top_p=p, seed=1) for p in (0.5, 0.6, 1.0)]
    drawn = [{sampler.choose(logits).id for _ in range(200)} for sampler in draws]
    assert drawn == [{0}, {0, 1}, {0, 1, 2}]
    token = Sampler(temperature=0, logprobs=2).choose(logits)
    assert token.id == 0 and token.logprob == pytest.approx(-0.6931, abs=1e-4)
    assert token.top == ((0, pytest.approx(-0.6931, abs=1e-4)), (1, pytest.approx(-1.204, abs=1e-3)))
    counts = torch.bincount(torch.tensor([Sampler(seed=s).choose(logits).id for s in range(3000)]), minlength=3)
    assert torch.allclose(counts / 3000, torch.tensor([0.5, 0.3, 0.2]), atol=0.03)


class Letters:
    """A tokenizer whose token is a character; 200 and 201 are the two halves of é."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return b"".join({200: b"\xc3", 201: b"\xa9"}.get(i, bytes([i % 128])) for i in ids).decode(errors="replace")


def test_text_as_it_gets_certain() -> None:
    def said(text: list[int], *stop: str) -> tuple[list[str], bool]:
        writer = Writer(Letters(), stop)
        pieces = []
        for token in text:
            pieces.append(writer.push(token))
            if writer.stopped:
                break
        return [*pieces, writer.flush()], writer.stopped

    assert said([97, 200, 201, 98]) == (["a", "", "é", "b", ""], False)
    assert said([97, 200]) == (["a", "", "�"], False)
    assert said([*b"one.\n\ntwo"], "\n\n") == (["o", "n", "e", ".", "", "", ""], True)
    assert said([*b"a\nb"], "\n\n") == (["a", "", "\nb", ""], False)
    assert said([*b"a\n"], "\n\n") == (["a", "", "\n"], False)


def test_writing_in_pieces_equals_decoding_at_once() -> None:
    words = tokenizer()
    ids = [5, 9, 30, 31, 2, 40]
    writer = Writer(words)
    assert "".join([*[writer.push(token) for token in ids], writer.flush()]) == words.decode(
        ids, skip_special_tokens=True
    )
