"""Where an exported file says what its model is; apart, as reading it takes no torch."""

CARD_FORMAT = "vidtrain-export/1"
CARD_KEY = "vidtrain_card"  # of the file's metadata: JSON
