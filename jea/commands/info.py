"""`jea info`: what jea found on this machine. Compiles nothing and does not import Jittor."""
from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys

from jea import __version__, environment
from jea.commands.common import console
from jea.environment import machine, toolchain
from jea.environment.jittor_home import compiled_cache, core_is_compiled
from jea.errors import SetupError
from jea.files import find_config, jea_home


def collect() -> dict:
    """Everything that `jea info` shows, as plain values."""
    found = environment.prepare()
    cache = compiled_cache()
    try:
        toolchain.check()
        machine.check()
        complete = "complete"
    except SetupError as error:
        complete = str(error)
    info = {
        "jea": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "jittor": version("jittor"),
        "numpy": version("numpy"),
        "pillow": version("pillow"),
        "platform": platform.platform(),
        "cpu": f"{cpu_name()}, {os.cpu_count()} cores",
        "device": f"{found.device}: {found.device_reason}",
        "oneDNN": f"{found.onednn or 'missing'}: {found.onednn_reason}",
        "compiler": _compiler(),
        "toolchain": complete,
        "nvcc": _nvcc(found),
        **({"CUDA that fits the driver": found.fitting} if found.fitting else {}),
        **({"precision": _precision(found), "cuDNN's graphs": graphs()} if found.device == "cuda" else {}),
        "jittor cache": str(cache or "jittor is not installed"),
        "jittor core": "compiled" if cache and core_is_compiled(cache) else "compiled at the first use",
        "operators": operators(),
    }
    if found.notes:
        info["notes"] = found.notes
    return info


def operators() -> dict:
    """What each operator runs on the chosen device, and why, as the operators themselves say."""
    from jea.ops import support

    def describe(row) -> str:
        if os.environ.get("JEA_OPS") == "ref":
            return "reference: JEA_OPS=ref"
        if row.reason:
            return f"{row.instead}: {row.reason}"
        return f"fused: {'CUDA' if row.device == 'cuda' else 'CPU'} kernel, {', '.join(row.dtypes)}"
    return {row.operator: describe(row) for row in support()}


def graphs() -> str:
    """What the self-checks of the convolutions on cuDNN's graphs have said so far (jea/ops/convolution/cudnn)."""
    said = []
    for path in sorted((jea_home() / "convolutions").glob("*/verdicts.json")):
        try:
            tables = json.loads(path.read_text())
            verdicts = next((table for key, table in tables.items() if key.startswith(f"jea {__version__} ")), {})
            verdicts = {kind: verdict for kind, verdict in verdicts.items() if not verdict.startswith("begun ")}
            wrong = [f"{kind}: {verdict}" for kind, verdict in verdicts.items() if verdict != "right"]
        except (OSError, ValueError, AttributeError):
            continue
        said.append(f"{path.parent.name}: {len(verdicts) - len(wrong)} kinds of convolutions checked and right"
                    + "".join(f"; as Jittor's own: {one}" for one in wrong))
    return "; ".join(said) or "each kind of convolution is checked at its first use (`jea doctor --device cuda`)"


def _precision(found) -> str:
    if found.tf32_off:
        return "float32 stays float32: NVIDIA_TF32_OVERRIDE=0 (--tf32 lets convolutions round to TF32)"
    return f"NVIDIA_TF32_OVERRIDE={os.environ.get('NVIDIA_TF32_OVERRIDE', '')} set by the user"


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")),
                        platform.machine())
    except OSError:
        return platform.processor() or platform.machine()


def _compiler() -> str:
    path = shutil.which(os.environ.get("cc_path") or "g++")
    if not path:
        return "g++ not found"
    return f"{_first_line([path, '--version'])} ({path})"


def _nvcc(found) -> str:
    path = found.nvcc or shutil.which("nvcc")
    if not path:
        return "not found"
    used = "used" if found.device == "cuda" else "not used"
    lines = _output([path, "--version"]).splitlines()
    return f"{next((line for line in lines if 'release' in line), 'unknown version')} ({path}, {used})"


def _first_line(command) -> str:
    return (_output(command).splitlines() or ["unknown version"])[0]


def _output(command) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"does not run: {error}"


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="jea info", description="Show versions, device, oneDNN, compilers, caches "
                                     "and what each operator runs.", epilog="example: jea info --json")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    parser.add_argument("--formats", metavar="CONFIG", help="show instead the way of a config's network through the "
                        "activation formats: where it is converted, and why")
    return console.run("info", _info, parser.parse_args(argv))


def _formats(config: str) -> None:
    from jea import config as configs
    found = configs.load(find_config(config))
    from jea.models import create_model, ways
    print(ways.describe(create_model(**found["model"])))


def _info(arguments) -> None:
    if arguments.formats:
        return _formats(arguments.formats)
    info = collect()
    if arguments.json:
        print(json.dumps(info, indent=1))
        return
    for name, value in info.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, text in value.items():
                print(f"  {key:23}{text}")
        else:
            print(f"{name:14}{'; '.join(value) if isinstance(value, list) else value}")


if __name__ == "__main__":
    raise SystemExit(main())
