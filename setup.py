"""Builds cxrl._C with CMake. Everything else about the package is in pyproject.toml.

Environment: CXRL_SKIP_EXTENSION=1 installs without it (the ops run on their PyTorch reference),
CXRL_CUDA=AUTO|ON|OFF says whether to build the CUDA kernels, CMAKE_ARGS is passed on, MAX_JOBS limits the
parallel compilations.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
SKIP_HINT = "CXRL_SKIP_EXTENSION=1 installs cxrl without the extension: everything runs, on plain PyTorch"


class CMakeExtension(Extension):
    """An extension whose sources CMakeLists.txt knows."""

    def __init__(self, name: str) -> None:
        super().__init__(name, sources=[])


class CMakeBuild(build_ext):
    """Configures and builds the extension in build_temp and leaves the module where setuptools wants it."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve() / ext.name
        build.mkdir(parents=True, exist_ok=True)
        mode = os.environ.get("CXRL_CUDA", "AUTO").upper()
        if mode not in ("AUTO", "ON", "OFF"):
            raise SystemExit(f"error: CXRL_CUDA={mode}; expected AUTO, ON or OFF")
        configure = [
            "cmake",
            str(ROOT),
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCXRL_CUDA={mode}",
        ]
        if shutil.which("ninja"):
            configure.append("-GNinja")
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        jobs = str(self.parallel or os.environ.get("MAX_JOBS") or os.cpu_count())
        try:
            subprocess.run(configure, cwd=build, check=True)
            subprocess.run(["cmake", "--build", ".", "-j", jobs], cwd=build, check=True)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            raise SystemExit(
                f"error: building cxrl._C failed ({error}). It needs CMake and a C++17 compiler (g++ or "
                f"clang++) on PATH; CXRL_CUDA=OFF leaves the CUDA kernels out. {SKIP_HINT}."
            ) from error


skip = os.environ.get("CXRL_SKIP_EXTENSION", "0") not in ("", "0")
setup(
    ext_modules=[] if skip else [CMakeExtension("cxrl._C")],
    cmdclass={"build_ext": CMakeBuild},
)
