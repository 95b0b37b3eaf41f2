"""Side-by-side measurements of the steps and of what they are compared with: `make bench`, results in RESULTS.md."""
