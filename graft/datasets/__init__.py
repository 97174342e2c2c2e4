"""Data sets: from a source of pictures to shards of pixels and labels.

`sources` knows where pictures come from, `archives` how they are unpacked safely, `preparation` how they
are split, checked and written.
"""
