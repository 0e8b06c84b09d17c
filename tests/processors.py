"""Run the numerical tests with the kernels of other processors: ``make test-processors``.

numpy, PyTorch and MKL choose their kernels by the processor, and every kernel takes its sums in an order of its own. A
test that holds on one processor alone is wrong, or what it tests is. These variables choose the kernels instead. Where
a processor cannot run them, or computes the same bits with them as with kernels that were tried before, that is said,
and nothing is run.
"""

import os
import re
import subprocess
import sys

NUMPY, ATEN, MKL, MKL_ORDER = "OPENBLAS_CORETYPE", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR"
CHOICES = (
    {},
    {MKL: "AVX2"},
    {MKL: "SSE4_2"},
    {MKL_ORDER: "COMPATIBLE"},
    {ATEN: "avx2"},
    {ATEN: "default"},
    {NUMPY: "Haswell"},
    {NUMPY: "SkylakeX"},
    {NUMPY: "Nehalem"},
    {MKL: "AVX2", ATEN: "avx2", NUMPY: "Haswell"},
    {MKL: "AVX2", ATEN: "default", NUMPY: "SkylakeX"},
    {MKL: "SSE4_2", MKL_ORDER: "COMPATIBLE", ATEN: "avx2", NUMPY: "Nehalem"},
    {MKL: "SSE4_2", MKL_ORDER: "COMPATIBLE", ATEN: "default", NUMPY: "Nehalem"},
)
PROBE = """
import hashlib, numpy, torch
a, b = (numpy.random.default_rng(seed).standard_normal((61, 61)) for seed in (0, 1))
A, B = torch.from_numpy(a), torch.from_numpy(b)
results = [m @ n for m, n in ((a, b), (A, B), (A.float(), B.float()))] + [A.float().exp(), A.float().square().sum(1)]
print(hashlib.sha256(b"".join(numpy.asarray(result).tobytes() for result in results)).hexdigest())
"""


def main() -> None:
    """Print what became of each choice; exit with 1 if a test failed under any."""
    tried: dict[str, str] = {}
    failed = False
    for choice in CHOICES:
        name = " ".join(f"{variable}={value}" for variable, value in choice.items()) or "the processor's own"
        environment = {**os.environ, **choice}
        probe = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True)
        bits = probe.stdout.strip()
        if probe.returncode:
            print(f"{name}: this processor cannot run them", flush=True)
        elif bits in tried:
            print(f"{name}: the bits of {tried[bits]}", flush=True)
        else:
            tried[bits] = name
            summary, passed = _run(environment)
            print(f"{name}: {summary}", flush=True)
            failed |= not passed
    sys.exit(failed)


def _run(environment: dict[str, str]) -> tuple[str, bool]:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "numerical", "-n", "auto", "--dist", "worksteal"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    failures = re.findall(r"^(?:FAILED|ERROR) .*", done.stdout, flags=re.MULTILINE)
    return "\n    ".join([done.stdout.strip().splitlines()[-1], *failures]), done.returncode == 0


if __name__ == "__main__":
    main()
