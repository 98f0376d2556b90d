"""A folder or a Hub name → a model seen as axes that can be cut.

In: a checkpoint of any family in `families.py` (one row each). Out: the model (`loader.py`, of GGUF files `gguf.py`)
and its `Arch` (`arch.py`), whose layers have axes: KV groups and MLP channels, experts where there are some
(`experts.py`). Of a multimodal model it is the text decoder inside (`decoders.py`).

A folder is a stranger's: `kinds.py` says what it is and which of its files are read, `headers.py` what its weights'
headers say, `configs.py` makes a config that agrees with them, `checkpoint_folder.py` loads it, and `left_out.py` sees
to it that no weight is dropped in silence; `quantized.py` says how weights are quantized, `dequantize.py` takes them
back to floats; `hub.py` fetches one.

Open `arch.py` first, `families.py` for the names of a family's submodules (hybrids' and latent attention's in files
of their own), which nothing else knows; `deriving.py` reads them off a model that has no row yet, which `watching.py`
watches.
`modeling_seap.py` builds layers of different widths and travels with every checkpoint. `residency.py` keeps weights
in their files, `shelf.py` what is made of them; `soundness.py` says whether weights are whole; `prepack.py`, `cache.py`
and `shapes.py` are for running and measuring models. `builtin_model/` is data.

Not here: text, scores, and anything that changes a weight for good.
"""
