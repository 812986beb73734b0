"""Container images of ``llama-diffusion-cli`` for every CUDA architecture."""
