"""Networks that map a batch of clips to clip logits.

vit3d.py              the ViT-3D encoder
positions.py          sin-cos tables and rotary positions
classifier.py         VideoClassifier (encoder, head, clip fusion), the encoder protocol, head grids, recomputed
                      activations, an adapter for any network
heads.py              mean, fully convolutional and attentive heads; attention maps and Grad-CAM
temporal_heads.py     heads along time: statistics of change, convolutions, a small transformer
timm_frames.py        any image model of timm, applied frame by frame
slowfast.py           SlowFast, its slow pathway alone, and the residual blocks of 3D convolutions that others use too
residual3d.py         X3D; ResNet3D and ResNeXt3D, basic or bottleneck, pre- or post-activated
hiera.py              Hiera
torchvision_video.py  torchvision's video models
lora.py               low-rank adapters for frozen linear layers, and their entries in checkpoints
masks.py              draws visible and hidden tokens for pretraining, from a sample's seed
masked_models.py      VideoMAE, V-JEPA and SALT: networks that learn from videos without labels
dense_joint_embedding.py  V-JEPA 2.1, whose predictor is of several blocks and of visible tokens too
exporting.py          exports a classifier as a graph and compares it with PyTorch; runs an ONNX file as a model
weights/              finds published weights, recognizes their format and loads them into a model
"""
