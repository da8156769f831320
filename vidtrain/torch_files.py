"""Reading PyTorch's files without running code that they may hold."""

import argparse
import pathlib
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidtrain.errors import UserError

# What published checkpoints hold beside tensors. Each is plain data: making one runs nothing. The functions that make
# numbers and arrays of NumPy again have had two homes.
_SCALAR, _ARRAY = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
PLAIN = [
    argparse.Namespace,
    pathlib.PosixPath,
    np.dtype,
    np.ndarray,
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
    *((_SCALAR, f"numpy.{home}.multiarray.scalar") for home in ("core", "_core")),
    *((_ARRAY, f"numpy.{home}.multiarray._reconstruct") for home in ("core", "_core")),
]


def read_torch_file(path: Path, lazy: bool = False) -> Any:
    """What `torch.save` wrote, on the CPU; if `lazy`, tensors stay in the file until they are used.

    Raises `UserError` naming the file when it is absent, truncated, damaged, or holds objects whose unpickling
    could run code.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path} is not a file")
    archive = zipfile.is_zipfile(path)
    with open(path, "rb") as file:
        pickled = file.read(1) == b"\x80"  # as files were before archives
    if not archive and not pickled:
        raise UserError(f"checkpoint {path} is truncated or not a PyTorch file")
    try:
        with torch.serialization.safe_globals(PLAIN):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=lazy and archive)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        if culprit is None and not archive:
            raise UserError(f"checkpoint {path} is truncated or not a PyTorch file") from error
        reason = f"it asks for {culprit[1]}" if culprit else str(error).splitlines()[0]
        raise UserError(
            f"checkpoint {path} is refused: it holds objects other than tensors and plain data, and "
            f"unpickling those can run code ({reason})"
        ) from error
    except Exception as error:  # what is left of a damaged pickle makes its reader raise anything
        said = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"checkpoint {path} is damaged: {said[0]}; copy it again") from error
