"""The published formats that are known here. Adding one is one file, and its name in this list."""

from vidtrain.models.weights.formats.own import OWN

FORMATS = (OWN,)
