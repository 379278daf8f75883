"""Damage image files and model folders in many ways, and look at what `rfdetr-hf predict` makes of them.

    python tools/fuzz_predict.py --target images --count 300 --seed 0
    python tools/fuzz_predict.py --target models --count 300 --seed 0

Each damaged input is predicted on in a process of its own, with 20 seconds of processor time and 2 GB; one that waits
is stopped after five minutes, since a busy machine makes every process wait. An outcome is wrong when the process
hangs, takes too much memory, dies, or ends with an error that does not name the damaged file. What passes without a
word is counted by kind of damage, with the reason why that is right. The exit code is 1 if anything is wrong.
Needs `fork`: Linux or macOS.
"""

import argparse
import contextlib
import io
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from rfdetr_hf import RFDETRConfig, RFDETRForObjectDetection, RFDETRImageProcessor
from rfdetr_hf.cli.main import main as command

torch.set_num_threads(1)  # a forked process has no other threads
SECONDS, MEGABYTES = 20, 2048
WAITING = 300
SIDE = 64
# Why it is right that such damage passes without a word; the outcome is then what the file now says.
REASONS = {
    "bits": "the damaged bytes are pixels, metadata or padding: it is still an image",
    "bytes": "the damaged bytes are pixels, metadata or padding: it is still an image",
    "swap": "blocks of pixels or metadata changed places: it is still an image",
    "repeat": "a block that is there twice is read as pixels or skipped as the format says",
    "append": "what follows the end of an image is no part of it",
    "field": "a field of the header that no decoder looks at, or a number that it allows",
    "suffix": "the format is told by the content, not by the name",
    "rename": "a file that is no image by its name and content is left out of folders",
    "drop": "a field that has a default, or that the loaded class does not read",
    "value": "the value is valid for the field, or the field is not read for predictions",
    "extra": "an unknown field or file changes nothing",
    "file": "a file that a model can do without: the standard image processor takes its place",
    "numbers": "weights are numbers: any finite ones are a model",
}


class Case(NamedTuple):
    """One damaged input: the kind of damage, the words of the command, the names of which a message must have one."""

    kind: str
    images: Path
    model: Path
    names: tuple[str, ...]


class Outcome(NamedTuple):
    """`status`: silent, named, skipped, or what is wrong; `output`: what was printed."""

    status: str
    output: str


