"""Compile the kernels of one operator for a Hopper GPU, which needs none; run by test_triton.py.

Prints the shared memory that each takes.
"""

import sys
from importlib import import_module

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGET = GPUTarget("cuda", 90, 32)
COMPUTE = {"COMPUTE": tl.float32}
PRODUCTS = {**COMPUTE, "CHUNK": 64, "P": 64, "N": 64, "FACTOR": tl.bfloat16, "PRECISION": "ieee"}
SIZES = {
    "causal_conv": {**COMPUTE, "W": 3, "TOKENS": 64, "CHANNELS": 64},
    "selective_scan": {**COMPUTE, "TOKENS": 16, "CHANNELS": 16, "STATES": 16},
    "ssd": PRODUCTS,
}
KERNELS = {
    "causal_conv": {"triton_kernels": ["forward", "backward"]},
    "selective_scan": {"triton_kernels": ["forward", "backward"]},
    "ssd": {
        "triton_kernels": ["carry", "read"],
        "triton_backward": ["write_values", "write_keys"],
    },
}
INTEGERS = {"mark_ptr": "*i32", "source_ptr": "*i32", "target_ptr": "*i32"}
WIDE = ("dt_ptr", "A_ptr", "D_ptr", "last_ptr", "border_ptr", "partial_ptr", "state_ptr")
"""Pointers to float32; the others point to bfloat16."""


def build(kernel: triton.JITFunction, sizes: dict[str, object]) -> str:
    """Compile one kernel; return what it takes of a multiprocessor."""
    signature, constants = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in sizes or name == "BACKWARDS":
            signature[name] = "constexpr"
            constants[(index,)] = sizes.get(name, True)
        elif name.endswith("_ptr"):
            of_sums = name.startswith("grad_") and name not in ("grad_ptr", "grad_x_ptr")
            wide = "*fp32" if name in WIDE or of_sums else "*bf16"
            signature[name] = INTEGERS.get(name, wide)
        else:
            signature[name] = "i32"
    source = ASTSource(kernel, signature, constants)
    built = triton.compile(source, target=TARGET, options={"num_warps": 8})
    return f"{kernel.__name__}: {built.metadata.shared} bytes of shared memory"


if __name__ == "__main__":
    operator = sys.argv[1]
    for module, names in KERNELS[operator].items():
        kernels = import_module(f"hybridize.ops.{operator}.{module}")
        for name in names:
            sys.stdout.write(build(getattr(kernels, name), SIZES[operator]) + "\n")
