"""The architectures of llama.cpp that compute our models, by name."""

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
