"""The engine on transformers."""
