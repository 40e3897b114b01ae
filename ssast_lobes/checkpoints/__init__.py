"""Weights on disk: our exports, official files, Hugging Face, the hub.

`loading.load_weights` reads all of them into `format.Weights`, with our names
of the tensors. It alone knows every format. `tensors`, `official`,
`huggingface`, `peers` and `hub` know one each, and `bundled` knows the bundled
models by name. `folder` writes exported folders with `hyperparams` and
`model_card`. `linear_heads` and `frame_heads` store heads in them, `push`
publishes them, and `averaging` and `convert` make new ones from old ones.
`warm_start` starts a model from weights of another grid.

Reading executes nothing. Loading is strict: missing, unexpected and misshapen
tensors are an error, which lists all of them. The report of the weights lists
what is left out on purpose.
"""
