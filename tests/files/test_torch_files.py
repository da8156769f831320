"""PyTorch files that are small and stand for very much: refused in words, before there is memory for it."""

import zipfile

import pytest
import torch

from vidtrain.errors import UserError
from vidtrain.files import torch_files
from vidtrain.files.torch_files import read_torch_file


def test_a_compressed_archive_of_zeros(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_files, "SMALL", 1 << 20)
    torch.save({"model": torch.zeros(1_000_000)}, tmp_path / "big.pt")  # 4 MB, of which some kB are left
    with (
        zipfile.ZipFile(tmp_path / "big.pt") as big,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bomb,
    ):
        for name in big.namelist():
            bomb.writestr(name, big.read(name))
    (tmp_path / "big.pt").unlink()
    assert (tmp_path / "bomb.pt").stat().st_size < 100_000
    with pytest.raises(UserError, match=r"bomb.pt is refused: .* 4,\d"):
        read_torch_file(tmp_path / "bomb.pt")


@pytest.mark.parametrize("lazy", [False, True])
def test_a_number_that_is_repeated(lazy, tmp_path):
    torch.save({"model": {"w": torch.zeros(1).expand(10**12)}}, tmp_path / "view.pt")
    with pytest.raises(UserError, match=r"view.pt is refused: .*\[1000000000000\]"):
        read_torch_file(tmp_path / "view.pt", lazy)


def test_lists_that_hold_one_another(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_files, "MAX_CONTAINERS", 20_000)
    laughs: list = [0]
    for _ in range(30):
        laughs = [laughs, laughs]
    torch.save({"model": laughs}, tmp_path / "laughs.pt")
    endless: list = []
    endless.append(endless)
    torch.save({"model": endless}, tmp_path / "endless.pt")
    for name in ("laughs.pt", "endless.pt"):
        with pytest.raises(UserError, match="20,000 lists and dictionaries, or"):
            read_torch_file(tmp_path / name)


def test_what_shares_and_what_is_small_is_read(tmp_path):
    row = torch.arange(8)
    torch.save({"a": row, "b": [row.expand(1000, 8), (row,)], "c": {"d": row}}, tmp_path / "good.pt")
    found = read_torch_file(tmp_path / "good.pt")
    assert found["b"][0].shape == (1000, 8) and torch.equal(found["c"]["d"], row)
