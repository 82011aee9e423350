"""What runs on a device: load a bundle, generate from it. Needs numpy, tokenizers and one backend."""
