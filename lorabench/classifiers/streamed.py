"""Features that lie in a file, row by row, and are read in shuffled blocks while members train on them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from lorabench.training import epoch_order

__all__ = ["Streamed"]

_BLOCK_BYTES = 4 * 2**20  # of one read: below it, a disk gives less a second
_MIXED = 16  # blocks in a pool, at least, however small that is


@dataclass(frozen=True)
class Streamed:
    """Standardised features [N, F], float32, in a file: what a `Problem` has for `inputs` where memory is too small.

    The file is read, not mapped: what is read counts as memory for as long as it is needed and no longer. Its rows
    are in an order of their own: the training rows first, drawn at random, then the validation rows, then the others.

    Training reads **pools**. In every epoch the training rows, in blocks of consecutive ones of 4 MiB or so, come in
    another order; as many blocks as `pool_bytes` hold are read into memory and their rows are shuffled there. All
    members have the same blocks in a pool, so that those of a stack share what is read, and lanes find it in the
    system's cache; within a pool every member has its own order. Each row is seen once an epoch.

    Attributes:
        file: open for reading and writing; N · F numbers in row order.
        rows: which adapter is at which place of the file, [N].
        varies: of every column, whether it is anything but zero in some row.
        train: how many rows, from the first, are training rows.
        device: where what is read is put.
        pool_bytes: what one member's, or stack's, pool may take.
    """

    file: BinaryIO
    rows: Int64[Tensor, " n"]
    varies: Bool[Tensor, " f"]
    train: int
    device: torch.device
    pool_bytes: int
    dtype: torch.dtype = torch.float32

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        """(N, F)."""
        return torch.Size((len(self), self.width))

    @property
    def width(self) -> int:
        """F."""
        return len(self.varies)

    def element_size(self) -> int:
        """Bytes of one number."""
        return self.dtype.itemsize

    def blocks(self, batch_size: int) -> list[range]:
        """Places of the training rows, block by block; a whole number of batches each, but for the last.

        So an epoch has as many steps as without blocks, whatever the order of these.
        """
        wanted = min(_BLOCK_BYTES, self.pool_bytes // _MIXED)
        size = batch_size * max(1, wanted // (batch_size * self._row_bytes))
        return [range(start, min(start + size, self.train)) for start in range(0, self.train, size)]

    def pools(self, epoch: int, batch_size: int) -> Iterator[tuple[Float32[Tensor, "m f"], Int64[Tensor, " m"]]]:
        """The training rows of one epoch, a pool at a time: features, and which adapters they are of.

        The features are overwritten by the next pool's.
        """
        blocks = self.blocks(batch_size)
        together = max(1, self.pool_bytes // (self._row_bytes * len(blocks[0])))
        buffer = torch.empty(min(together * len(blocks[0]), self.train), self.width)
        order = epoch_order(0, epoch, len(blocks)).tolist()
        for start in range(0, len(order), together):
            filled, rows = 0, []
            for number in order[start : start + together]:
                block = blocks[number]
                self._read(buffer[filled : filled + len(block)], block.start)
                rows.append(self.rows[block.start : block.stop])
                filled += len(block)
            yield buffer[:filled].to(self.device), torch.cat(rows).to(self.device)

    def walk(
        self, rows: Int64[Tensor, " m"], at_once: int
    ) -> Iterator[tuple[Float32[Tensor, "part f"], Int64[Tensor, " part"]]]:
        """The features of any adapters in the order of the file, a part at a time, and where each is among `rows`.

        Args:
            rows: the adapters.
            at_once: rows of the file that are read in one go.
        """
        place = torch.empty_like(self.rows)
        place[self.rows] = torch.arange(len(self))
        places, among = place[rows.cpu()].sort()
        start = 0
        while start < len(places):
            first = int(places[start])
            stop = int(torch.searchsorted(places, first + at_once))
            last = int(places[stop - 1])
            part = torch.empty(last + 1 - first, self.width)
            self._read(part, first)
            if len(part) > stop - start:
                part = part[places[start:stop] - first]
            yield part.to(self.device), among[start:stop].to(self.device)
            start = stop

    def columns(self, columns: slice) -> Float32[Tensor, "n _f"]:
        """Some columns of all adapters, as they were standardised, in the adapters' order."""
        found = torch.empty(len(self), len(range(self.width)[columns]))
        for part, among in self.walk(torch.arange(len(self)), max(1, _BLOCK_BYTES // self._row_bytes)):
            found[among.cpu()] = part[:, columns].cpu()
        return found

    @property
    def _row_bytes(self) -> int:
        return self.width * self.element_size()

    def _read(self, into: Float32[Tensor, "m f"], place: int) -> None:
        """Fill a tensor with the rows from a place of the file on; any thread may call."""
        view = into.numpy().data.cast("B")
        offset = place * self._row_bytes
        while view.nbytes:
            count = os.preadv(self.file.fileno(), [view], offset)
            if not count:
                raise OSError(f"the file of streamed features ends at {offset} bytes: it was cut while it was read")
            view, offset = view[count:], offset + count
