"""Below the container: where decoding can start, what can be left out, packets by byte range.

Read entry_points.py first.

entry_points.py  where in a file decoding can start, and what can be left out
av1.py           what can be left out of AV1's
bits.py          reading headers bit by bit
h264.py          fields and frame numbers of H.264's packets
packets.py       decoding from byte ranges, without a container
verifying.py     trying out where decoding can start, and what can be left out
"""
