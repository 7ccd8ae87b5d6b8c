"""How the fuzz test breaks adapters: each family writes a case's files and returns what is to be read."""

import io
import json
import math
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import torch

from lorabench.adapters.reading.header import DTYPE_BITS
from tests.fuzz_seeds import PEFT_CONFIG, adapters, file_of, named, numbers, saved

MARKER = "executed"  # a file that hostile code would leave in the current folder
SEEDS = adapters()
_SAFE = [seed for seed in SEEDS if seed[0].endswith(".safetensors")]
_PICKLES = [seed for seed in SEEDS if not seed[0].endswith(".safetensors")]

_HUGE = [
    0,
    1,
    -1,
    2,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**53,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
    2**64,
    10**30,
]
_ODD: list[Any] = [
    None, True, False, "", "x", "8", "NaN", 0.5, -0.0, 1e308, 1e999, float("nan"), -1e999, [], {}, [[]], [1],
    {"a": 1}, "\x1b[2J\n", "é☃", "../../etc/passwd", "9" * 400,
]  # fmt: skip
_BOMBS = [
    "(a+)+$", "(a|a)*$", "(.*a){25}", "(a?){40}a{40}", ".*.*.*.*.*.*x", "([a-z]+)*!", "(a|a)" * 100, "(((a*)*)*)*b",
    "a{9999}", "(a{99}){99}", "(?=a)b", r"(\w)\1", "(?i)Q", "(", ")", "[", "[[]", "[a--b]", "*", "a**", "\\",
    "x{2,1}", "(" * 500 + ")" * 500, "a" * 5000, "^" * 50 + "q", r"\d+", "(?P<n>q)", "q|", "|", "", r"\Z", "[z-a]",
    "é+", "q$$",
]  # fmt: skip
NAMES = [
    "../../etc/passwd", "/etc/passwd", "..\\..\\windows", "C:\\x", "~/.ssh/id_rsa", "\0", "a\nb", "\x1b[2J\x1b[31m",
    "\u202eevil", "é" * 40, "a" * 3000, "." * 300, " ", "", "__metadata__x", "$(touch executed)", "; touch executed",
    "%s%n{0}", "١٢٣", "9" * 5000, "a." * 800, "file:///etc/passwd", "http://localhost/x", "con", "-rf",
    "\ud7ff\U0010ffff",
]  # fmt: skip
KEYS = [
    "lora_A.weight", "lora_B.weight", "lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "lora_a",
    "lora_b", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w2",
    "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "lora_E", "ranknum", "dora_scale",
    "lora_magnitude_vector", "lora_embedding_A", "lora_embedding_B", "diff", "diff_b", "weight", "bias", "lora_A",
    "lora_B", "lora.down.weight", "lora.up.weight", "lora_A.default.weight", "oft_blocks", "ia3_l",
    "processor.to_q_lora.down.weight",
]  # fmt: skip


def _odd(rng: Random, *more: Any) -> Any:
    return deepcopy(rng.choice([*_ODD, *more]))


def _write(folder: Path, name: str, data: bytes, config: bytes | None) -> Path:
    if config is not None:
        (folder / "adapter_config.json").write_bytes(config)
    (folder / name).write_bytes(data)
    return folder / name


def _broken(rng: Random, data: bytes) -> bytes:
    """Some bits or bytes changed, more of them near the beginning and the end, where the structure is."""
    found = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        at = rng.choice(
            [rng.randrange(len(found)), rng.randrange(min(len(found), 700)), -1 - rng.randrange(min(len(found), 300))]
        )
        found[at] = rng.choice(
            [found[at] ^ (1 << rng.randrange(8)), rng.randrange(256), 0, 255, rng.choice(b'09-.,:[]{}"')]
        )
    return bytes(found)


def _cut(rng: Random, data: bytes) -> bytes:
    """A part missing, twice, or of zeros; or something before or after."""
    a, b = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
    junk = rng.randbytes(rng.choice([1, 7, 8, 64]))
    return rng.choice([
        data[:a], data[a:], data[:a] + data[b:], data[:b] + data[a:], data[:a] + bytes(b - a) + data[b:], data + junk,
        junk + data, data[:a] + junk + data[a:], data + data, data[: rng.randrange(16)],
    ])  # fmt: skip


def flipped(rng: Random, folder: Path) -> Path:
    name, data, config = rng.choice(SEEDS)
    return _write(folder, name, _broken(rng, data), config)


def cut(rng: Random, folder: Path) -> Path:
    name, data, config = rng.choice(SEEDS)
    return _write(folder, name, _cut(rng, data), config)


