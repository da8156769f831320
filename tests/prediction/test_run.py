"""From clips to logits and heat: the views of one video in every fusion."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import nn

from vidtrain.data.loading.windows import Chunk
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import AttentiveClassifier
from vidtrain.models.vit3d import ViT3D
from vidtrain.prediction.outputs import folders_of
from vidtrain.prediction.pictures import scaled
from vidtrain.prediction.run import ChunkOutput, Clock, Plan, Predictor, _joined


class Floats(nn.Module):
    def forward(self, clips):
        return clips.float() / 255


def judge(fusion, heat, crops=2, heat_class=None):
    torch.manual_seed(0)
    encoder = ViT3D(image_size=16, num_frames=4, embed_dim=24, depth=1, num_heads=2, patch_size=8)
    model = VideoClassifier(
        encoder, lambda embed_dim, num_classes: AttentiveClassifier(embed_dim, num_classes, 2), 5, fusion
    )
    return Predictor(model.eval(), Floats(), torch.device("cpu"), nullcontext(), crops, False, heat, heat_class)


CLIPS = torch.randint(0, 256, (2, 6, 3, 4, 16, 16), generator=torch.Generator().manual_seed(0)).byte()


@pytest.mark.parametrize("fusion", ["mean_logits", "mean_probs", "joint"])
@pytest.mark.parametrize("heat", ["attention", "grad_cam"])
def test_heat_has_a_map_for_every_view_and_leaves_the_logits_alone(fusion, heat):
    """3 clips x 2 crops: views are clip-major; jointly, each crop of a video is judged over its 3 clips."""
    plain, drawn = judge(fusion, None), judge(fusion, heat)
    (logits, none), (same, found) = plain(CLIPS), drawn(CLIPS)
    assert none is None and torch.equal(logits, same)
    assert logits.shape == (2, 2 if fusion == "joint" else 6, 5)
    assert found.shape == (2, 6, 2, 2, 2)
    if fusion == "joint" and heat == "attention":
        by_crop = rearrange(found, "b (n v) t h w -> b v n t h w", v=2)
        torch.testing.assert_close(by_crop.sum(dim=(2, 3, 4, 5)), torch.ones(2, 2))
        alone, _ = plain(CLIPS[:, 1::2].contiguous().repeat_interleave(2, dim=1))
        torch.testing.assert_close(alone[:, 0], logits[:, 1])


def test_grad_cam_can_be_of_another_class():
    clips = CLIPS[:1]
    first, second = (judge("mean_logits", "grad_cam", heat_class=k)(clips)[1] for k in (0, 3))
    assert not torch.equal(first, second)


def test_windows_that_could_not_be_read_are_rows_of_nothing():
    one = judge("mean_logits", None, crops=1)
    chunks = (Chunk("a", (0.0, 1.0), 2.0), Chunk("a", (2.0, 3.0), 2.0), Chunk("a", (3.5,), 2.0))
    logits = torch.arange(15.0).view(3, 1, 5)
    parts = [ChunkOutput(logits[:2], None, None), None, ChunkOutput(logits[2:], None, None)]
    found = _joined(Plan("a", chunks, 5.2), parts, one)
    assert found.starts.tolist() == [0.0, 1.0, 2.0, 3.0, 3.5]
    assert found.ends.tolist() == [2.0, 3.0, 4.0, 5.0, 5.2]
    known = torch.from_numpy(found.probabilities).isnan().any(dim=1)
    assert known.tolist() == [False, False, True, True, False]
    assert found.clip_logits[4, 0].tolist() == [10.0, 11.0, 12.0, 13.0, 14.0] and found.heat is None


def test_a_share_of_time_is_known_once_time_has_passed():
    assert Clock().data_share == 0.0
    assert Clock(waited=1.0, total=4.0).data_share == 0.25


def test_attention_is_drawn_from_the_even_share_on():
    heat = torch.tensor([[1.0, 1.0], [1.0, 5.0]]).numpy()
    found, times_mean = scaled(heat, from_even=True)
    assert found.tolist() == [[0.0, 0.0], [0.0, 1.0]]
    assert times_mean == pytest.approx(4.94 / 2)  # the 99.5th percentile lies just below the largest
    assert scaled(heat, from_even=False)[0][0, 0] == pytest.approx(1 / 4.94)
    assert scaled(heat * 0, from_even=True) == (pytest.approx(heat * 0), None)
    assert scaled(heat * float("nan"), from_even=False)[1] is None


def test_attention_that_is_almost_even_looks_even():
    found, times_mean = scaled(np.array([[1.0, 1.0], [1.0, 1.02]]), from_even=True)
    assert times_mean == 1.5 and found.max() == pytest.approx(0.03, abs=0.01)


def test_each_video_has_a_folder_of_its_own(tmp_path):
    paths = ["/v/a/x.mp4", "/v/b/x.mp4", "/v/b/y.mp4", "/v/b/y.avi"]
    found = [str(folder.relative_to(tmp_path)) for folder in folders_of(paths, tmp_path).values()]
    assert found == ["a/x", "b/x", "b/y.mp4", "b/y.avi"]
    assert list(folders_of(["/v/a/x.mp4"], tmp_path).values()) == [tmp_path / "x"]
