"""From files on disk to padded batches of waveforms.

`tables` and `scan` read and check what there is before training starts,
`splits` keeps which clip is for what, `audio` reads one file of any kind as
mono, `dataset` crops, labels and batches clips. `shards` packs them into tars;
`addresses` opens what lies in one.
"""
