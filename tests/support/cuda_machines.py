"""Toolkits and wheels of CUDA as folders: names and a few lines of text, enough for whoever looks for them."""

HEADERS_13 = {"toolkit": ("cuda_runtime.h", "crt/host_config.h", "cccl/cub/cub.cuh", "cccl/cub/util.cuh",
                          "cccl/thrust/a.h"),
              "wheels": ("cublas_v2.h", "curand.h", "cufft.h", "cusparse.h")}
LIBRARIES_13 = {"toolkit": ("libcudart.so.13", "libcudadevrt.a"),
                "wheels": ("libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10", "libcufft.so.12",
                           "libcusparse.so.12", "libnvJitLink.so.13", "libnvrtc.so.13")}


def fill(folder, headers=(), libraries=(), lib="lib"):
    for path in [folder / "include" / name for name in headers] + [folder / lib / name for name in libraries]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"// {path.name}\n")
    return folder


def make_toolkit(folder, version, headers=(), libraries=()):
    """A folder whose bin/nvcc answers as NVIDIA's does."""
    fill(folder, headers, libraries, "lib64")
    (folder / "bin").mkdir(parents=True)
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text(f"""#!/bin/sh
case "$*" in
  *--version*) echo 'Cuda compilation tools, release {version}, V{version}.88' ;;
  *--dryrun*) echo '#$ TOP={folder}/bin/..' >&2 ;;
  *) echo "$@" ;;
esac
""")
    nvcc.chmod(0o755)
    (folder / "nvvm" / "bin").mkdir(parents=True)
    (folder / "nvvm" / "bin" / "cicc").touch()
    return str(nvcc)


HEADERS_12 = ("cuda_runtime.h", "crt/host_config.h", "cub/cub.cuh", "cub/util.cuh", "cublas_v2.h", "curand.h",
              "cufft.h", "cusparse.h")
LIBRARIES_12 = ("libcudart.so.12", "libcublas.so.12", "libcublasLt.so.12", "libcurand.so.10", "libcufft.so.11",
                "libcusparse.so.12", "libnvJitLink.so.12", "libnvrtc.so.12", "libcudadevrt.a")


def make_wheels(folder, cudnn="9", nccl=True):
    """site-packages/nvidia as NVIDIA's CUDA 13 wheels fill it."""
    fill(folder / "cu13", HEADERS_13["wheels"], LIBRARIES_13["wheels"])
    parts = ("", "_ops", "_cnn") if cudnn == "9" else ("", "_ops_infer", "_cnn_infer")
    fill(folder / "cudnn", ("cudnn.h", "cudnn_version.h"), [f"libcudnn{part}.so.{cudnn}" for part in parts])
    (folder / "cudnn/include/cudnn_version.h").write_text(f"#define CUDNN_MAJOR {cudnn}\n#define CUDNN_MINOR 19\n")
    if nccl:
        fill(folder / "nccl", ("nccl.h",), ("libnccl.so.2",))
    return sorted(folder.iterdir())
