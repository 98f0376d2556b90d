"""GGUF files as llama.cpp writes them: those of our own export, under the architecture that transformers reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def as_llama(source: Path, target: Path, *, fields: dict[str, Any] | None = None, extra: Any = None) -> Path:
    """A `deci` file of equal layers as `llama`. fields: more of them, by name; extra: more tensors, by name."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    file = GGUFReader(source)
    writer = GGUFWriter(target, "llama")
    for key, field in file.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value, kind = field.contents(), field.types[0]
        if kind == GGUFValueType.ARRAY and key.startswith("deci."):
            assert len(set(value)) == 1
            value, kind = value[0], field.types[-1]
        add = {"sub_type": field.types[-1]} if kind == GGUFValueType.ARRAY else {}
        writer.add_key_value(key.replace("deci.", "llama."), value, kind, **add)
    for key, value in (fields or {}).items():
        adds: dict[type, Callable[..., None]] = {
            str: writer.add_string,
            int: writer.add_uint32,
            float: writer.add_float32,
        }
        adds[type(value)](key, value)
    for tensor in file.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, np.asarray(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
