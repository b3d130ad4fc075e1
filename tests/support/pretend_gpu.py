"""A pretended GPU, for machines without one: tensors that say that they are on CUDA, and compute on the CPU.

Their numbers are real, so what runs on them can be compared with the same on a CPU. Tensors of different devices refuse to
work together, as on a GPU. What would make the program wait for a GPU (a read of a number on the host, a copy between the
devices that blocks, a shape that depends on numbers) is counted, by the line of the package that caused it.
"""

import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import lightning_vamo

PACKAGE = str(Path(lightning_vamo.__file__).parent) + "/"
CUDA = torch.device("cuda", 0)
# Where such a tensor is for torch itself: the device for which torch's bindings need no driver.
_FOR_TORCH = torch.device("meta")
_CONSTRUCTORS = (torch.tensor, torch.as_tensor, Tensor.new_tensor)
_GENERATOR = torch.Generator

# The shapes of their results depend on numbers, or they look at what came out.
_WAITING = {
    "_local_scalar_dense",
    "_linalg_check_errors",
    "_linalg_eigh",
    "_linalg_svd",
    "_unique2",
    "allclose",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "unique_dim",
}
# Without a deterministic implementation on a GPU, all of them in the oldest version of torch that is supported.
_NOT_DETERMINISTIC = {"bincount", "histc", "kthvalue", "median", "nanmedian", "put_", "scatter_reduce"}
_CUMULATIVE = {"cumsum", "cumprod"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# They change the shape of a tensor in place.
_RESHAPING = {"squeeze_", "unsqueeze_", "t_", "transpose_"}


class OnGPU(Tensor):
    """A tensor that says that it is on a GPU; ``held`` has the numbers."""

    @staticmethod
    def __new__(cls, held):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        made = Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=_FOR_TORCH, **layout)
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError(f"{function} on a pretended GPU that is switched off")

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, other):
        Tensor.data.__set__(self, other)
        self.held = other.held

    def data_ptr(self):
        return self.held.data_ptr()

    def untyped_storage(self):
        return self.held.untyped_storage()

    def __repr__(self, **options):
        return f"OnGPU({self.held!r})"

    def __deepcopy__(self, memo):
        return self.clone()

    def __reduce_ex__(self, protocol):
        return self.held.__reduce_ex__(protocol)  # a checkpoint is loaded on the CPU


class _GeneratorOnGPU(_GENERATOR):
    device = property(lambda self: CUDA)


class _GeneratorType(type):
    def __call__(cls, device="cpu"):
        return (_GeneratorOnGPU if torch.device(device).type == "cuda" else _GENERATOR)()

    def __instancecheck__(cls, instance):
        return isinstance(instance, _GENERATOR)


class _Generator(metaclass=_GeneratorType):
    """Stands for ``torch.Generator``."""


class _Event:
    """Stands for ``torch.cuda.Event``."""

    def __init__(self, enable_timing=False):
        self.at = 0.0

    def record(self):
        self.at = time.perf_counter()

    def query(self):
        return True

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return 1000 * (other.at - self.at)


