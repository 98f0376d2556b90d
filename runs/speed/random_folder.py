"""A model of a public shape with random weights, on disk with a tokenizer and texts, that other scripts measure on.

python runs/speed/random_folder.py SHAPE FOLDER [--layers N]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from seap.models.shapes import shape_config


def make_model(
    shape: str, folder: Path, *, dtype: torch.dtype = torch.bfloat16, num_texts: int = 400, layers: int | None = None
) -> int:
    """A model folder with random weights, one file a layer, and texts of 64 tokens in words.txt. Returns its bytes.

    layers: of the shape's, the first; all of them without.
    """
    from transformers import AutoModelForCausalLM

    config = shape_config(shape)
    if layers is not None:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    config.dtype = dtype
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(built).__name__]
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    where: dict[str, str] = {}
    groups: dict[str, dict[str, Any]] = {}
    for name, value in built.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        groups.setdefault(name.split(".")[2] if ".layers." in name else name, {})[name] = value
    generator = torch.Generator().manual_seed(0)
    for number, (_, tensors) in enumerate(groups.items()):
        file = f"model-{number + 1:05}-of-{len(groups):05}.safetensors"
        drawn = {n: (torch.randn(t.shape, generator=generator) * 0.02).to(dtype) for n, t in tensors.items()}
        save_file(drawn, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(drawn, file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(1000)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="w1").save_pretrained(folder)
    drawn_words = torch.randint(2, 1000, (num_texts, 64), generator=generator).tolist()
    (folder / "words.txt").write_text("\n\n".join(" ".join(f"w{i}" for i in row) for row in drawn_words))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int)
    given = parser.parse_args()
    print(f"{make_model(given.shape, given.folder, layers=given.layers) / 1e9:.2f} GB")
