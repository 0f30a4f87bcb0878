"""What each family's encoder takes, made of a picture as the reference processors make it."""
