"""What the commands that examine print: plans, pictures, machines, accuracy."""
