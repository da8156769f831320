"""What is wrong with a dataset.

inspection.py   what there is to know of one file
full_decode.py  decoding past every error
duplicates.py   videos that look alike
findings.py     balance, groups across splits, copies
shortcuts.py    what gives a class away without a look
summary.py      an audit in numbers
"""
