"""A checkpoint → what engines load.

In: a folder of `seap prune`. Out: a stock class, a GGUF file, an OpenVINO folder, quantized weights, or a Hub
repository.

Open `export.py` first, then `writers.py`: targets by name. `stock.py`, `nemotron_nas.py` and `mlx_folder.py` (with
`llamas.py`), `gguf_file.py` with `gguf_vocabulary.py` and `gguf_experts.py`, `openvino_folder.py` and
`onnx_folder.py` (which trace `step.py`), `compressed.py` and `quantization.py` are one target each; `measured.py` says
what rounding costs.
`configuration_decilm.py` and `modeling_mlx.py` go into folders for engines that read them. `engines.py` is
`seap check`, `push.py` the upload; `vllm_plugin.py` is what vLLM loads.

Not here: our own checkpoint (pruning/checkpoint.py) and our own server (serving/).
"""
