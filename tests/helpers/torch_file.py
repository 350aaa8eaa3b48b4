"""Files as `torch.save` writes them, made without PyTorch."""

import io
import pickle
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FLOAT_STORAGE = type("FloatStorage", (), {"__module__": "torch"})


def _rebuild_tensor_v2(*_: Any) -> None:
    """Named in the pickle, never called."""


_rebuild_tensor_v2.__module__ = "torch._utils"
_rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"


class Tensor:
    """A float32 tensor, pickled as PyTorch does: a call with its storage, offset, shape and strides in elements."""

    def __init__(self, key: str, array: np.ndarray[Any, Any]) -> None:
        self.storage = Storage(key, array)
        self.array = array

    def __reduce__(self) -> tuple[Any, ...]:
        strides = tuple(stride // 4 for stride in self.array.strides)
        return _rebuild_tensor_v2, (self.storage, 0, self.array.shape, strides, False, {})


class Storage:
    def __init__(self, key: str, array: np.ndarray[Any, Any]) -> None:
        self.key = key
        self.array = array


class TorchPickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, Storage):
            return "storage", FLOAT_STORAGE, value.key, "cpu", value.array.size
        return None


def write_torch_file(path: Path, value: Any) -> Path:
    """Writes `value`, nested dictionaries with float32 arrays."""
    arrays: list[np.ndarray[Any, Any]] = []

    def wrap(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: wrap(child) for name, child in node.items()}
        if not isinstance(node, np.ndarray):
            return node
        arrays.append(np.ascontiguousarray(node, np.float32))
        return Tensor(str(len(arrays) - 1), arrays[-1])

    modules = {"torch": types.ModuleType("torch"), "torch._utils": types.ModuleType("torch._utils")}
    modules["torch"].FloatStorage = FLOAT_STORAGE
    modules["torch._utils"]._rebuild_tensor_v2 = _rebuild_tensor_v2
    content = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        TorchPickler(content, protocol=2).dump(wrap(value))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ckpt/data.pkl", content.getvalue())
        for number, array in enumerate(arrays):
            archive.writestr(f"ckpt/data/{number}", array.tobytes())
    return path
