"""Where Jittor keeps what it compiles."""
from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def jittor_home() -> Path:
    """The folder that holds .cache/jittor: $JITTOR_HOME, else the last one that Jittor recorded, else the home."""
    if os.environ.get("JITTOR_HOME"):
        return Path(os.path.abspath(os.environ["JITTOR_HOME"]))
    recorded = _read_home_record().get("JITTOR_HOME")
    return Path(recorded) if recorded else Path.home()


def jittor_cache() -> Path:
    """The folder that holds all that Jittor compiles."""
    return jittor_home() / ".cache" / "jittor"


def _home_record() -> Path:
    return Path.home() / ".cache" / "jittor" / "config.json"


def _read_home_record() -> dict:
    # Another process may be in the middle of Jittor's non-atomic write: look again before calling it broken.
    for _ in range(20):
        try:
            data = json.loads(_home_record().read_text())
            return data if isinstance(data, dict) else {}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError):
            time.sleep(0.05)
    return {}


def mend_record() -> None:
    """Write Jittor's record of its home atomically, so that Jittor finds it as it wants it and does not write.

    Jittor writes it in place: two processes with different homes have read it half-written and died.
    """
    path, home = _home_record(), str(jittor_home())
    try:
        current = json.loads(path.read_text()) if path.exists() else {}
        if isinstance(current, dict) and current.get("JITTOR_HOME", str(Path.home())) == home:
            return
    except (OSError, ValueError):
        pass
    record = dict(_read_home_record(), JITTOR_HOME=home)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(record))
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # a read-only home: Jittor will say so itself


def compiled_cache() -> Path | None:
    """Jittor's cache folder for this compiler, Python and machine, or None where Jittor is not installed."""
    limit = sys.getrecursionlimit()
    try:
        import jittor_utils  # small: finds the compiler and the folder, compiles nothing
    except (ImportError, RuntimeError, OSError):
        return None
    finally:
        sys.setrecursionlimit(limit)
    return Path(jittor_utils.cache_path)


def core_is_compiled(folder: Path) -> bool:
    return any(folder.glob("jittor_core*.so")) or any(folder.glob("cu*/jittor_core*.so"))
