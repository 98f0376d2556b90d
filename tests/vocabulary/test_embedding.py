"""Embedding and output layer of every family cut to some rows: the logits that stay are the same to the bit."""

import copy
from typing import Any

import pytest
import torch
from tiny import ALL, MOE, READ_TOKENS, model

from seap.errors import UserError
from seap.vocabulary.embedding import check_embeddings, cut_embeddings_, named_ids

KEPT = [0, 1, 2, *range(3, 97, 3), 95]


def rows_of_kept(rows: int = 2, tokens: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of tokens that stay, in the old numbers and the new."""
    drawn = torch.randint(3, len(KEPT), (rows, tokens), generator=torch.Generator().manual_seed(2))
    return torch.tensor(KEPT)[drawn], drawn


@pytest.mark.parametrize("name", sorted(READ_TOKENS))
def test_a_vocabulary_that_layers_read_too_stays(name: str) -> None:
    with pytest.raises(UserError, match=r"--vocabulary: the layers of .* have an embedding of every token too"):
        check_embeddings(model(name))


@pytest.mark.parametrize("name", [name for name in [*ALL, *MOE] if name not in READ_TOKENS])
def test_logits_of_tokens_that_stay_are_the_same_to_the_bit(name: str) -> None:
    dense, cut = model(name), model(name)
    old, new = rows_of_kept()
    expected = dense(old).logits[..., KEPT]
    check_embeddings(cut)
    cut_embeddings_(cut, KEPT)
    assert torch.equal(cut(new).logits, expected)
    tied = dense.get_output_embeddings().weight is dense.get_input_embeddings().weight
    assert (cut.get_output_embeddings().weight is cut.get_input_embeddings().weight) == tied
    assert cut.config.vocab_size == len(KEPT) == cut.get_input_embeddings().num_embeddings
    assert (cut.config.pad_token_id, cut.config.bos_token_id, cut.config.eos_token_id) == (0, 1, 2)
    assert cut(new, labels=new).loss.isfinite()


@pytest.mark.parametrize("name", ["llama", "llama-tied", "phi"])
def test_what_is_saved_loads_again_with_the_same_logits(name: str, tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM

    cut = model(name)
    _, new = rows_of_kept()
    cut_embeddings_(cut, KEPT)
    cut.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(new).logits, cut(new).logits)
    made = [one.generate(new[:, :4], max_new_tokens=5, do_sample=False) for one in (again, cut)]
    assert torch.equal(*made)


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_undone_it_is_as_it_was(name: str) -> None:
    dense = model(name)
    dense.generation_config.suppress_tokens = [3, 4]
    old, _ = rows_of_kept()
    expected, config = dense(old).logits, copy.deepcopy(dense.config.to_dict())
    generation, state = copy.deepcopy(dense.generation_config.to_dict()), dense.state_dict()
    undo = cut_embeddings_(dense, KEPT)
    assert dense.config.to_dict() != config
    undo()
    assert torch.equal(dense(old).logits, expected) and dense.config.to_dict() == config
    assert dense.generation_config.to_dict() == generation
    assert all(torch.equal(value, state[key]) for key, value in dense.state_dict().items())
    assert dense.get_input_embeddings().num_embeddings == 97 and dense.vocab_size == 97


def test_ids_of_the_configs_follow() -> None:
    dense = model("llama", eos_token_id=[2, 9])
    dense.config.unk_token_id, dense.config.decoder_start_token_id = 6, -1
    dense.generation_config.eos_token_id = [2, 9, 12]
    dense.generation_config.suppress_tokens = [3, 4, 9]
    dense.generation_config.bad_words_ids = [[3, 6], [3, 4]]
    assert named_ids(dense) == {0, 1, 2, 6, 9, 12}
    cut_embeddings_(dense, KEPT)
    new = {old: i for i, old in enumerate(KEPT)}
    assert dense.config.eos_token_id == [2, new[9]] and dense.config.unk_token_id == new[6]
    assert dense.config.decoder_start_token_id == -1
    assert dense.generation_config.eos_token_id == [2, new[9], new[12]]
    assert dense.generation_config.suppress_tokens == [new[3], new[9]]
    assert dense.generation_config.bad_words_ids == [[new[3], new[6]]]


def test_models_whose_vocabulary_is_elsewhere_too_are_refused() -> None:
    dense = model("llama")
    dense.config.vocab_size = 96
    with pytest.raises(UserError, match="97 and 97 rows, the config says 96"):
        check_embeddings(dense)
    odd = model("llama")
    odd.set_output_embeddings(torch.nn.Sequential(torch.nn.Linear(24, 97)))
    with pytest.raises(UserError, match="Embedding and Sequential, which can't be cut"):
        check_embeddings(odd)
