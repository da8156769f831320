"""From a batch to clip logits.

vit3d.py                 the ViT-3D encoder
positions.py             sin-cos tables and rotary positions
attentive.py             attentive pooler and classifier
classifier.py            encoder + head + clip fusion, what an encoder must have, many heads, recomputed activations
checks.py                errors that name the key and the nearest value that fits
timm_frames.py           any image model of timm, frame by frame, its parts in the order of depth
temporal_transformer.py  head: a small transformer along time
resnet3d_parts.py        stem, bottleneck and shortcut of residual networks over video
slowfast.py              SlowFast, and its slow pathway alone
resnext3d.py             ResNet3D and ResNeXt3D, basic or bottleneck, pre- or post-activated
torchvision_video.py     torchvision's video models
whole_module.py          any module that maps clips to logits, as it is
linear_heads.py          heads of one linear layer: over the mean of the tokens, or at every place
exporting.py             from a classifier to a graph, compared with PyTorch
export_formats.py        the files that graphs are written into; an ONNX file as a model
heat_maps.py             where in a clip an answer comes from: attention, Grad-CAM
weights/                 published weights: found, recognized, compared with the model, placed
"""
