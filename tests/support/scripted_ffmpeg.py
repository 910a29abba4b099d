"""A program `ffmpeg` for tests, whose videos are files of raw frames after the line "CLIP width height rate"."""
from __future__ import annotations

import stat
import sys

FAKE = """#!{python}
# Videos are files of raw frames after the line "CLIP width height rate".
import sys
arguments = sys.argv[1:]
if "pipe:0" in arguments:
    size, rate = (arguments[arguments.index(option) + 1] for option in ("-s", "-r"))
    if size == "4x4":
        sys.exit("Unknown encoder")
    assert arguments[-1].startswith("file:") and arguments[arguments.index("-f", arguments.index("-i")) + 1] == "mp4"
    with open(arguments[-1][5:], "wb") as made:
        made.write(f"CLIP {{size.replace('x', ' ')}} {{rate}}\\n".encode())
        while True:
            data = sys.stdin.buffer.read(1 << 16)
            if not data:
                sys.exit()
            made.write(data)
assert arguments[arguments.index("-protocol_whitelist") + 1] == "file"
name = arguments[arguments.index("-i") + 1]
with open(name[5:], "rb") as clip:
    words = clip.readline().split()
    if not words or words[0] != b"CLIP":
        sys.exit(f"{{name}}: Invalid data found when processing input\\n")
    width, height, rate = (word.decode() for word in words[1:4])
    if "yuv4mpegpipe" in arguments:
        print("  Duration: 00:00:02.00, start: 0.000000", file=sys.stderr)
        print(f"YUV4MPEG2 W{{width}} H{{height}} F{{rate.replace('/', ':')}} Ip A1:1")
    else:
        sys.stdout.buffer.write(clip.read())
        sys.stdout.flush()
        if b"BROKEN" in words:
            sys.exit("corrupt input packet")
"""


def install(folder, monkeypatch) -> None:
    """Put it first on the PATH."""
    folder.mkdir()
    (folder / "ffmpeg").write_text(FAKE.format(python=sys.executable))
    (folder / "ffmpeg").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def clip(path, frames, rate="30000/1001", more=""):
    """Write a video of frames (N, H, W, 3); returns its path."""
    path.write_bytes(f"CLIP {frames.shape[2]} {frames.shape[1]} {rate} {more}\n".encode() + frames.tobytes())
    return path
