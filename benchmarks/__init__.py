"""One script a figure or table; results lie under benchmarks/results/."""
