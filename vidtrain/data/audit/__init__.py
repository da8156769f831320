"""What is wrong with a dataset: manifests enter, findings in plain values leave. Read summary.py first.

duplicates.py   videos that look alike
findings.py     groups across splits, copies, and what gives a class away without a look
full_decode.py  decoding past every error; issues of a file
inspection.py   what there is to know of one file
summary.py      an audit in numbers
"""
