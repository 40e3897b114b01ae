"""Read files on disk into padded batches of waveforms.

`tables` reads manifests, `scan` checks the audio before training starts, and
`splits` writes the parts of an experiment, as `partition` cuts them. `audio`
reads one file of any kind as mono; `dataset` crops, labels and batches clips,
in the order of `samplers`. `shards` packs clips into tars, `addresses` opens
them there. `download`, `archives` and `corpus_checks` serve prepare scripts.
"""
