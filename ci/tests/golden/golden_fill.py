#!/usr/bin/env python3
"""Deterministic filler for the golden parity vectors (numpy only).

Given a case manifest (``<case>.json``) this regenerates, bit for bit, the
reference-named checkpoint, the input images and the labels that the recorded
numbers were computed from, so that no weights need to be stored.

Library use::

    import golden_fill as gf
    man = gf.load_manifest("icnet_r50.json")
    state = gf.fill_state(man)                  # OrderedDict name -> ndarray
    x = gf.make_image(man["eval"]["input"])     # float32 NCHW
    y = gf.make_labels(man["train"]["labels"])  # int64 NHW (or float32 N1HW)

Command line::

    python golden_fill.py --check  *.json            # verify all checksums
    python golden_fill.py --export icnet_r50.json checkpoint.npz

Algorithm (version 1)
---------------------
Every tensor has its own random stream::

    rng(seed, name) = numpy.random.Generator(numpy.random.PCG64(
        int.from_bytes(sha256(f"{seed}:{name}".encode()).digest()[:16], "big")))

so the value of an entry depends on nothing but the seed, its name and its
shape.  All draws are float64, scaled in float64 and rounded once to float32.
``normal`` is ``Generator.standard_normal(shape)`` and ``uniform`` is
``Generator.random(shape)``; shapes are filled in C order.

==========================  =================================================
entry                       value
==========================  =================================================
``*.num_batches_tracked``   0 (int64)
``*.running_mean``          0.1 * normal
``*.running_var``           0.5 + uniform                  (so 0.5 .. 1.5)
weight, ndim >= 2           gain * sqrt(2 / fan_in) * normal,
                            fan_in = product of shape[1:]
weight, ndim == 1           1 + 0.1 * normal      (batch-norm scale)
bias of a batch norm        bn_bias + 0.1 * normal
any other bias              0.1 * normal
==========================  =================================================

A bias belongs to a batch norm when the manifest also lists ``running_mean``
under the same prefix.  ``gain`` and ``bn_bias`` are one number each per case
(manifest ``fill``).  The gain is below 1 where needed to keep the activations
of deep residual nets in a comfortable range; the positive batch-norm offset
keeps most units active, which makes the random networks far less sensitive to
rounding in train mode than a zero offset would.
"""

import argparse
import hashlib
import json
import math
import sys
from collections import OrderedDict

import numpy as np

VERSION = 1


def rng(seed, name):
    """The random stream of one named tensor."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def fill_entry(seed, name, shape, dtype, gain=1.0, offset=0.0):
    """Value of one checkpoint entry; offset is bn_bias for batch-norm biases."""
    shape = tuple(shape)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if dtype != "float32":
        raise ValueError(f"{name}: no rule for dtype {dtype}")
    g = rng(seed, name)
    if leaf == "running_var":
        return (0.5 + g.random(shape)).astype(np.float32)
    v = g.standard_normal(shape)
    if leaf == "weight" and len(shape) >= 2:
        fan_in = 1
        for n in shape[1:]:
            fan_in *= n
        return (v * (gain * math.sqrt(2.0 / fan_in))).astype(np.float32)
    if leaf == "weight" and len(shape) == 1:
        return (1.0 + 0.1 * v).astype(np.float32)
    return (offset + 0.1 * v).astype(np.float32)


def fill_state(manifest):
    """The whole reference-named checkpoint, in the reference's order."""
    f = manifest["fill"]
    names = {entry[0] for entry in manifest["state_dict"]}
    state = OrderedDict()
    for name, shape, dtype in manifest["state_dict"]:
        prefix, _, leaf = name.rpartition(".")
        is_bn_bias = leaf == "bias" and prefix + ".running_mean" in names
        state[name] = fill_entry(f["seed"], name, shape, dtype, f["gain"], f["bn_bias"] if is_bn_bias else 0.0)
    return state


def _blocks(a, b, h, w):
    return np.repeat(np.repeat(a, b, axis=-2), b, axis=-1)[..., :h, :w]


