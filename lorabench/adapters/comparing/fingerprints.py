"""Which adapters have the same ΔW, however it is factored, named, scaled or rounded."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Float64
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

from lorabench.adapters.adapter import Adapter, LoraModule
from lorabench.adapters.reading.files import load
from lorabench.errors import LorabenchError
from lorabench.lowrank import frobenius_norm
from lorabench.machine import one_thread_an_operation

__all__ = [
    "TOLERANCE",
    "Duplicates",
    "Group",
    "Member",
    "Sketch",
    "distance",
    "find_duplicates",
    "fingerprint",
    "sketch",
]

TOLERANCE = 0.01
"""Of ‖ΔW_a − ΔW_b‖ / ‖ΔW‖, up to which two adapters are called duplicates.

bfloat16 keeps 8 bits: an entry of a factor moves by up to 2⁻⁸ of itself, a product of two by up to
2⁻⁷ = 0.0078, and on average ΔW by 0.0024 (both factors rounded) or 0.0034 (in both files, in different gauges).
"""

_PROBES = 8  # a side: 64 numbers a module, whose sum of squares is ‖ΔW‖² within some 20 %
_BITS = 12
_LARGEST = 1e37  # ‖ΔW‖ of which float32 holds what is kept
_LEVELS = 8  # of the norm, an octave

Shape = tuple[int, int]


@dataclass(frozen=True)
class Sketch:
    """What is kept of an adapter: P·ΔW·Q of every module, for fixed random signs P and Q of ΔW's shape.

    Attributes:
        path: the adapter's file.
        id: see `fingerprint`.
        norm: ‖ΔW‖_F over all modules; 0 for an untrained adapter.
        modules: shape (d_out, d_in) -> float32 [n, k], a row for every module that is not zero, in no order
            that means anything; the expected square of a row is ‖ΔW‖² of its module.
        coarse: float64 [64], for every entry of the sketch its root of the sum of squares over all modules:
            adapters that differ by D differ here by D or less, so it sorts out most pairs at once.
        looseness: 1 to 10, how many times more than that of a pair with orthogonal components in bfloat16 the
            rounding of the stored factors moves ΔW. It is above 1 where components of half precision cancel.
        left_out: kinds of what the file holds besides (`Adapter.unsupported`): ΔW alone is compared.
    """

    path: Path
    id: str
    norm: float
    modules: Mapping[Shape, Float32[np.ndarray, "_ _"]]
    coarse: Float64[np.ndarray, " k"]
    looseness: float = 1.0
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Member:
    """One adapter of a group.

    Attributes:
        path: as given.
        fingerprint: see `fingerprint`.
        difference: estimated ‖ΔW − ΔW_first‖ / ‖ΔW‖ to the group's first; 1e-7 is float32's rounding,
            0.0003 float16's, 0.0024 bfloat16's.
        left_out: kinds of what the file holds besides ΔW, and which was not compared.
    """

    path: Path
    fingerprint: str
    difference: float
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Adapters of one ΔW, in the order of their paths; each is a duplicate of at least one other."""

    members: tuple[Member, ...]


@dataclass(frozen=True)
class Duplicates:
    """What `find_duplicates` found.

    Attributes:
        groups: of two or more.
        read: how many adapters were read.
        untrained: those whose ΔW is zero, which are the same as any other of that kind.
        unreadable: path -> why it could not be read.
        tolerance: the largest relative difference between duplicates.
    """

    groups: tuple[Group, ...]
    read: int
    untrained: tuple[Path, ...]
    unreadable: Mapping[Path, str]
    tolerance: float


def fingerprint(adapter: Adapter) -> str:
    """A short name of an adapter's ΔW: 'shapes-norm-signs' in hexadecimal digits, such as '9f3a1c7e-81a-5b0'.

    The first eight digits hash the sorted shapes of all modules that are not zero; the next three count the
    norm ‖ΔW‖_F in eighths of an octave; the last three are the signs of 12 random linear functions of ΔW.

    It never depends on the modules' names and order, on zero modules and zero rank, nor on how ΔW is split
    into scale, up and down. Numbers can only be rounded to digits with an edge somewhere, so a change of ΔW
    by a share η changes it with a probability of about 4η: 1e-5 or less for a new gauge in float32, 0.1 % for
    float16, 1 to 2 % for bfloat16. Two different adapters have the same one with a probability of 1 : 4096 where
    shapes and norms agree, more often where one is derived from the other (a mild resize).
    `find_duplicates` therefore does not go by it, but by `distance`.

    Raises:
        LorabenchError: ΔW is not finite.

    Example:
        >>> from pathlib import Path
        >>> import torch
        >>> from lorabench.adapters import Adapter, LoraModule
        >>> a = Adapter(Path("a"), (), {"q": LoraModule(torch.eye(2, 5), torch.eye(4, 2))})
        >>> b = Adapter(Path("b"), (), {"q": LoraModule(torch.eye(2, 5), torch.eye(4, 2), scale=3.0)})
        >>> fingerprint(a) == fingerprint(b), len(fingerprint(a))
        (False, 16)
    """
    return sketch(adapter).id


