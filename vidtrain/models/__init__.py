"""From a batch to clip logits.

vit3d.py              the ViT-3D encoder
positions.py          sin-cos tables and rotary positions
classifier.py         encoder + head + clip fusion, what an encoder must have, many heads, recomputed activations; any
                      network as it is
heads.py              mean, fully convolutional and attentive heads; where in a clip an answer comes from
temporal_heads.py     heads along time: statistics of change, convolutions, a small transformer
timm_frames.py        any image model of timm, frame by frame, its parts in the order of depth
slowfast.py           residual networks over video: SlowFast, its slow pathway alone, the pieces
x3d.py                X3D
hiera.py              Hiera
resnext3d.py          ResNet3D and ResNeXt3D, basic or bottleneck, pre- or post-activated
torchvision_video.py  torchvision's video models
lora.py               low-rank adapters beside frozen linear layers, and in checkpoints
masks.py              which tokens are shown in pretraining and which are predicted, each from a sample's seed
masked_models.py      VideoMAE, V-JEPA and SALT: networks that learn from videos without labels
exporting.py          from a classifier to a graph in a file, compared with PyTorch; an ONNX file as a model
weights/              published weights: found, recognized, compared with the model, placed
"""
