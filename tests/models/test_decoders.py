"""Multimodal models: the text decoder inside is cut; what is saved loads as the same class, its towers whole."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from cut import random_masks
from tiny import GEMMA4, GEMMA4_EXPERTS, GEMMA4_SHARED, INSIDE, ids
from toy import folder as text_folder
from toy import texts_file
from toy import tokenizer as words
from transformers import CONFIG_MAPPING
from wrappers import HERE, TEXT, wrapper

import seap
from seap.errors import UserError
from seap.models.arch import describe
from seap.models.configs import open_folder
from seap.models.decoders import decoder_of, wrapper_of
from seap.models.families import FAMILIES
from seap.models.loader import load
from seap.pruning import checkpoint
from seap.pruning.commands import prune_to_folder
from seap.pruning.surgery import cut_


@torch.no_grad()
def features(model: Any) -> list[torch.Tensor]:
    """What the model makes of one image."""
    torch.manual_seed(3)
    config = model.config.vision_config
    if "Qwen" in type(model).__mro__[1].__name__ or "Qwen" in type(model).__name__:
        size = config.in_channels * config.temporal_patch_size * config.patch_size**2
        given: dict[str, Any] = {"pixel_values": torch.randn(16, size), "image_grid_thw": torch.tensor([[1, 4, 4]])}
    elif config.model_type in ("smolvlm_vision", "idefics3_vision"):
        given = {"pixel_values": torch.randn(1, 1, 3, 16, 16)}
    else:
        given = {"pixel_values": torch.randn(1, 3, 16, 16)}
        given |= {"image_sizes": torch.tensor([[16, 16]])} if config.model_type == "pixtral" else {}
    found = model.get_image_features(**given)
    found = getattr(found, "pooler_output", found)
    return [*found] if isinstance(found, tuple | list) else [found]


def test_every_decoder_that_comes_inside_others_alone_is_here() -> None:
    kinds = {wrapper(name).config.get_text_config().model_type for name in HERE}
    assert kinds >= {name for name in INSIDE if name in CONFIG_MAPPING} and kinds <= set(FAMILIES)


@pytest.mark.parametrize("name", HERE)
def test_the_decoder_says_what_the_whole_model_says_of_text(name: str) -> None:
    whole = wrapper(name)
    decoder = decoder_of(whole)
    assert wrapper_of(decoder) is whole and decoder.config is whole.config.get_text_config()
    with torch.no_grad():
        torch.testing.assert_close(decoder(ids()).logits, whole(ids()).logits, atol=1e-6, rtol=1e-6)
    text = decoder.generate(ids(2, 9), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert torch.equal(text, whole.generate(ids(2, 9), max_new_tokens=4, min_new_tokens=4, do_sample=False))


@pytest.mark.parametrize("own", [GEMMA4_SHARED, GEMMA4_EXPERTS], ids=["shared", "experts"])
def test_a_gemma_4_is_cut_inside_its_wrapper(own: dict[str, Any], tmp_path: Path) -> None:
    """Logits that are capped, keys that are shared, inputs of each layer and experts, as published; no towers here."""
    kind = getattr(transformers, "Gemma4ForConditionalGeneration", None)
    if kind is None:
        pytest.skip("needs a newer transformers")
    torch.manual_seed(0)
    text = TEXT | GEMMA4 | own | {"final_logit_softcapping": 1.0}
    whole = kind(kind.config_class(text_config=text)).eval()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.1))
        decoder, expected = decoder_of(whole), whole(ids()).logits
        torch.testing.assert_close(decoder(ids()).logits, expected, atol=1e-6, rtol=1e-6)
        assert 0.9 < expected.abs().max() < 1
    options: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    assert torch.equal(decoder.generate(ids(2, 9), **options), whole.generate(ids(2, 9), **options))
    seap.prune(decoder, method="magnitude", sparsity=0.2, min_channels=4, progress=False)
    checkpoint.ready_to_save_(decoder).save_pretrained(tmp_path)
    loaded = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(ids()).logits, whole(ids()).logits)
        assert not torch.allclose(loaded(ids()).logits, expected, atol=1e-3)


@pytest.mark.parametrize("name", HERE)
def test_what_is_cut_is_saved_with_the_towers_whole(name: str, tmp_path: Path) -> None:
    whole = wrapper(name)
    seen, decoder = features(whole), decoder_of(whole)
    arch, masks = describe(decoder), random_masks(decoder, 0)
    masked = {axis.key: arch.weight(axis.layer, axis.consumer).clone() for axis in arch.axes}
    with torch.no_grad():
        for axis in arch.axes:
            gone = (~masks[axis.key]).repeat_interleave(axis.unit_inputs)
            arch.weight(axis.layer, axis.consumer)[:, gone] = 0
        expected = whole(ids()).logits
        for axis in arch.axes:
            arch.weight(axis.layer, axis.consumer).copy_(masked[axis.key])
    cut_(decoder, masks)
    checkpoint.ready_to_save_(decoder).save_pretrained(tmp_path)
    loaded = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert isinstance(loaded, getattr(transformers, name)) and (tmp_path / "modeling_seap.py").is_file()
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids()).logits, expected, atol=2e-5, rtol=1e-4)
    assert len(seen) and all(torch.equal(a, b) for a, b in zip(features(loaded), seen, strict=True))
    loaded.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(again(ids()).logits, loaded(ids()).logits)


def saved(name: str, place: Path) -> Path:
    """A wrapper's folder with the toy's tokenizer, and settings of a processor."""
    wrapper(name, len(words()) + 3).save_pretrained(place)
    words().save_pretrained(place)
    (place / "preprocessor_config.json").write_text('{"image_processor_type": "SiglipImageProcessor"}')
    return place


def test_the_command_prunes_the_decoder_and_keeps_the_rest(tmp_path: Path) -> None:
    dense = saved("Gemma3ForConditionalGeneration", tmp_path / "dense")
    task = f"toy={texts_file(tmp_path / 'toy.txt')}"
    report = prune_to_folder(
        str(dense), tmp_path / "out", tasks=[task], method="flap", sparsity=0.3, min_channels=4, progress=False
    )
    assert abs(report.realised_sparsity - 0.3) < 0.02
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["model_type"] == "gemma3" and "seap" in told["text_config"] and "seap" not in told
    kept = tmp_path / "out" / "preprocessor_config.json"
    assert kept.read_bytes() == (dense / "preprocessor_config.json").read_bytes()
    before, after = (
        transformers.AutoModelForImageTextToText.from_pretrained(place) for place in (dense, tmp_path / "out")
    )
    assert all(torch.equal(a, b) for a, b in zip(features(after), features(before), strict=True))
    model, _ = load(str(tmp_path / "out"), device="cpu")
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in before.model.language_model.parameters())
    again = prune_to_folder(
        str(tmp_path / "out"),
        tmp_path / "twice",
        tasks=[task],
        method="flap",
        sparsity=0.2,
        min_channels=4,
        progress=False,
    )
    assert again.masks and (tmp_path / "twice" / "seap.json").is_file()


def test_what_does_not_know_multimodal_models_says_so(tmp_path: Path) -> None:
    whole = wrapper("LlavaForConditionalGeneration")
    with pytest.raises(UserError, match="holds a text decoder"):
        seap.prune(whole, sparsity=0.3, method="magnitude", progress=False)
    plain = text_folder(tmp_path / "plain")
    assert open_folder(plain).config.model_type == "llama"
    model, _ = load(str(plain), device="cpu")
    assert decoder_of(model) is model and wrapper_of(model) is model


def test_what_counts_more_than_the_decoder_refuses_it() -> None:
    decoder = decoder_of(wrapper("Gemma3ForConditionalGeneration"))
    with pytest.raises(UserError, match="--cost bytes doesn't know multimodal models such as gemma3"):
        seap.prune(decoder, sparsity=0.3, cost="bytes", method="magnitude", progress=False)
