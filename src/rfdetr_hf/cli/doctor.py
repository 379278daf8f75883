"""`rfdetr-hf doctor`: versions, devices, and what is missing."""

import os
import platform
import re
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from .. import install_hint, parse_arguments

PACKAGE = "rfdetr-hf"
DESCRIPTION = """Print versions, devices, optional packages with the command that installs them,
and the login of the Hub. Exit code 1 when something required is missing."""
_DEVELOPMENT = ("dev", "test")


def main(argv: Sequence[str]) -> int:
    """Print the report; returns 0, or 1 when something required is missing."""
    parse_arguments((), argv, "rfdetr-hf doctor", DESCRIPTION)
    from huggingface_hub import get_token

    free, (required, complete) = shutil.disk_usage(os.getcwd()).free / 2**30, _required()
    system = [f"Python {platform.python_version()} on {platform.platform()}"]
    system += [f"cores: {os.cpu_count()}, {free:.0f} GiB free here"]
    hub = ["logged in" if get_token() else "no login: push_to_hub needs one (hf auth login)"]
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        hub += ["HF_HUB_OFFLINE is set: nothing is downloaded or uploaded"]
    parts = {"system": system, "required packages": required, "devices": _devices(), "extras": _extras(), "hub": hub}
    for title, lines in parts.items():
        print(f"{title}:")
        print("\n".join(f"  {line}" for line in lines))
    print("everything required is there" if complete else "something required is missing: see above")
    return 0 if complete else 1


def _required() -> tuple[list[str], bool]:
    lines, complete = [f"{PACKAGE} {version(PACKAGE)}"], True
    for text in requires(PACKAGE) or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = _installed(requirement.name)
        fits = found is not None and requirement.specifier.contains(found, prereleases=True)
        complete &= fits
        remedy = "" if fits else f": pip install '{requirement.name}{requirement.specifier}'"
        lines.append(f"{requirement.name} {found or 'missing'}{remedy}")
    return lines, complete


def _extras() -> list[str]:
    extras: dict[str, list[str]] = {}  # with what each lacks
    for text in requires(PACKAGE) or ():
        match = re.search(r"""extra\s*==\s*["']([\w-]+)["']""", text)
        if match and match[1] not in _DEVELOPMENT:
            needed = Requirement(text)
            found, lacks = _installed(needed.name), extras.setdefault(match[1], [])
            if found is None:
                lacks.append(needed.name)
            elif not needed.specifier.contains(found, prereleases=True):
                lacks.append(f"{needed.name}{needed.specifier} ({found} is there)")
    missing = {extra: ", ".join(lacks) for extra, lacks in extras.items() if lacks}
    lines = [f"installed: {', '.join(extra for extra in extras if extra not in missing) or 'none'}"]
    lines += [f"{extra + ':':<11}lacks {lacks}" for extra, lacks in missing.items()]
    return lines + ([install_hint("NAME")] if missing else [])


def _devices() -> list[str]:
    import torch

    lines = [f"CPU, threads: {torch.get_num_threads()}"]
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        with torch.cuda.device(i):
            precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16, no bf16"
        lines.append(f"cuda:{i} {properties.name}, {properties.total_memory / 2**30:.0f} GiB, {precision}")
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        lines.append(f"no CUDA device (PyTorch is {built}); training runs on the CPU")
    return lines


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
