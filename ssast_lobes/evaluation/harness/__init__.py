"""Adapters that let HEAR, X-ARES and s3prl evaluate exported folders.

Each harness has a module with the names that it expects: functions of HEAR's
common API in `hear`, the base of an encoder class in `xares`, an upstream in
`s3prl`. No module imports its harness. All use `windowed_model.WindowedModel`.
"""