def _mutate_entry(rng: Random, entry: dict[str, Any]) -> None:
    what = rng.choice(["shape", "shape", "data_offsets", "data_offsets", "dtype", "drop", "more"])
    if what == "drop" and entry:
        entry.pop(rng.choice(sorted(entry)))
    elif what == "more":
        entry[rng.choice(["x", "path", "file"])] = _odd(rng, *NAMES)
    elif what == "dtype":
        entry["dtype"] = _odd(rng, *DTYPE_BITS, "F128")
    elif isinstance(entry.get(what), list) and entry[what] and rng.random() < 0.8:
        entry[what][rng.randrange(len(entry[what]))] = _odd(rng, *_HUGE, rng.randrange(99))
    else:
        entry[what] = _odd(rng, *([rng.choice(_HUGE) for _ in range(n)] for n in (1, 2, 3, 70)))


def header(rng: Random, folder: Path) -> Path:
    """A header that lies: about shapes, places, types, names, its own length."""
    name, data, config = rng.choice(_SAFE)
    length = struct.unpack("<Q", data[:8])[0]
    known, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    size: int | None = None
    for _ in range(rng.choice([1, 1, 2, 4])):
        keys = [key for key in known if key != "__metadata__"]
        key = rng.choice(keys) if keys else ""
        what = rng.randrange(12)
        if what < 6 and key and isinstance(known[key], dict):
            _mutate_entry(rng, known[key])
        elif what == 6 and key:
            known[f"{rng.choice([*NAMES, 'x'])}.{rng.choice(KEYS)}"] = known.pop(key)
        elif what == 7 and key:
            known[rng.choice(NAMES) + key] = known[key]
        elif what == 8:
            known["__metadata__"] = _odd(rng, dict.fromkeys(NAMES[:4], "x"), {"lora_adapter_metadata": "[" * 5000})
        elif what == 9 and key:
            known[key] = _odd(rng)
        elif what == 10 and key:
            del known[key]
        else:
            size = rng.choice([*(n % 2**64 for n in _HUGE), length - 1, length + 1, rng.randrange(len(data) + 9)])
    return _write(folder, name, file_of(known, body, size), config)


class _Hostile:
    """Unpickling it would leave the marker."""

    def __init__(self, how: int) -> None:
        path = MARKER
        code = f"open({path!r}, 'w').close()"
        self.made: tuple[Any, ...] = (
            (exec, (code,)), (eval, (code,)), (open, (path, "w")), (Path.touch, (Path(path),)), (torch.load, (path,)),
            (getattr, (Path(path), "touch")), (torch.save, ([], path)), (__import__("os").system, (f"touch {path}",)),
        )[how % 8]  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        return self.made


def hostile(rng: Random) -> bytes:
    """A pickle that runs code when Python reads it, plain or as torch writes it."""
    call = _Hostile(rng.randrange(8))
    value: Any = rng.choice([call, {"q.lora_A.weight": call}, [call], {"state_dict": {"q": call}}, {("a", 1): call}])
    if rng.random() < 0.5:
        return pickle.dumps(value, protocol=rng.choice([0, 1, 2, 3, 4, 5]))
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=rng.random() < 0.5)
    return file.getvalue()


_STORAGE = (
    # persistent id of a storage, and a tensor over it: numel, then size and stride
    "\x80\x02}}X\x0f\x00\x00\x00q.lora_A.weightctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    "X\x01\x00\x00\x000X\x03\x00\x00\x00cpu{numel}tQ{offset}{size}{stride}\x89ccollections\nOrderedDict\n)RtRs."
)


def _number(value: int) -> str:
    """A pickle's opcode for a whole number."""
    raw = value.to_bytes((value.bit_length() // 8) + 1, "little", signed=True)
    return "\x8a" + chr(len(raw)) + raw.decode("latin-1")


def _claims(rng: Random) -> bytes:
    """A pickle, whole but for its lies about the sizes of storages and tensors, in a zip archive as torch writes it."""

    def some() -> int:
        return rng.choice([0, 1, 4, 2**20, 2**31, 2**34, 2**40, 2**62, 2**63, 2**70])

    sizes = [some() for _ in range(rng.randrange(4))]
    strides = [rng.choice([0, 1, some()]) for _ in sizes]
    text = _STORAGE.format(
        numel=_number(some()), offset=_number(rng.choice([0, 0, some()])),
        size=f"({''.join(map(_number, sizes))}t", stride=f"({''.join(map(_number, strides))}t",
    )  # fmt: skip
    file = io.BytesIO()
    kind, folder = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]), rng.choice([0, 0, 0, 0x10])
    records = {
        "archive/data.pkl": text.encode("latin-1"),
        "archive/byteorder": b"little",
        "archive/data/0": bytes(rng.choice([0, 4, 16, 2**22])),
        rng.choice(["archive/version", "archive/../../x", "/etc/x"]): b"3\n",
    }
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in records.items():
            info = zipfile.ZipInfo(name)  # of 1980, so that every run writes the same
            info.external_attr = folder
            archive.writestr(info, data, kind)
    return file.getvalue()


