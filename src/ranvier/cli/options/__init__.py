"""Options: their fields, where their values come from, the flags made of them."""
