"""Random streams in chunks with seeds of their own, so that a process generates only the chunks that it needs."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_vamo.core.numerics import at_least_float32
from lightning_vamo.core.sharding import first_number, is_sharded, local

# How many numbers a chunk has. The value is part of the definition of the random streams: another value gives other directions.
CHUNK = 2**18


@dataclass(frozen=True)
class Chunk:
    """A chunk of a raw vector, and the part of it that this process needs.

    Attributes:
        stream: Number of the chunk among the chunks of all parameters.
        size: How many numbers the chunk has.
        part: The part of the chunk that belongs to the shard of this process.
        dtype: Type in which the numbers are drawn, float32 or wider.
        device: Device on which the numbers are drawn.
    """

    stream: int
    size: int
    part: slice
    dtype: torch.dtype
    device: torch.device


def pieces(tensor: Tensor, sizes: int | list[int]) -> Iterator[Tensor]:
    """The tensor's numbers in this process, as flat pieces that can be written to.

    Args:
        tensor: Any tensor; writing to a piece changes the tensor.
        sizes: How many numbers each piece has.

    Yields:
        The pieces, in order. If the tensor's memory layout has no flat view, the pieces are parts of a copy, which is written
        back after the last piece: run the iterator to its end.
    """
    held = local(tensor)
    flat = held.reshape(-1)
    yield from (flat,) if sizes == len(flat) else torch.split(flat, sizes)
    if not held.is_contiguous():
        held.copy_(flat.view_as(held))


def stream_seed(seed: int, stream: int) -> int:
    """The seed of a random stream of a draw.

    Torch's CPU generator reads only the low 32 bits of a seed. Within a draw, these bits differ from stream to stream, since
    the finalizer of MurmurHash3 is a bijection, and neighbouring streams get seeds that are far apart.

    Args:
        seed: The seed of the draw, of 63 bits.
        stream: Number of the stream, below ``2**32``.

    Returns:
        The seed of the stream, of 63 bits.
    """
    mask = 2**32 - 1
    low = (seed + stream) & mask
    low = (low ^ low >> 16) * 0x85EBCA6B & mask
    low = (low ^ low >> 13) * 0xC2B2AE35 & mask
    return seed & ~mask | low ^ low >> 16


def stream_count(parameter: Tensor) -> int:
    """The number of chunks that a raw vector has for a whole parameter."""
    return -(-parameter.numel() // CHUNK)


def chunks_of(parameter: Tensor, stream: int) -> list[Chunk]:
    """The chunks of a raw vector that contain this process's part of a parameter.

    Args:
        parameter: The parameter.
        stream: Number of the parameter's first chunk.

    Returns:
        The chunks, in order; empty if this process has no part.
    """
    part = local(parameter)
    begin = first_number(parameter)
    end = begin + part.numel()
    chunks = []
    for number in range(begin // CHUNK, -(-end // CHUNK) if part.numel() else 0):
        start = number * CHUNK
        size = min(CHUNK, parameter.numel() - start)
        needed = slice(max(begin - start, 0), min(end - start, size))
        chunks.append(Chunk(stream + number, size, needed, at_least_float32(part.dtype), part.device))
    return chunks


@dataclass(frozen=True)
class Layout:
    """The chunks of a raw vector for a list of parameters.

    Attributes:
        chunks: The chunks that this process needs, by parameter.
        sizes: How many numbers this process needs of each chunk, by parameter.
        streams: The number of chunks of a whole raw vector.
    """

    chunks: list[list[Chunk]]
    sizes: list[list[int]]
    streams: int


def layout_of(parameters: Sequence[Tensor]) -> Layout:
    """The layout of raw vectors for parameters; the same for each draw, so the last layouts are kept.

    Args:
        parameters: The parameters.

    Returns:
        The layout, which must not be changed.
    """
    if any(map(is_sharded, parameters)):
        return _layout(parameters)
    return _known_layout(CHUNK, *[(parameter.numel(), parameter.dtype, parameter.device) for parameter in parameters])


@functools.lru_cache(16)
def _known_layout(chunk: int, *kinds: tuple[int, torch.dtype, torch.device]) -> Layout:
    del chunk  # `_layout` reads it; here it only tells layouts of other chunks apart
    # Tensors of these sizes without memory: one number, expanded.
    return _layout([torch.empty(1, dtype=dtype, device=device).expand(size) for size, dtype, device in kinds])


def _layout(parameters: Sequence[Tensor]) -> Layout:
    chunks: list[list[Chunk]] = []
    streams = 0
    for parameter in parameters:
        chunks.append(chunks_of(parameter, streams))
        streams += stream_count(parameter)
    return Layout(chunks, [[chunk.part.stop - chunk.part.start for chunk in own] for own in chunks], streams)
