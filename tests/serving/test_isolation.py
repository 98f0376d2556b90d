"""Nobody's request fails because of another's: the row that makes the model raise is found, and fails alone."""

import random
from typing import Any

import pytest
import torch
from tiny import ALL, KEEP_STATES, model
from workload import TASKS, Asked, Bench

from seap.serving.scheduling.rows import decode, prefill
from seap.serving.scheduling.steps import isolated, step
from seap.serving.scheduling.tickets import Failed, Finished, Read
from seap.writing.sampling import Adjustments, Sampler

POISON = 96  # a token that the models of these tests can't read


def raise_at(module: Any, ids: torch.Tensor) -> None:
    if bool((ids == POISON).any()):
        raise RuntimeError("device-side assert")


def poisoned(bench: Bench, layer: int | None = None) -> None:
    """Make the model raise for batches with POISON in them: when it is read, or in a layer, others done before."""
    net = bench.runtime.model
    seen: list[torch.Tensor] = []
    net.get_input_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    if layer is None:
        net.get_input_embeddings().register_forward_pre_hook(lambda module, args: raise_at(module, args[0]))
    else:
        net.model.layers[layer].mlp.register_forward_pre_hook(lambda module, args: raise_at(module, seen[-1]))


def drawing(token: int, after: int) -> Sampler:
    """A sampler that takes the likeliest, and so many tokens later another one."""

    class Late(Sampler):
        def choose(self, logits: torch.Tensor, likeliest: int | None = None) -> Any:
            found = super().choose(logits, likeliest)
            self.count = getattr(self, "count", 0) + 1
            return type(found)(token) if self.count == after else found

    return Late(temperature=0)


@pytest.mark.parametrize("layer", [None, 0, 2])
def test_a_prompt_that_the_model_cannot_read_fails_alone(layer: int | None) -> None:
    rng = random.Random(1)
    with Bench() as bench:
        expected_of: list[tuple[Asked, list[int]]] = []
        prompts = [[rng.randrange(3, 90) for _ in range(rng.randint(1, 9))] for _ in range(18)]
        wanted = [bench.expected(prompt, TASKS[place % 3], 10) for place, prompt in enumerate(prompts)]
        poisoned(bench, layer)
        bad = []
        for place, prompt in enumerate(prompts):
            expected_of.append((bench.submit(prompt, TASKS[place % 3], 10), wanted[place]))
            if place % 4 == 1:
                bad.append(bench.submit([5, POISON, 6], TASKS[place % 3], 10))
        assert all(asked.tokens() == tokens for asked, tokens in expected_of)
        assert all(isinstance(asked.all()[-1], Failed) for asked in bad)
    assert not bench.scheduler.running


@pytest.mark.parametrize("layer", [None, 0, 2])
@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_a_row_that_fails_while_it_writes_leaves_the_others_caches_whole(name: str, layer: int | None) -> None:
    """It is chosen in the middle of others' answers, in a layer after which their caches are half written."""
    bench = Bench(name)
    wanted = [bench.expected([5 + place, 7, 9], "red", 14) for place in range(5)]
    poisoned(bench, layer)
    good = [bench.submit([5 + place, 7, 9], "red", 14) for place in range(5)]
    bad = [Asked(bench.scheduler, [8, 9], "red", 14, sampler=drawing(POISON, after)) for after in (2, 5, 5)]
    with bench:
        assert [asked.tokens() for asked in good] == wanted
        ends = [asked.all() for asked in bad]
    assert all(isinstance(events[-1], Failed) for events in ends)
    assert [len(events) for events in ends] == [4, 7, 7]  # started, the tokens before, failed


