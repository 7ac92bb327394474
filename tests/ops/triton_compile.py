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
    "gated_delta_rule": {**PRODUCTS, "N": 32},
}
KERNELS = {
    "causal_conv": {"triton_kernels": ["forward", "backward"]},
    "selective_scan": {"triton_kernels": ["forward", "backward"]},
    "ssd": {
        "triton_kernels": ["carry", "read"],
        "triton_backward": ["write_values", "write_keys"],
    },
    "gated_delta_rule": {
        "triton_kernels": ["invert", "carry", "read"],
        "triton_backward": ["pull", "carry_back", "write_keys"],
    },
}
INTEGERS = {"mark_ptr": "*i32", "source_ptr": "*i32", "target_ptr": "*i32"}
WIDE = ("dt_ptr", "A_ptr", "D_ptr", "last_ptr", "border_ptr", "partial_ptr", "state_ptr")
WIDE += ("g_ptr", "beta_ptr", "pulled_ptr")
"""Pointers to float32; the others point to bfloat16."""
NARROW = ("grad_ptr", "grad_x_ptr", "grad_v_ptr", "grad_missing_ptr")


def build(operator: str, kernel: triton.JITFunction) -> str:
    """Compile one kernel; return what it takes of a multiprocessor."""
    signature, constants, sizes = {}, {}, SIZES[operator]
    for index, name in enumerate(kernel.arg_names):
        if name in sizes or name == "BACKWARDS":
            signature[name] = "constexpr"
            constants[(index,)] = sizes.get(name, True)
            if operator == "gated_delta_rule" and kernel.__name__.startswith("carry"):
                constants[(index,)] = {"P": 32, "N": 128}.get(name, sizes[name])
        elif name.endswith("_ptr"):
            of_sums = name.startswith("grad_") and name not in NARROW
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
            sys.stdout.write(build(operator, getattr(kernels, name)) + "\n")