def sketch(adapter: Adapter) -> Sketch:
    """The sketch of an adapter: 256 bytes a module, for `distance`.

    Raises:
        LorabenchError: ΔW is not finite.
    """
    rows: dict[Shape, list[Float64[Tensor, " k"]]] = {}
    # Two threads for a product of 8×1280 and 1280×4 only wait for each other, ms of it on a busy machine.
    with one_thread_an_operation():
        norm = math.hypot(*(_add(rows, module) for module in adapter.modules.values()))
        rounding = math.hypot(*map(_rounding, adapter.modules.values()))
    if not math.isfinite(norm):
        raise LorabenchError(f"{adapter.path}: ΔW is not finite (‖ΔW‖ = {norm}). Export the adapter again.")
    if norm > _LARGEST:
        raise LorabenchError(f"{adapter.path}: ‖ΔW‖ is {norm:.3g}, which no training leaves. Export the adapter again.")
    stacked = {shape: torch.stack(found).numpy() for shape, found in sorted(rows.items())}
    coarse = np.zeros(_PROBES**2)
    for one in stacked.values():
        coarse[: one.shape[1]] += np.square(one).sum(0)
    return Sketch(
        path=adapter.path,
        id=_id(adapter, stacked, norm),
        norm=norm,
        modules={shape: one.astype(np.float32) for shape, one in stacked.items()},
        coarse=np.sqrt(coarse),
        looseness=min(max(rounding / norm, 1.0), 10.0) if norm else 1.0,
        left_out=tuple(adapter.unsupported),
    )


def distance(a: Sketch, b: Sketch) -> float:
    """Estimated ‖ΔW_a − ΔW_b‖_F / max(‖ΔW_a‖_F, ‖ΔW_b‖_F), with the modules of a shape matched at best.

    Names play no part: within a shape the assignment of least squared difference is taken (Jonker & Volgenant
    1987), and a module too many is matched with zero. NaN where both are untrained.
    """
    if a.norm == b.norm == 0:
        return math.nan
    squares = 0.0
    for shape in a.modules.keys() | b.modules.keys():
        left, right = (one.modules.get(shape) for one in (a, b))
        if left is None or right is None:
            squares += sum(float(np.square(one, dtype=np.float64).sum()) for one in (left, right) if one is not None)
            continue
        count = max(len(left), len(right))
        cost = cdist(_padded(left, count), _padded(right, count), "sqeuclidean")
        squares += float(cost[linear_sum_assignment(cost)].sum())
    return math.sqrt(squares) / max(a.norm, b.norm)


def find_duplicates(paths: Iterable[Path], *, tolerance: float = TOLERANCE) -> Duplicates:
    """Groups of adapters with the same ΔW up to rounding; they are read one after the other.

    Two adapters are duplicates if `distance` is at most `tolerance`, times the larger `Sketch.looseness` of the
    two (1 in practice, at most 10). The estimate is within some 10 % for dozens of modules and within a factor
    of two for a single narrow one, so at the default every new name, gauge, scale, padding and cast to float16
    or bfloat16 is found, and another seed, checkpoint or merge, or a resize that loses more than 2 %, is not:
    only a chain of others between them can put two such adapters in one group.

    Never found: a cast in one gauge that loses more than 1 %, whose result was then brought to another gauge.
    Never told apart: modules of one shape that changed places, and what is not ΔW (a DoRA magnitude, a
    trained head), which `Member.left_out` names.

    Args:
        paths: files and adapter folders, as `load` takes them.
        tolerance: of the relative difference, in (0, 1).

    Raises:
        LorabenchError: `tolerance` is out of range.

    Example:
        >>> import tempfile, torch
        >>> from lorabench.adapters import LoraModule, save
        >>> folder, module = Path(tempfile.mkdtemp()), LoraModule(torch.eye(2, 5), torch.eye(4, 2))
        >>> for name in ("unet.to_q", "unet.to_k"):
        ...     _ = save(folder / f"{name}.safetensors", {name: module}, "diffusers-peft")
        >>> (group,) = find_duplicates(sorted(folder.iterdir())).groups
        >>> [member.path.stem for member in group.members]
        ['unet.to_k', 'unet.to_q']
    """
    if not 0 < tolerance < 1:
        raise LorabenchError(f"tolerance={tolerance}: a relative difference between 0 and 1 is allowed, such as 0.01.")
    known: dict[Path, Sketch] = {}
    unreadable: dict[Path, str] = {}
    for path in paths:
        try:
            known[path] = sketch(load(path))
        except LorabenchError as error:
            unreadable[path] = str(error)
    trained = {path: one for path, one in known.items() if one.norm > 0}
    return Duplicates(
        groups=tuple(_group(sorted(group), known) for group in _components(trained, tolerance)),
        read=len(known),
        untrained=tuple(path for path in known if path not in trained),
        unreadable=unreadable,
        tolerance=tolerance,
    )


