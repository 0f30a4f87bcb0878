"""LoRA adapters on the host: names, contents, loads, and which folders they may come from."""
