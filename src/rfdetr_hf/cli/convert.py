"""`rfdetr-hf convert SRC DST`: checkpoints of the official package, of plain transformers and of this package."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import ConvertArguments, is_official, parse_arguments

if TYPE_CHECKING:
    from .. import RFDETRPreTrainedModel

_NO_FOLDERS = {
    ".safetensors": "name a folder, which gets model.safetensors and config.json",
    ".onnx": "rfdetr-hf export writes such files",
    ".ckpt": "official files are written as .pth or .pt",
}
_NO_FOLDERS |= dict.fromkeys((".bin", ".json", ".zip", ".h5", ".engine"), "give a folder, or a .pth for rfdetr")


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    variant: str | None = None,
    use_ema: bool = False,
    drop_unused_rows: bool = False,
    revision: str | None = None,
) -> "RFDETRPreTrainedModel":
    """Convert a checkpoint. The weights stay as they are, bit by bit.

    Args:
        src: A file of the official package (`.pth`, `.pt`, `.ckpt`), a folder of this package or of plain transformers,
            or a Hub id.
        dst: A file `.pth` or `.pt` for the official package, or a folder, which this package and plain transformers
            read. It must not exist yet.
        variant: The variant of an official file that does not tell.
        use_ema: Take the averaged weights of an official training checkpoint.
        drop_unused_rows: Leave out the class rows that are called "N/A".
        revision: Branch, tag or commit of a Hub id.

    Returns:
        The model.

    Raises:
        FileExistsError: if `dst` exists.
        ValueError: if an option does not apply, or the checkpoint cannot be read.
    """
    from .. import load_model, load_processor

    src, dst = str(src), Path(dst)
    if dst.exists():
        raise FileExistsError(f"{dst} exists: give another name or remove it.")
    if (suffix := dst.suffix.lower()) in _NO_FOLDERS:
        raise ValueError(f"{dst}: {suffix} files are not written here: {_NO_FOLDERS[suffix]}.")
    official: dict[str, Any] = {"variant": variant, "use_ema": use_ema, "drop_unused_rows": drop_unused_rows}
    if any(official.values()) and not is_official(src):
        raise ValueError(f"{', '.join(official)} are for official files (.pth, .pt, .ckpt), not {src}.")
    if revision is not None and is_official(src):
        raise ValueError(f"revision is for Hub ids, not for the file {src}.")
    model = load_model(src, **(official if is_official(src) else {"revision": revision}))
    dst.parent.mkdir(parents=True, exist_ok=True)
    if is_official(dst):
        model.save_official(dst)
    else:
        model.save_pretrained(dst)
        load_processor(src, model.config.resolution, revision).save_pretrained(dst)
    return model


DESCRIPTION = """Turn a checkpoint of the official package, of plain transformers or of this
package into another. The weights stay as they are, bit by bit.

  rfdetr-hf convert SRC DST
  rfdetr-hf convert rf-detr-nano.pth models/nano
  rfdetr-hf convert outputs/mine/best mine.pth"""


def main(argv: Sequence[str], prog: str = "rfdetr-hf convert") -> int:
    """Convert, and say what came out; returns the exit code."""
    (args,) = parse_arguments((ConvertArguments,), argv, prog, DESCRIPTION, {"src": "SRC", "dst": "DST"})
    model = convert(**asdict(args))
    config = model.config
    print(f"{args.dst}: {type(model).__name__}, {config.resolution} px, {config.num_labels} class logits")
    return 0
