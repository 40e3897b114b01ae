"""Read files on disk into padded batches of waveforms.

`tables` reads manifests, and `scan` checks the audio before training starts.
`partition` splits the rows, and `splits` writes the splits of an experiment.
`held_out` drops clips that must not be trained on. `audio` reads one file of
any kind as mono, with `containers`, `codec` and `waveforms`. `dataset` crops,
labels and batches clips, in the order of `samplers`. `shards` packs clips into
tars, from which `addresses` reads them. Prepare scripts use `download`,
`archives` and `corpus_checks`.
"""
