"""A tour of a running gateway with the clients that people use; `python -m tests.tour` prints what passed."""
