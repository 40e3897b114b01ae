"""Read files on disk into padded batches of waveforms.

`tables` reads manifests, `scan` checks the audio before training starts, and
`splits` writes the parts of an experiment, as `partition` cuts them;
`held_out` tells which clips must not be trained on. `audio` reads one file of
any kind as mono, with `containers`, `codec` and `waveforms`; `dataset` crops,
labels and batches clips, in the order of `samplers`. `shards` packs clips into
tars, `addresses` opens them there. `download`, `archives` and `corpus_checks`
serve prepare scripts.
"""
