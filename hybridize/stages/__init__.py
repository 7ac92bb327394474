"""The stops of the street, one file each: run(inputs, settings, out) writes only under `out`.

No stage imports another; `hybridize.pipeline` calls them in order. Read `distill.py` first.
"""
