"""``python -m llama_images`` is ``llama-images``."""

from __future__ import annotations

from llama_images.cli import main

if __name__ == "__main__":
    main()
