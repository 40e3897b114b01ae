"""Weights on disk: our exports, official files, Hugging Face, the hub.

`loading.load_weights` reads every format into `format.Weights`, with our names
of the tensors. `official`, `huggingface` and `peers` each translate one format.
`tensors` reads files, `hub` downloads repositories, and `bundled` finds the
bundled models by name. `folder` writes exported folders, with `hyperparams` and
`model_card`. `linear_heads` and `frame_heads` store heads in exported folders,
`push` publishes the folders, and `averaging` and `convert` make new checkpoints
from existing ones. `warm_start` starts a model from weights of another grid.

Reading executes nothing. Loading is strict: an error lists all missing,
unexpected and misshapen tensors. The `report` of `Weights` lists what is left
out on purpose.
"""
