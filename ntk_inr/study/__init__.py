"""Studies: compare variants on a task, keep the results, and report them."""
