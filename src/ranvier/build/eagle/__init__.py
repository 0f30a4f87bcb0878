"""Draft heads: packing them, and the programs that their training needs of the target."""
