"""llama.cpp itself, where it is installed: what it computes from a file beside what transformers does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


class Table(torch.nn.Module):
    """GELU as ggml's CPU code has it: a table of 16-bit values at 16-bit places."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()


def library() -> Any:
    """The module; the test is skipped where it isn't there."""
    return pytest.importorskip("llama_cpp", reason="needs pip install llama-cpp-python")


def opened(path: Path) -> Any:
    """The file in llama.cpp, in float32."""
    llama_cpp = library()
    f32 = llama_cpp.GGML_TYPE_F32
    return llama_cpp.Llama(
        str(path), n_ctx=64, logits_all=True, n_threads=1, type_k=f32, type_v=f32, n_gpu_layers=0, verbose=False
    )


@torch.no_grad()
def check_same(built: Any, path: Path, tolerance: float = 1e-4) -> None:
    """llama.cpp has the logits, to a share of the largest, and the greedy text of transformers."""
    engine = opened(path)
    ids = torch.randint(3, 400, (1, 24), generator=torch.Generator().manual_seed(3))
    engine.eval(ids[0].tolist())
    expected = built(ids).logits[0].numpy()
    np.testing.assert_allclose(engine.scores[:24], expected, atol=tolerance * np.abs(expected).max())
    engine.reset()
    built.generation_config.eos_token_id = None
    wanted = built.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    greedy = engine.generate(ids[0].tolist(), temp=0.0, repeat_penalty=1.0)
    assert [next(greedy) for _ in range(8)] == wanted[0, 24:].tolist()
    greedy.close()
    engine.close()
