"""The published formats that are known here. Adding one is one file, and its names in the list below.

own.py            our checkpoints
vit3d.py          what the formats of ViT-3D share: heads, joined layers, patches and positions of other sizes
vjepa.py          V-JEPA 1, 2, 2.1: original encoders and probes
vjepa_transformers.py  V-JEPA 2 as transformers saves it
videomae.py       VideoMAE: fine-tuned and pretrained, original and of transformers
pretraining.py    what pretraining files hold besides: decoder, predictor, an encoder beside its average
torchvision.py    torchvision's video weights, by enum name or file
pytorchvideo.py   PyTorchVideo's SlowFast, Slow and X3D
pyslowfast.py     the same networks as PySlowFast saves them
mvit.py           PySlowFast's and PyTorchVideo's MViT
hiera.py          Hiera of videos
classy_vision.py  Classy Vision's ResNeXt3D
efficientnet_lite.py   EfficientNet-Lite, whose ImageNet weights the extra `weights` installs
timm_images.py    image models of timm: ViTs inflated to tubelets, and any of them frame by frame
"""

from vidtrain.models.weights.format import Format
from vidtrain.models.weights.formats.classy_vision import CLASSY_VISION_RESNEXT3D
from vidtrain.models.weights.formats.efficientnet_lite import EFFICIENTNET_LITE
from vidtrain.models.weights.formats.hiera import HIERA
from vidtrain.models.weights.formats.mvit import PYSLOWFAST_MVIT, PYTORCHVIDEO_MVIT
from vidtrain.models.weights.formats.own import OWN
from vidtrain.models.weights.formats.pyslowfast import PYSLOWFAST, PYSLOWFAST_SLOW, PYSLOWFAST_X3D
from vidtrain.models.weights.formats.pytorchvideo import (
    PYTORCHVIDEO_SLOW,
    PYTORCHVIDEO_SLOWFAST,
    PYTORCHVIDEO_X3D,
)
from vidtrain.models.weights.formats.timm_images import TIMM_FRAMES, TIMM_VIT
from vidtrain.models.weights.formats.torchvision import (
    TORCHVISION_MVIT,
    TORCHVISION_RESNET,
    TORCHVISION_S3D,
    TORCHVISION_SWIN,
)
from vidtrain.models.weights.formats.videomae import VIDEOMAE, VIDEOMAE_PRETRAINED, VIDEOMAE_TRANSFORMERS
from vidtrain.models.weights.formats.vjepa import (
    VJEPA_1,
    VJEPA_2,
    VJEPA_2_1,
    VJEPA_PROBE,
)
from vidtrain.models.weights.formats.vjepa_transformers import VJEPA_2_TRANSFORMERS

FORMATS: tuple[Format, ...] = (
    OWN,
    VJEPA_1,
    VJEPA_2,
    VJEPA_2_1,
    VJEPA_PROBE,
    VJEPA_2_TRANSFORMERS,
    VIDEOMAE,
    VIDEOMAE_PRETRAINED,
    VIDEOMAE_TRANSFORMERS,
    TORCHVISION_RESNET,
    TORCHVISION_S3D,
    TORCHVISION_MVIT,
    TORCHVISION_SWIN,
    PYTORCHVIDEO_SLOWFAST,
    PYTORCHVIDEO_SLOW,
    PYTORCHVIDEO_X3D,
    PYSLOWFAST,
    PYSLOWFAST_SLOW,
    PYSLOWFAST_X3D,
    PYSLOWFAST_MVIT,
    PYTORCHVIDEO_MVIT,
    HIERA,
    CLASSY_VISION_RESNEXT3D,
    EFFICIENTNET_LITE,
    TIMM_VIT,
    TIMM_FRAMES,  # last: any image model could be of timm
)