def _add(rows: dict[Shape, list[Float64[Tensor, " k"]]], module: LoraModule) -> float:
    """Append a module's sketch to those of its shape, and give ‖ΔW‖."""
    up, down, scale = module.up.double(), module.down.double(), float(module.scale)
    norm = float(frobenius_norm(down, up, scale))
    if norm != 0:
        small = (_probes("left", up.shape[0]).mT @ up) @ (down @ _probes("right", down.shape[1]))
        rows.setdefault(module.shape, []).append(scale * small.flatten())
    return norm


def _rounding(module: LoraModule) -> float:
    """How far the factors' rounding moves ΔW, about √Σ_j ‖up_j‖²‖down_j‖², in units of bfloat16's."""
    types = (torch.bfloat16, torch.float16)
    factors = module.up, module.down
    # A cast that was written back as float32 leaves values that the small type holds exactly.
    held = (kind for kind in types if all(bool((one.to(kind).float() == one).all()) for one in factors))
    kind = module.dtype if module.dtype.itemsize <= 2 else next(held, torch.float32)
    size = module.up.double().norm(dim=0) * module.down.double().norm(dim=1) * abs(float(module.scale))
    return float(size.norm()) * torch.finfo(kind).eps / torch.finfo(torch.bfloat16).eps


@lru_cache(maxsize=64)
def _probes(side: str, width: int) -> Float64[Tensor, "width probes"]:
    """Random signs over √probes, the same on every machine for ever; the identity for a narrow side."""
    if width <= _PROBES:
        return torch.eye(width, dtype=torch.float64)
    return _signs(f"{side} {width}", (width, _PROBES)) / math.sqrt(_PROBES)


def _signs(seed: str, shape: tuple[int, int]) -> Float64[Tensor, "rows cols"]:
    count = math.prod(shape)
    raw = hashlib.shake_256(f"lorabench fingerprint 1 {seed}".encode()).digest((count + 7) // 8)
    bits = np.unpackbits(np.frombuffer(raw, np.uint8), count=count)
    return torch.from_numpy(bits.astype(np.float64) * 2 - 1).reshape(shape)


def _id(adapter: Adapter, rows: Mapping[Shape, Float64[np.ndarray, "_ _"]], norm: float) -> str:
    if norm == 0:
        shapes = sorted(module.shape for module in adapter.modules.values())
        return f"{_digest(shapes)}-untrained"
    # A sum over the modules is linear in ΔW and knows no order.
    functions = sum(
        one.sum(0) @ _signs(f"bits {shape[0]} {shape[1]}", (one.shape[1], _BITS)).numpy() for shape, one in rows.items()
    )
    signs = sum(1 << bit for bit, value in enumerate(np.atleast_1d(functions)) if value > 0)
    level = min(max(round(_LEVELS * math.log2(norm)) + 2048, 0), 4095)
    return f"{_digest([shape for shape, one in rows.items() for _ in one])}-{level:03x}-{signs:03x}"


def _digest(shapes: list[Shape]) -> str:
    return hashlib.sha256(repr(shapes).encode()).hexdigest()[:8]


def _padded(rows: Float32[np.ndarray, "n k"], count: int) -> Float64[np.ndarray, "count k"]:
    return np.pad(rows.astype(np.float64), ((0, count - len(rows)), (0, 0)))


def _components(sketches: Mapping[Path, Sketch], tolerance: float) -> list[list[Path]]:
    """Adapters that a chain of duplicates connects. Norms, then coarse vectors, sort out nearly all pairs."""
    order = sorted(sketches, key=lambda path: sketches[path].norm)
    norms = np.array([sketches[path].norm for path in order])
    coarse = np.array([sketches[path].coarse for path in order])
    allowed = np.array([tolerance * sketches[path].looseness for path in order])
    widest = min(float(allowed.max(initial=0.0)), 0.5)
    root = list(range(len(order)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for i, path in enumerate(order):
        stop = int(np.searchsorted(norms, norms[i] / (1 - widest), side="right"))
        limits = np.maximum(allowed[i], allowed[i + 1 : stop])
        gaps = np.linalg.norm(coarse[i + 1 : stop] - coarse[i], axis=1)
        for near in np.flatnonzero(gaps <= limits * norms[i + 1 : stop]).tolist():
            j = i + 1 + near
            if find(i) != find(j) and distance(sketches[path], sketches[order[j]]) <= limits[near]:
                root[find(j)] = find(i)
    found: dict[int, list[Path]] = {}
    for i, path in enumerate(order):
        found.setdefault(find(i), []).append(path)
    return sorted(group for group in found.values() if len(group) > 1)


def _group(paths: list[Path], known: Mapping[Path, Sketch]) -> Group:
    first = known[paths[0]]
    return Group(
        tuple(Member(path, known[path].id, distance(first, known[path]), known[path].left_out) for path in paths)
    )
