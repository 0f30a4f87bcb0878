"""LoRA adapters in PEFT's format: read, fitted to an artifact's slots, merged into a model."""
