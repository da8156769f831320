"""From a batch without labels to a loss: an encoder learns to predict what it was not shown.

masks.py                which tokens are shown and which are predicted: tubes and blocks, each from a sample's seed
masked_model.py         what both networks share: read first
masked_autoencoder.py   VideoMAE: a decoder predicts hidden pixels
joint_embedding.py      V-JEPA and SALT: a predictor predicts hidden features of a teacher
"""
