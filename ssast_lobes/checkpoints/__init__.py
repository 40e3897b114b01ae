"""Weights on disk: our exports, official files, Hugging Face, the hub.

`loading.load_weights` reads all of them into `format.Weights`, our names for
the tensors of any origin. It alone knows every format; `tensors`, `official`,
`huggingface` and `hub` know one each; `bundled` knows the models that come
with the package, by name. `folder` writes exported folders, with
the help of `hyperparams` and `model_card`; `linear_heads` keeps heads in them,
`push` publishes them, `averaging` and `convert` make new ones of old.
`warm_start` starts a model from weights of another grid.

Reading executes nothing. Loading is strict: a tensor that is missing,
unexpected or of another shape is an error, which lists all of them. What is
left out on purpose stands in the report of the weights.
"""