def _tar(rng: Random) -> bytes:
    """The oldest files of torch were tar archives, which it unpacks to the disk, links and all."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("storages", "tensors", "pickle", rng.choice(NAMES)[:90] or "x"):
            info = tarfile.TarInfo(name)
            if rng.random() < 0.5:
                info.type, info.linkname = tarfile.SYMTYPE, rng.choice(["/etc/passwd", "../../etc/passwd", "/dev/zero"])
            archive.addfile(info)
    return file.getvalue()


def pickles(rng: Random, folder: Path) -> Path:
    name, data, config = rng.choice(_PICKLES)
    how = rng.randrange(10)
    if how < 3:
        data = _broken(rng, data)
    elif how < 5:
        data = _cut(rng, data)
    elif how < 7:
        data = _claims(rng) if rng.random() < 0.9 else _tar(rng)
    else:
        data = hostile(rng)
        data = _broken(rng, data) if rng.random() < 0.2 else data
    return _write(folder, name, data, config)


def _value(rng: Random, depth: int = 0) -> Any:
    how = rng.random()
    if how < 0.1 and depth < 3:
        return {rng.choice(NAMES + _BOMBS + ["r", "q"]): _value(rng, depth + 1) for _ in range(3)}
    if how < 0.2 and depth < 3:
        return [_value(rng, depth + 1) for _ in range(3)]
    return _odd(rng, *_HUGE, *NAMES)


def config(rng: Random, folder: Path) -> Path:
    """adapter_config.json, or what stands for it in the metadata, with wrong types, numbers and patterns."""
    layout = rng.choice(["peft", "adalora", "mlx", "diffusers"])
    tensors, metadata, known = named()[layout]
    if rng.random() < 0.3:  # a name on which a bad pattern would take for ever
        tensors |= {f"{'a' * rng.choice([28, 250, 299, 400])}.q.lora_{ab}.weight": numbers(2, 2) for ab in "AB"}
    changed: dict[str, Any] = dict(known or PEFT_CONFIG)
    fields = [
        "r", "lora_alpha", "alpha", "use_rslora", "rank_pattern", "alpha_pattern", "peft_type", "target_modules",
        "scale", "lora_parameters", "modules_to_save", "bias", "base_model_name_or_path", "unet.r", "use_dora",
    ]  # fmt: skip
    for _ in range(rng.choice([1, 2, 3])):
        field = rng.choice(fields)
        changed[field] = _value(rng)
        if field.endswith("pattern") and rng.random() < 0.8:
            some = [rng.choice([*_BOMBS, "q", "h.1.q", *NAMES]) for _ in range(rng.choice([1, 2, 40]))]
            changed[field] = {pattern: _odd(rng, 2, 4.5, *_HUGE) for pattern in some}
        elif field == "target_modules" and rng.random() < 0.5:
            changed[field] = rng.choice(_BOMBS)
        elif field == "lora_parameters" and rng.random() < 0.7:
            changed[field] = {"scale": _value(rng), "alpha": _value(rng)}
    text = json.dumps(changed)
    how = rng.randrange(12)
    if how == 0:
        text = _cut(rng, text.encode()).decode("latin-1")
    elif how == 1:
        text = (
            '{"r": '
            + rng.choice(["[" * 900 + "]" * 900, "[" * 100_000, "9" * 5000, "1e400", "{" * 90, '"\\ud800"'])
            + "}"
        )
    elif how == 2:
        text = text.encode("utf-16").decode("latin-1")
    raw = text.encode("latin-1" if how in (0, 2) else "utf-8", errors="replace")
    if layout == "diffusers" and how > 2:
        prefix = rng.choice(["unet.", "text_encoder.", ""])
        metadata = {"lora_adapter_metadata": json.dumps({prefix + key: value for key, value in changed.items()})}
    return _write(folder, "a.safetensors", saved(tensors, metadata), raw)


# The shapes of a module's tensors by letters: r a rank, o and i the sides, k a kernel, and products of them.
_TEMPLATES = [
    {"lora_A.weight": "r i", "lora_B.weight": "o r"},
    {"lora_A": "R i", "lora_B": "o r 1"},  # loralib's merged projections: R is a multiple of r
    {"lora_a": "i r", "lora_b": "r o"},
    {"lora_embedding_A": "r i", "lora_embedding_B": "o r"},
    {"lora_down.weight": "r i k k", "lora_up.weight": "o r 1 1", "alpha": ""},
    {"lora_down.weight": "r i 1 1", "lora_mid.weight": "r r k k", "lora_up.weight": "o r 1 1", "alpha": "1"},
    {"hada_w1_a": "o r", "hada_w1_b": "r i", "hada_w2_a": "o r", "hada_w2_b": "r i", "alpha": ""},
    {"hada_w1_a": "r o", "hada_w1_b": "r i", "hada_t1": "r r k k", "hada_w2_a": "r o", "hada_w2_b": "r i",
     "hada_t2": "r r k k"},
    {"lokr_w1": "o i", "lokr_w2": "i o"},
    {"lokr_w1": "o 1", "lokr_w2": "1 i k k"},
    {"lokr_w1": "o i", "lokr_w2_a": "o r", "lokr_w2_b": "r i", "alpha": ""},
    {"lokr_w1_a": "o r", "lokr_w1_b": "r i", "lokr_w2_a": "r o", "lokr_w2_b": "r i", "lokr_t2": "r r k k"},
    {"lora_A": "r i", "lora_B": "o r", "lora_E": "r 1", "ranknum": ""},
    {"lora_A.weight": "r i", "lora_B.weight": "o r", "lora_magnitude_vector.weight": "o"},
    {"lora_down.weight": "r i", "lora_up.weight": "o r", "dora_scale": "o 1", "diff_b": "o"},
]  # fmt: skip
_SIDES = [1, 1, 2, 3, 5, 100, 3000, 50_000]  # long ones unfold where two tensors are multiplied


def _module(rng: Random) -> dict[str, list[int]]:
    """Part -> shape of one module of any kind, most of which fit together."""
    side = {letter: rng.choice(_SIDES) for letter in "oi"} | {
        "1": 1,
        "r": rng.choice([1, 2, 3]),
        "k": rng.choice([1, 3]),
    }
    side["R"] = side["r"] * rng.choice([1, 2, 3, 40, 5000])
    found = {part: [side[letter] for letter in letters.split()] for part, letters in rng.choice(_TEMPLATES).items()}
    for _ in range(rng.choice([0, 0, 1, 2])):
        part = rng.choice([*found, rng.choice(KEYS)])
        how = rng.randrange(6)
        shape = found.get(part, [2, 2])
        if how == 0:
            found.pop(part, None)
        elif how == 1:
            found[part] = rng.choice(
                [[], [0], [0, *shape], [*shape, 1], [0, 2**62], [2**40, 0], [0] * 64, [1] * 64, [1] * 65]
            )
        elif how == 2:
            found[part] = shape[::-1]
        elif how == 3 and shape:
            found[part] = [*shape[:-1], rng.choice([*_SIDES, 0, 2**31, 2**62])]
        else:
            found[rng.choice(KEYS)] = shape
    return found


def shapes(rng: Random, folder: Path) -> Path:
    """Valid headers of any names and shapes: half pairs, kinds mixed, sides that do not fit, files' paths as names."""
    known: dict[str, Any] = {}
    end = 0
    for _ in range(rng.choice([1, 1, 2])):
        stem = rng.choice([*NAMES, "q", "lora_unet_mid", "base_model.model.h.0", "unet.x", "text_encoder.y"])
        dtype = rng.choice(["F16", "F16", "F32", "BF16", "F8_E4M3", "I8", "BOOL"])
        for key, shape in _module(rng).items():
            count = math.prod(shape)
            bytes_ = count * DTYPE_BITS[dtype] // 8 if count < 2**22 else 0
            known[f"{stem}.{key}"] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + bytes_]}
            end += bytes_
    if rng.random() < 0.3:
        order = {"ss_network_dim": str(rng.choice(_HUGE)), "lorabench_modules": rng.choice(NAMES)}
        known["__metadata__"] = order | {rng.choice(NAMES): rng.choice(NAMES)}
    return _write(folder, "a.safetensors", file_of(known, bytes(end)), None)


FAMILIES: dict[str, tuple[Callable[[Random, Path], Path], int]] = {
    "flipped": (flipped, 2000),
    "cut": (cut, 1500),
    "header": (header, 2500),
    "pickles": (pickles, 1500),
    "config": (config, 1500),
    "shapes": (shapes, 1000),
}
"""Family -> what writes a case, and how many cases there are: 10,000 in all."""
