"""The folder that holds compiled programs: manifest, read, write."""