class _Devices(TorchFunctionMode):
    """Tells torch's bindings the device for which they need no driver."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if function in _CONSTRUCTORS:
            device = kwargs.get("device") or (args[0].device if function is Tensor.new_tensor else "cpu")
            if torch.device(device).type == "cuda":
                return self._constructed(function, args, kwargs.get("dtype"))
        if function is Tensor.tolist and isinstance(args[0], OnGPU):
            return args[0].cpu().tolist()
        if function is not torch.device and "autocast" not in name:
            args, kwargs = _changed(args, _for_torch), {key: _for_torch(value) for key, value in kwargs.items()}
        result = function(*args, **kwargs)
        return (CUDA, *result[1:]) if name == "_parse_to" and result[0] == _FOR_TORCH else result

    @staticmethod
    def _constructed(function, args, dtype):
        """A tensor of numbers on the host: they are copied to the GPU."""
        values = args[-1]
        if isinstance(values, OnGPU):
            return values.to(dtype=dtype)
        dtype = args[0].dtype if dtype is None and function is Tensor.new_tensor else dtype
        return torch.tensor(values, dtype=dtype, device="cpu").to(_FOR_TORCH)


def _for_torch(value):
    is_gpu = value.type == "cuda" if isinstance(value, torch.device) else type(value) is str and value in ("cuda", "cuda:0")
    return _FOR_TORCH if is_gpu else value


def _changed(value, change):
    """A value with ``change`` applied to it, or to the items of lists and tuples."""
    if isinstance(value, (list, tuple)):
        return type(value)([_changed(item, change) for item in value]) if type(value) in (list, tuple) else value
    return change(value)


def _held(value):
    return value.held if isinstance(value, OnGPU) else value


def _tensors(values):
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


class PretendedGPU(TorchDispatchMode):
    """Runs operations on the tensors of the pretended GPU, and counts what would make the program wait for it.

    Attributes:
        waits: How often each line of the package made the program wait, and by what.
    """

    def __init__(self):
        super().__init__()
        self.waits = Counter()

    def put(self, tensor):
        """A copy of a tensor, or of all tensors of a list, on the pretended GPU."""
        return _changed(tensor, lambda leaf: OnGPU(leaf.detach().clone()) if isinstance(leaf, Tensor) else leaf)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name, device = function.overloadpacket.__name__, kwargs.get("device")
        given = [*_tensors(args), *_tensors(kwargs.values())]
        here = [tensor for tensor in given if isinstance(tensor, OnGPU)]
        self._look(function, args, kwargs, given, here)
        to_gpu = bool(here) if device is None else torch.device(device).type == _FOR_TORCH.type
        held, options = _changed(args, _held), {key: _changed(value, _held) for key, value in kwargs.items()}
        result = function(*held, **(options if device is None else {**options, "device": torch.device("cpu")}))
        if name in _RESHAPING and here:
            with torch._C._DisableTorchDispatch():  # what torch itself knows of the shape
                function(*args)
        known = {id(tensor.held if isinstance(tensor, OnGPU) else tensor): tensor for tensor in given}

        def wrapped(leaf):
            if not isinstance(leaf, Tensor):
                return leaf
            return known[id(leaf)] if id(leaf) in known else OnGPU(leaf) if to_gpu else leaf

        return _changed(result, wrapped)

    def _look(self, function, args, kwargs, given, here):
        """Count what waits, and refuse what a GPU refuses."""
        name, device = function.overloadpacket.__name__, kwargs.get("device")
        cumulates = name in _CUMULATIVE and bool(here) and here[0].is_floating_point()
        if here and (name in _NOT_DETERMINISTIC or cumulates) and torch.are_deterministic_algorithms_enabled():
            raise RuntimeError(f"{function} does not have a deterministic implementation on a pretended GPU")
        waits = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        if name == "_to_copy" and device is not None:
            if waits and (torch.device(device).type == _FOR_TORCH.type) != bool(here):
                self._count("copied to the host" if here else "copied to the GPU")
        elif not here:
            return
        elif name == "copy_":
            if waits and len(here) < len(given):
                self._count("copied to the host" if isinstance(args[1], OnGPU) else "copied to the GPU")
        elif name in _INDEXING:
            self._look_at_indices(args)
        elif name in _WAITING or (name == "repeat_interleave" and isinstance(args[0], OnGPU)):
            self._count(name)
        elif any(tensor.dim() and not isinstance(tensor, OnGPU) for tensor in given):
            raise RuntimeError(f"{function} of tensors on different devices: {[tuple(tensor.shape) for tensor in given]}")

    def _look_at_indices(self, args):
        indexed, indices = args[0], [index for index in args[1] if index is not None]
        if not isinstance(indexed, OnGPU):
            raise RuntimeError("indices on a GPU of a tensor that is not")
        for index in indices:
            if index.dtype in (torch.bool, torch.uint8):
                self._count("boolean mask")
            elif not isinstance(index, OnGPU):
                self._count("indices copied to the GPU")

    def _count(self, what):
        frame, callers = sys._getframe(), []
        while frame is not None and len(callers) < 2:
            if frame.f_code.co_filename.startswith(PACKAGE):
                callers.append(f"{frame.f_code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno} {frame.f_code.co_name}")
            frame = frame.f_back
        if callers:  # what Lightning and a user's loader do is not the package's
            self.waits[f"{what} by {', called by '.join(callers)}"] += 1


class _NoSetup(CPUAccelerator):
    def setup_device(self, device):
        pass


def strategy():
    """A strategy that trains on the pretended GPU."""
    return SingleDeviceStrategy(device=CUDA, accelerator=_NoSetup())


@contextmanager
def pretended_gpu(monkeypatch):
    """Switch a pretended GPU on for the length of the context."""
    gpu = PretendedGPU()
    with ExitStack() as stack:
        patch = stack.enter_context(monkeypatch.context())
        patch.setattr(torch.cuda, "Event", _Event)
        patch.setattr(torch.cuda, "synchronize", lambda device=None: None)
        patch.setattr(torch.cuda, "mem_get_info", lambda device=None: (2**30, 2**30))
        patch.setattr(torch, "Generator", _Generator)
        stack.enter_context(_Devices())
        stack.enter_context(gpu)
        yield gpu


def numbers(tensors):
    """The numbers of tensors on either device, on the CPU."""
    return [getattr(tensor, "held", tensor).detach().clone() for tensor in tensors]
