"""Embedding and output layer with the rows of the tokens that stay, and the config's ids renumbered.

Shapes: V vocabulary, D hidden size.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seap.errors import UserError, first_line
from seap.models.families import token_inputs

GENERATION = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids", "forced_decoder_ids")
Undo = Callable[[], None]


def ids_of_config(config: Any) -> dict[str, Any]:
    """Entries of a config, or of a generation config, that are ids of single tokens."""
    values = config.to_dict().items()
    return {name: value for name, value in values if name.endswith(("token_id", "token_ids")) and _ids(value)}


def _ids(value: Any) -> bool:
    return type(value) is int or (isinstance(value, list) and bool(value) and all(type(i) is int for i in value))


def named_ids(model: Any) -> set[int]:
    """The tokens that the model's configs name."""
    found: set[int] = set()
    for config in _configs(model):
        for value in ids_of_config(config).values():
            found.update([value] if isinstance(value, int) else value)
    return {i for i in found if 0 <= i < model.config.vocab_size}


def _configs(model: Any) -> list[Any]:
    generation = getattr(model, "generation_config", None)
    return [model.config] if generation is None else [model.config, generation]


def check_embeddings(model: Any) -> None:
    """Raise UserError for a model whose vocabulary is in more than an embedding and an output layer of its size."""
    if token_inputs(model.config):
        raise UserError(
            f"--vocabulary: the layers of {model.config.model_type} have an embedding of every token too, which isn't "
            "cut yet; leave it out"
        )
    size, embedding, output = model.config.vocab_size, model.get_input_embeddings(), model.get_output_embeddings()
    if type(output) is not nn.Linear or not isinstance(embedding, nn.Embedding):
        kinds = f"{type(embedding).__name__} and {type(output).__name__}"
        raise UserError(f"--vocabulary: embedding and output layer are {kinds}, which can't be cut; leave it out")
    if not size == embedding.weight.shape[0] == output.weight.shape[0]:
        rows = f"{embedding.weight.shape[0]} and {output.weight.shape[0]} rows"
        raise UserError(f"--vocabulary: embedding and output layer have {rows}, the config says {size}; correct it")
    _check_others(model)


def _check_others(model: Any) -> None:
    """By building the model, without memory, with another vocabulary: only those two may change with it."""
    config = copy.deepcopy(model.config)
    own = {id(part) for layer in (model.get_input_embeddings(), model.get_output_embeddings()) for part in _of(layer)}
    shapes = {name: value.shape for name, value in model.named_parameters() if id(value) not in own}
    config.vocab_size = model.config.vocab_size + 64
    try:
        with torch.device("meta"):
            made = dict(type(model)(config).named_parameters())
    except Exception as error:
        raise UserError(
            f"--vocabulary: a {type(model).__name__} can't be built with another vocabulary ({type(error).__name__}: "
            f"{first_line(error)}); leave --vocabulary out"
        ) from error
    differing = sorted(name for name, shape in shapes.items() if name in made and made[name].shape != shape)
    if differing:
        raise UserError(f"--vocabulary: {differing[0]} depends on the vocabulary too, and isn't cut; leave it out")


def _of(layer: nn.Module) -> list[nn.Parameter]:
    return list(layer.parameters(recurse=False))


@torch.no_grad()
def cut_embeddings_(model: Any, kept: Sequence[int]) -> Undo:
    """Leave the rows of `kept` (ascending) in the embedding and the output layer, (V, D), tied or not.

    The rows are the same to the bit. Config and generation config get the new size and ids. Returns what undoes it; as
    long as that is held, the old rows stay in memory.
    """
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    tied = output.weight is embedding.weight
    chosen, size = torch.tensor(kept), model.config.vocab_size
    new = {old: i for i, old in enumerate(kept)}
    told: list[tuple[Any, dict[str, Any]]] = [(part, dict(part._parameters)) for part in (embedding, output)]
    attributes = [(embedding, "num_embeddings"), (embedding, "padding_idx"), (output, "out_features")]
    attributes += [(part, "vocab_size") for part in model.modules() if vars(part).get("vocab_size") == size]
    values = [(part, name, getattr(part, name)) for part, name in attributes]
    before = [(config, copy.deepcopy(config.__dict__)) for config in _configs(model)]

    embedding.weight = _rows(embedding.weight, chosen)
    output.weight = embedding.weight if tied else _rows(output.weight, chosen)
    if output.bias is not None:
        output.bias = _rows(output.bias, chosen)
    padding = None if embedding.padding_idx is None else new.get(embedding.padding_idx)
    for part, name, _ in values:
        setattr(part, name, padding if name == "padding_idx" else len(kept))
    for config in _configs(model):
        renumber_config_(config, new, size)
    model.config.vocab_size = len(kept)

    def undo() -> None:
        for part, parameters in told:
            part._parameters.update(parameters)
        for part, name, value in values:
            setattr(part, name, value)
        for config, state in before:
            config.__dict__.clear()
            config.__dict__.update(state)

    return undo


def _rows(weight: Tensor, chosen: Tensor) -> nn.Parameter:
    rows = weight.index_select(0, chosen.to(weight.device))
    return nn.Parameter(rows.contiguous(), requires_grad=weight.requires_grad)


def renumber_config_(config: Any, new: Mapping[int, int], size: int) -> None:
    """Ids of tokens that stay become the new ones; those of others go; what was no id of the `size` stays as it is."""
    for name, value in ids_of_config(config).items():
        if isinstance(value, int):
            setattr(config, name, new.get(value) if 0 <= value < size else value)
        else:
            setattr(config, name, [new[i] for i in value if i in new] or None)
    for name in GENERATION:
        value = getattr(config, name, None)
        if isinstance(value, list):
            setattr(config, name, _mapped(value, new) or None)


def _mapped(value: list[Any], new: Mapping[int, int]) -> list[Any]:
    """Numbers that stay renumbered; of sequences of tokens only those of which all stay."""
    if all(type(part) is int for part in value):
        return [new[i] for i in value if i in new]
    found = []
    for part in value:
        if isinstance(part, list):
            mapped = _mapped(part, new)
            if mapped and len(mapped) == len(part):
                found.append(mapped)
    return found
