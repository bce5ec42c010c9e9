"""Look for data races in the compiled core: ``python tests/thread_sanitizer``.

Builds the extension modules with GCC's ThreadSanitizer in a temporary directory, with `openmp.c` in
place of libgomp, and runs `fits.py` and the walk of `test_core_matches_reference.py` on them. Exits
with 1 where it reports a race, or where it reports none in the race of ``fits.py race``: a
sanitizer that sees nothing proves nothing. Needs Linux and gcc with libtsan; takes eight minutes.
"""

import ctypes
import itertools
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FLAGS = ["-fsanitize=thread", "-O1", "-g"]
FOUND = 66  # the exit code of a run with a report
FIXED_ADDRESSES = 0x0040000  # ADDR_NO_RANDOMIZE: older runtimes know no other layout of memory


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def build(folder):
    for name in ("src", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        given = ROOT / name
        if given.is_dir():
            ignore = shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__")
            shutil.copytree(given, folder / name, ignore=ignore)
        else:
            shutil.copy(given, folder)
    compiler = os.environ.get("CC", "gcc")
    ours = folder / "openmp.o"
    hidden = ["-O1", "-g", "-fPIC", "-pthread", "-fvisibility=hidden"]
    output(*shlex.split(compiler), *hidden, "-c", str(HERE / "openmp.c"), "-o", str(ours))
    wrapper = folder / "cc"
    wrapper.write_text(
        "#!/bin/sh\n"
        f'case " $* " in *" -shared "*) set -- {ours} -Wl,--as-needed "$@" ;; esac\n'
        f'exec {compiler} "$@" {shlex.join(FLAGS)}\n'
    )
    wrapper.chmod(0o755)
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        check=True,
        cwd=folder,
        env={**os.environ, "CC": str(wrapper), "LDSHARED": f"{wrapper} -shared"},
    )
    modules = list((folder / "src/fastmtl/_core").glob("*.so"))
    for module in modules:
        for line in output("nm", "-D", "--undefined-only", str(module)).splitlines():
            if "GOMP_" in line or " omp_" in line:
                sys.exit(f"{module.name} needs{line.rsplit('U')[-1]}, which openmp.c has not")
    if not modules:
        sys.exit("nothing was built")


def run(folder, runtime, *arguments, simd=""):
    """The exit code of a run of Python, and what was reported."""
    report = folder / "report"
    libc = ctypes.CDLL(None)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder / "src"), str(HERE.parent)]),
        "LD_PRELOAD": runtime,
        "TSAN_OPTIONS": f"exitcode={FOUND} log_path={report} history_size=7 report_signal_unsafe=0",
        "FASTMTL_SIMD": simd,
        "OPENBLAS_NUM_THREADS": "1",  # not instrumented, nor are NumPy and SciPy
        "MKL_NUM_THREADS": "1",
    }
    finished = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        preexec_fn=lambda: libc.personality(FIXED_ADDRESSES),
    )
    text = ""
    for path in folder.glob("report.*"):
        text += path.read_text()
        path.unlink()
    return finished.returncode, text


def main():
    runtime = output(*shlex.split(os.environ.get("CC", "gcc")), "-print-file-name=libtsan.so")
    runtime = runtime.strip()
    if not os.path.isabs(runtime):
        sys.exit("gcc has no libtsan here; it comes with Debian's libtsan2, Fedora's libtsan")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("building the core with -fsanitize=thread", flush=True)
        build(folder)
        code, text = run(folder, runtime, str(HERE / "fits.py"), "race")
        if code != FOUND or "shuffle_pools" not in text:
            sys.exit(f"the race of fits.py was not reported (exit code {code})\n{text}")
        print("the race made on purpose is reported", flush=True)
        walk = ["-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"]
        walk += ["-c", str(ROOT / "pyproject.toml"), "-k", "test_compiled_equals_reference"]
        walk += [str(HERE.parent / "test_core_matches_reference.py")]
        failed = False
        # The sanitizer sees ordinary loads and stores only; masked ones of AVX-512 are none.
        for simd, arguments in itertools.product(("", "base"), ([str(HERE / "fits.py")], walk)):
            code, text = run(folder, runtime, *arguments, simd=simd)
            print(text or ("failed" if code else "no data race"), flush=True)
            failed |= bool(code or text)
    sys.exit(failed)


if __name__ == "__main__":
    main()
