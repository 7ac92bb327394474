"""What llama.cpp knows our models by: architectures, and the types weights are quantised to."""

HYBRID = "granitehybrid"
"""Of mamba2 students."""
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "granite": "granite",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}
"""Family of an all-attention model -> llama.cpp's architecture."""
INTERLEAVED = (HYBRID, "llama", "granite")
"""Architectures that turn neighbouring channels of a head together, and take `rope_freqs`."""
WRITTEN_QUANTS = {
    "q8_0": "Q8_0",
    "q5_1": "Q5_1",
    "q5_0": "Q5_0",
    "q4_1": "Q4_1",
    "q4_0": "Q4_0",
}
"""Type that weights are quantised to -> llama.cpp's name; the package gguf can make these."""
MADE_QUANTS = {
    "q6_k": "Q6_K",
    "q5_k_m": "Q5_K_M",
    "q5_k_s": "Q5_K_S",
    "q4_k_m": "Q4_K_M",
    "q4_k_s": "Q4_K_S",
    "q3_k_m": "Q3_K_M",
    "q2_k": "Q2_K",
}
"""The same for mixtures that only llama.cpp's own `llama-quantize` makes."""
QUANTS = (*WRITTEN_QUANTS, *MADE_QUANTS)
"""All of them, the finest of each kind first."""
FINE = "Q8_0"
"""Type of the matrices that are kept."""
KEPT_FINE = ("token_embd", "output", "attn_q", "attn_k", "attn_v", "attn_output")
"""Matrices that stay `FINE` in every smaller type, by llama.cpp's name for them inside a layer; see
docs/quantization.md for what that costs and saves."""
