"""Below the container: where decoding can start, what can be left out, packets by byte range.

Read entry_points.py first.

entry_points.py  where in a file decoding can start, and what can be left out
headers.py       reading the headers of H.264 and AV1 bit by bit
packets.py       decoding from byte ranges, without a container; trying out what can be left out
"""
