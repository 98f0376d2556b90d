"""The pass that tracers see, in plain PyTorch: piece by piece it is the model's own, whatever a window hides."""

import pytest
import torch
from tiny import ROWS, model

from seap.errors import UserError
from seap.exports import onnx_folder
from seap.exports.step import Step, cache_shapes
from seap.exports.stock import slides
from seap.models.arch import describe

IDS = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(0))


def traceable(name: str) -> bool:
    try:
        onnx_folder.check_config(model(name).config)
    except UserError:
        return False
    return True


def test_windows_are_among_what_is_tried() -> None:
    found = {name for name in ROWS if traceable(name) and slides(model(name).config)}
    assert found >= {"mistral", "gemma2", "gemma3_text", "cohere2", "exaone4", "olmo3"}


@pytest.mark.parametrize("name", [name for name in sorted(ROWS) if traceable(name)])
@torch.no_grad()
def test_in_pieces_it_is_what_the_model_says_of_all(name: str) -> None:
    windows = {} if getattr(model(name).config, "sliding_window", None) is None else {"sliding_window": 4}
    net = model(name, **windows)
    net.config._attn_implementation = "eager"
    assert slides(net.config) == bool(windows)
    step, pieces = Step(net).eval(), []
    past = [torch.zeros(2, groups, 0, size) for groups, size in cache_shapes(describe(net))]
    for start, end in ((0, 7), (7, 10), (10, 12)):
        mask, places = torch.ones(2, end, dtype=torch.long), torch.arange(start, end).expand(2, -1)
        logits, *past = step(IDS[:, start:end], mask, places, *past)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), net(IDS, use_cache=False).logits, atol=1e-5, rtol=1e-5)
