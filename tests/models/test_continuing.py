"""What is written where rows that have ended leave the batch is what `generate` writes, for every family."""

from typing import Any

import pytest
import torch
from tiny import ALL, model
from toy import tokenizer

from seap.models import continuing
from seap.models.continuing import continuations, continued
from seap.models.families import FAMILIES

PAD, MOST = 0, 12
PROMPTS = [[5, 9, 31, 7, 12, 8, 44, 3], [11, 60, 17], [20, 21, 33, 54, 41, 90], [72]]


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in PROMPTS])
    return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in PROMPTS])


def plain(net: Any, ends: list[int], most: int = MOST) -> torch.Tensor:
    ids, mask = padded()
    how = {"do_sample": False, "pad_token_id": PAD, "eos_token_id": ends or None, "max_new_tokens": most}
    made: torch.Tensor = net.generate(ids, attention_mask=mask, **how)
    return made


def one_that_comes(net: Any) -> int:
    """A token that one row writes soon and another one doesn't."""
    net.generation_config.eos_token_id = None
    rows = plain(net, [])[:, len(PROMPTS[0]) :].tolist()
    for row in rows:
        for token in row[:4]:
            if token != PAD and any(token not in other for other in rows):
                return int(token)
    return int(rows[0][2])


@pytest.fixture
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuing, "PIECE", 3)


def sizes_of(net: Any) -> list[int]:
    """Filled with the rows of every pass."""
    sizes: list[int] = []
    net.get_input_embeddings().register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    return sizes


@pytest.mark.usefixtures("short_pieces")
@pytest.mark.parametrize("name", ALL)
def test_every_family_writes_what_generate_writes(name: str) -> None:
    net = model(name).eval()
    end = one_that_comes(net)
    expected = plain(net, [end])
    ids, mask = padded()
    sizes = sizes_of(net)
    found = continued(net, ids, mask, ends=[end], pad=PAD, most=MOST, do_sample=False)
    assert found.tolist() == expected.tolist()
    if not FAMILIES[net.config.model_type].mixers:
        assert sizes[0] == len(PROMPTS) and sorted(sizes, reverse=True) == sizes
        assert sizes[-1] < len(PROMPTS) or all(end in row for row in expected.tolist())


@pytest.mark.usefixtures("short_pieces")
def test_rows_end_where_the_caller_says_so() -> None:
    net = model("llama").eval()
    net.generation_config.eos_token_id = None
    whole = plain(net, [])
    ids, mask = padded()
    found = continued(net, ids, mask, ends=[], pad=PAD, most=MOST, has_ended=lambda new: len(new) > 5, do_sample=False)
    assert found.tolist() == whole[:, : found.shape[1]].tolist() and found.shape[1] == ids.shape[1] + 6


@pytest.mark.usefixtures("short_pieces")
@pytest.mark.parametrize("name", ["lfm2", "bamba"])
def test_so_they_do_where_a_batch_has_one_call(name: str) -> None:
    net = model(name).eval()
    net.generation_config.eos_token_id = None
    whole, sizes = plain(net, []), sizes_of(net)
    found = continued(net, *padded(), ends=[], pad=PAD, most=MOST, has_ended=lambda new: len(new) > 3, do_sample=False)
    assert found.tolist() == whole[:, : found.shape[1]].tolist()
    assert found.shape[1] == len(PROMPTS[0]) + 4 and len(sizes) == 4  # not all that are allowed


@pytest.mark.usefixtures("short_pieces")
def test_a_cache_that_cannot_be_cut_is_computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    net = model("llama").eval()
    end = one_that_comes(net)
    expected = plain(net, [end])
    monkeypatch.setattr(continuing, "_rows_of", lambda *_: None)
    found = continued(net, *padded(), ends=[end], pad=PAD, most=MOST, do_sample=False)
    assert found.tolist() == expected.tolist()


@pytest.mark.usefixtures("short_pieces")
def test_settings_that_look_at_where_a_call_began_have_one_call() -> None:
    net = model("llama").eval()
    end = one_that_comes(net)
    net.generation_config.min_new_tokens = 2
    expected = plain(net, [end])
    sizes = sizes_of(net)
    found = continued(net, *padded(), ends=[end], pad=PAD, most=MOST, do_sample=False)
    assert found.tolist() == expected.tolist() and {*sizes} == {len(PROMPTS)}


def test_prompts_of_any_length_come_back_in_order_up_to_their_end() -> None:
    net, words = model("llama").eval(), tokenizer()
    end = one_that_comes(net)
    net.generation_config.eos_token_id = [end]
    width, rows = len(PROMPTS[0]), plain(net, sorted({end, words.eos_token_id}))
    found = continuations(net, words, PROMPTS, max_new_tokens=MOST, do_sample=False)
    for own, row in zip(found, rows[:, width:].tolist(), strict=True):
        assert own == row[: len(own)] and (len(own) == MOST or own[-1] in {end, words.eos_token_id})
        assert not {end, words.eos_token_id} & {*own[:-1]}
    assert continuations(net, words, PROMPTS[1:2], max_new_tokens=1, do_sample=False)[0] == found[1][:1]
