"""Adapters that let HEAR, X-ARES and s3prl evaluate exported folders.

One module for each harness defines the names that the harness expects: `hear`
the functions of HEAR's common API, `xares` the base of an encoder class,
`s3prl` an upstream. No module imports its harness. All use
`windowed_model.WindowedModel`.
"""
