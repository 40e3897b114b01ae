"""Adapters that let HEAR, X-ARES and s3prl evaluate exported folders.

Each harness has a file with what it wants to find: functions of HEAR's common
API in `hear`, the base of an encoder class in `xares`, an upstream in `s3prl`.
None of them imports its harness. All stand on `windowed_model.WindowedModel`.
"""
