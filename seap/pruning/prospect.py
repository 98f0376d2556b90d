"""A model before it is loaded: its config, its tokenizer, and how much text there is."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from seap.disk.place import at_home
from seap.files import read_about
from seap.models import checkpoint_folder, configs, gguf, loader
from seap.models.decoders import decoder_of
from seap.models.options import Loading
from seap.pruning.rates import Taken
from seap.pruning.work import Text
from seap.text.corpus import build_corpus, longest_sequence, num_batches, num_with_padding
from seap.text.options import Calibration
from seap.text.tasks import load_items, parse_spec

PER_CHARACTER = 0.3  # tokens, where there is no tokenizer to count them by


@dataclass(frozen=True, kw_only=True)
class Prospect:
    """A model without its weights, and how it will be worked with."""

    name: str
    model: Any  # on the meta device
    tokenizer: Any
    dtype: torch.dtype  # of the work
    saved: torch.dtype
    device: str
    begun: Taken  # the clock's and the processor's seconds when looking at it began

    @property
    def looking(self) -> Taken:
        """What planning has taken so far: a run does it too, with all that it imports."""
        return Taken(time.perf_counter() - self.begun.wall, time.process_time() - self.begun.cpu)

    def text(self, specs: Sequence[str], options: Calibration) -> dict[str, Text]:
        """Tokens and batches of each task's text, by the tokenizer itself."""
        return {parse_spec(spec).name: self._text(spec, options) for spec in specs}

    def _text(self, spec: str, options: Calibration) -> Text:
        items = load_items(parse_spec(spec), "train")
        if self.tokenizer is None:
            most = longest_sequence(self.model, options)
            lengths = [min(int(len(item.text) * PER_CHARACTER), most) for item in items[: options.num_texts]]
            tokens = min(sum(lengths), options.max_tokens or sum(lengths))
            return Text(tokens, max(tokens // options.batch_tokens, 1))
        seq_len = longest_sequence(self.model, options)
        corpus = build_corpus(parse_spec(spec).name, items, self.tokenizer, options, source=spec, seq_len=seq_len)
        rows, each = corpus.rows, {"batch_tokens": options.batch_tokens}
        padding = num_with_padding(rows, **each) / max(sum(map(len, rows)), 1)
        return Text(corpus.num_tokens, num_batches(rows, **each), len(rows), padding)


def prospect(name: str, loading: Mapping[str, Any] | None = None, *, save_dtype: str | None = None) -> Prospect:
    """Look at a model's config and tokenizer. Raises UserError for what can't be loaded."""
    begun = Taken(time.perf_counter(), time.process_time())
    place = Loading(**(loading or {}))
    trusted = {"trust_remote_code": place.trust_remote_code}
    tokenizer = None
    if gguf.is_gguf(name):
        config = gguf.config_of(at_home(name))
    else:
        opened = loader.open_model(name, weights=False, **trusted)
        config, tokenizer = opened.config, checkpoint_folder.load_tokenizer(name, opened, **trusted)
    model = decoder_of(configs.on_meta(config))
    own = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    device = loader.check_device(place.device)
    working = own if place.dtype == "auto" else getattr(torch, place.dtype)
    if place.dtype == "auto" and device == "cpu" and own in loader.HALF and not loader.has_16_bit():
        room = loader.free_memory() // 2
        working = torch.float32 if 4 * sum(p.numel() for p in model.parameters()) < room else own
    saved = getattr(torch, save_dtype) if save_dtype else own if place.dtype == "auto" else working
    found: dict[str, Any] = {"dtype": working, "saved": saved, "device": device, "begun": begun}
    return Prospect(name=name, model=model, tokenizer=tokenizer, **found)


def about_stats(path: Path) -> dict[str, Any]:
    return read_about(path, "stats")[1]


def stored_text(about: Mapping[str, Any], calibration: Calibration) -> Text:
    """The text that a statistics file is of."""
    tokens = int(about["num_tokens"])
    return Text(tokens, max(-(-tokens // calibration.batch_tokens), 1), int(about["num_rows"]))
