"""The services of a cell, one package each; none imports another."""
