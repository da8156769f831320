"""Published weights: found, recognized, compared with the model, placed.

files.py      finding weights by name, reading any container
adapters.py   what a checkpoint says of adapters, and of weights that it names and does not hold
format.py     what a published format must say of itself, and the report of what found its place
loading.py    recognized, compared with the model, placed; the classes of a published head
formats/      one file a family
"""

# Where an exported file says what its model is; here, as reading it takes no torch
CARD_FORMAT = "vidtrain-export/1"
CARD_KEY = "vidtrain_card"  # of the file's metadata: JSON
