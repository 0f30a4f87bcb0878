"""Model families as data: a spec, a table, one resolver each."""