def make_image(spec):
    """Input batch: float32 NCHW.

    0.5 * normal per pixel + 0.7 * normal per 8x8 square + 1.0 * normal per
    32x32 square, drawn in this order from one stream, summed in float64.
    """
    n, c, h, w = spec["shape"]
    g = rng(spec["seed"], spec["name"])
    x = 0.5 * g.standard_normal((n, c, h, w))
    for b, scale in ((8, 0.7), (32, 1.0)):
        x = x + scale * _blocks(g.standard_normal((n, c, -(-h // b), -(-w // b))), b, h, w)
    return x.astype(np.float32)


def make_labels(spec):
    """Label batch.

    kind "classes": int64 NHW.  Class ids are constant on block x block
    squares, then each pixel is independently replaced by ``ignore_index``
    with probability ``ignore_frac``.
    kind "binary": float32 N1HW with values 0 and 1, constant on blocks.
    kind "soft": as "binary", but the values are the multiples of 1/4 in 0..1.
    """
    g = rng(spec["seed"], spec["name"])
    if spec["kind"] == "classes":
        n, h, w = spec["shape"]
    else:
        n, _, h, w = spec["shape"]
    b = spec["block"]
    small = g.random((n, -(-h // b), -(-w // b)))
    big = _blocks(small, b, h, w)
    if spec["kind"] == "classes":
        y = np.floor(big * spec["num_classes"]).astype(np.int64)
        y[g.random((n, h, w)) < spec["ignore_frac"]] = spec["ignore_index"]
        return y
    if spec["kind"] == "binary":
        return (big < spec["positive_frac"]).astype(np.float32)[:, None]
    if spec["kind"] == "soft":
        return (np.floor(big * 5) / 4).astype(np.float32)[:, None]
    raise ValueError(spec["kind"])


def projection(seed, name, shape):
    """Direction r of the recorded gradient projections <grad, r> (float64)."""
    return rng(seed, "proj:" + name).standard_normal(tuple(shape))


def sha256_of(arrays):
    """sha256 over names, dtypes, shapes and little-endian C-order bytes."""
    h = hashlib.sha256()
    for name, a in arrays.items():
        a = np.ascontiguousarray(a)
        h.update(f"{name}|{a.dtype.name}|{list(a.shape)}|".encode())
        h.update(a.astype(a.dtype.newbyteorder("<"), copy=False).tobytes())
    return h.hexdigest()


def strided(a, stride):
    """The stored view of an output: a[::s0, ::s1, ...]."""
    return a[tuple(slice(None, None, s) for s in stride)]


def load_manifest(path):
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def inputs_of(manifest):
    """All regenerated inputs and labels of a case, by their stream names."""
    out = OrderedDict()
    for mode in ("eval", "train"):
        sec = manifest.get(mode)
        if not sec:
            continue
        out[sec["input"]["name"]] = make_image(sec["input"])
        if "labels" in sec:
            out[sec["labels"]["name"]] = make_labels(sec["labels"])
    return out


def check(path):
    man = load_manifest(path)
    if "state_dict" not in man:
        return None
    ok = sha256_of(fill_state(man)) == man["state_sha256"]
    for name, a in inputs_of(man).items():
        ok = ok and sha256_of({name: a}) == man["input_sha256"][name]
    return ok


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--check", nargs="+", metavar="CASE.json")
    p.add_argument("--export", nargs=2, metavar=("CASE.json", "OUT.npz"))
    a = p.parse_args(argv)
    bad = 0
    for path in a.check or ():
        ok = check(path)
        if ok is None:
            continue
        bad += not ok
        print(("ok       " if ok else "MISMATCH ") + path)
    if a.export:
        man = load_manifest(a.export[0])
        state = fill_state(man)
        if sha256_of(state) != man["state_sha256"]:
            print("checksum mismatch: this numpy draws other numbers", file=sys.stderr)
            bad += 1
        np.savez(a.export[1], **state)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
