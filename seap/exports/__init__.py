"""A checkpoint → what engines load.

In: a folder of `seap prune`. Out: a stock class, a GGUF file, an OpenVINO folder, quantized weights, or a Hub
repository.

Open `export.py` first: targets by name. `stock.py`, `gguf_file.py` with `gguf_vocabulary.py`, `openvino_folder.py` and
`quantization.py` are one target each; `engines.py` is `seap check`, `push.py` the upload; `vllm_plugin.py` is what vLLM
loads.

Not here: our own checkpoint (pruning/checkpoint.py) and our own server (serving/).
"""