def test_numbers_that_are_none_fail_their_row_alone() -> None:
    bench = Bench()
    wanted = bench.expected([5, 6, 7], "red", 8)
    seen: list[torch.Tensor] = []
    net = bench.runtime.model
    net.get_input_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0]))

    def spoil(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        rows = (seen[-1] == POISON).any(1)
        output[rows] = torch.nan
        return output

    net.lm_head.register_forward_hook(spoil)
    good, bad = bench.submit([5, 6, 7], "red"), bench.submit([5, POISON], "red")
    hot = bench.submit([5, POISON], "red", temperature=1.0)
    with bench:
        assert good.tokens() == wanted
        assert isinstance(bad.all()[-1], Failed) and isinstance(hot.all()[-1], Failed)


def test_what_only_fails_together_goes_on_apart() -> None:
    """Out of memory, say: a batch of more than two rows raises, and everybody still gets the whole answer."""
    bench = Bench()
    wanted = [bench.expected([5 + place, 9], "blue", 6) for place in range(7)]

    def full(module: Any, args: Any) -> None:
        if len(args[0]) > 2:
            raise MemoryError

    bench.runtime.model.get_input_embeddings().register_forward_pre_hook(full)
    asked = [bench.submit([5 + place, 9], "blue", 6) for place in range(7)]
    with bench:
        assert [one.tokens() for one in asked] == wanted


@pytest.mark.parametrize("name", sorted(ALL.keys() - KEEP_STATES))
def test_a_step_rewound_and_taken_apart_says_the_same(name: str) -> None:
    net, prompts = model(name), [[5, 6, 7, 8, 9], [20, 21], [30, 31, 32]]

    def start() -> Any:
        rows, logits = prefill(net, prompts, [0, 1, 2])
        rows.last = logits.argmax(-1)
        return rows

    whole = decode(net, start())
    broken = [False]
    handle = net.get_output_embeddings().register_forward_pre_hook(
        lambda module, args: (_ for _ in ()).throw(RuntimeError) if len(args[0]) > 1 and broken[0] else None
    )
    rows = start()
    broken[0] = True
    made = step(net, rows)
    handle.remove()
    assert [part.rows.owners for part in made.parts] == [[0], [1], [2]] and not made.failed
    assert torch.allclose(torch.cat([part.logits for part in made.parts]), whole, atol=1e-5)
    assert rows.mask.shape == (3, 5) and all(layer.keys.shape[2] == 5 for layer in rows.cache.layers)


def test_halving_by_hand() -> None:
    tried: list[list[int]] = []

    def attempt(items: Any) -> list[int]:
        tried.append([*items])
        if 3 in items:
            raise ValueError
        return [*items]

    made, failed = isolated(attempt, [1, 2, 3, 4])
    assert made == [[1, 2], [4]] and [item for item, _ in failed] == [3]
    assert tried == [[1, 2, 3, 4], [1, 2], [3, 4], [3], [4]]


def test_a_prompt_that_the_router_cannot_read_goes_to_the_fallback_alone() -> None:
    class Guide:
        tasks, about = TASKS, {}

        def predict(self, net: Any, tokenizer: Any, prompts: list[str]) -> list[Any]:
            from seap.serving.routing.router import Route

            if "bad" in prompts:
                raise TypeError
            return [Route("red", "red", 1.0, 0.0) for _ in prompts]

    bench = Bench(router=Guide())
    asked = [bench.submit([5, 6], None, prompt=prompt) for prompt in ("good", "bad", "good", "good")]
    with bench:
        tasks = [one.all()[0].task for one in asked]  # type: ignore[union-attr]
    assert tasks == ["red", "dense", "red", "red"]


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("scored", [1 << 24, 97 * 4])
def test_prompts_are_scored_as_the_whole_forward_scores_them(
    name: str, scored: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read at once or in pieces of a few tokens, with others and alone, with and without an answer after it."""
    monkeypatch.setattr("seap.serving.scheduling.rows.SCORED", scored)
    bench, prompts = Bench(name), [[5, 6, 7, 8, 9, 10, 11], [20], [30, 31, 32]]
    asked = [bench.submit(prompt, "red", place, scored=2) for place, prompt in enumerate(prompts)]
    plain = bench.submit([5, 6], "red")
    with bench:
        events = [one.all() for one in asked]
        assert plain.tokens() == bench.expected([5, 6], "red")
    for place, (prompt, found) in enumerate(zip(prompts, events, strict=True)):
        read, end = found[1], found[-1]
        assert isinstance(read, Read) and isinstance(end, Finished) and end.num_tokens == place
        assert [token.id for token in read.tokens] == prompt and read.tokens[0].logprob is None
        known = bench.alone["red"](torch.tensor([prompt])).logits[0].detach().log_softmax(-1)
        for at, token in enumerate(read.tokens[1:]):
            assert token.logprob == pytest.approx(float(known[at, token.id]), abs=1e-4)
            assert [value for _, value in token.top] == pytest.approx(known[at].topk(2).values.tolist(), abs=1e-4)


def test_adjustments_by_hand() -> None:
    """Logits 2, −2, 1, 0. Repetition 2 of tokens 0 and 1 (prompt) and 2 (written): 1, −4, 0.5, 0."""
    logits = torch.tensor([2.0, -2.0, 1.0, 0.0])
    assert Adjustments(repetition=2).applied(logits, [0, 1], [2]).tolist() == [1, -4, 0.5, 0]
    assert Adjustments(presence=1, frequency=0.5).applied(logits, [0], [2, 2, 3]).tolist() == [2, -2, -1, -1.5]
    assert Adjustments(bias=((3, 100.0), (0, -1.0))).applied(logits, [], []).tolist() == [1, -2, 1, 100]
    assert logits.tolist() == [2, -2, 1, 0]


def test_what_top_k_and_min_p_leave_by_hand() -> None:
    """p = (0.5, 0.3, 0.15, 0.05); min_p 0.3 is 0.15 of the likeliest's 0.5. top_p is of what top_k left."""
    logits = torch.tensor([0.05, 0.5, 0.15, 0.3]).log()

    def left(**options: Any) -> set[int]:
        sampler = Sampler(seed=1, **options)
        return {sampler.choose(logits).id for _ in range(300)}

    assert left(top_k=1) == {1} and left(top_k=2) == {1, 3} and left(top_k=99) == {0, 1, 2, 3}
    assert left(min_p=0.29) == {1, 2, 3} and left(min_p=1.0) == {1} and left(min_p=0.61) == {1}
    assert left(top_k=2, top_p=0.6) == {1} and left(top_k=2, top_p=0.63) == {1, 3}  # 0.5 / 0.8 = 0.625
    assert left(top_p=1e-46) == {1} and left(temperature=1e-46) == {1}
