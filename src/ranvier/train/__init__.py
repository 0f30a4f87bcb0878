"""Training of draft heads: data, features on disk, the loss, the loop."""
