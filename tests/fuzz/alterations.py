"""What becomes of a file here, beyond `tests/sbs_deploy/corruption.py`: JSON, tensors and headers that are well-formed
and wrong."""

import copy
import gzip
import io
import json
import random
import struct
from typing import Any

import numpy as np

from tests.sbs_deploy.corruption import BYTES, HOSTILE, Corruption, wrong_content

LENGTHS = (0, 1, 2, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**64 - 1)


def places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """(container, key) of everything within."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            found.append((value, key))
            places(value[key], found)
    return found


def retyped(random: random.Random, data: bytes) -> bytes:
    """JSON with one value of another type or range, near the one that was there."""
    value = json.loads(data)
    found = places(value, [])
    if not found:
        return b"null"
    container, key = random.choice(found)
    old = container[key]
    new: list[Any] = [str(old), [old], {"a": old}, [old, old], None, not old]
    if isinstance(old, int | float) and not isinstance(old, bool):
        new += [-old, old + 0.5, float(old), bool(old), old * 10**12, old + 1, f"{old}"]
    if isinstance(old, str):
        new += [old + "\0", "\ud800", old * 2000, "../" + old, old.encode().hex(), 0, "\u202e\x1b[31m"]
    if isinstance(old, list) and old:
        new += [old[:-1], old[::-1], old + old[:1], old * 300, {str(i): v for i, v in enumerate(old)}]
    if isinstance(old, dict) and old:
        new += [
            list(old.values()),
            {**old, "unknown": 1},
            dict(list(old.items())[1:]),
            {k * 2: v for k, v in old.items()},
        ]
    container[key] = random.choice(new)
    return json.dumps(value).encode()


def doubled(random: random.Random, data: bytes) -> bytes:
    """JSON with a key that stands there twice, deep nesting, another encoding, or more than one value."""
    text = data.decode()
    start = text.find("{") + 1
    return random.choice(
        (
            (text[:start] + '"a": 1, "a": 2, ' + text[start:]).encode(),
            (text[:start] + '"schema_version": 1, ' + text[start:]).encode(),
            b"\xef\xbb\xbf" + data,
            text.encode("utf-16"),
            b"[" * 3000 + data + b"]" * 3000,
            b'{"a":' * 100_000,
            data + data,
            (text[:start] + '"x": "' + "y" * 10**6 + '", ' + text[start:]).encode(),
            b"[" + b"1," * 10**5 + b"1]",
            b"null",
            b"",
            b" ",
        )
    )


def header(random: random.Random, data: bytes) -> bytes:
    """A length near the start of a binary file that lies."""
    at, size = random.randrange(0, min(64, len(data))), random.choice("<B <H >H <I >I <Q >Q".split())
    number = random.choice(LENGTHS) % 2 ** (8 * struct.calcsize(size))
    return data[:at] + struct.pack(size, number) + data[at + struct.calcsize(size) :]


def within_gzip(inner: Corruption) -> Corruption:
    """The same to what a gzip file holds."""
    return lambda random, data: gzip.compress(inner(random, gzip.decompress(data)), 1)


def wrong_safetensors(random: random.Random, data: bytes) -> bytes:
    import torch
    from safetensors.torch import load, save

    state = load(data)
    name = random.choice(sorted(state))
    value = state[name]
    numbers = (float("nan"), float("inf"), -1.0, 1e38)
    change = random.randrange(7)
    if change == 0:
        del state[name]
    elif change == 1:
        state[name] = torch.full_like(value, random.choice(numbers)) if value.is_floating_point() else value - 5
    elif change == 2:
        kinds = (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.uint8, torch.int64)
        state[name] = value.to(random.choice(kinds))
    elif change == 3:
        state[name] = value.reshape(-1)
    elif change == 4:
        state[name] = value[None].clone()
    elif change == 5:
        state["new\0"] = value.clone()
    else:
        text = json.dumps({name: {"dtype": "F32", "shape": [random.choice(LENGTHS)], "data_offsets": [0, 4]}}).encode()
        return struct.pack("<Q", len(text)) + text + b"1234"
    return save({key: one.contiguous() for key, one in state.items()})


def wrong_checkpoint(random: random.Random, data: bytes) -> bytes:
    import torch

    value = torch.load(io.BytesIO(data), weights_only=True)
    container, key = random.choice(places(value, []))
    tensors = [torch.tensor(float("nan")), torch.zeros(3, 3), torch.zeros(1).expand(10**9), torch.zeros(2).long()]
    if random.randrange(5):
        container[key] = random.choice([*copy.deepcopy(HOSTILE), *tensors])
    else:
        del container[key]
    sink = io.BytesIO()
    torch.save(value, sink)
    return sink.getvalue()


def wrong_onnx(random: random.Random, data: bytes) -> bytes:
    import onnx

    model = onnx.load_from_string(data)
    graph = model.graph
    node, tensor = random.choice(graph.node), random.choice(graph.initializer)
    change = random.randrange(12)
    if change == 0:
        tensor.dims[:] = [random.choice(LENGTHS) % 2**63 for _ in tensor.dims]
    elif change == 1:
        tensor.data_type = random.randrange(0, 25)
    elif change == 2:
        tensor.raw_data = np.full(max(1, len(tensor.raw_data) // 4), np.nan, np.float32).tobytes()
    elif change == 3:
        node.op_type = random.choice(("Relu", "Loop", "If", "Nothing", "ConstantOfShape", "Conv", "QuantizeLinear", ""))
    elif change == 4 and node.input:
        node.input[random.randrange(len(node.input))] = random.choice(("", "none", node.output[0]))
    elif change == 5:
        del node.attribute[:]
    elif change == 6 and node.attribute:
        attribute = random.choice(node.attribute)
        attribute.i, attribute.ints[:] = random.choice((-1, 0, 2**62)), [0, -1, 2**40]
    elif change == 7:
        graph.initializer.remove(tensor)
    elif change == 8:
        model.opset_import[0].version = random.choice((0, 1, 12, 999, 2**40))
    elif change == 9:
        dims = graph.input[0].type.tensor_type.shape.dim
        dims[random.randrange(len(dims))].dim_value = random.choice((0, -1, 7, 2**40))
    elif change == 10:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", random.choice(("../../etc/passwd", "/etc/passwd", "x", ""))
    else:
        graph.node.append(copy.deepcopy(node))
    return model.SerializeToString()


JSON: tuple[Corruption, ...] = (*BYTES, wrong_content, wrong_content, *(retyped,) * 6, doubled, doubled)
BINARY: tuple[Corruption, ...] = (*BYTES, header, header)
NPZ: tuple[Corruption, ...] = (*BINARY, *(wrong_content,) * 5)
SAFETENSORS: tuple[Corruption, ...] = (*BINARY, *(wrong_safetensors,) * 5)
CHECKPOINT: tuple[Corruption, ...] = (*BINARY, *(wrong_checkpoint,) * 6)
ONNX: tuple[Corruption, ...] = (*BYTES, *(wrong_onnx,) * 6)
GZIP: tuple[Corruption, ...] = (*BINARY, *(within_gzip(one) for one in (*BINARY, header, header)))
