"""Checkpoints and exported models of our own as starting points: what shows in no tensor is compared with the model."""

import json
from functools import partial

import pytest
import torch

from vidtrain.errors import UserError
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.exporting import save_weights
from vidtrain.models.heads import AttentiveClassifier, MeanPoolClassifier
from vidtrain.models.timm_frames import TimmFrames
from vidtrain.models.vit3d import ViT3D
from vidtrain.models.weights.files import read
from vidtrain.models.weights.format import OWN
from vidtrain.models.weights.loading import load_pretrained
from vidtrain.training import checkpoint

ENCODER = {"image_size": "${clip.size}", "num_frames": "${clip.frames}", "embed_dim": 24, "depth": 2, "num_heads": 2,
           "patch_size": 8, "positions": "sincos", "rope_base_grid": None, "mlp_hidden": None, "norm_eps": 1e-6,
           "drop_path": 0.1, "out_layers": None, "final_norm": True}  # fmt: skip
HEAD = {"num_heads": 4, "depth": 1, "norm_eps": 1e-5}
CONFIG = {
    "clip": {"size": 16, "frames": 4},
    "model": {
        "encoder": {"_target_": "vidtrain.models.vit3d.ViT3D", **ENCODER},
        "head": {"_target_": "vidtrain.models.heads.AttentiveClassifier", "_partial_": True, **HEAD},
    },
}


def model(size=16, head=None, seed=0, **changed) -> VideoClassifier:
    torch.manual_seed(seed)
    encoder = ViT3D(**{**ENCODER, "image_size": size, "num_frames": 4, **changed})
    return VideoClassifier(encoder, head or partial(AttentiveClassifier, **HEAD), 3)


@pytest.fixture(params=["checkpoint", "export"])
def written(request, tmp_path):
    """A checkpoint as training writes it, or safetensors as export does."""
    if request.param == "checkpoint":
        path = tmp_path / "best.pt"
        checkpoint.save({"model": model(seed=1).state_dict(), "config": CONFIG, "classes": ["a"]}, path)
        return path
    path = tmp_path / "model.safetensors"
    card = json.dumps({"format": "vidtrain-export/1", "config": CONFIG})
    save_weights(model(seed=1), path, "fp32", {"vidtrain_card": card})
    return path


def test_it_is_known_and_comes_back_the_same(written):
    ours = model()
    found = load_pretrained(ours, "run", written, 1.0)
    assert (found.format, found.match, len(found.missing)) == ("vidtrain checkpoint", 1.0, 0)
    assert all(torch.equal(each, model(seed=1).state_dict()[name]) for name, each in ours.state_dict().items())
    back = OWN.revert(ours.state_dict())
    assert OWN.convert(read(written, "run"), ours).tensors.keys() == {each[len("model.") :] for each in back}


def test_sizes_of_clips_and_regularization_may_differ(written):
    assert load_pretrained(model(size=32, drop_path=0.0, dropout=0.5), "run", written, 1.0).match == 1.0


def test_what_would_compute_something_else_is_refused(written):
    wrong = model(num_heads=4, positions="sincos_1d", head=partial(AttentiveClassifier, **{**HEAD, "num_heads": 2}))
    with pytest.raises(UserError) as fault:
        load_pretrained(wrong, "run", written, 1.0)
    assert str(fault.value).splitlines()[1:] == [
        "  model.encoder.num_heads=2 (it is 4)",
        "  model.encoder.positions=sincos (it is sincos_1d)",
        "  model.head.num_heads=4 (it is 2)",
    ]


def test_a_setting_of_none_counts(written):
    wrong = model(positions="rope", num_heads=4, rope_base_grid=16)
    with pytest.raises(UserError, match="model.encoder.rope_base_grid=null .it is 16."):
        load_pretrained(wrong, "run", written, 1.0)


def test_another_head_is_left_as_it_is_and_may_take_other_tokens(written):
    other = model(head=MeanPoolClassifier, out_layers=[0, 1])
    found = load_pretrained(other, "run", written, 1.0)
    assert found.match == 1.0
    assert set(found.left_out.values()) == {"of AttentiveClassifier, but the model's head is MeanPoolClassifier"}


def test_another_encoder_is_refused(written):
    other = model()
    other.encoder = torch.nn.Identity()
    with pytest.raises(UserError, match="run was trained with ViT3D, and the model is Identity; choose"):
        load_pretrained(other, "run", written, 1.0)


def test_a_setting_that_there_was_not_yet_counts_as_its_default(tmp_path):
    """Of frames, from before there were differences of them; what is the default now fits."""

    def frames(**changed) -> VideoClassifier:
        return VideoClassifier(TimmFrames("test_resnet", 32, **changed), partial(MeanPoolClassifier, norm=False), 3)

    config = {
        "model": {
            "encoder": {"_target_": "vidtrain.models.timm_frames.TimmFrames", "backbone": "test_resnet"},
            "head": {
                "_target_": "vidtrain.models.heads.MeanPoolClassifier",
                "_partial_": True,
                "norm": False,
            },
        }
    }
    path = tmp_path / "best.pt"
    checkpoint.save({"model": frames().state_dict(), "config": config, "classes": ["a"]}, path)
    assert load_pretrained(frames(drop_path=0.1), "run", path, 1.0).match == 1.0
    with pytest.raises(UserError) as fault:
        load_pretrained(frames(input="difference", difference_gain=2.0), "run", path, 1.0)
    assert str(fault.value).splitlines()[1:] == [
        "  model.encoder.input=rgb (it is difference)",
        "  model.encoder.difference_gain=1.0 (it is 2.0)",
    ]