def build_model(folder: Path) -> Path:
    """A model of random weights that predicts in a moment."""
    torch.manual_seed(0)
    encoder = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8, "num_windows": 2}
    encoder |= {"out_indices": [1, 2, 3], "image_size": SIDE}
    names = {0: "circle", 1: "square", 2: "triangle"}
    config = RFDETRConfig.from_variant(
        "nano", backbone_config=encoder, resolution=SIDE, d_model=32, decoder_ffn_dim=64, decoder_layers=2,
        num_queries=10, decoder_self_attention_heads=2, decoder_cross_attention_heads=4, group_detr=1,
        id2label=names, label2id={name: label for label, name in names.items()},
    )  # fmt: skip
    RFDETRForObjectDetection(config).save_pretrained(folder)
    RFDETRImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def base_images() -> dict[str, bytes]:
    """Small images of each format that Pillow writes here, by suffix and variant."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    image, made = Image.fromarray(pixels).resize((96, 72)), {}
    exif = Image.Exif()
    exif[0x0112] = 6
    ways: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "baseline.jpg": (image, "JPEG", {"exif": exif}),
        "progressive.jpg": (image, "JPEG", {"progressive": True}),
        "cmyk.jpg": (image.convert("CMYK"), "JPEG", {}),
        "rgb.png": (image, "PNG", {"exif": exif}),
        "palette.png": (image.convert("P"), "PNG", {}),
        "deep.png": (Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "PNG", {}),
        "a.bmp": (image, "BMP", {}),
        "a.webp": (image, "WEBP", {}),
        "a.tiff": (image, "TIFF", {"compression": "tiff_lzw"}),
        "a.gif": (image.convert("P"), "GIF", {"save_all": True, "append_images": [image.convert("P")]}),
        "a.ppm": (image, "PPM", {}),
        "a.jp2": (image, "JPEG2000", {}),
    }
    for name, (each, kind, options) in ways.items():
        buffer = io.BytesIO()
        with contextlib.suppress(OSError, KeyError):  # a Pillow without this encoder
            each.save(buffer, kind, **options)
            made[name] = buffer.getvalue()
    return made


def damaged_bytes(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Some bytes with one kind of damage; half of the damage is in the header."""
    changed, kind = bytearray(data), rng.choice(["bits", "bytes", "cut", "empty", "swap", "repeat", "append", "field"])
    place = rng.randrange(min(len(data), 64)) if rng.random() < 0.5 else rng.randrange(len(data))
    length = rng.choice([1, 2, 4, 16, 200])
    if kind == "bits":
        for _ in range(rng.choice([1, 4, 64])):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        changed[place : place + length] = rng.randbytes(length)
    elif kind == "cut":
        del changed[rng.choice([4, 20, 60, len(data) // 3, len(data) - 30]) :]
    elif kind == "empty":
        changed.clear()
    elif kind == "swap":
        other = rng.randrange(len(data))
        changed[place : place + length], changed[other : other + length] = (
            changed[other : other + length], changed[place : place + length],
        )  # fmt: skip
    elif kind == "repeat":
        changed[place:place] = changed[place : place + length]
    elif kind == "append":
        changed += rng.randbytes(length)
    else:  # a field of the header: nothing, or as much as it can say
        changed[place : place + 4] = rng.choice([b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"])
    return kind, bytes(changed)


def image_case(folder: Path, model: Path, rng: random.Random, originals: dict[str, bytes]) -> tuple[Case, bool]:
    """A damaged image, and whether a reader that checks nothing would see something else."""
    name = rng.choice(sorted(originals))
    kind, content = damaged_bytes(originals[name], rng)
    if rng.random() < 0.05:
        kind, content, target = (
            "suffix",
            originals[name],
            f"{Path(name).stem}.{rng.choice(['png', 'jpg', 'tif', 'mp4'])}",
        )
    else:
        target = name
    path = folder / target
    path.write_bytes(content)
    changed = kind == "suffix" or _pixels(content) != _pixels(originals[name])
    return Case(kind, path, model, (target,)), changed


def _pixels(content: bytes) -> Any:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.size, image.convert("RGB").tobytes()
    except Exception as error:  # noqa: BLE001 - any complaint is another outcome than pixels
        return type(error).__name__


_VALUES = (None, True, -1, 0, 1, 3, 10**9, 2**70, 0.5, float("nan"), float("inf"), "", "x", "64", [], [1], {}, {"a": 1},
           "\ud800", [[[[[]]]]])  # fmt: skip


def damaged_json(content: dict[str, Any], rng: random.Random) -> tuple[str, str]:
    """A JSON object with one kind of damage, as text."""
    kind = rng.choice(["drop", "value", "value", "value", "extra", "text", "nest"])
    changed = json.loads(json.dumps(content))
    holder = changed
    while rng.random() < 0.4 and (inner := [v for v in holder.values() if isinstance(v, dict) and v]):
        holder = rng.choice(inner)
    key = rng.choice(sorted(holder))
    if kind == "drop":
        del holder[key]
    elif kind == "value":
        holder[key] = rng.choice(_VALUES)
    elif kind == "extra":
        holder[rng.choice(["unknown", "", "__class__", "resolution "])] = rng.choice(_VALUES)
    elif kind == "nest":
        holder[key] = "NESTED"
    text = json.dumps(changed)
    if kind == "nest":
        text = text.replace('"NESTED"', "[" * 5000 + "]" * 5000)
    elif kind == "text":
        text = rng.choice([text[: rng.randrange(len(text))], "", "null", "[]", "{", f"\ufeff{text}", f"{text}}}"])
    return kind, text


def model_case(folder: Path, model: Path, rng: random.Random, image: Path) -> tuple[Case, bool]:
    """A damaged copy of a model folder."""
    copy = folder / "model"
    shutil.copytree(model, copy)
    name = rng.choice(["config.json", "config.json", "preprocessor_config.json", "model.safetensors"])
    path = copy / name
    if rng.random() < 0.06:
        kind = "file"
        path.unlink()
    elif name == "model.safetensors":
        kind = rng.choice(["numbers", "nan", "header", "bytes"])
        if kind == "bytes":
            kind, content = damaged_bytes(path.read_bytes(), rng)
            path.write_bytes(content)
        else:
            _damage_tensors(path, kind, rng)
    else:
        kind, text = damaged_json(json.loads(path.read_text()), rng)
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
    changed = not path.exists() or path.read_bytes() != (model / name).read_bytes()
    return Case(f"{kind} in {name}", image, copy, (name, str(copy))), changed


def _damage_tensors(path: Path, kind: str, rng: random.Random) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    key = rng.choice([name for name in header if name != "__metadata__"])
    if kind in ("numbers", "nan"):
        start, end = header[key]["data_offsets"]
        value = np.float32(rng.choice([np.nan, np.inf, -np.inf] if kind == "nan" else [1e3, -1, 0])).tobytes()
        body = body[:start] + value * ((end - start) // 4) + body[end:]
    else:
        entry = header[key]
        field = rng.choice(["shape", "dtype", "data_offsets", "name", "drop"])
        if field == "name":
            header[f"{key}.x"] = header.pop(key)
        elif field == "drop":
            del header[key]
        else:
            options: dict[str, list[Any]] = {
                "shape": [[], [2**40], [-1], entry["shape"][::-1] + [1]],
                "dtype": ["F16", "I64", "X", 3],
                "data_offsets": [[0, 4], [0, 2**60], [10, 2], []],
            }
            entry[field] = rng.choice(options[field])
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def words_for(case: Case, output: Path) -> list[str]:
    """What the command is given."""
    words = ["--model_name_or_path", str(case.model), "--images", str(case.images), "--threshold", "-1"]
    return [*words, "--formats", "json", "pictures", "--output_dir", str(output)]


def outcome(case: Case, output: Path) -> Outcome:
    """Predict in a child process and judge how it ends."""
    printed = output.with_suffix(".txt")
    child = os.fork()
    if child == 0:
        used = math.ceil(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (used + SECONDS, used + SECONDS + 5))
        with printed.open("w", encoding="utf-8", errors="replace") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            code = command(["predict", *words_for(case, output)])
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    before, ended = time.monotonic(), 0
    while not ended and time.monotonic() - before < WAITING:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        time.sleep(0.01)
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.wait4(child, 0)
        return Outcome(f"WRONG: waits for {WAITING} s", "")
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        return Outcome(f"WRONG: over {SECONDS} s", "")
    text = printed.read_text(encoding="utf-8", errors="replace")
    memory = (usage.ru_maxrss - resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024
    if memory > MEGABYTES:
        return Outcome(f"WRONG: {memory:.0f} MB", text)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, 1) or "Traceback" in text:
        return Outcome(f"WRONG: exit code {code}", text)
    named = any(name in text.replace(str(output), "") for name in case.names)
    if code == 1:
        return Outcome("named" if named else "WRONG: an error without the file", text)
    return Outcome("silent", text)


def run(target: str, count: int, seed: int, keep: Path | None = None) -> tuple[Counter[str], Counter[str], int]:
    """Counts of outcomes, of silent passes by kind of damage, and of inputs whose damage changes what is read."""
    rng, statuses, silent, changed = random.Random(seed), Counter[str](), Counter[str](), 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        model, originals = build_model(root / "base"), base_images()
        good = root / "good.png"
        good.write_bytes(originals["rgb.png"])
        # What a first prediction imports, each child has then.
        with contextlib.redirect_stdout(io.StringIO()):
            command(["predict", *words_for(Case("none", good, model, ()), root / "first")])
        make: Callable[[Path], tuple[Case, bool]] = (
            (lambda folder: image_case(folder, model, rng, originals))
            if target == "images"
            else (lambda folder: model_case(folder, model, rng, good))
        )
        for number in range(count):
            folder = root / f"case-{number}"
            folder.mkdir()
            case, differs = make(folder)
            found = outcome(case, folder / "out")
            changed += differs
            statuses[found.status] += 1
            silent[case.kind] += found.status == "silent"
            if found.status.startswith("WRONG"):
                last = re.sub(r"\s+", " ", found.output)[-300:]
                print(f"case {number} of seed {seed}, {case.kind}: {found.status}: {last}")
                if keep is not None:
                    shutil.copytree(folder, keep / f"{target}-{seed}-{number}", dirs_exist_ok=True)
            shutil.rmtree(folder)
    return statuses, +silent, changed


def reason(kind: str) -> str:
    """Why damage of a kind may pass without a word."""
    damage, _, file = kind.partition(" in ")
    if file == "model.safetensors" and damage in ("bits", "bytes", "swap", "repeat", "append", "field"):
        return REASONS["numbers"]
    return REASONS[damage]


def main(argv: list[str] | None = None) -> int:
    """Run, print the table of what passes; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=["images", "models"], default="images")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for copies of inputs with a wrong outcome")
    args = parser.parse_args(argv)
    statuses, silent, changed = run(args.target, args.count, args.seed, args.keep)
    print(f"\nseed {args.seed}: {args.count} damaged {args.target}, {changed} of which read differently without checks")
    for status, number in statuses.most_common():
        print(f"  {number:>5}  {status}")
    print("passed without a word:")
    for kind, number in silent.most_common():
        print(f"  {number:>5}  {kind}: {reason(kind)}")
    return int(any(status.startswith("WRONG") for status in statuses))


if __name__ == "__main__":
    sys.exit(main())
